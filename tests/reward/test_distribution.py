import numpy as np
import pytest

from hive_ray.config import Scoring
from hive_ray.reward.distribution import describe_rewards, reward_histogram, summary_sentence
from hive_ray.reward.shaping import fit_shaping

REWARD = np.log([1.0, 1.0, 1.0, 5.0])


def shaped(**settings):
    return fit_shaping(["add a hat"] * 4, REWARD, Scoring(**settings))


def test_rewards_are_described_with_their_edges_levels_and_what_their_weights_are_worth():
    said = describe_rewards(REWARD, REWARD, shaped(levels="given", edges=(-1, 0, 1, 9)))
    assert said["pairs"] == 4
    assert said["reward"]["mean"] == pytest.approx(np.log(5) / 4)
    assert said["reward"]["quantile_edges"] == pytest.approx([0, 0, 0, np.log(5) * 0.4])
    assert (said["level_edges"], said["levels"]) == ([-1, 0, 1, 9], {"1": 0, "2": 0, "3": 3, "4": 1, "5": 0})
    # Weights 1, 1, 1, 5 over their mean: (8)^2 / 28 pairs.
    assert said["weights"] == pytest.approx({"beta": 1, "mean": 1, "greatest": 2.5, "effective_sample_size": 64 / 28})
    assert "levels begin at -1.000, 0.000, 1.000, 9.000 with 0, 0, 3, 1, 0 pairs" in summary_sentence(said)
    assert summary_sentence(said).endswith("weights (beta 1) with an effective sample size of 2 of 4 pairs")


def test_levels_and_weights_go_by_what_a_baseline_leaves():
    said = describe_rewards(REWARD + 7, REWARD, shaped())
    assert said["reward"]["mean"] == pytest.approx(said["shaped"]["mean"] + 7)
    assert said["weights"]["effective_sample_size"] == pytest.approx(64 / 28)


def test_the_chart_has_a_line_for_each_origin_and_the_edges_of_the_levels():
    drawn = reward_histogram(REWARD, ["generated", "cycle", "cycle", "generated"], shaped())
    assert 'aria-label="share of pairs by reward: cycle, generated"' in drawn
    assert drawn.count(">level edges<") == 1
    assert "expected from the instruction" in reward_histogram(REWARD, ["generated"] * 4, shaped(baseline="words"))
