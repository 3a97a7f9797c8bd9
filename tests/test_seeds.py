import numpy as np
import pytest

from hive_ray.seeds import generator_for, id_for, seed_for, split_for, uniform_for


def test_the_same_content_has_the_same_id_and_another_another():
    assert id_for("a", "b") == id_for("a", "b")
    assert len({id_for("a", "b"), id_for("ab"), id_for("a", "b", ""), id_for("b", "a")}) == 4


def test_seeds_fit_an_arrow_int64_and_a_generator():
    seeds = [seed_for("row", number) for number in range(1000)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert generator_for("row", 1).initial_seed() == seeds[1]


def test_numbers_of_contents_are_uniform():
    drawn = np.array([uniform_for(number) for number in range(20_000)])
    assert drawn.mean() == pytest.approx(0.5, abs=0.01)
    assert np.histogram(drawn, 10, (0, 1))[0].min() > 1800


def test_splits_have_their_rates_and_belong_to_the_caption():
    splits = [split_for(str(number), rank_rate=0.2, test_rate=0.1) for number in range(10_000)]
    assert splits.count("test") / 10_000 == pytest.approx(0.1, abs=0.01)
    assert splits.count("rank") / 10_000 == pytest.approx(0.2, abs=0.01)
    assert splits[5] == split_for("5", rank_rate=0.2, test_rate=0.1)
