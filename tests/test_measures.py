import pytest

from hive_ray.measures import effective_sample_size


@pytest.mark.parametrize(
    ("weights", "worth"),
    [((1, 1, 1, 1), 4), ((0.2, 0.2), 2), ((5, 0, 0), 1), ((1, 3), 16 / 10), ((0, 0), 0)],
)
def test_the_effective_sample_size_is_n_for_equal_weights_and_one_for_a_single_weight(weights, worth):
    count = len(weights)
    mean, mean_square = sum(weights) / count, sum(weight**2 for weight in weights) / count
    assert effective_sample_size(mean, mean_square, count) == pytest.approx(worth)
