import numpy as np
import pytest
from pydantic import ValidationError
from tiny_models import tiny_clip

from hive_ray.config import JUDGES, Scoring
from hive_ray.images import encode
from hive_ray.reward.judges import (
    CLIP_MEASURES,
    CallableScorer,
    ClipScorer,
    combine_rewards,
    judge_source_code,
    make_judge,
)
from hive_ray.similarity import Similarity


def brightness(rows):
    """A judge of one's own."""
    return [len(row["instruction"]) for row in rows]


def one_for_all(rows):
    return [1.0]


def no_number(rows):
    return [float("nan") for _ in rows]


def pairs(number: int = 3) -> list[dict]:
    rng = np.random.default_rng(0)
    pictures = [encode(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(number + 1)]
    return [
        {
            "pair_id": str(place), "instruction": "add a hat"[:place], "source_image": pictures[0],
            "edited_image": pictures[1 + place], "source_caption": "a cat", "edited_caption": "a cat with a hat",
        }
        for place in range(number)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return tiny_clip(tmp_path_factory.mktemp("clip"))


def test_clips_reward_is_direction_image_or_their_sum(clip):
    rows = pairs()
    columns = ("source_image", "edited_image", "source_caption", "edited_caption")
    measured = Similarity(clip).measure(*([row[name] for row in rows] for name in columns))
    rewards = {name: np.array([row["reward"] for row in ClipScorer(clip, name)(rows)]) for name in CLIP_MEASURES}
    np.testing.assert_allclose(rewards["clip_direction"], measured["clip_direction"])
    np.testing.assert_allclose(rewards["clip_image"], measured["clip_image"])
    np.testing.assert_allclose(rewards["clip"], rewards["clip_direction"] + rewards["clip_image"], rtol=1e-6)


def test_a_callable_is_found_by_its_name_and_its_rewards_are_checked():
    rows = pairs()
    assert [row["reward"] for row in CallableScorer(f"{__name__}:brightness")(rows)] == [0, 1, 2]
    for name in ("one_for_all", "no_number"):
        with pytest.raises(ValueError, match="one finite number for each"):
            CallableScorer(f"{__name__}:{name}")(rows)
    with pytest.raises(ValueError, match="cannot be imported"):
        CallableScorer("no.such.module:judge")
    assert b"A judge of one's own" in judge_source_code(f"{__name__}:brightness")


def test_every_name_in_the_settings_has_its_judge(clip, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "test")
    settings = Scoring(clip=str(clip))
    made = {
        name: type(make_judge(name, settings, load_model=object, answers_folder=str(tmp_path))).__name__
        for name in JUDGES
    }
    assert made == dict.fromkeys(CLIP_MEASURES, "ClipScorer") | {"openai": "VisionScorer", "model": "RewardScorer"}


def test_several_judges_are_standardised_then_averaged_or_the_least_counts():
    rewards = np.array([[0.0, 2.0, 4.0], [30.0, 10.0, 20.0], [5.0, 5.0, 5.0]])
    one = 1.5**0.5  # of three equally spaced values, the outer ones in deviations
    np.testing.assert_allclose(combine_rewards(rewards, "mean"), [0, -one / 3, one / 3], atol=1e-12)
    np.testing.assert_allclose(combine_rewards(rewards, "min"), [-one, -one, 0], atol=1e-12)
    rewards[2] = 0.1  # whose mean is 0.10000000000000002
    np.testing.assert_allclose(combine_rewards(rewards, "min"), [-one, -one, 0], atol=1e-12)


def test_a_judge_that_nobody_knows_or_that_stands_twice_is_refused():
    assert Scoring(judges=("clip", "my.module:judge")).judges == ("clip", "my.module:judge")
    for judges in (("clipp",), ("clip", "clip"), ()):
        with pytest.raises(ValidationError):
            Scoring(judges=judges)
