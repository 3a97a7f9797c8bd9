"""The card of a reward model, as this program and earlier ones write it."""

import json
from pathlib import Path

import pytest

from hive_ray.files.model_folders import ModelFolderError
from hive_ray.reward.card import RewardCard, read_reward_card
from hive_ray.statistics.intervals import Interval

BOUNDS = {"value": 0.75, "low": 0.5, "high": 1.0}
MEASURES = {"reward/accuracy": 0.75, "intervals": {"reward/accuracy": BOUNDS}}


def written(folder: Path, content: dict) -> str:
    (folder / "card.json").write_text(json.dumps(content))
    return str(folder)


def test_what_is_written_is_read_and_holds_what_is_known_and_the_version(tmp_path):
    content = {
        "train_rankings": 3, "cost": {"network_evaluations": 12}, "held_out": MEASURES, "noticed": {"swapped": BOUNDS},
        "calibration": [{"predicted": 0.75, "observed": 0.5, "preferences": 4}], "warning": "", "remarks": ["weak"],
    }  # fmt: skip
    card = RewardCard.model_validate(content)
    assert card.to_json() == content | {"format_version": 1}
    assert read_reward_card(written(tmp_path, card.to_json())) == card
    assert card.noticed == {"swapped": Interval(0.75, 0.5, 1.0)}


def test_early_cards_are_read(tmp_path):
    card = read_reward_card(written(tmp_path, {"warning": "w", "clip": MEASURES, "noticed": {"swapped": 0.5}}))
    assert card.beside == {"clip": MEASURES}
    assert (card.noticed, card.format_version, card.held_out) == ({"swapped": 0.5}, 1, {})


def test_a_model_without_a_card_is_not_finished(tmp_path):
    assert read_reward_card(str(tmp_path)) is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"format_version": 2}, "format_version 2, this program reads up to 1"),
        ({"train_rankings": "many"}, "is not the card of a reward model"),
    ],
)
def test_other_cards_are_refused_in_words(tmp_path, content, words):
    with pytest.raises(ModelFolderError, match=words):
        read_reward_card(written(tmp_path, content))
