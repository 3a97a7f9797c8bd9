"""The reward model's objective: rankings -> a loss, and how often the model agrees with people.

B prompts, K edits of a prompt; a rank of 0 is padding where prompts differ in their number of edits
"""

import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hive_ray import config
from hive_ray.errors import BadRows
from hive_ray.images import ImageError, decode, map_in_threads, resize, to_tensor
from hive_ray.reward.model import RewardModel
from hive_ray.schemas import Row, Rows
from hive_ray.seeds import uniform_for
from hive_ray.statistics.agreement import RankingError, check_ranks
from hive_ray.statistics.preferences import preference_loss

Metrics = dict[str, float]
Batch = dict[str, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


def preference_mask(ranks: Tensor) -> Tensor:
    """ranks (B, K) -> bool (B, K, K): whether edit i is ranked strictly better than edit j."""
    is_edit = ranks > 0
    better = ranks[:, :, None] < ranks[:, None, :]
    return better & is_edit[:, :, None] & is_edit[:, None, :]


def plackett_luce_loss(rewards: Tensor, ranks: Tensor, temperature: float) -> Tensor:
    """Negative log-likelihood of the ranks (Plackett 1975), mean over prompts; rewards and ranks (B, K).

    L = -sum_k log( exp(R_k / tau) / sum_j exp(R_j / tau) ), where j runs over k and all edits ranked strictly worse.
    Tied edits are not compared with each other: neither is in the other's denominator.
    With two edits this is the Bradley-Terry loss -log sigmoid((R_1 - R_2) / tau).
    """
    scaled = rewards / temperature
    competing = preference_mask(ranks) | torch.eye(ranks.shape[1], dtype=torch.bool, device=ranks.device)
    others = scaled[:, None, :].masked_fill(~competing, float("-inf"))  # (B, K, K): row k holds k's rivals and k
    return (others.logsumexp(-1) - scaled).sum(1).mean()


def bradley_terry_loss(rewards: Tensor, ranks: Tensor, temperature: float) -> Tensor:
    """Mean of -log sigmoid((R_chosen - R_rejected) / tau) over all preferences (ImageReward); 0 if none."""
    margins = (rewards[:, :, None] - rewards[:, None, :])[preference_mask(ranks)] / temperature
    return F.softplus(-margins).mean() if len(margins) else rewards.sum() * 0


def rao_kupper_loss(rewards: Tensor, ranks: Tensor, temperature: float, tie_threshold: float) -> Tensor:
    """Mean negative log-likelihood of all comparisons of two edits, ties included (`preferences.preference_loss`)."""
    is_edit = ranks > 0
    equal = ranks[:, :, None] == ranks[:, None, :]
    tied = (equal & is_edit[:, :, None] & is_edit[:, None, :]).triu(1)  # each tie once
    compared = tied | preference_mask(ranks)
    margins = (rewards[:, :, None] - rewards[:, None, :])[compared] / temperature
    return preference_loss(margins, tied[compared], tie_threshold).mean() if len(margins) else rewards.sum() * 0


def loss_from_settings(settings: config.Reward) -> Loss:
    """The loss that `reward.loss` names: (rewards, ranks), both (B, K) -> a number."""
    named = {"plackett_luce": plackett_luce_loss, "bradley_terry": bradley_terry_loss}
    if settings.loss == "rao_kupper":
        return partial(rao_kupper_loss, temperature=settings.temperature, tie_threshold=settings.tie_threshold)
    return partial(named[settings.loss], temperature=settings.temperature)


def chance_loss(ranks: Tensor, loss: Loss) -> float:
    """The loss of a model that gives every edit the same reward: without ties ln K! (Plackett-Luce) or ln 2."""
    return loss(torch.zeros(ranks.shape, dtype=torch.float64, device=ranks.device), ranks).item()


def count_right_preferences(rewards: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """The number of right preferences and of all preferences of each prompt, (B,) each. rewards, ranks: (B, K).

    A preference is right where the chosen edit has the greater reward. Equal rewards count half, NaN counts nothing.
    """
    chosen = preference_mask(ranks)
    first, second = rewards[:, :, None], rewards[:, None, :]
    right = (first > second) + (first == second) / 2
    return right.where(chosen, 0).sum((1, 2)), chosen.sum((1, 2))


def find_right_rankings(rewards: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """Whether all preferences of a prompt are right, and whether it has any: bool (B,) each; rewards and ranks (B, K).

    A preference is right where the chosen edit has the greater reward. A prompt without preferences is not right.
    """
    chosen = preference_mask(ranks)
    wrong = chosen & ~(rewards[:, :, None] > rewards[:, None, :])  # NaN is greater than nothing
    has_any = chosen.flatten(1).any(1)
    return has_any & ~wrong.flatten(1).any(1), has_any


def pairwise_accuracy(rewards: Tensor, ranks: Tensor) -> float:
    """Share of preference pairs in which the chosen edit has the greater reward; equal rewards count half, NaN nothing.

    Guessing gives 0.5. The result is 0.5, too, if there is no preference at all.
    """
    right, preferences = count_right_preferences(rewards, ranks)
    total = preferences.sum().item()
    return right.sum().item() / total if total else 0.5


def ranking_accuracy(rewards: Tensor, ranks: Tensor) -> float:
    """Share of prompts whose preference pairs are all right; guessing gives 1 / K! without ties.

    A prompt whose edits all tie does not count. The result is 0 if there is no preference at all.
    """
    right, has_any = find_right_rankings(rewards, ranks)
    rankings = has_any.sum().item()
    return right.sum().item() / rankings if rankings else 0.0


def is_held_out(prompt_id: str, rate: float) -> bool:
    """Whether all rankings of this prompt are held out from training, to measure the model. rate: 0..1."""
    return uniform_for("reward", prompt_id) < rate


def is_trained_on(prompt_id: str, rate: float, share: float = 1.0, beyond: float = 0.0) -> bool:
    """Whether the rankings of this prompt belong to a share (0..1) of the training rankings. Held-out prompts do not.

    A larger share contains all prompts of a smaller one. The prompts of the share `beyond` are left out.
    """
    return not is_held_out(prompt_id, rate) and beyond <= uniform_for("reward_share", prompt_id) < share


def make_batch(model: RewardModel, rows: Rows) -> Batch:
    """RANKINGS rows -> the model's inputs, "source", "edited", "tokens" and "mask", and "ranks" (B, K), on the CPU.

    Prompts with fewer edits than others are padded with grey pictures of rank 0. BadRows names the rows with a
    picture that cannot be read or with ranks that do not match their edits.
    """
    side = model.resolution
    read = map_in_threads(lambda row: _pictures_or_why(row, side), rows)
    reasons: dict[int, str] = {}
    pictures: list[Tensor] = []
    for place, result in enumerate(read):
        if isinstance(result, str):
            reasons[place] = result
        else:
            pictures.append(torch.stack([to_tensor(picture) for picture in result]))
    if reasons:
        raise BadRows(reasons)
    num_edits = max(len(row["edits"]) for row in rows)
    edited = torch.zeros(len(rows), num_edits, 3, side, side)
    ranks = torch.zeros(len(rows), num_edits, dtype=torch.long)
    for place, row in enumerate(rows):
        edited[place, : len(row["edits"])] = pictures[place][1:]
        ranks[place, : len(row["ranks"])] = torch.tensor(row["ranks"])
    source = torch.stack([picture[0] for picture in pictures])
    tokens, mask = model.encode_text([row["instruction"] for row in rows])
    return {"source": source, "edited": edited, "tokens": tokens, "mask": mask, "ranks": ranks}


def usable_rankings(rows: Iterable[Row], resolution: int) -> tuple[Rows, dict[str, str]]:
    """The RANKINGS rows that can be scored, and the reason for each other row by `ranking_id`."""
    good, bad = [], {}
    for row in rows:
        result = _pictures_or_why(row, resolution)
        if isinstance(result, str):
            bad[row["ranking_id"]] = result
        else:
            good.append(row)
    return good, bad


def _pictures_or_why(row: Row, resolution: int) -> list[np.ndarray] | str:
    """The pixels of the source and the edits of a RANKINGS row, or the reason why it cannot be used."""
    try:
        check_ranks(row["ranks"], len(row["edits"]))
    except RankingError as error:
        return str(error)
    named = {"source_image": row["source_image"]}
    named |= {f"edits[{place}]": edit["image"] for place, edit in enumerate(row["edits"])}
    pictures = []
    for name, image in named.items():
        try:
            pictures.append(resize(decode(image), resolution))
        except ImageError as error:
            return f"{name}: {error}"
    return pictures


class RewardObjective:
    """Fits a reward model to rankings by the loss that the settings name.

    A row is one person's ranking. Where several people ranked a prompt, each of their rankings counts.
    """

    def __init__(self, model: RewardModel, settings: config.Reward) -> None:
        self.model = model
        self.settings = settings
        self.loss_of_rewards = loss_from_settings(settings)

    def prepare(self, rows: Rows, generator: torch.Generator) -> Batch:
        """RANKINGS rows as `make_batch` prepares them; draws nothing. BadRows names the rows that it cannot use."""
        return make_batch(self.model, rows)

    def loss(self, model: torch.nn.Module, batch: Batch) -> tuple[Tensor, Metrics]:
        """The loss of a prepared batch; `model` is `self.model`, wrapped or not."""
        inputs = dict(batch)
        ranks = inputs.pop("ranks")
        rewards = model(**inputs).float()
        loss = self.loss_of_rewards(rewards, ranks)
        accuracy = pairwise_accuracy(rewards.detach(), ranks)
        return loss, {"reward/accuracy": accuracy, "reward/chance_loss": chance_loss(ranks, self.loss_of_rewards)}

    def save(self, folder: str | Path, state: dict[str, Tensor], card: dict[str, Any]) -> None:
        """Write the model with these weights as a portable folder."""
        self.model.load_state_dict(state)
        self.model.save(folder, card)


@torch.inference_mode()
def predict_rewards(model: RewardModel, rows: Rows, *, batch_size: int = 32) -> tuple[Tensor, Tensor]:
    """The rewards and ranks (N, K) of N RANKINGS rows, on the CPU; rank 0 is padding."""
    model.eval()
    num_edits = max((len(row["edits"]) for row in rows), default=0)
    rewards = torch.zeros(len(rows), num_edits)
    ranks = torch.zeros(len(rows), num_edits, dtype=torch.long)
    for start in range(0, len(rows), batch_size):
        inputs = make_batch(model, rows[start : start + batch_size])
        batch_ranks = inputs.pop("ranks")
        place = (slice(start, start + batch_size), slice(batch_ranks.shape[1]))
        on_device = {name: tensor.to(model.device) for name, tensor in inputs.items()}
        rewards[place] = model(**on_device).float().cpu()
        ranks[place] = batch_ranks
    return rewards, ranks


def measure_rewards(rewards: Tensor, ranks: Tensor, loss: Loss) -> Metrics:
    """The loss of rewards (N, K) on ranks (N, K), the loss of a guess, and both accuracies."""
    return {
        "reward/loss": loss(rewards, ranks).item(),
        "reward/chance_loss": chance_loss(ranks, loss),
        "reward/accuracy": pairwise_accuracy(rewards, ranks),
        "reward/ranking_accuracy": ranking_accuracy(rewards, ranks),
    }


class Remedies(NamedTuple):
    """Advice about a reward model that should not be trusted."""

    diverged: str = "training diverged; lower reward.training.learning_rate"
    nothing_learned: str = "raise the learning rate, train longer, or check that the rankings are not random"
    overfitted: str = "it memorised the training rankings: collect more, freeze more layers, or train less"


def warning_for(metrics: Metrics, remedies: Remedies = Remedies()) -> str | None:  # noqa: B008 - immutable
    """Why a model with these metrics should not be trusted, in words; None if it learned something.

    metrics: those of `measure_rewards` on held-out rankings.
    """
    loss, chance = metrics["reward/loss"], metrics["reward/chance_loss"]
    if not math.isfinite(loss):
        return f"the reward model's loss is {loss}: {remedies.diverged}"
    if np.isclose(loss, chance, rtol=0.02):
        return (
            f"the reward model learned nothing: its loss is {loss:.4f}, that of guessing {chance:.4f}; "
            f"{remedies.nothing_learned}"
        )
    if loss > chance:
        return (
            f"the reward model is overconfident on held-out rankings: its loss is {loss:.4f}, that "
            f"of guessing {chance:.4f}, its accuracy {metrics['reward/accuracy']:.2f}; {remedies.overfitted}"
        )
    return None
