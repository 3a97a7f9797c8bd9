import numpy as np
import pytest
from scipy.stats import kendalltau

from hive_ray.statistics.agreement import (
    PreferenceAgreement,
    dense_ranks,
    kendall_tau,
    krippendorff_alpha,
    preference_agreement,
)


def test_dense_ranks_close_the_gaps_and_keep_the_order():
    assert dense_ranks([4, 1, 2, 2]) == [3, 1, 2, 2]


def test_kendall_tau_is_one_for_the_same_order_and_minus_one_for_the_reverse():
    assert kendall_tau([1, 2, 3, 4], [1, 2, 3, 4]) == pytest.approx(1)
    assert kendall_tau([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)


def test_kendall_tau_b_counts_ties_as_by_hand():
    # Pairs (0,1) tied in the first only; (0,2), (1,2) agree: (2 - 0) / sqrt((3 - 1) * 3).
    assert kendall_tau([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / 6**0.5)


def test_kendall_tau_is_scipys():
    rng = np.random.default_rng(0)
    for num_edits in range(2, 10):
        ranks, other = (rng.permutation(rng.integers(0, num_edits, num_edits)).tolist() for _ in range(2))
        ranks[:2], other[-2:] = [1, 2], [1, 2]  # neither ties everything
        assert kendall_tau(ranks, other) == pytest.approx(kendalltau(ranks, other, variant="b").statistic)


def test_an_order_that_ties_everything_agrees_with_nothing():
    assert kendall_tau([1, 1, 1], [1, 2, 3]) == 0


def test_krippendorffs_alpha_is_that_of_his_own_example():
    """Krippendorff (2011), section on ordinal data: four observers, twelve units, values missing; alpha is 0.815."""
    observers = ["123321412...", "1233224125.3", ".33323422 51.".replace(" ", ""), "1233244125 1.".replace(" ", "")]
    units = [[int(values[unit]) for values in observers if values[unit] != "."] for unit in range(12)]
    assert krippendorff_alpha(units) == pytest.approx(0.815, abs=5e-4)


def test_alpha_counts_two_people_and_three_ranks_as_by_hand():
    # Coincidences: (1, 1) twice, (2, 3) and (3, 2) once each; n = 2, 1, 1. delta^2(2, 3) = (1 / 2 + 1 / 2)^2 = 1,
    # (1, 2) = (1 + 1 / 2)^2 = 9 / 4, (1, 3) = (1 + 1 + 1 / 2)^2 = 25 / 4.
    # Observed 2 x 1; expected 2 (2 x 9 / 4 + 2 x 25 / 4 + 1) / (4 - 1) = 12.
    assert krippendorff_alpha([[1, 1], [2, 3]]) == pytest.approx(1 - 2 / 12)


def test_alpha_is_one_in_full_agreement_and_says_nothing_where_nothing_differs():
    assert krippendorff_alpha([[1, 1], [2, 2, 2], [3, 3], [5]]) == 1
    assert krippendorff_alpha([[1, 1], [1, 1]]) is None
    assert krippendorff_alpha([[1], [2]]) is None


def ranking(prompt_id: str, ranks: list[int], edit_ids: str = "abc") -> dict:
    return {"prompt_id": prompt_id, "edits": [{"edit_id": name} for name in edit_ids], "ranks": ranks}


def test_preference_agreement_counts_pairs_of_edits_as_by_hand():
    """Pairs (0, 1), (0, 2), (1, 2): the first says <, <, <; the second <, =, >; the third =, <, <.

    First and second: same, half, opposite. First and third: half, same, same. Second and third: half, half, opposite.
    Ties: 2 of these 9 answers, and 3 of the 3 of a prompt that only one person ranked.
    """
    rankings = [
        ranking("p", [1, 2, 3]),
        ranking("p", [1, 2, 1]),
        ranking("p", [1, 1, 2]),
        ranking("q", [1, 1, 1]),
    ]
    found = preference_agreement(rankings)
    assert found.comparisons == 9
    assert found.ties == pytest.approx(5 / 12)
    assert found.in_order == pytest.approx(3 / 5)
    assert found.ties_half == pytest.approx((3 + 4 * 0.5) / 9)
    assert found.three_way == pytest.approx(3 / 9)


def test_two_ties_agree_in_full_and_say_nothing_of_order():
    found = preference_agreement([ranking("p", [1, 1], "ab")] * 2)
    assert found == PreferenceAgreement(1, 1.0, None, 1.0, 1.0)


def test_rankings_of_other_edits_of_a_prompt_are_not_compared():
    rankings = [ranking("p", [1, 2, 3]), ranking("p", [3, 2, 1], "abd"), ranking("q", [3, 2, 1])]
    assert preference_agreement(rankings) == PreferenceAgreement(0, 0.0, None, None, None)
    assert preference_agreement([]) == PreferenceAgreement(0, None, None, None, None)
