"""Measures that several rooms use."""

from collections.abc import Sequence

import numpy as np


def effective_sample_size(mean: float, mean_square: float, num_rows: int) -> float:
    """Kish's effective sample size (sum w)^2 / sum w^2 (1965) of weights with these means, 1..num_rows; 0 if all are 0.

    mean, mean_square: those of the weights and of their squares.
    """
    return num_rows * mean**2 / mean_square if mean_square else 0.0


def mann_whitney_u(values: Sequence[float] | np.ndarray, others: Sequence[float] | np.ndarray) -> float:
    """Pairs (value, other) in which the value is greater; equal ones count half (U of Mann and Whitney 1947)."""
    ordered = np.sort(others)
    below, up_to = (np.searchsorted(ordered, values, side) for side in ("left", "right"))
    return float((below + up_to).sum() / 2)


def standardise(values: np.ndarray) -> np.ndarray:
    """The values minus their mean, in standard deviations, in the same shape; zeros where all values are equal."""
    if np.ptp(values) == 0:  # the mean of equal numbers may differ from them in the last bit
        return np.zeros_like(values, dtype=np.float64)
    return (values - values.mean()) / values.std()
