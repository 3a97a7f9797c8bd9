"""Checks of ranks, and agreement of people: Kendall's tau-b, Krippendorff's alpha, and shares of equal preferences."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import sqrt
from statistics import fmean
from typing import Any

import numpy as np


class RankingError(ValueError):
    """Ranks, or a line of an annotations file, that are not a valid order of a prompt's edits.

    reason: a short name of what is wrong, by which manifests count.
    """

    def __init__(self, message: str, reason: str = "not_an_order") -> None:
        super().__init__(message)
        self.reason = reason


def check_ranks(ranks: list[int], num_edits: int) -> None:
    """Raise a RankingError unless `ranks` orders `num_edits` edits: whole numbers, 1 is best, ties allowed.

    After a tie, ranks may go on (dense: 1, 2, 2, 3) or skip (competition: 1, 2, 2, 4).
    """
    if len(ranks) != num_edits:
        raise RankingError(f"{len(ranks)} ranks {ranks} for {num_edits} edits; give one rank to each edit")
    if not all(isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1 for rank in ranks):
        raise RankingError(f"ranks {ranks} are not whole numbers from 1; 1 is the best")
    dense = dense_ranks(ranks)
    in_order = sorted(ranks)
    competition = [1 + in_order.index(rank) for rank in ranks]
    if ranks not in (dense, competition):
        raise RankingError(f"ranks {ranks} leave gaps; the best is 1: write {competition} or {dense}")


def dense_ranks(ranks: list[int]) -> list[int]:
    """The same order with consecutive ranks: 1, 3, 3 -> 1, 2, 2."""
    place = {rank: index for index, rank in enumerate(sorted(set(ranks)), start=1)}
    return [place[rank] for rank in ranks]


def kendall_tau(ranks: list[int], other: list[int]) -> float:
    """Kendall's tau-b of two orders of the same edits, in -1..1; 0 if one of them ties all edits.

    It counts pair by pair, which is much faster than scipy for a few edits.
    """
    if len(ranks) != len(other):
        raise RankingError(f"{len(ranks)} and {len(other)} ranks; compare two orders of the same edits")
    agreed = 0
    apart = 0
    other_apart = 0
    for (first, other_first), (second, other_second) in combinations(zip(ranks, other, strict=True), 2):
        sign = (first > second) - (first < second)
        other_sign = (other_first > other_second) - (other_first < other_second)
        agreed += sign * other_sign
        apart += abs(sign)
        other_apart += abs(other_sign)
    return agreed / sqrt(apart * other_apart) if apart and other_apart else 0.0


def mean_kendall_tau(orders_by_item: Iterable[list[list[int]]]) -> float | None:
    """Kendall's tau-b, a mean over pairs of people who ranked the same item, then over items; None without pairs.

    orders_by_item: for each item the ranks by each person.
    """
    shared = [orders for orders in orders_by_item if len(orders) > 1]
    if not shared:
        return None
    means = []
    for orders in shared:
        means.append(fmean(kendall_tau(first, second) for first, second in combinations(orders, 2)))
    return fmean(means)


def krippendorff_alpha(units: Iterable[Sequence[int]]) -> float | None:
    """Krippendorff's alpha for ordinal values (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability").

    A unit is a list of the values that people gave to one item, in any order. Units with fewer than two values do not
    count. 1 is full agreement, 0 is agreement by chance. None if no unit counts, or if all values are equal.
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
    difference = (middle[:, None] - middle[None, :]) ** 2  # delta^2: the values between, and half of those at the ends
    observed = (coincidences * difference).sum()
    expected = (np.outer(totals, totals) * difference).sum() / (totals.sum() - 1)
    return float(1 - observed / expected)


@dataclass(frozen=True)
class PreferenceAgreement:
    """The agreement of rankings of the same edits, by pairs of edits. Shares are 0..1; None if nothing was counted.

    A comparison is a pair of edits in two rankings. Each ranking has one of three answers: first, second, tie.
    """

    comparisons: int
    ties: float | None
    """Share of ties among all pairs of edits of all rankings, including those that nobody else ranked."""
    in_order: float | None
    """Share of comparisons in the same order, among those without a tie. Chance is 0.5."""
    ties_half: float | None
    """Mean credit of a comparison: 1 for the same answer, 0.5 for a tie against an order, 0 for opposite orders. It is
    the accuracy of Pick-a-Pic (Kirstain et al. 2023, section 4)."""
    three_way: float | None
    """Share of comparisons with the same answer of the three; a tie against an order counts as 0."""


def preference_agreement(rankings: Iterable[Mapping[str, Any]]) -> PreferenceAgreement:
    """The agreement of rows of `rankings`, over all pairs of rankings of the same edits in the same order.

    A row has `prompt_id`, `ranks`, and `edits` with `edit_id`. Several rankings by one person count as those of several
    people.
    """
    of_edits: dict[tuple[str, ...], list[list[int]]] = defaultdict(list)
    for row in rankings:
        answers = list(_answers(row["ranks"]))
        of_edits[row["prompt_id"], *(edit["edit_id"] for edit in row["edits"])].append(answers)
    tied: list[bool] = []
    compared: list[tuple[int, int]] = []
    for answer_lists in of_edits.values():
        for answers in answer_lists:
            tied += [answer == 0 for answer in answers]
        for first, second in combinations(answer_lists, 2):
            compared += zip(first, second, strict=True)
    strict = [first == second for first, second in compared if first and second]
    credits = [1 - abs(first - second) / 2 for first, second in compared]
    same = [first == second for first, second in compared]
    return PreferenceAgreement(len(compared), _share(tied), _share(strict), _share(credits), _share(same))


def _answers(ranks: Sequence[int]) -> Iterator[int]:
    """The preference of ranks for each pair of edits: -1 for the first, 1 for the second, 0 for a tie."""
    for first, second in combinations(ranks, 2):
        yield (first > second) - (first < second)


def _share(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
