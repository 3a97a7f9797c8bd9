import math
from dataclasses import asdict

import numpy as np
import pytest

from hive_ray.evaluation.draws import CLEAR_GAP, JudgedDraws, evaluate_measures
from hive_ray.shapes.annotator import NOISE
from hive_ray.statistics.intervals import Interval


def draw(overall, reward, image=0.0, direction=0.0):
    """A draw that preserved everything, so that `followed` decides."""
    return {
        "seed": 0, "followed": overall**2, "preserved": 1.0, "reward": reward, "clip_image": image,
        "clip_direction": direction,
    }  # fmt: skip


def row(prompt, *draws):
    return {"prompt_id": prompt, "draws": list(draws)}


ROWS = [
    row("a", draw(0.5, 3.0, 5.0), draw(1.0, 2.0, 9.0), draw(0.0, 1.0, 0.0)),
    row("b", draw(0.9, 3.0, 8.0), draw(0.7, 0.0, 7.0), draw(0.45, 3.0, 4.0)),
]
"""a's second and b's first draw are right (0.7 ** 2 is 0.49). CLIP image orders all draws as the judge does."""


def test_the_auc_compares_every_right_draw_with_every_wrong_one_of_the_table():
    found = evaluate_measures(ROWS)
    # Right 2, 3 against wrong 3, 1, 0, 3: 2 is above two, 3 above two and equal to two: 5 of 8.
    assert found.measures["reward"].auc.value == 5 / 8
    # The prompt a alone: 2 against 3 and 1. b alone: 3 against 0 and 3.
    assert (found.measures["reward"].auc.low, found.measures["reward"].auc.high) == (1 / 2, 3 / 4)
    assert found.measures["clip_image"].auc == Interval(1.0, 1.0, 1.0)
    assert found.measures["clip_direction"].auc.value == 0.5  # all alike


def test_clear_preferences_are_pairs_of_one_prompt_that_the_judge_sets_far_apart():
    found = evaluate_measures(ROWS)
    # a: 1.0 over 0.5 and 0.0, 0.5 over 0.0. b: 0.9 over 0.45 alone.
    assert (found.num_clear, found.num_clear_prompts) == (4, 2)
    # a's rewards have two of three in order, b's are equal.
    assert found.measures["reward"].clear == Interval(2.5 / 4, 1 / 2, 2 / 3)
    assert found.measures["clip_image"].clear.value == 1


def test_a_clear_preference_is_twice_a_simulated_persons_noise():
    assert pytest.approx(2 * NOISE) == CLEAR_GAP


def test_the_best_of_several_lies_between_the_first_and_the_ceiling():
    found = evaluate_measures(ROWS)
    assert (found.first.value, found.mean.value, found.ceiling.value) == (1 / 2, 2 / 6, 1)
    assert found.measures["reward"].right.value == 1 / 2  # a's first is wrong; of b's equal ones the first is right
    assert found.measures["clip_image"].right.value == 1
    assert (found.num_draws, found.num_prompts) == (3, 2)
    none_right = evaluate_measures([*ROWS, row("c", draw(0.1, 1.0), draw(0.2, 2.0), draw(0.3, 3.0))])
    assert none_right.ceiling.value == pytest.approx(2 / 3)


def test_differences_are_the_rewards_and_paired_by_prompt():
    gaps = evaluate_measures(ROWS).reward_minus
    assert set(gaps) == {"clip_image", "clip_direction", "sum"}
    assert gaps["clip_image"].auc == Interval(-3 / 8, -1 / 2, -1 / 4)
    assert gaps["clip_image"].clear == Interval(2.5 / 4 - 1, 1 / 2 - 1, 2 / 3 - 1)
    assert gaps["clip_image"].right == Interval(-1 / 2, -1, 0)
    assert gaps["clip_direction"].clear.value == 2.5 / 4 - 1 / 2


def test_the_sum_is_of_what_each_measure_says_in_its_own_standard_deviations():
    rows = [row("a", draw(1, 1.0, 105.0), draw(0, 3.0, 125.0)), row("b", draw(0, 2.0, 115.0), draw(0, 2.0, 115.0))]
    total = JudgedDraws.from_rows([one["draws"] for one in rows]).values["sum"]
    # Rewards 1, 3, 2, 2 lie -1, 1, 0, 0 from their mean, with a deviation of sqrt(1/2); ten times as far, CLIP image.
    np.testing.assert_allclose(total, [[-2 * math.sqrt(2), 2 * math.sqrt(2)], [0, 0]], atol=1e-12)
    assert evaluate_measures(rows).measures["sum"].auc.value == 0


def test_prompts_are_resampled_and_their_order_says_nothing():
    rows = [row(str(number), draw(number % 3 / 2, float(number % 5)), draw(1.0, 2.0)) for number in range(30)]
    assert evaluate_measures(rows, seed=1) == evaluate_measures(rows[::-1], seed=1)
    assert evaluate_measures(rows, seed=1) != evaluate_measures(rows, seed=2)


def test_a_resample_with_right_edits_alone_counts_as_guessing():
    found = evaluate_measures([row("a", draw(1.0, 1.0)), row("b", draw(0.0, 0.0))])
    assert found.measures["reward"].auc == Interval(1.0, 0.5, 1.0)


def test_what_cannot_be_told_is_left_out():
    alike = evaluate_measures([row("a", draw(1.0, 1.0), draw(0.9, 2.0)), row("b", draw(0.8, 1.0), draw(0.8, 2.0))])
    assert alike.num_clear == 0
    scores = [*alike.measures.values(), *alike.reward_minus.values()]
    assert [(one.auc, one.clear) for one in scores] == [(None, None)] * 7
    assert alike.measures["reward"].right == Interval(1.0, 1.0, 1.0)
    wrong = evaluate_measures([row("a", draw(0.5, 1.0), draw(0.0, 2.0))])
    assert wrong.measures["reward"].auc is None
    assert asdict(wrong.measures["reward"].clear) == {"value": 0, "low": 0, "high": 0}


def test_rows_without_draws_and_those_with_a_draw_that_was_not_measured_say_nothing():
    unscored = row("c", draw(1.0, math.nan), draw(0.0, 1.0), draw(0.0, 1.0))
    assert evaluate_measures([row("a"), *ROWS, unscored]) == evaluate_measures(ROWS)
    assert evaluate_measures([row("a"), unscored]) is None
