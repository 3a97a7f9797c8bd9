import math

import pytest
import torch

from hive_ray.reward.uncertainty import order_entropy


def entropy(probability: float) -> float:
    return -probability * math.log2(probability) - (1 - probability) * math.log2(1 - probability)


def test_equal_rewards_are_one_bit_of_doubt():
    assert order_entropy(torch.zeros(4)) == pytest.approx(1)


def test_the_doubt_is_the_mean_over_pairs():
    # sigmoid(ln 3) = 3/4, sigmoid(ln 9) = 9/10.
    rewards = torch.tensor([math.log(3), 0.0, -math.log(3)])
    assert order_entropy(rewards) == pytest.approx((2 * entropy(3 / 4) + entropy(9 / 10)) / 3)


def test_the_order_of_edits_changes_nothing_and_a_temperature_divides():
    rewards = torch.tensor([2.0, -1.0, 0.5])
    assert order_entropy(rewards.flip(0)) == pytest.approx(order_entropy(rewards))
    assert order_entropy(2 * rewards, temperature=2.0) == pytest.approx(order_entropy(rewards))


def test_a_sure_model_has_no_doubt_and_no_overflow():
    assert order_entropy(torch.tensor([1e4, -1e4])) == pytest.approx(0)
