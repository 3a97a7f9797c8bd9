import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import CLIPTokenizer

from hive_ray.config import Reward, Training
from hive_ray.errors import BadRows
from hive_ray.images import encode
from hive_ray.reward.model import RewardModel
from hive_ray.reward.objective import (
    RewardObjective,
    bradley_terry_loss,
    chance_loss,
    is_held_out,
    is_trained_on,
    loss_from_settings,
    make_batch,
    measure_rewards,
    pairwise_accuracy,
    plackett_luce_loss,
    predict_rewards,
    preference_mask,
    ranking_accuracy,
    rao_kupper_loss,
    usable_rankings,
    warning_for,
)
from hive_ray.reward.rankings import preference_pairs

PLACKETT_LUCE = partial(plackett_luce_loss, temperature=1.0)
REWARDS = torch.tensor([[0.5, 2.0, -1.0]])


def small_model():
    letters = "abcdefgh"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[])
    return RewardModel.from_scratch(tokenizer, resolution=16, max_tokens=12)


def ranking(prompt_id, brightness, instruction="a"):
    """A prompt whose edits are grey squares; people prefer the brighter."""
    order = sorted(brightness, reverse=True)
    return {
        "prompt_id": prompt_id,
        "instruction": instruction,
        "source_image": encode(np.zeros((16, 16, 3), dtype=np.uint8)),
        "edits": [{"image": encode(np.full((16, 16, 3), level, dtype=np.uint8))} for level in brightness],
        "ranks": [1 + order.index(level) for level in brightness],
    }


def measured(model, rows, **options):
    return measure_rewards(*predict_rewards(model, rows, **options), PLACKETT_LUCE)


def settings(temperature=1.0, **changed):
    training = Training(
        total_images=8, batch_size=4, micro_batch_size=4, learning_rate=1e-3, checkpoint_images=8,
        workers={"num_gpus": 0},
    )  # fmt: skip
    return Reward(resolution=16, max_tokens=12, temperature=temperature, training=training, **changed)


def test_plackett_luce_is_the_likelihood_of_drawing_the_edits_best_first():
    ranks = torch.tensor([[2, 1, 3]])
    e = [math.exp(reward) for reward in (0.5, 2.0, -1.0)]
    likelihood = e[1] / (e[1] + e[0] + e[2]) * e[0] / (e[0] + e[2])
    assert plackett_luce_loss(REWARDS, ranks, 1.0).item() == pytest.approx(-math.log(likelihood))


def test_the_temperature_divides_the_rewards():
    ranks = torch.tensor([[2, 1, 3]])
    hot = plackett_luce_loss(REWARDS, ranks, 2.0)
    torch.testing.assert_close(hot, plackett_luce_loss(REWARDS / 2, ranks, 1.0))


def test_plackett_luce_of_two_edits_is_bradley_terry():
    rewards, ranks = torch.tensor([[0.3, 1.7], [2.0, -1.0]]), torch.tensor([[2, 1], [2, 1]])
    wanted = -F.logsigmoid((rewards[:, 1] - rewards[:, 0]) / 0.5).mean()
    torch.testing.assert_close(plackett_luce_loss(rewards, ranks, 0.5), wanted)
    torch.testing.assert_close(bradley_terry_loss(rewards, ranks, 0.5), wanted)


def test_tied_edits_are_not_compared_with_each_other():
    e = [math.exp(reward) for reward in (0.5, 2.0, -1.0)]
    first, second = e[0] / (e[0] + e[2]), e[1] / (e[1] + e[2])  # each against the worse one only
    loss = plackett_luce_loss(REWARDS, torch.tensor([[1, 1, 3]]), 1.0)
    assert loss.item() == pytest.approx(-math.log(first) - math.log(second))
    assert plackett_luce_loss(REWARDS, torch.tensor([[1, 1, 1]]), 1.0).item() == pytest.approx(0, abs=1e-6)


def test_dense_and_competition_ranks_have_the_same_loss():
    dense, competition = torch.tensor([[1, 1, 2]]), torch.tensor([[1, 1, 3]])
    torch.testing.assert_close(plackett_luce_loss(REWARDS, dense, 1.0), plackett_luce_loss(REWARDS, competition, 1.0))


