"""How well a reward, or a similarity of CLIP, separates good edits from bad ones, on edits that were not selected.

    rows of `evaluation` with `draws` -> evaluate_measures -> DrawsSummary

Rankings of chosen prompts measure how well a reward orders edits that differ. Here it is measured on the edits that it
is used for: several draws of each test prompt, each of them judged.

P prompts, N draws of each.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from hive_ray.evaluation.metrics import metric_value
from hive_ray.schemas import Rows
from hive_ray.statistics.intervals import Interval, interval, ratio, ratio_gap
from hive_ray.statistics.measures import mann_whitney_u, standardise

MEASURES = ("reward", "clip_image", "clip_direction")
SUM_OF_MEASURES = "sum"
"""The sum of all MEASURES, each standardised over all draws."""

CLEAR_GAP = 0.3
"""Two edits of one prompt make a clear preference if their `overall` (0..1) differs by more than this.

It is two standard deviations of a simulated person's noise (`shapes.annotator.NOISE`), so such a person seldom reverses
a clear preference. Most other pairs of edits are about equally good, and their order says nothing about a measure."""

IntervalFunction = Callable[..., Interval]
"""`interval` with fixed options."""


@dataclass(frozen=True)
class MeasureScore:
    """How well a measure separates good edits from bad ones, or the difference of two measures in this."""

    auc: Interval | None
    """Probability that a right edit has a greater value than a wrong one, of any two prompts (chance is 0.5). None if
    all edits are right, or all are wrong."""
    clear: Interval | None
    """Share of the clear preferences that the measure orders correctly (chance is 0.5). None without any."""
    right: Interval
    """Share of the prompts for which the draw with the greatest value is right."""


@dataclass(frozen=True)
class DrawsSummary:
    """The judgements of all draws of an editor, and how well each measure predicts them."""

    num_draws: int
    num_prompts: int
    num_clear: int
    """Clear preferences."""
    num_clear_prompts: int
    """Prompts with at least one clear preference."""
    first: Interval
    """Share of the prompts whose first draw is right."""
    mean: Interval
    """Share of all draws that are right."""
    ceiling: Interval
    """Share of the prompts with a right draw: the result if the judge itself chose."""
    measures: dict[str, MeasureScore]
    """By name: MEASURES and SUM_OF_MEASURES."""
    reward_minus: dict[str, MeasureScore]
    """By the name of every other measure: the scores of the reward minus its scores, paired by prompt."""


@dataclass(frozen=True)
class JudgedDraws:
    """The judgements and the measures of the draws, (P, N) each."""

    right: np.ndarray
    """1 or 0."""
    overall: np.ndarray
    """0..1"""
    values: dict[str, np.ndarray]
    """By name: MEASURES and SUM_OF_MEASURES."""

    @classmethod
    def from_rows(cls, draws: list[Rows]) -> "JudgedDraws":
        """From P lists of N draws, as in the column `draws` of `evaluation`."""

        def table(metric: str) -> np.ndarray:
            rows = []
            for prompt_draws in draws:
                rows.append([metric_value(draw, metric) for draw in prompt_draws])
            return np.array(rows)

        values = {name: table(name) for name in MEASURES}
        total = sum((standardise(scores) for scores in values.values()), start=np.zeros(()))
        return cls(table("right"), table("overall"), values | {SUM_OF_MEASURES: total})

    @property
    def clear(self) -> np.ndarray:
        """(P, N, N): whether the first of two draws is clearly better than the second."""
        return self.overall[:, :, None] - self.overall[:, None, :] > CLEAR_GAP

    def count_clear_in_order(self, values: np.ndarray) -> np.ndarray:
        """(P, 2): the clear preferences of a prompt that the values (P, N) order correctly, and all of them.

        Equal values count half.
        """
        in_order = (np.sign(values[:, :, None] - values[:, None, :]) + 1) / 2
        return np.stack([(in_order * self.clear).sum((1, 2)), self.clear.sum((1, 2))], axis=1)

    def right_of_best(self, values: np.ndarray) -> np.ndarray:
        """(P,): whether the draw with the greatest of the values (P, N) is right; of equal values the first counts."""
        return self.right[np.arange(len(values)), values.argmax(1)]


def evaluate_measures(rows: Rows, *, resamples: int = 1000, seed: int = 0) -> DrawsSummary | None:
    """How well the MEASURES and their sum separate good edits from bad ones among the `draws` of one editor.

    rows: one for each prompt. Rows without draws, such as those of the best of several, are left out, and so are rows
    with a measure that is not finite. None if no row is left. Intervals resample prompts.
    """
    draws_of = {row["prompt_id"]: row["draws"] for row in rows if row["draws"]}
    prompts = [prompt for prompt in sorted(draws_of) if _is_whole(draws_of[prompt])]
    if not prompts:
        return None
    draws = JudgedDraws.from_rows([draws_of[prompt] for prompt in prompts])
    bounds: IntervalFunction = partial(interval, resamples=resamples, seed=seed)
    reward = draws.values["reward"]
    num_clear = draws.clear.sum((1, 2))
    return DrawsSummary(
        num_draws=draws.right.shape[1],
        num_prompts=len(prompts),
        num_clear=int(num_clear.sum()),
        num_clear_prompts=int((num_clear > 0).sum()),
        first=bounds(draws.right[:, 0]),
        mean=bounds(draws.right.mean(1)),
        ceiling=bounds(draws.right.max(1)),
        measures={name: _score(draws, values, bounds) for name, values in draws.values.items()},
        reward_minus={
            name: _difference(draws, reward, values, bounds)
            for name, values in draws.values.items()
            if name != "reward"
        },
    )


def _is_whole(draws: Rows) -> bool:
    return all(math.isfinite(value) for draw in draws for value in draw.values())


def _score(draws: JudgedDraws, values: np.ndarray, interval_of: IntervalFunction) -> MeasureScore:
    return MeasureScore(
        auc=_auc_bounds(draws.right, np.hstack([draws.right, values]), _auc, interval_of),
        clear=_clear_bounds(draws.count_clear_in_order(values), ratio, interval_of),
        right=interval_of(draws.right_of_best(values)),
    )


def _difference(
    draws: JudgedDraws, ours: np.ndarray, theirs: np.ndarray, interval_of: IntervalFunction
) -> MeasureScore:
    clear = np.hstack([draws.count_clear_in_order(ours), draws.count_clear_in_order(theirs)])
    return MeasureScore(
        auc=_auc_bounds(draws.right, np.hstack([draws.right, ours, theirs]), _auc_gap, interval_of),
        clear=_clear_bounds(clear, ratio_gap, interval_of),
        right=interval_of(draws.right_of_best(ours) - draws.right_of_best(theirs)),
    )


def _auc_bounds(
    right: np.ndarray, sample: np.ndarray, statistic: Callable, interval_of: IntervalFunction
) -> Interval | None:
    return interval_of(sample, statistic) if right.min() < right.max() else None


def _clear_bounds(counts: np.ndarray, statistic: Callable, interval_of: IntervalFunction) -> Interval | None:
    has_any = counts[:, 1] > 0
    return interval_of(counts[has_any], statistic) if has_any.any() else None


def _auc(sample: np.ndarray, axis: int) -> np.ndarray:
    """Area under the ROC curve, U / (right x wrong) (Hanley and McNeil 1982); 0.5 if none is right or none is wrong.

    sample: (P, 2 N), `right` and the values of the draws, or (R, P, 2 N), R resamples of it. axis: that of P.
    """
    if axis == 1:
        return np.array([_auc(resample, 0) for resample in sample])
    right, values = np.split(sample, 2, axis=1)
    of_right, of_wrong = values[right == 1], values[right == 0]
    pairs = len(of_right) * len(of_wrong)
    return np.asarray(mann_whitney_u(of_right, of_wrong) / pairs if pairs else 0.5, dtype=np.float64)


def _auc_gap(sample: np.ndarray, axis: int) -> np.ndarray:
    """The AUC of our values minus that of theirs. sample: as in `_auc`, but (P, 3 N): `right`, our values, theirs."""
    right, ours, theirs = np.split(sample, 3, axis=-1)
    return _auc(np.concatenate([right, ours], -1), axis) - _auc(np.concatenate([right, theirs], -1), axis)
