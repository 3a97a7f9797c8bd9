"""Local blending: the edited picture equals the source except where either picture attends to a changed word (Hertz et
al. 2022, sec. 3.2; google/prompt-to-prompt's LocalBlend).

    n pairs, s side of the recorded attention layers, C h w latent channels, height and width
"""

import torch
from torch import Tensor
from torch.nn import functional as F

NEARLY_ZERO = 1e-12


def blend_mask(attended: Tensor, height: int, width: int, threshold: float) -> Tensor:
    """(n, 1, h, w) bool, where the edited picture may differ.

    attended: (2, n, s, s), attention of the source and of the edited picture to their changed words, on any scale. A
    picture counts where its attention, divided by its maximum, is above the threshold. Zero attention gives an empty
    mask.
    """
    pooled = F.max_pool2d(attended, kernel_size=3, stride=1, padding=1)
    grown = F.interpolate(pooled, size=(height, width))
    share = grown / grown.amax((-2, -1), keepdim=True).clamp_min(NEARLY_ZERO)
    return (share > threshold).any(0).unsqueeze(1)


def blend(latents: Tensor, mask: Tensor) -> Tensor:
    """Replace the edited latents by those of their source outside the mask. Latents (2n, C, h, w), sources first."""
    source, edited = latents.unflatten(0, (2, -1))
    return torch.cat([source, torch.where(mask, edited, source)])
