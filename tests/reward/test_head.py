import math
from functools import partial

import pytest
import torch

from hive_ray.reward.head import LinearHead, deviation_within_prompts, fit_head
from hive_ray.reward.objective import bradley_terry_loss, plackett_luce_loss, rao_kupper_loss

LOSSES = {
    "plackett_luce": partial(plackett_luce_loss, temperature=1.0),
    "bradley_terry": partial(bradley_terry_loss, temperature=1.0),
    "rao_kupper": partial(rao_kupper_loss, temperature=1.0, tie_threshold=2.0),
}
NAMES = ("x", "y", "z")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(weights, count=3000, num_edits=4, seed=0):
    """Features of spread 1, and ranks that Plackett and Luce's model draws by these weights (Gumbel's trick)."""
    features = torch.randn(count, num_edits, len(weights), generator=generator(seed), dtype=torch.float64)
    features += 5 * torch.randn(count, 1, len(weights), generator=generator(seed + 1))  # prompts have levels
    uniform = torch.rand(count, num_edits, generator=generator(seed + 2), dtype=torch.float64)
    noisy = features @ torch.tensor(weights, dtype=torch.float64) - (-uniform.log()).log()
    return features, (-noisy).argsort(1).argsort(1) + 1


@pytest.fixture(params=LOSSES)
def loss(request):
    return LOSSES[request.param]


def pairs(right, wrong, difference=3.0):
    """Two edits each, whose one feature differs so much; the greater one was preferred `right` times."""
    features = torch.tensor([[[difference], [0.0]]] * (right + wrong), dtype=torch.float64)
    return features, torch.tensor([[1, 2]] * right + [[2, 1]] * wrong)


def test_the_weights_that_made_the_rankings_are_found():
    truth = [1.5, -0.7, 0.0]
    features, ranks = drawn(truth)
    for scale in (1.0, 0.01):
        head = fit_head(features * scale, ranks, NAMES, LOSSES["plackett_luce"], ridge=1e-3)
        assert (head.weights / head.scales * scale).tolist() == pytest.approx(truth, abs=0.06)


def test_one_feature_has_the_log_odds_of_its_wins():
    # Two values that differ by d have the spread d / sqrt 2; three wins of four are log odds of ln 3.
    head = fit_head(*pairs(30, 10), ("x",), LOSSES["bradley_terry"], ridge=1e-9)
    assert head.scales.item() == pytest.approx(3 / math.sqrt(2))
    assert head.weights.item() * math.sqrt(2) == pytest.approx(math.log(3), abs=1e-6)
    one, other = head(torch.tensor([[3.0], [0.0]])).tolist()
    assert one - other == pytest.approx(math.log(3), abs=1e-6)
    assert one + other == pytest.approx(0)  # the mean edit has a reward of 0


def test_the_ridge_is_the_precision_of_a_normal_prior():
    # Where the slope of N log-likelihoods is that of ridge / 2 w^2: sqrt 2 (30 - 40 s(sqrt 2 w)) = ridge w.
    ridge = 7.0
    weight = fit_head(*pairs(30, 10), ("x",), LOSSES["bradley_terry"], ridge).weights.item()
    slope = math.sqrt(2) * (30 - 40 / (1 + math.exp(-math.sqrt(2) * weight)))
    assert slope == pytest.approx(ridge * weight, abs=1e-5)


def test_rescaling_and_moving_features_changes_no_reward(loss):
    features, ranks = drawn([1.0, -0.5, 0.2], count=200)
    scales, moved = torch.tensor([1e-4, 30.0, 2.0]), torch.tensor([5.0, -1.0, 0.0])
    other = features * scales + moved
    one, two = (fit_head(each, ranks, NAMES, loss, 1.0) for each in (features, other))
    torch.testing.assert_close(one(features), two(other), rtol=1e-4, atol=1e-5)
    assert one(features).std() > 0.3


def test_the_same_rankings_give_the_same_head_to_the_bit(loss):
    features, ranks = drawn([1.0, -0.5, 0.2], count=50)
    one, two = (fit_head(features, ranks, NAMES, loss, 1.0) for _ in range(2))
    assert torch.equal(one.weights, two.weights)


def test_the_gradient_of_every_loss_is_that_of_its_differences(loss):
    features, ranks = drawn([1.0, -0.5, 0.2], count=6)
    ranks[0] = torch.tensor([1, 1, 2, 2])
    ranks[1, -1] = 0
    ranks[1, :-1] = torch.tensor([1, 2, 3])
    weights = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda point: loss(features @ point, ranks), (weights,))


