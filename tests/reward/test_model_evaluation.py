import numpy as np
import pytest
import torch

from hive_ray.config import Reward, Training
from hive_ray.images import decode, encode
from hive_ray.reward.accuracies import Predictions, accuracies, accuracy_differences
from hive_ray.reward.model_evaluation import (
    accuracies_by_kind,
    calibration,
    calibration_error,
    evaluation_card,
    remarks,
)
from hive_ray.reward.predictors import (
    clear_preferences,
    measurable_rows,
    measure_edits,
    predict_by_scoring,
    predictions_by_people,
)
from hive_ray.reward.probes import PROBES, run_probes
from hive_ray.statistics.intervals import Interval


def settings(**changed) -> Reward:
    workers = {"num_gpus": 0}
    training = Training(
        total_images=8, batch_size=4, micro_batch_size=4, learning_rate=1e-3, checkpoint_images=8, workers=workers
    )
    return Reward(training=training, **changed)


def square(level: int, spot: int | None = None) -> bytes:
    """A grey picture, with a spot of another level in its corner."""
    pixels = np.full((16, 16, 3), level, dtype=np.uint8)
    if spot is not None:
        pixels[:4, :4] = spot
    return encode(pixels)


def ranking(prompt_id: str, ranks: list[int], instruction: str = "", level: int = 100) -> dict:
    """A prompt whose best edit puts a bright spot on a grey ground; the others are blacker the worse they are."""
    return {
        "prompt_id": prompt_id, "instruction": instruction or prompt_id, "source_image": square(level), "ranks": ranks,
        "edits": [
            {"edit_id": f"{prompt_id}{place}", "image": square(level, 255 if rank == 1 else 60 // rank)}
            for place, rank in enumerate(ranks)
        ],
    }  # fmt: skip


class Model:
    """A reward by hand of pictures and instruction."""

    resolution = 16

    def __init__(self, reward):
        self.reward = reward

    def score(self, source_images, edited_images, instructions):
        pictures = zip(map(decode, source_images), map(decode, edited_images), instructions, strict=True)
        return [float(self.reward(source.astype(int), edited.astype(int), words)) for source, edited, words in pictures]


def among_people(rows) -> dict:
    """Both accuracies of what people foretell of each other, without intervals."""
    found = {name: accuracies(one) for name, one in predictions_by_people(rows).items()}
    return {name: {key: one[key] for key in one if key != "intervals"} for name, one in found.items()}


def test_people_foretell_each_other_as_well_as_they_agree():
    rows = [ranking("a", [1, 2, 3]), ranking("a", [1, 3, 2]), ranking("b", [2, 1])]  # b has one person alone
    found = among_people(rows)
    assert found["another_person"] == {"reward/accuracy": pytest.approx(2 / 3), "reward/ranking_accuracy": 0}
    assert found["another_person"] == found["all_others"]  # of two people there is one other
    assert among_people(rows[1:]) == {}


def test_all_others_together_know_more_than_one_of_them():
    rows = [ranking("a", ranks) for ranks in ([1, 2, 3], [2, 1, 3], [1, 3, 2], [1, 2, 3])] + [
        ranking("b", ranks) for ranks in ([1, 2], [1, 2])
    ]
    found = among_people(rows)
    # Of a's 36 foretold preferences 24 are right (agreements 2, 2, 3, 1, 2, 2 of 3, both ways), of b's 2 both are.
    assert found["another_person"]["reward/accuracy"] == pytest.approx(26 / 38)
    # The others' ranks add up to 4, 6, 8 (for the first and the last person), 3, 7, 8 (second), 4, 5, 9 (third).
    assert found["all_others"]["reward/accuracy"] == pytest.approx((3 + 2 + 2 + 3 + 2) / 14)
    assert found["all_others"]["reward/ranking_accuracy"] == pytest.approx(4 / 6)


def test_a_tie_foretells_half_of_a_preference():
    assert among_people([ranking("a", [1, 1]), ranking("a", [1, 2])])["all_others"]["reward/accuracy"] == 0.5


def test_a_preference_is_shared_by_two_people_or_more_whom_nobody_contradicts():
    orders = [("a", [1, 2, 3]), ("b", [1, 2]), ("a", [1, 3, 2]), ("a", [1, 1, 2]), ("b", [1, 1]), ("c", [1, 2])]
    rows = [ranking(prompt, ranks) for prompt, ranks in [*orders, ("c", [1, 2])]]
    rewards_of = {"a": [2.0, 1.0, 3.0], "b": [1.0, 0.0, 9.0], "c": [5.0, 4.0, 9.0]}
    rewards = torch.tensor([rewards_of[row["prompt_id"]] for row in rows])
    ranks = torch.tensor([[*row["ranks"], 0][:3] for row in rows])
    ours = Predictions(rewards, ranks, [row["prompt_id"] for row in rows])
    found = clear_preferences(ours, rows)
    # Of a's edits the first is above both others, which people order both ways; b's preference is one person's.
    assert found.prompts == ["a", "a", "c"]
    assert found.rewards.tolist() == [[2.0, 1.0], [2.0, 3.0], [5.0, 4.0]]
    said = evaluation_card(ours, ours, {}, {}, rows, settings())["shared"]
    assert (said["reward/accuracy"], said["preferences"]) == (pytest.approx(2 / 3), 3)
    alone = ours.select([0, 1])
    assert clear_preferences(alone, rows[:2]) is None
    assert evaluation_card(alone, alone, {}, {}, rows[:2], settings())["shared"] == {}


def test_accuracy_by_kind_of_edit_goes_by_the_first_word():
    rewards, ranks = torch.tensor([[1.0, 0.0]] * 6 + [[0.0, 1.0]] * 9), torch.tensor([[1, 2]] * 15)
    found = accuracies_by_kind(
        Predictions(rewards, ranks, [str(place) for place in range(15)]),
        ["Add a hat"] * 5 + ["turn it red"] * 6 + ["remove it"] * 4,
    )
    assert {kind: (one["reward/accuracy"], one["rankings"]) for kind, one in found.items()} == {
        "turn": (pytest.approx(1 / 6), 6),
        "add": (1, 5),
    }


def test_a_judge_of_pairs_scores_every_edit_of_a_ranking():
    def measured(rows):
        return {"reward": [int(decode(row["edited_image"])[0, 0, 0]) + len(row["instruction"]) for row in rows]}

    rewards = measure_edits(measured, [ranking("abc", [2, 1, 3]), ranking("d", [1, 2])])["reward"]
    assert rewards.tolist() == [[33, 258, 23], [256, 31, 0]]


def test_a_reward_model_of_any_kind_scores_every_edit_of_a_ranking():
    rows = [ranking("abc", [2, 1, 3]), ranking("d", [1, 2])]
    found = predict_by_scoring(Model(lambda source, edited, words: edited[0, 0, 0] + len(words)), rows)
    assert found.rewards.tolist() == [[33, 258, 23], [256, 31, 0]]
    assert found.ranks.tolist() == [[2, 1, 3], [1, 2, 0]]
    assert found.prompts == ["abc", "d"]


def test_predicted_and_observed_preferences_are_compared_in_bins():
    # Margins of 0, 1 and 3: sure by 0.5, 0.731 and 0.953. The one of 1 is wrong, the one of 0 half right.
    rewards, ranks = torch.tensor([[1.0, 1.0], [0.0, 1.0], [3.0, 0.0]]), torch.tensor([[1, 2]] * 3)
    bins = calibration(rewards, ranks, settings())
    assert [one["observed"] for one in bins] == [0.5, 0, 1]
    assert [one["predicted"] for one in bins] == pytest.approx([0.5, 1 / (1 + np.e**-1), 1 / (1 + np.e**-3)])
    assert calibration_error(bins) == pytest.approx((0 + 0.731 + 0.047) / 3, abs=1e-3)
    assert calibration(2 * rewards, ranks, settings(temperature=2.0)) == bins
    assert calibration(rewards, torch.ones(3, 2, dtype=torch.long), settings()) == []
    assert calibration_error([]) == 0


def test_with_ties_in_the_model_a_preference_is_predicted_among_those_that_do_not_tie():
    rewards, ranks = torch.tensor([[1.0, 0.0]]), torch.tensor([[1, 2]])
    (one,) = calibration(rewards, ranks, settings(loss="rao_kupper", tie_threshold=3.0))
    better, worse = np.e / (np.e + 3), 1 / (1 + 3 * np.e)
    assert one["predicted"] == pytest.approx(better / (better + worse))


ROWS = [ranking("a", [2, 1]), ranking("b", [1, 2], level=180), ranking("b", [2, 1], level=180)]


def noticed(reward) -> dict:
    """How often each probe is noticed, without intervals."""
    return {name: rate.value for name, rate in run_probes(Model(reward), ROWS).items()}


def test_a_model_that_sees_everything_notices_every_probe():
    def reward(source, edited, words):
        changed = abs(edited - source).max(-1)
        right = {"a": 100, "b": 180}[words] == source[8, 8, 0]
        return int(edited[0, 0, 0] == 255) + int(changed[4:, 4:].max() == 0) + int(right)

    assert run_probes(Model(reward), ROWS) == dict.fromkeys(PROBES, Interval(1.0, 1.0, 1.0))


def test_a_model_that_looks_at_one_thing_is_blind_to_the_others():
    by_picture = noticed(lambda source, edited, words: edited.mean())
    assert by_picture["other_instruction"] == 0.5  # the same picture: equal rewards count half
    assert by_picture["destroyed_rest"] == 0.5  # the other prompt's ground is brighter for one, darker for the other
    assert by_picture["did_nothing"] == by_picture["swapped"] == 1
    likes_nothing = noticed(lambda source, edited, words: -abs(edited - source).mean())
    assert likes_nothing["did_nothing"] == 0
    assert likes_nothing["swapped"] == 0.5
    assert set(noticed(lambda *_: np.nan).values()) == {0}


def test_what_is_noticed_has_an_interval_by_prompt():
    """Of twenty prompts half are on a dark ground, where the edit is seen; elsewhere equal rewards count half."""
    rows = [ranking(str(place), [1, 2], level=100 if place % 2 else 180) for place in range(20)]
    model = Model(lambda source, edited, words: edited[0, 0, 0] == 255 and source[8, 8, 0] == 100)
    rate = run_probes(model, rows)["did_nothing"]
    assert rate.value == 0.75
    off = 1.96 * 0.25 / 20**0.5
    assert (rate.low, rate.high) == (pytest.approx(0.75 - off, abs=0.03), pytest.approx(0.75 + off, abs=0.03))
    assert run_probes(model, rows[::-1])["did_nothing"] == rate


def test_what_was_destroyed_is_the_rest_and_what_was_changed_is_kept():
    seen = []
    run_probes(Model(lambda source, edited, words: seen.append(edited) or 0), ROWS[:2])
    assert len(seen) == 2 * (1 + len(PROBES))  # a prompt each
    destroyed = seen[2]
    assert destroyed[:4, :4].min() == 255
    assert np.unique(destroyed[4:]).tolist() == [180]


def test_one_prompt_alone_has_no_other_to_probe_with():
    assert run_probes(Model(lambda *_: 0), ROWS[1:]) == {}


def of(right: float, prompts: int = 40, of_so_many: int = 10) -> Predictions:
    """Somebody who is right in this share of two edits' order, in each of so many prompts and preferences."""
    num_right = round(right * of_so_many)
    rewards = torch.tensor([[1.0, 0.0]] * num_right + [[0.0, 1.0]] * (of_so_many - num_right)).repeat(prompts, 1)
    names = [str(place) for place in range(prompts) for _ in range(of_so_many)]
    return Predictions(rewards, torch.tensor([[1, 2]] * len(names)), names)


def said_of(model: Predictions, **others: Predictions) -> dict:
    """As `worth` says it."""
    beside = {name: accuracies(one) for name, one in others.items()}
    return {
        "held_out": accuracies(model), "beside": beside,
        "held_out_before_training": beside.pop("held_out_before_training", None),
        "minus": {name: accuracy_differences(model.counts(), one.counts()) for name, one in others.items()},
    }  # fmt: skip


def test_remarks_say_who_is_better_and_what_goes_unnoticed():
    seen, unseen = Interval(0.9, 0.8, 1.0), Interval(0.5, 0.4, 0.6)
    assert remarks(said_of(of(0.8), clip=of(0.6), another_person=of(0.8)), dict.fromkeys(PROBES, seen)) == []
    probes = {"swapped": unseen, "did_nothing": seen}
    said = remarks(said_of(of(0.6), clip=of(0.8), another_person=of(0.5)), probes)
    assert [words.partition(" (")[0] for words in said[:2]] == [
        "clip ranks held-out edits better, with no training: 0.80 against 0.60", "people agree little with each other",
    ]  # fmt: skip
    assert "(a difference of \u22120.20, 95 % interval \u22120.20 to \u22120.20, 40 prompts)" in said[0]
    assert said[2] == (
        "it does not notice source and edited picture swapped: the true edit has the greater reward at a rate of "
        "0.50, 95 % interval 0.40 to 0.60; chance is 0.50"
    )


def test_remarks_leave_open_what_the_interval_does_not_show_to_go_unnoticed():
    """Noticed in 0.7 of few cases: that may be more than 0.75."""
    (said,) = remarks(said_of(of(0.8)), {"did_nothing": Interval(0.7, 0.55, 0.83)})
    assert said == (
        "it is not shown to notice an edit that did nothing: the true edit has the greater reward at a rate of "
        "0.70, 95 % interval 0.55 to 0.83; chance is 0.50"
    )
    assert remarks(said_of(of(0.8)), {"did_nothing": Interval(0.8, 0.75, 0.9)}) == []


def test_remarks_claim_no_difference_that_the_interval_does_not_show():
    """Right in nine of ten preferences of one prompt and in none of another's: two prompts say nothing."""
    torn = Predictions(
        torch.tensor([[1.0, 0.0]] * 9 + [[0.0, 1.0]] * 11), torch.tensor([[1, 2]] * 20), ["0"] * 10 + ["1"] * 10
    )
    (clip, before, agreed) = remarks(
        said_of(torn, clip_image=of(0.6, 2), held_out_before_training=of(0.4, 2), another_person=torn), {}
    )
    assert clip.startswith("it is not shown to be better than clip_image, which needs no training: 0.60 against 0.45 (")
    assert clip.endswith("95 % interval \u22120.60 to +0.30, 2 prompts)")
    assert before.startswith("training is not shown to have helped: 0.40 before it, 0.45 after")
    assert agreed.startswith("people are not shown to agree at all (0.45, 95 % interval 0.00 to 0.90")
    (worse,) = remarks(said_of(of(0.4), held_out_before_training=of(0.6)), {})
    assert worse.startswith("training made it worse on held-out edits: 0.60 before it, 0.40 after")


def test_clip_measures_no_direction_where_nobody_wrote_captions():
    captions = [("a dog", "a cat"), ("", ""), ("a dog", ""), ("a dog", "a cow")]
    rows = [{"source_caption": before, "edited_caption": after} for before, after in captions]
    assert measurable_rows(rows, ("clip_direction", "clip_image")) == [0, 3]
    assert measurable_rows(rows, ("clip_image",)) == [0, 1, 2, 3]
