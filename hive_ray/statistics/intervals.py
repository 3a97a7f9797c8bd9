"""Bootstrap intervals of values of many prompts or people."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

import numpy as np

Statistic = Callable[..., np.ndarray]
Value = float | tuple[float, ...]


@dataclass(frozen=True)
class Interval:
    """An estimate with the bounds of its bootstrap interval."""

    value: float
    low: float
    high: float

    def __format__(self, form: str) -> str:
        """ "value [low, high]", each number by `form`."""
        return f"{self.value:{form}} [{self.low:{form}}, {self.high:{form}}]"

    @property
    def excludes_zero(self) -> bool:
        """Whether both bounds are on the same side of zero, which is evidence of a difference."""
        return self.low > 0 or self.high < 0


def ratio(sample: np.ndarray, axis: int) -> np.ndarray:
    """A statistic of pairs (part, whole): the sum of parts divided by the sum of wholes, such as an accuracy."""
    sums = sample.sum(axis)
    return sums[..., 0] / sums[..., 1]


def ratio_gap(sample: np.ndarray, axis: int) -> np.ndarray:
    """A statistic of (part, whole, other part, other whole): the first ratio minus the second."""
    return ratio(sample[..., :2], axis) - ratio(sample[..., 2:], axis)


def interval(
    values: Mapping[str, Value] | Iterable[Value],
    statistic: Statistic = np.mean,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Percentile bootstrap over prompts (Efron 1979): the middle `level` of resamples with replacement.

    values: one for each prompt, a number or a tuple, which becomes the last axis. statistic: takes an array and the
    `axis` of prompts. If all values are equal, so are the bounds. ValueError without values.
    """
    sample = np.array(_in_order(values), dtype=np.float64)
    if not len(sample):
        raise ValueError("an interval of 0 prompts; wanted at least 1: evaluate some prompts first")
    rng = np.random.default_rng(seed)
    drawn = sample[rng.integers(0, len(sample), (resamples, len(sample)))]
    low, high = np.quantile(statistic(drawn, axis=1), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(statistic(sample, axis=0)), float(low), float(high))


def hierarchical_interval(
    groups: Sequence[Mapping[str, float] | Iterable[float]],
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of the mean over groups of the mean within each, for groups that differ by chance too.

    Hierarchical bootstrap, with replacement at both levels (Davison and Hinkley 1997, section 3.8; Saravanan et al.
    2020, arXiv 2007.07797): each resample draws as many groups as there are and then, within each drawn group, as many
    values as it has. In the study a group is a training seed, and its values are those of its prompts. With few groups
    the interval is wide: of three groups, one resample in nine draws the same one three times. With one group it is the
    `interval` of the mean, but with other random draws.

    ValueError if there is no group, or a group without values.
    """
    samples = [np.array(_in_order(group), dtype=np.float64) for group in groups]
    if not samples or not all(map(len, samples)):
        sizes = [len(sample) for sample in samples]
        raise ValueError(f"an interval over groups of {sizes} values; wanted at least 1 in each: evaluate some prompts")
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(samples), (resamples, len(samples)))
    means = np.empty(drawn.shape)
    for number, sample in enumerate(samples):
        places = drawn == number
        chosen = rng.integers(0, len(sample), (int(places.sum()), len(sample)))
        means[places] = sample[chosen].mean(axis=1)
    low, high = np.quantile(means.mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    value = np.mean([sample.mean() for sample in samples])
    return Interval(float(value), float(low), float(high))


def _in_order(values: Mapping[str, Value] | Iterable[Value]) -> list[Value]:
    """Values in the order of their prompts, so that the order of rows does not matter."""
    if isinstance(values, Mapping):
        return [value for _, value in sorted(values.items(), key=itemgetter(0))]
    return list(values)
