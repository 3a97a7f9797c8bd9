"""Ranks checked, and how far people agree: Kendall's tau-b and Krippendorff's alpha."""

from collections.abc import Iterable, Sequence
from itertools import combinations
from math import sqrt
from statistics import fmean

import numpy as np


class RankingError(ValueError):
    """Ranks, or a line of an annotations file, that do not say an order of a prompt's edits; `reason` is a short name
    of what is wrong."""

    def __init__(self, words: str, reason: str = "not_an_order") -> None:
        super().__init__(words)
        self.reason = reason


def check_ranks(ranks: list[int], num_edits: int) -> None:
    """Raise a RankingError unless `ranks` orders `num_edits` edits: whole numbers, 1 is best, ties allowed.

    After a tie, ranks may count on (dense: 1, 2, 2, 3) or skip (competition: 1, 2, 2, 4).
    """
    if len(ranks) != num_edits:
        raise RankingError(f"{len(ranks)} ranks {ranks} for {num_edits} edits; give one rank to each edit")
    if not all(isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1 for rank in ranks):
        raise RankingError(f"ranks {ranks} are not whole numbers from 1; 1 is the best")
    dense, competition = dense_ranks(ranks), [1 + sum(other < rank for other in ranks) for rank in ranks]
    if ranks not in (dense, competition):
        raise RankingError(f"ranks {ranks} leave gaps; the best is 1: write {competition} or {dense}")


def dense_ranks(ranks: list[int]) -> list[int]:
    """The same order with consecutive ranks: 1, 3, 3 -> 1, 2, 2."""
    place = {rank: index for index, rank in enumerate(sorted(set(ranks)), start=1)}
    return [place[rank] for rank in ranks]


def kendall_tau(ranks: list[int], other: list[int]) -> float:
    """Kendall's tau-b of two orders of the same edits, in -1..1; 0 where one of them ties everything.

    Counted pair by pair: for a handful of edits that takes a hundredth of scipy's time.
    """
    if len(ranks) != len(other):
        raise RankingError(f"{len(ranks)} and {len(other)} ranks; compare two orders of the same edits")
    agreed = apart = other_apart = 0
    for (first, other_first), (second, other_second) in combinations(zip(ranks, other, strict=True), 2):
        sign = (first > second) - (first < second)
        other_sign = (other_first > other_second) - (other_first < other_second)
        agreed += sign * other_sign
        apart += abs(sign)
        other_apart += abs(other_sign)
    return agreed / sqrt(apart * other_apart) if apart and other_apart else 0.0


def mean_tau(orders_of: Iterable[list[list[int]]]) -> float | None:
    """Kendall's tau-b, mean over pairs of people of a thing that they ranked, then over things; None without pairs."""
    shared = [orders for orders in orders_of if len(orders) > 1]
    if not shared:
        return None
    return fmean(fmean(kendall_tau(one, two) for one, two in combinations(orders, 2)) for orders in shared)


def krippendorff_alpha(units: Iterable[Sequence[int]]) -> float | None:
    """Krippendorff's alpha for ordinal values (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability").

    A unit is what several people gave values to: the values that it got, in no order. Units with fewer than two say
    nothing. 1 is full agreement, 0 what chance gives; None where there is no unit, or every value is the same.
    """
    valued = [list(values) for values in units if len(values) > 1]
    categories = sorted({value for values in valued for value in values})
    if len(categories) < 2:
        return None
    place = {value: index for index, value in enumerate(categories)}
    coincidences = np.zeros((len(categories), len(categories)))
    for values in valued:
        counts = np.bincount([place[value] for value in values], minlength=len(categories)).astype(float)
        coincidences += (np.outer(counts, counts) - np.diag(counts)) / (len(values) - 1)
    totals = coincidences.sum(axis=0)
    below = np.concatenate([[0.0], np.cumsum(totals)])  # values in all categories before this one
    middle = below[:-1] + totals / 2
    difference = (middle[:, None] - middle[None, :]) ** 2  # delta^2: what lies between, the two ends by half
    observed = (coincidences * difference).sum()
    expected = (np.outer(totals, totals) * difference).sum() / (totals.sum() - 1)
    return float(1 - observed / expected)
