"""A linear reward over features of edits, fitted to rankings. It has few parameters, so few rankings suffice.

    features of ranked edits, ranks -> fit_head -> LinearHead

N rankings, K edits of each, F features; a rank of 0 is padding
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from hive_ray.reward.objective import Loss


@dataclass(frozen=True)
class LinearHead:
    """reward = sum over features of weight (feature - mean) / scale, float64.

    It depends only on the features of one edit, so rewards can be compared across prompts.
    """

    names: tuple[str, ...]
    """Names of the F features in their order."""
    means: Tensor
    """(F,) over all training edits."""
    scales: Tensor
    """(F,) standard deviations within prompts."""
    weights: Tensor
    """(F,) of standardised features."""

    def __call__(self, features: Tensor) -> Tensor:
        """Features (..., F) -> rewards (...)."""
        return ((features.double() - self.means) / self.scales) @ self.weights

    def as_json(self) -> dict[str, Any]:
        """The head as lists of numbers, for JSON."""
        numbers = {name: getattr(self, name).tolist() for name in ("means", "scales", "weights")}
        return {"features": list(self.names)} | numbers

    @classmethod
    def from_json(cls, card: dict[str, Any]) -> "LinearHead":
        """The head that `as_json` wrote."""
        numbers = {name: torch.tensor(card[name], dtype=torch.float64) for name in ("means", "scales", "weights")}
        return cls(tuple(card["features"]), **numbers)


def fit_head(
    features: Tensor,
    ranks: Tensor,
    names: Sequence[str],
    loss: Loss,
    ridge: float,
    directions: Tensor | None = None,
) -> LinearHead:
    """The head with the greatest posterior probability (MAP), given features (N, K, F) and ranks (N, K).

    weights = coefficients @ directions + corrections. `directions` (D, F) are linear rewards of standardised features
    that are plausible before any ranking, such as minus an error. Without them all of the weights are corrections. With
    a `loss` that is a mean over rankings it minimises

        N loss(rewards, ranks) + 1 / 2 |coefficients|^2 + ridge / 2 |corrections|^2

    So corrections have a normal prior of precision `ridge`, and a few rankings hardly change a direction. The problem
    is convex, so the solution does not depend on the start. Rescaling a feature changes no reward. ValueError if there
    is no ranking.
    """
    if not len(ranks):
        raise ValueError("there is no ranking to learn a reward from: collect some, or lower reward.held_out_rate")
    features, there = features.double(), ranks > 0
    means = features[there].mean(0)
    scales = deviation_within_prompts(features, there)
    standardised = (features - means) / scales
    corrections = torch.eye(len(means), dtype=torch.float64)
    basis = corrections if directions is None else torch.cat([directions.double(), corrections])
    precision = torch.full((len(basis),), ridge, dtype=torch.float64)
    precision[: len(basis) - len(corrections)] = 1.0

    def objective(place: np.ndarray) -> tuple[float, np.ndarray]:
        point = torch.tensor(place, requires_grad=True)
        penalty = (precision * point.square()).sum() / 2
        value = loss(standardised @ (point @ basis), ranks) + penalty / len(ranks)
        value.backward()
        assert point.grad is not None  # `backward` has just filled it
        return value.item(), point.grad.numpy()

    start = np.zeros(len(basis))
    precise = {"gtol": 1e-9, "ftol": 1e-15, "maxiter": 10_000, "maxfun": 20_000}
    minimum = minimize(objective, start, jac=True, method="L-BFGS-B", options=precise)
    return LinearHead(tuple(names), means, scales, torch.from_numpy(minimum.x) @ basis)


def deviation_within_prompts(features: Tensor, is_edit: Tensor) -> Tensor:
    """Pooled standard deviation (F,) of features (N, K, F) within prompts; is_edit: bool (N, K), False for padding.

    It is 1 for a feature that never differs within a prompt, since no ranking depends on such a feature.
    """
    features, is_edit = features.double(), is_edit[:, :, None]
    counts = is_edit.sum(1, keepdim=True)
    means = features.where(is_edit, 0.0).sum(1, keepdim=True) / counts
    deviations = (features - means).where(is_edit, 0.0)
    freedom = (counts - 1).sum().clamp(min=1)
    spread = (deviations.square().sum((0, 1)) / freedom).sqrt()
    return spread.where(spread > 0, 1.0)
