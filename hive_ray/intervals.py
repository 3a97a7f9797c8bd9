"""Bootstrap intervals of what was measured of many prompts, or by many people."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

Statistic = Callable[..., np.ndarray]
Value = float | tuple[float, ...]


@dataclass(frozen=True)
class Interval:
    """An estimate, and the bounds of its bootstrap interval."""

    value: float
    low: float
    high: float

    def __format__(self, form: str) -> str:
        """ "value [low, high]", each number by `form`."""
        return f"{self.value:{form}} [{self.low:{form}}, {self.high:{form}}]"

    @property
    def excludes_zero(self) -> bool:
        """Whether the bounds lie on one side of zero: the evidence of a difference."""
        return self.low > 0 or self.high < 0


def ratio(sample: np.ndarray, axis: int) -> np.ndarray:
    """A statistic of pairs (part, whole): all parts over all wholes, such as what was right of all preferences."""
    sums = sample.sum(axis)
    return sums[..., 0] / sums[..., 1]


def ratio_gap(sample: np.ndarray, axis: int) -> np.ndarray:
    """A statistic of fours (part, whole, other part, other whole): by how much the first ratio is above the second."""
    return ratio(sample[..., :2], axis) - ratio(sample[..., 2:], axis)


def interval(
    values: Mapping[str, Value] | Iterable[Value],
    statistic: Statistic = np.mean,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Percentile bootstrap over prompts (Efron 1979): resample prompts with replacement, take the middle
    `level`.

    `statistic` takes an array and the `axis` of prompts; a value may be several numbers, which lie on the last axis.
    All values alike give bounds equal to the value.
    """
    sample = np.array(_in_order(values), dtype=np.float64)
    if not len(sample):
        raise ValueError("an interval of 0 prompts; wanted at least 1: evaluate some prompts first")
    rng = np.random.default_rng(seed)
    drawn = sample[rng.integers(0, len(sample), (resamples, len(sample)))]
    low, high = np.quantile(statistic(drawn, axis=1), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(statistic(sample, axis=0)), float(low), float(high))


def _in_order(values: Mapping[str, Value] | Iterable[Value]) -> list[Value]:
    """Values in the order of their prompts, so that the order of rows changes nothing."""
    return [values[key] for key in sorted(values)] if isinstance(values, Mapping) else list(values)
