"""Productivity of annotation: preferences per hour, and the rate of ties, also estimated over all prompts."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from types import MappingProxyType

import numpy as np

from hive_ray.annotation.exports import AnswerRecord, regular_answers
from hive_ray.statistics.intervals import ratio

MAX_ANSWER_S = 120.0
"""Longer times for an answer count as this much, since the page was left open."""


@dataclass(frozen=True)
class Productivity:
    """Counts of pairs of edits in people's rankings, and the time of all their answers."""

    preferences: int
    """Pairs with different ranks."""
    ties: int
    hours: float
    estimated_tie_rate: float | None
    """Share of ties over all prompts that could have been chosen, an estimate in [0, 1]; None without probabilities."""

    @property
    def per_hour(self) -> float:
        """Preferences per hour; 0 if no time was measured."""
        return self.preferences / self.hours if self.hours else 0.0

    @property
    def tie_rate(self) -> float:
        """Share of ties among the ranked pairs, 0 to 1; 0 where there are none."""
        pairs = self.preferences + self.ties
        return self.ties / pairs if pairs else 0.0

    def __str__(self) -> str:
        words = f"{self.preferences:,} preferences in {self.hours:.2f} hours: {self.per_hour:,.0f} an hour; "
        words += f"{self.tie_rate:.0%} of pairs are ties"
        return (
            words
            if self.estimated_tie_rate is None
            else f"{words}, an estimated {self.estimated_tie_rate:.0%} over all prompts"
        )


def measure_productivity(
    answers: Iterable[AnswerRecord],
    probabilities: Mapping[str, float] = MappingProxyType({}),
    excluded: Collection[str] = (),
) -> Productivity:
    """Measure the productivity of all people who are not in `excluded`.

    probabilities: prompt id -> inclusion probability, if the prompts are a sample.
    Pairs of regular answers count. The time of all answers counts.
    """
    answers = [answer for answer in answers if answer.annotator not in excluded]
    rankings = [answer for answer in regular_answers(answers) if "ranks" in answer.verdict]
    ties_by_prompt: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for answer in rankings:
        ties_by_prompt[answer.prompt_id].append(count_ties(answer.verdict["ranks"]))
    counts = [count for of_prompt in ties_by_prompt.values() for count in of_prompt]
    ties = sum(tied for tied, _ in counts)
    return Productivity(
        preferences=sum(pairs for _, pairs in counts) - ties,
        ties=ties,
        hours=sum(min(answer.seconds, MAX_ANSWER_S) for answer in answers) / 3600,
        estimated_tie_rate=estimate_tie_rate(ties_by_prompt, probabilities),
    )


def count_ties(ranks: list[int]) -> tuple[int, int]:
    """The number of tied pairs and the number of all pairs."""
    pairs = list(combinations(ranks, 2))
    return sum(first == other for first, other in pairs), len(pairs)


def estimate_tie_rate(counts: Mapping[str, list[tuple[int, int]]], probabilities: Mapping[str, float]) -> float | None:
    """Estimate the share of ties over all prompts from a sample; counts: prompt id -> (ties, pairs) of each ranking.

    The ratio of two Horvitz-Thompson estimates (Hajek 1971): sum of ties / p over the sum of pairs / p, where each
    prompt counts with the mean over its rankings. Prompts without a probability are left out; None if none is left.
    """
    weighted = [
        np.mean(of_prompt, axis=0) / probabilities[prompt_id]
        for prompt_id, of_prompt in counts.items()
        if prompt_id in probabilities
    ]
    return float(ratio(np.array(weighted), axis=0)) if weighted else None
