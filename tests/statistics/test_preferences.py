import math

import pytest
import torch

from hive_ray.statistics.preferences import preference_loss


def test_a_tie_says_nothing_to_bradley_and_terry():
    margin = torch.tensor([1.0, -3.0], requires_grad=True)
    preference_loss(margin, torch.tensor([True, False]), 1.0).sum().backward()
    assert preference_loss(margin, torch.tensor([True, True]), 1.0).tolist() == [0, 0]
    assert margin.grad[0] == 0
    assert margin.grad[1] == pytest.approx(-1 / (1 + math.exp(-3)))


@pytest.mark.parametrize("threshold", [1.5, 3.0])
def test_what_rao_and_kupper_give_the_three_answers_is_one_in_all(threshold):
    margin = torch.linspace(-4, 4, 9, dtype=torch.float64)
    yes, no = torch.ones(9, dtype=torch.bool), torch.zeros(9, dtype=torch.bool)
    first, second, tie = (
        (-preference_loss(*given, threshold)).exp() for given in ((margin, no), (-margin, no), (margin, yes))
    )
    torch.testing.assert_close(first, margin.exp() / (margin.exp() + threshold))  # p_i / (p_i + t p_j)
    torch.testing.assert_close(first + second + tie, torch.ones(9, dtype=torch.float64))
    assert tie[4].item() == pytest.approx((threshold - 1) / (threshold + 1))  # a half at 3
    assert tie.argmax() == 4
