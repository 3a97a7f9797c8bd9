"""What the learning curve says of models, with no cluster; the cluster's side is in test_pipeline.py."""

import re

import pytest

from hive_ray.artifacts.manifest import fingerprint_of
from hive_ray.config import LearningCurve
from hive_ray.presets import shapes
from hive_ray.reward.accuracies import ACCURACY, RANKING_ACCURACY
from jobs.reward_curve import curve, draw

PROMPTS = [str(place) for place in range(30)]


def counts(right: int) -> dict:
    """So many of ten preferences are right in each prompt, as held_out.json gives them back."""
    return {
        ACCURACY: {prompt: [right, 10] for prompt in PROMPTS},
        RANKING_ACCURACY: {prompt: [0, 1] for prompt in PROMPTS},
    }


def card(rankings: int, right: int) -> dict:
    share = {"value": right / 10, "low": right / 10 - 0.1, "high": right / 10 + 0.1}
    bounds = {ACCURACY: share, RANKING_ACCURACY: share}
    return {
        "train_rankings": rankings, "train_prompts": rankings, "held_out_prompts": 30, "held_out_rankings": 30,
        "held_out": {"intervals": bounds}, "held_out_before_training": {"intervals": bounds},
        "beside": {"clip": {"intervals": bounds}},
    }  # fmt: skip


def found(*rights: int) -> dict:
    cards = [card(10 * 2**place, right) for place, right in enumerate(rights)]
    return curve([0.1 * 2**place for place in range(len(rights))], cards, [counts(right) for right in rights])


def test_more_rankings_help_only_where_the_paired_interval_says_so():
    assert found(5, 6, 8)["finding"].startswith("more rankings help: accuracy 0.80 of 40 rankings, 0.50 of 10 (")
    assert found(8, 6)["finding"].startswith("more rankings do harm: accuracy 0.60 of 20 rankings, 0.80 of 10")
    assert found(6, 6)["finding"].startswith("that more rankings help cannot be told from chance: ")
    assert found(6)["finding"] == "one model, of 10 rankings: nothing to compare it with"


def test_the_curve_is_drawn_over_rankings_with_the_other_judges_as_levels():
    said = found(5, 6, 8)
    assert [point["most_minus_this"][ACCURACY]["value"] for point in said["points"]] == pytest.approx([0.3, 0.2, 0])
    drawn = draw(said)
    assert 'aria-label="held-out preferences right by rankings learned from: reward model"' in drawn
    legend = re.findall(r">(reward model|reward model before training|CLIP direction \+ image)<", drawn)
    assert legend == ["reward model", "reward model before training", "CLIP direction + image"]


def test_nobody_can_be_right_where_all_edits_tie():
    with pytest.raises(ValueError, match="30 held-out rankings tie"):
        curve([1.0], [card(10, 5)], [{ACCURACY: {}, RANKING_ACCURACY: {}}])


@pytest.mark.parametrize("shares", [(0.5, 0.1), (0.5, 0.5), (0.0, 1.0), (0.5, 1.5)])
def test_shares_ascend_from_above_none_to_all(shares):
    with pytest.raises(ValueError, match=r"reward\.curve\.shares is .*ascending"):
        LearningCurve(shares=shares)


def test_the_shares_of_a_curve_change_no_reward_model():
    reward = shapes().reward
    changed = reward.model_copy(update={"curve": LearningCurve(shares=(0.5,))})
    assert fingerprint_of(changed) == fingerprint_of(reward)
