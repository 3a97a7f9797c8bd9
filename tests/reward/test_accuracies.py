import pytest
import torch

from hive_ray.reward.accuracies import (
    ACCURACY,
    RANKING_ACCURACY,
    Predictions,
    accuracies,
    accuracy_across_prompts,
    accuracy_differences,
)

RANKS = torch.tensor([[1, 2, 3], [2, 1, 0], [1, 1, 1], [3, 2, 1]])
PROMPTS = ["a", "b", "c", "a"]  # two people ranked a, and disagree in everything
RIGHT = torch.tensor([[3.0, 2.0, 1.0], [0.0, 0.0, 9.0], [1.0, 2.0, 3.0], [3.0, 2.0, 2.0]])
"""Right in 3 of 3, half of 1 (equal), none, and half of 3 preferences (two wrong, two equal: 0.5)."""


def test_what_is_right_is_counted_prompt_by_prompt():
    counted = Predictions(RIGHT, RANKS, PROMPTS).counts()
    assert counted[ACCURACY] == {"a": (3.5, 6), "b": (0.5, 1)}  # c has no preference to be right of
    assert counted[RANKING_ACCURACY] == {"a": (1, 2), "b": (0, 1)}


def test_an_interval_of_an_accuracy_resamples_prompts_and_weighs_each_by_its_preferences():
    found = accuracies(Predictions(RIGHT, RANKS, PROMPTS))
    bounds = found["intervals"][ACCURACY]
    assert bounds["value"] == found[ACCURACY] == pytest.approx(4 / 7)
    # Of two prompts, both times a (1 of 4 resamples), a and b (2 of 4), or both times b.
    assert (bounds["low"], bounds["high"]) == (pytest.approx(0.5), pytest.approx(3.5 / 6))


def test_without_any_preference_there_is_no_interval_and_no_difference():
    tied = Predictions(RIGHT[2:3], RANKS[2:3], ["c"])
    assert accuracies(tied) == {ACCURACY: 0.5, RANKING_ACCURACY: 0, "intervals": {}}
    assert accuracy_differences(tied.counts(), tied.counts()) == {}


def test_a_difference_is_paired_by_the_prompts_that_both_foretold():
    """Easy and hard prompts differ a lot; ours is right in one preference more in each."""
    prompts = [str(place) for place in range(20)]
    ranks = torch.tensor([[1, 2, 3]] * 20)
    theirs = torch.tensor([[0.0, 0.0, 0.0]] * 10 + [[1.0, 3.0, 2.0]] * 10)  # 1.5 of 3, and 1 of 3
    ours = torch.tensor([[2.0, 1.0, 1.0]] * 10 + [[2.0, 3.0, 1.0]] * 10)  # 2.5 and 2
    mine, others = Predictions(ours, ranks, prompts).counts(), Predictions(theirs, ranks, prompts).counts()
    found = accuracy_differences(mine, others)
    assert found[ACCURACY] == pytest.approx({"value": 1 / 3, "low": 1 / 3, "high": 1 / 3})
    assert found[RANKING_ACCURACY] == pytest.approx({"value": 0, "low": 0, "high": 0})
    assert found["prompts"] == 20
    assert accuracy_differences(mine, Predictions(theirs[:1], ranks[:1], ["0"]).counts())["prompts"] == 1


def test_across_prompts_the_best_of_one_is_compared_with_the_worst_of_another():
    rewards = torch.tensor([[3.0, 2.0, 1.0], [0.5, 2.0, 9.0], [9.0, 9.0, 9.0]])
    ranks = torch.tensor([[1, 2, 3], [1, 2, 0], [1, 1, 1]])  # who ties all has neither best nor worst
    # Of two comparisons, 3 is above 2, and 0.5 below 1; within prompts nothing is counted.
    assert accuracy_across_prompts(Predictions(rewards, ranks, ["a", "b", "c"])) == 0.5
    rewards[1, 0] = 1.0  # as good as a's worst
    assert accuracy_across_prompts(Predictions(rewards, ranks, ["a", "b", "c"])) == 0.75
    level = rewards + torch.tensor([[10.0], [0.0], [0.0]])  # another level of one prompt, the same order in each
    assert accuracy_across_prompts(Predictions(level, ranks, ["a", "b", "c"])) == 0.5
    assert accuracy_across_prompts(Predictions(rewards, ranks, ["a", "a", "a"])) == 0.5
