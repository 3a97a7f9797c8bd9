"""The optimality of edits: how their rewards compare with those of the other edits of their prompts.

rewards of candidates -> optimality in 0..1, and the best edit of each prompt
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hive_ray.statistics.agreement import dense_ranks


@dataclass(frozen=True)
class RelativeRewards:
    """The rewards of N edits relative to the other edits of their prompts, (N,) each."""

    optimality: np.ndarray
    """The probability that an edit is optimal, 0..1. An edit with the mean reward of its prompt has 0.5."""
    advantage: np.ndarray
    """The reward minus the mean of the prompt's edits, divided by the standard deviation of these differences."""
    is_best: np.ndarray
    """Whether an edit is the first with the greatest reward of its prompt."""


def compare_within_prompts(rewards: Sequence[float], prompts: Sequence[str], clip: float) -> RelativeRewards:
    """The relative rewards of N edits, from their rewards and the names of their prompts.

    DiffusionNFT (Zheng et al. 2025), section 3.3: r = 1/2 + 1/2 clip((reward - mean of the prompt) / Z, -1, 1). Z is
    `clip` times the standard deviation, over all edits, of the rewards minus their prompts' means. So differences in
    difficulty between prompts do not matter. If no edit differs from the mean of its prompt, every r is 1/2. ValueError
    for rewards that are not finite.
    """
    values = np.asarray(rewards, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"{(~np.isfinite(values)).sum()} of {len(values)} rewards are not finite: score them again")
    _, prompt_of = np.unique(np.asarray(prompts), return_inverse=True)
    means = np.bincount(prompt_of, values) / np.bincount(prompt_of)
    centred = values - means[prompt_of]
    deviation = centred.std()
    # The mean of equal rewards may differ from them in the last bit.
    differs = deviation > 1e-9 * max(1.0, np.abs(values).max(initial=0.0))
    advantage = centred / deviation if differs else np.zeros_like(centred)
    best = {}
    for place, prompt in enumerate(prompt_of):
        if prompt not in best or values[place] > values[best[prompt]]:
            best[prompt] = place
    is_best = np.zeros(len(values), dtype=bool)
    is_best[list(best.values())] = True
    return RelativeRewards(0.5 + 0.5 * np.clip(advantage / clip, -1, 1), advantage, is_best)


def mean_rank_rewards(rankings: Sequence[tuple[Sequence[str], Sequence[int]]]) -> dict[str, float]:
    """Minus the mean rank of each edit, by edit_id: a reward without a reward model.

    rankings: edit_ids and their ranks (1 is best), one pair for each person. Ranks are first made dense.
    """
    ranks_of: dict[str, list[int]] = {}
    for edit_ids, ranks in rankings:
        for edit_id, rank in zip(edit_ids, dense_ranks(list(ranks)), strict=True):
            ranks_of.setdefault(edit_id, []).append(rank)
    return {edit_id: -float(np.mean(ranks)) for edit_id, ranks in ranks_of.items()}


def widest_prompts(rewards: Mapping[str, Sequence[float]], rate: float) -> set[str]:
    """The share `rate` of prompts, rounded up, with the greatest difference between best and worst reward.

    rewards: those of a prompt's edits, by prompt. Of equal differences the prompt whose name sorts first is taken.
    Prompts whose rewards are all equal are left out.
    """
    distances = {prompt: max(of_prompt) - min(of_prompt) for prompt, of_prompt in rewards.items()}
    differing = [prompt for prompt in distances if distances[prompt] > 0]
    widest = sorted(differing, key=lambda prompt_id: (-distances[prompt_id], prompt_id))
    return set(widest[: math.ceil(rate * len(rewards))])


def best_and_worst_ranks(rewards: Sequence[float]) -> list[int]:
    """Ranks 1 for the greatest reward, 3 for the least and 2 for all others: only the extremes are reliable."""
    greatest, least = max(rewards), min(rewards)
    ranks = {least: 3, greatest: 1}  # the greatest last: if all are equal, all are best
    return [ranks.get(reward, 2) for reward in rewards]
