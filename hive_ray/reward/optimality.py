"""How likely each edit of a prompt is a good one, judged by the rewards of the prompt's other edits.

rewards of candidates -> optimality in 0..1, and the best edit of each prompt
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hive_ray.statistics.agreement import dense_ranks


@dataclass(frozen=True)
class RelativeRewards:
    """How edits compare with the others of their prompts, each (N,)."""

    optimality: np.ndarray
    """The probability that an edit is optimal, 0..1. An edit with the mean reward of its prompt has 0.5."""
    advantage: np.ndarray
    """Its reward minus the mean of its prompt's edits, divided by the standard deviation of these differences."""
    is_best: np.ndarray
    """Whether it is the first of those with its prompt's greatest reward."""


def compare_within_prompts(rewards: Sequence[float], prompts: Sequence[str], clip: float) -> RelativeRewards:
    """The standing of N edits by their rewards and their prompts' names.

    DiffusionNFT (Zheng et al. 2025), section 3.3: r = 1/2 + 1/2 clip((reward - mean of the prompt) / Z, -1, 1). Z is
    `clip` times the standard deviation, over all edits, of the rewards minus their prompts' means. So it does not
    depend on how much prompts differ in difficulty. Where no edit differs from its prompt's mean, every r is 1/2.
    Raises a ValueError for rewards that are not finite.
    """
    values = np.asarray(rewards, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"{(~np.isfinite(values)).sum()} of {len(values)} rewards are not finite: score them again")
    _, prompt_of = np.unique(np.asarray(prompts), return_inverse=True)
    means = np.bincount(prompt_of, values) / np.bincount(prompt_of)
    centred = values - means[prompt_of]
    deviation = centred.std()
    # The mean of equal rewards may miss them by a last bit.
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
    """Minus the mean rank of each edit, by edit_id: a reward that needs no reward model.

    rankings: edit_ids and their ranks (1 is best), one of each person. Ranks are counted without gaps.
    """
    ranks_of: dict[str, list[int]] = {}
    for edit_ids, ranks in rankings:
        for edit_id, rank in zip(edit_ids, dense_ranks(list(ranks)), strict=True):
            ranks_of.setdefault(edit_id, []).append(rank)
    return {edit_id: -float(np.mean(ranks)) for edit_id, ranks in ranks_of.items()}


def widest_prompts(rewards: Mapping[str, Sequence[float]], rate: float) -> set[str]:
    """The share `rate` of prompts, rounded up, whose best and worst reward lie farthest apart.

    rewards: those of a prompt's edits, by prompt. Of equal distances the prompt whose name comes first counts as wider;
    prompts whose rewards are all equal are left out.
    """
    distances = {prompt: max(of_prompt) - min(of_prompt) for prompt, of_prompt in rewards.items()}
    differing = [prompt for prompt in distances if distances[prompt] > 0]
    widest = sorted(differing, key=lambda prompt_id: (-distances[prompt_id], prompt_id))
    return set(widest[: math.ceil(rate * len(rewards))])


def best_and_worst_ranks(rewards: Sequence[float]) -> list[int]:
    """1 for the greatest reward, 3 for the least, 2 for all between: only a reward model's extremes are trusted."""
    greatest, least = max(rewards), min(rewards)
    ranks = {least: 3, greatest: 1}  # the greatest last: where all are equal, all are best
    return [ranks.get(reward, 2) for reward in rewards]
