import numpy as np
import pytest

from hive_ray.statistics.measures import effective_sample_size, mann_whitney_u, standardise


@pytest.mark.parametrize(
    ("weights", "worth"),
    [((1, 1, 1, 1), 4), ((0.2, 0.2), 2), ((5, 0, 0), 1), ((1, 3), 16 / 10), ((0, 0), 0)],
)
def test_the_effective_sample_size_is_n_for_equal_weights_and_one_for_a_single_weight(weights, worth):
    count = len(weights)
    mean, mean_square = sum(weights) / count, sum(weight**2 for weight in weights) / count
    assert effective_sample_size(mean, mean_square, count) == pytest.approx(worth)


def test_wins_count_pairs_and_equal_values_by_half():
    assert mann_whitney_u([2.0, 3.0], [3.0, 1.0, 0.0, 3.0]) == 2 + 3
    assert mann_whitney_u([], [1.0]) == mann_whitney_u([1.0], []) == 0


def test_standardised_values_have_mean_zero_and_deviation_one():
    np.testing.assert_allclose(
        standardise(np.array([[1.0, 3.0], [2.0, 2.0]])), np.sqrt(2) * np.array([[-1, 1], [0, 0]])
    )
    assert standardise(np.full(3, 0.1)).tolist() == [0, 0, 0]  # their mean is 0.10000000000000002