def test_what_is_found_is_the_least(loss):
    features, ranks = drawn([1.0, -0.5, 0.2], count=60)
    head = fit_head(features, ranks, NAMES, loss, 2.0)

    def value(weights):
        standardised = (features - head.means) / head.scales
        return (loss(standardised @ weights, ranks) + weights.square().sum() / 60).item()

    least = value(head.weights)
    for place in range(3):
        for step in (-0.01, 0.01):
            moved = head.weights.clone()
            moved[place] += step
            assert value(moved) > least


def test_an_edit_that_is_not_there_says_nothing(loss):
    features, ranks = drawn([1.0, -0.5, 0.2], count=50)
    filler = torch.full((50, 1, 3), 1e6, dtype=torch.float64)
    filled = torch.cat([features, filler], 1), torch.cat([ranks, torch.zeros(50, 1, dtype=torch.long)], 1)
    one, two = fit_head(features, ranks, NAMES, loss, 1.0), fit_head(*filled, NAMES, loss, 1.0)
    torch.testing.assert_close(two.weights, one.weights)
    torch.testing.assert_close(two.scales, one.scales)
    torch.testing.assert_close(two.means, one.means)


def test_the_spread_is_pooled_within_prompts():
    features = torch.tensor([[1.0, 3.0, 9.0], [100.0, 104.0, 102.0]])[:, :, None]
    there = torch.tensor([[True, True, False], [True, True, True]])
    # Deviations 1, 1 and 2, 2, 0: squares of 10 with 1 + 2 degrees of freedom.
    assert deviation_within_prompts(features, there).item() == pytest.approx(math.sqrt(10 / 3))


def test_a_feature_that_never_differs_within_a_prompt_has_no_weight(loss):
    features, ranks = drawn([1.0, -0.5, 0.2], count=50)
    features[:, :, 2] = features[:, :1, 2]
    head = fit_head(features, ranks, NAMES, loss, 1.0)
    assert abs(head.weights[2].item()) < 1e-9
    assert head(features).isfinite().all()


def test_a_head_survives_being_written():
    features, ranks = drawn([1.0, -0.5, 0.2], count=50)
    head = fit_head(features, ranks, NAMES, LOSSES["plackett_luce"], 1.0)
    read = LinearHead.from_json(head.as_json())
    assert torch.equal(read(features), head(features))
    assert read.names == NAMES


def test_no_ranking_is_refused():
    with pytest.raises(ValueError, match="no ranking to learn a reward from"):
        fit_head(torch.empty(0, 2, 3), torch.empty(0, 2, dtype=torch.long), NAMES, LOSSES["bradley_terry"], 1.0)


def test_a_direction_that_is_believed_in_is_scaled_freely_and_corrected_by_the_ridge():
    features, ranks = drawn([-1.0, -1.0, 0.5], count=2000)
    believed = torch.tensor([[-1.0, -1.0, 0.0]])
    held = fit_head(features, ranks, NAMES, LOSSES["plackett_luce"], 1e9, believed)
    assert held.weights[0].item() == pytest.approx(held.weights[1].item(), rel=1e-6) == pytest.approx(-0.9, abs=0.1)
    assert held.weights[2].item() == pytest.approx(0, abs=1e-5)
    corrected = fit_head(features, ranks, NAMES, LOSSES["plackett_luce"], 1.0, believed)
    assert (corrected.weights / corrected.scales).tolist() == pytest.approx([-1, -1, 0.5], abs=0.06)


def test_a_coefficient_has_a_prior_of_precision_one():
    # A direction of one feature with an endless ridge: sqrt 2 (30 - 40 s(sqrt 2 w)) = w.
    head = fit_head(*pairs(30, 10), ("x",), LOSSES["bradley_terry"], 1e12, torch.ones(1, 1))
    weight = head.weights.item()
    slope = math.sqrt(2) * (30 - 40 / (1 + math.exp(-math.sqrt(2) * weight)))
    assert slope == pytest.approx(weight, abs=1e-5)


def test_few_noisy_rankings_do_not_turn_what_is_believed():
    features, _ = drawn([0.0], count=10)
    features = features.repeat(1, 1, 3) + torch.randn(10, 4, 3, generator=generator(9)) / 10
    ranks = features[:, :, 0].argsort(1, descending=True).argsort(1) + 1  # the first feature alone decides
    wide = fit_head(features, ranks, NAMES, LOSSES["plackett_luce"], 1e-2, torch.tensor([[0.0, 1.0, 0.0]]))
    held = fit_head(features, ranks, NAMES, LOSSES["plackett_luce"], 1e4, torch.tensor([[0.0, 1.0, 0.0]]))
    assert wide.weights.argmax() == 0
    assert held.weights.argmax() == 1
