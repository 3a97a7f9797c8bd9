"""The likelihood of what people said of two edits, given by how much a model holds one for better."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def preference_loss(margin: Tensor, tied: Tensor, tie_threshold: float) -> Tensor:
    """Negative log-likelihood of what people said of two edits: margin (B,), tied bool (B,) -> (B,).

    Rao and Kupper's model (1967), in DPO by Chen et al. (2024), with the threshold t and the logistic function s:
    P(chosen is better) = s(margin - ln t), P(tie) = (t^2 - 1) s(margin - ln t) s(-margin - ln t).
    At t = 1 it is Bradley and Terry's, to which a tie says nothing: a loss of 0.
    """
    shift = math.log(tie_threshold)
    better = F.softplus(shift - margin)
    if tie_threshold == 1:
        return torch.where(tied, 0.0, better)
    return torch.where(tied, better + F.softplus(shift + margin) - math.log(tie_threshold**2 - 1), better)