def test_edits_that_are_not_there_change_nothing():
    filled = torch.cat([REWARDS, torch.tensor([[9.0, -9.0]])], 1)
    ranks, filled_ranks = torch.tensor([[2, 1, 3]]), torch.tensor([[2, 1, 3, 0, 0]])
    for loss in (plackett_luce_loss, bradley_terry_loss):
        torch.testing.assert_close(loss(filled, filled_ranks, 1.0), loss(REWARDS, ranks, 1.0))
    assert pairwise_accuracy(filled, filled_ranks) == pairwise_accuracy(REWARDS, ranks)
    assert chance_loss(filled_ranks, PLACKETT_LUCE) == chance_loss(ranks, PLACKETT_LUCE)


def test_equal_rewards_have_the_loss_of_guessing():
    ranks = torch.tensor([[4, 3, 2, 1], [1, 1, 2, 3]])
    assert chance_loss(ranks, PLACKETT_LUCE) == pytest.approx((math.log(24) + math.log(3 * 3 * 2)) / 2)
    assert plackett_luce_loss(torch.zeros(2, 4), ranks, 1.0).item() == pytest.approx(chance_loss(ranks, PLACKETT_LUCE))


def test_bradley_terry_is_the_mean_over_all_preference_pairs():
    ranks = [2, 1, 2]
    wanted = np.mean([math.log(1 + math.exp(REWARDS[0, j] - REWARDS[0, i])) for i, j in preference_pairs(ranks)])
    assert bradley_terry_loss(REWARDS, torch.tensor([ranks]), 1.0).item() == pytest.approx(wanted)
    assert bradley_terry_loss(REWARDS, torch.tensor([[1, 1, 1]]), 1.0).item() == 0


def test_two_edits_cost_the_same_by_plackett_luce_bradley_terry_and_imagerewards_cross_entropy():
    rewards, ranks = torch.tensor([[0.3, 1.7], [2.0, -1.0], [0.0, 0.1]]), torch.tensor([[2, 1], [2, 1], [1, 2]])
    chosen_first = torch.stack([rewards[range(3), [1, 1, 0]], rewards[range(3), [0, 0, 1]]], 1)
    wanted = F.cross_entropy(chosen_first, torch.zeros(3, dtype=torch.long))  # as ImageReward writes it
    for name in ("plackett_luce", "bradley_terry"):
        torch.testing.assert_close(loss_from_settings(settings(loss=name))(rewards, ranks), wanted)


def test_rao_and_kupper_count_each_tie_once_by_hand():
    ranks, e = torch.tensor([[1, 1, 2, 0]]), [math.exp(reward) for reward in (0.5, 2.0, -1.0)]
    filled = torch.cat([REWARDS, torch.tensor([[9.0]])], 1)
    first, second = (e[place] / (e[place] + 3 * e[2]) for place in (0, 1))
    tie = (3**2 - 1) * e[0] * e[1] / ((e[0] + 3 * e[1]) * (e[1] + 3 * e[0]))
    wanted = -(math.log(first) + math.log(second) + math.log(tie)) / 3
    assert rao_kupper_loss(filled, ranks, 1.0, 3.0).item() == pytest.approx(wanted)
    named = loss_from_settings(settings(loss="rao_kupper", tie_threshold=3.0, temperature=2.0))
    torch.testing.assert_close(named(2 * filled, ranks), rao_kupper_loss(filled, ranks, 1.0, 3.0))


def test_a_tie_draws_rewards_together_where_ties_count_and_nowhere_else():
    tied = torch.tensor([[1, 1]])
    for name, pulled in (("plackett_luce", False), ("bradley_terry", False), ("rao_kupper", True)):
        rewards = torch.tensor([[2.0, 0.0]], requires_grad=True)
        loss_from_settings(settings(loss=name))(rewards, tied).backward()
        assert (rewards.grad[0, 0] > 0) == pulled, name
        assert rewards.grad.sum().item() == pytest.approx(0), name


def test_guessing_costs_by_the_loss():
    ranks = torch.tensor([[2, 1, 3], [1, 1, 2]])
    assert chance_loss(ranks, loss_from_settings(settings(loss="bradley_terry"))) == pytest.approx(math.log(2))
    # five preferences and a tie: of equal edits a third tie at threshold 2, and a third is better either way
    assert chance_loss(ranks, loss_from_settings(settings(loss="rao_kupper"))) == pytest.approx(math.log(3))


