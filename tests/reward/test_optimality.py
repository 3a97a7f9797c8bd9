import numpy as np
import pytest

from hive_ray.reward.optimality import (
    best_and_worst_ranks,
    compare_within_prompts,
    mean_rank_rewards,
    widest_prompts,
)


def test_the_optimality_by_hand():
    # means 2 and 10; what is left is -1, 1, -2, 0, 2, whose standard deviation is sqrt(10 / 5)
    standing = compare_within_prompts([1, 3, 8, 10, 12], ["a", "a", "b", "b", "b"], clip=2.0)
    deviation = np.sqrt(2.0)
    np.testing.assert_allclose(standing.advantage, np.array([-1, 1, -2, 0, 2]) / deviation)
    np.testing.assert_allclose(standing.optimality, 0.5 + np.array([-1, 1, -2, 0, 2]) / (4 * deviation))
    assert standing.is_best.tolist() == [False, True, False, False, True]


def test_what_lies_beyond_the_clip_is_certain():
    standing = compare_within_prompts([1, 3, 8, 10, 12], ["a", "a", "b", "b", "b"], clip=1.0)
    assert standing.optimality[2] == 0
    assert standing.optimality[4] == 1


def test_how_easy_a_prompt_is_does_not_count_and_nor_does_the_order_of_the_rows():
    rewards, prompts = np.array([1.0, 3.0, 8.0, 10.0]), np.array(["a", "a", "b", "b"])
    first = compare_within_prompts(rewards, prompts, clip=1.0)
    easier = compare_within_prompts(rewards + 100 * (prompts == "b"), prompts, clip=1.0)
    order = [3, 0, 2, 1]
    mixed = compare_within_prompts(rewards[order], prompts[order], clip=1.0)
    np.testing.assert_allclose(first.optimality, easier.optimality)
    np.testing.assert_allclose(first.optimality[order], mixed.optimality)
    assert first.is_best[order].tolist() == mixed.is_best.tolist()


def test_of_equal_edits_none_is_better_and_the_first_is_the_best():
    standing = compare_within_prompts([0.1, 0.1, 0.1], ["a"] * 3, clip=1.0)
    assert standing.optimality.tolist() == [0.5] * 3
    assert standing.advantage.tolist() == [0.0] * 3
    assert standing.is_best.tolist() == [True, False, False]


def test_rewards_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="2 of 3 rewards are not finite"):
        compare_within_prompts([float("nan"), 1.0, float("inf")], ["a"] * 3, clip=1.0)


def test_mean_ranks_are_over_people_and_without_gaps():
    found = mean_rank_rewards([(["x", "y", "z"], [1, 4, 4]), (["x", "y", "z"], [2, 1, 3])])
    assert found == {"x": -1.5, "y": -1.5, "z": -2.5}


def test_the_widest_prompts_are_those_whose_rewards_lie_farthest_apart():
    rewards = {"a": (0.0, 1.0), "b": (5.0, 2.0, 4.0), "c": (1.0, 1.0), "d": (0.0, 1.0), "e": (0.0, 0.5)}
    assert widest_prompts(rewards, 0.2) == {"b"}
    assert widest_prompts(rewards, 0.4) == {"b", "a"}
    assert widest_prompts(rewards, 0.41) == {"b", "a", "d"}
    assert widest_prompts(rewards, 1.0) == {"a", "b", "d", "e"}
    assert widest_prompts(rewards, 0.0) == widest_prompts({}, 0.5) == set()


def test_a_reward_model_ranks_the_best_and_the_worst_and_no_order_between():
    assert best_and_worst_ranks([0.2, -1.0, 3.0, 2.9]) == [2, 3, 1, 2]
    assert best_and_worst_ranks([1.0, 1.0, 0.0]) == [1, 1, 3]
