"""The uncertainty of a reward model about the order of a prompt's edits.

K edits of a prompt
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def order_entropy(rewards: Tensor, temperature: float = 1.0) -> float:
    """Mean over all pairs of K >= 2 edits of the entropy, 0 to 1 bit, of which one is better, from rewards (K,).

    P(i is better than j) = sigmoid((R_i - R_j) / tau), as in `bradley_terry_loss`; uncertainty sampling by entropy
    (Settles 2009, section 3.1).
    """
    first, second = torch.combinations(torch.arange(len(rewards))).unbind(1)
    margins = (rewards[first] - rewards[second]).double() / temperature
    better = torch.sigmoid(margins)
    nats = better * F.softplus(-margins) + (1 - better) * F.softplus(margins)
    return (nats / math.log(2)).mean().item()