@pytest.mark.parametrize("name", ["plackett_luce", "bradley_terry", "rao_kupper"])
def test_people_who_disagree_are_each_heard_and_meet_at_the_odds_they_give(name):
    ranks = torch.tensor([[1, 2], [1, 2], [1, 2], [2, 1]])  # three of four people prefer the first
    one = torch.zeros(1, 2, requires_grad=True)
    optimizer = torch.optim.LBFGS([one], max_iter=100, line_search_fn="strong_wolfe")

    def step():
        optimizer.zero_grad()
        loss = loss_from_settings(settings(loss=name, tie_threshold=1.001))(one.expand(4, 2), ranks)
        loss.backward()
        return loss

    optimizer.step(step)
    assert (one[0, 0] - one[0, 1]).item() == pytest.approx(math.log(3), abs=1e-2)  # an averaged rank would be sure


def test_the_tensor_of_preferences_is_the_list_of_preference_pairs():
    ranks = [3, 1, 1, 4]
    assert [tuple(pair) for pair in preference_mask(torch.tensor([ranks]))[0].nonzero().tolist()] == preference_pairs(
        ranks
    )


def test_pairwise_accuracy_counts_preferences_and_halves_for_equal_rewards():
    assert pairwise_accuracy(REWARDS, torch.tensor([[2, 1, 3]])) == 1
    assert pairwise_accuracy(REWARDS, torch.tensor([[1, 2, 3]])) == pytest.approx(2 / 3)
    assert pairwise_accuracy(torch.zeros(1, 3), torch.tensor([[1, 2, 3]])) == 0.5
    assert pairwise_accuracy(REWARDS, torch.tensor([[1, 1, 1]])) == 0.5


def test_a_ranking_is_right_only_if_all_of_its_preferences_are():
    rewards = REWARDS.repeat(3, 1)
    ranks = torch.tensor([[2, 1, 3], [1, 2, 3], [1, 1, 2]])
    assert ranking_accuracy(rewards, ranks) == pytest.approx(2 / 3)
    assert ranking_accuracy(torch.zeros(1, 3), torch.tensor([[1, 2, 3]])) == 0


def test_a_ranking_that_ties_all_edits_counts_neither_as_right_nor_as_wrong():
    rewards, ranks = REWARDS.repeat(3, 1), torch.tensor([[2, 1, 3], [1, 2, 3], [1, 1, 1]])
    assert ranking_accuracy(rewards, ranks) == 0.5
    assert ranking_accuracy(rewards[2:], ranks[2:]) == ranking_accuracy(rewards[:0], ranks[:0]) == 0


def test_a_reward_that_is_no_number_is_wrong_and_hides_no_other():
    ranks = torch.tensor([[1, 2, 3], [1, 2, 3]])
    rewards = torch.tensor([[math.nan, 2.0, 1.0], [3.0, 2.0, 1.0]])
    assert pairwise_accuracy(rewards, ranks) == pytest.approx(4 / 6)
    assert ranking_accuracy(rewards, ranks) == 0.5
    nothing = torch.full((2, 3), math.nan)
    assert pairwise_accuracy(nothing, ranks) == ranking_accuracy(nothing, ranks) == 0


def test_prompts_are_held_out_at_the_rate_and_always_the_same():
    held_out = [is_held_out(f"prompt{index}", 0.15) for index in range(5000)]
    assert np.mean(held_out) == pytest.approx(0.15, abs=0.02)
    assert held_out == [is_held_out(f"prompt{index}", 0.15) for index in range(5000)]


def test_a_smaller_share_of_the_prompts_is_inside_a_larger_and_none_of_it_is_held_out():
    prompts = [f"prompt{index}" for index in range(5000)]
    tenth, half, rest = ({one for one in prompts if is_trained_on(one, 0.2, share)} for share in (0.1, 0.5, 1.0))
    assert {one for one in prompts if is_trained_on(one, 0.2, 0.5, beyond=0.1)} == half - tenth
    assert tenth < half < rest == {one for one in prompts if not is_held_out(one, 0.2)}
    assert [len(tenth), len(half)] == pytest.approx([400, 2000], rel=0.1)


def test_a_batch_fills_prompts_with_fewer_edits_by_rank_zero():
    model = small_model()
    batch = make_batch(model, [ranking("p", [0, 255, 128]), ranking("q", [10, 20], "a b")])
    source, edited, tokens, mask, ranks = (batch[name] for name in ("source", "edited", "tokens", "mask", "ranks"))
    assert source.shape == (2, 3, 16, 16)
    assert edited.shape == (2, 3, 3, 16, 16)
    assert ranks.tolist() == [[3, 1, 2], [2, 1, 0]]
    assert tokens.shape == mask.shape == (2, 4)
    assert edited[0, 1].min() == 1
    assert source.max() == -1


