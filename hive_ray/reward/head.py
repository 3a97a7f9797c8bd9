"""A linear reward over features of edits, fitted to rankings: few numbers to learn, so few rankings suffice.

    features of ranked edits, ranks -> fit_head -> LinearHead

N rankings, K edits of each, F features; a rank of 0 marks an edit that is not there
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

    It is a function of an edit's own features alone, so rewards can be compared across prompts.
    """

    names: tuple[str, ...]
    """Names of the F features in their order."""
    means: Tensor
    """(F,) over all edits that it learned from."""
    scales: Tensor
    """(F,) spread within prompts."""
    weights: Tensor
    """(F,) of standardised features."""

    def __call__(self, features: Tensor) -> Tensor:
        """Features (..., F) -> rewards (...)."""
        return ((features.double() - self.means) / self.scales) @ self.weights

    def as_json(self) -> dict[str, Any]:
        """The head as plain lists."""
        numbers = {name: getattr(self, name).tolist() for name in ("means", "scales", "weights")}
        return {"features": list(self.names)} | numbers

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> "LinearHead":
        """The head of what `as_json` gave."""
        numbers = {name: torch.tensor(found[name], dtype=torch.float64) for name in ("means", "scales", "weights")}
        return cls(tuple(found["features"]), **numbers)


def fit_head(features: Tensor, ranks: Tensor, names: Sequence[str], loss: Loss, ridge: float) -> LinearHead:
    """The head of greatest posterior probability, by features (N, K, F) and ranks (N, K).

    It minimises N loss(rewards, ranks) + ridge / 2 |weights|^2, where `loss` is a mean over rankings: each weight has a
    normal prior of precision `ridge`. Convex, so the start does not matter; rescaling a feature changes no reward.
    """
    if not len(ranks):
        raise ValueError("there is no ranking to learn a reward from: collect some, or lower reward.held_out_rate")
    features, there = features.double(), ranks > 0
    means = features[there].mean(0)
    scales = spread_within(features, there)
    standardised = ((features - means) / scales).masked_fill(~there[:, :, None], 0.0)

    def objective(weights: np.ndarray) -> tuple[float, np.ndarray]:
        point = torch.tensor(weights, requires_grad=True)
        penalty = ridge / 2 * point.square().sum()
        value = loss(standardised @ point, ranks) + penalty / len(ranks)
        value.backward()
        return value.item(), point.grad.numpy()

    start = np.zeros(len(means))
    precise = {"gtol": 1e-9, "ftol": 1e-15, "maxiter": 10_000, "maxfun": 20_000}
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options=precise)
    return LinearHead(tuple(names), means, scales, torch.from_numpy(found.x))


def spread_within(features: Tensor, there: Tensor) -> Tensor:
    """Pooled standard deviation (F,) of features (N, K, F) among the edits of a prompt; `there` bool (N, K).

    1 for a feature that never differs within a prompt, which no ranking says anything about.
    """
    features, there = features.double(), there[:, :, None]
    counts = there.sum(1, keepdim=True)
    means = features.where(there, 0.0).sum(1, keepdim=True) / counts
    deviations = (features - means).where(there, 0.0)
    freedom = (counts - 1).sum().clamp(min=1)
    spread = (deviations.square().sum((0, 1)) / freedom).sqrt()
    return spread.where(spread > 0, 1.0)
