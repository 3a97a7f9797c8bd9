"""The uncertainty of a reward model about the order of the edits of a prompt.

K edits of a prompt
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def order_entropy(rewards: Tensor, temperature: float = 1.0) -> float:
    """The entropy of a comparison of two edits, 0 to 1 bit: a mean over all pairs of K >= 2 edits, from rewards (K,).

    P(i is better than j) = sigmoid((R_i - R_j) / tau), as in `bradley_terry_loss`. It serves uncertainty sampling
    (Settles 2009, section 3.1).
    """
    first, second = torch.combinations(torch.arange(len(rewards))).unbind(1)
    margins = (rewards[first] - rewards[second]).double() / temperature
    better = torch.sigmoid(margins)
    nats = better * F.softplus(-margins) + (1 - better) * F.softplus(margins)
    return (nats / math.log(2)).mean().item()