def broken_rankings():
    """Good ones at the ends, between them a broken source, a broken edit, and ranks that order nothing."""
    good = ranking("p", [0, 255, 128])
    cut_off = {"image": good["edits"][2]["image"][:60]}
    rows = [
        good,
        good | {"source_image": b"no picture"},
        good | {"edits": [*good["edits"][:2], cut_off]},
        good | {"ranks": [1, 2]},
        ranking("q", [30, 20]),
    ]
    return [row | {"ranking_id": name} for row, name in zip(rows, "abcde", strict=True)]


def test_rankings_that_nothing_can_be_learned_from_are_named_before_the_model_is_called():
    objective = RewardObjective(small_model(), settings())
    with pytest.raises(BadRows) as found:
        objective.prepare(broken_rankings(), torch.Generator())
    assert list(found.value.reasons) == [1, 2, 3]
    assert found.value.reasons[1].startswith("source_image: 10 bytes starting 6e6f2070 are not a readable image")
    assert found.value.reasons[2].startswith("edits[2]: 60 bytes starting 89504e47 are not a readable image")
    assert found.value.reasons[3] == "2 ranks [1, 2] for 3 edits; give one rank to each edit"


def test_a_model_is_measured_on_the_good_rankings_and_the_others_are_named():
    rows = broken_rankings()
    good, bad = usable_rankings(rows, 16)
    assert good == [rows[0], rows[4]]
    assert {name: why[:6] for name, why in bad.items()} == {"b": "source", "c": "edits[", "d": "2 rank"}
    rewards, _ = predict_rewards(small_model(), good)
    assert rewards.isfinite().all()


def test_the_objectives_loss_is_plackett_luce_of_the_models_rewards():
    model, rows = small_model(), [ranking("p", [0, 255, 128]), ranking("q", [30, 20, 10])]
    loss, metrics = RewardObjective(model, settings(temperature=0.1)).loss(model, make_batch(model, rows))
    with torch.no_grad():
        inputs = make_batch(model, rows)
        ranks = inputs.pop("ranks")
        wanted = plackett_luce_loss(model(**inputs), ranks, 0.1)
    torch.testing.assert_close(loss.detach(), wanted)
    assert set(metrics) == {"reward/accuracy", "reward/chance_loss"}
    assert metrics["reward/chance_loss"] == pytest.approx(math.log(6))  # three edits without ties


def test_every_weight_gets_a_gradient_but_for_the_shift_of_the_head():
    model = small_model()
    with torch.no_grad():
        model.head.weight.normal_()
    loss, _ = RewardObjective(model, settings()).loss(model, make_batch(model, [ranking("p", [0, 255, 128])]))
    loss.backward()
    idle = {name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.abs().max()}
    assert idle <= {"head.bias"}


def test_a_few_steps_teach_what_people_prefer_and_guessing_is_said_in_words():
    model = small_model()
    rng = np.random.default_rng(0)
    rows = [ranking(f"p{index}", rng.choice(256, 3, replace=False).tolist()) for index in range(12)]
    before = measured(model, rows)
    assert "learned nothing" in warning_for(before)
    objective, optimizer = RewardObjective(model, settings()), torch.optim.AdamW(model.parameters(), lr=1e-4)
    model.train()
    for _ in range(40):
        loss, _ = objective.loss(model, make_batch(model, rows))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = measured(model, rows)
    assert after["reward/accuracy"] > 0.9
    assert after["reward/loss"] < 0.8 * before["reward/chance_loss"]
    assert warning_for(after) is None


def test_measures_do_not_depend_on_the_batch_size():
    model = small_model()
    rows = [ranking("p", [0, 255, 128]), ranking("q", [30, 20]), ranking("r", [1, 2, 3])]
    assert measured(model, rows, batch_size=1) == pytest.approx(measured(model, rows, batch_size=3), rel=1e-4)


def test_overfitting_and_divergence_are_said_in_words():
    metrics = {"reward/loss": 4.0, "reward/chance_loss": math.log(24), "reward/accuracy": 0.41}
    assert "memorised" in warning_for(metrics)
    assert "diverged" in warning_for(metrics | {"reward/loss": math.nan})


def test_the_objective_saves_the_weights_it_is_given(tmp_path):
    model = small_model()
    state = {name: torch.full_like(tensor, 0.01) for name, tensor in model.state_dict().items()}
    RewardObjective(model, settings()).save(tmp_path, state, {"mean": 0.0})
    loaded = RewardModel.load(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
