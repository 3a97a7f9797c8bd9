"""The likelihood of people's preferences between two edits, given a model's margins."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def preference_loss(margin: Tensor, tied: Tensor, tie_threshold: float) -> Tensor:
    """Negative log-likelihood (B,) of comparisons of two edits.

    margin: (B,), by how much the model prefers the chosen edit; tied: bool (B,). This is the model of Rao and Kupper
    (1967), used in DPO by Chen et al. (2024), with the threshold t and the logistic function s:
    P(chosen is better) = s(margin - ln t), P(tie) = (t^2 - 1) s(margin - ln t) s(-margin - ln t).
    At t = 1 it is the Bradley-Terry model, in which a tie has no information: a loss of 0.
    """
    shift = math.log(tie_threshold)
    better = F.softplus(shift - margin)
    if tie_threshold == 1:
        return torch.where(tied, 0.0, better)
    return torch.where(tied, better + F.softplus(shift + margin) - math.log(tie_threshold**2 - 1), better)
