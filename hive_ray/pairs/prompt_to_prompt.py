"""Prompt-to-Prompt: two pictures are sampled together, and the edited one takes attention maps of the source.

Rows of a batch come in four equal parts, n pairs each (InstructPix2Pix's order):

    [unconditional source, unconditional edited, conditional source, conditional edited]

`SharedAttention` says before every denoising step which pairs share (one boolean for each pair). So pairs with
different thresholds, scales and seeds go through the network together without influencing each other.

    H heads, P pixels of an attention layer, T text tokens, D channels of a head
"""

from dataclasses import dataclass, field
from typing import cast

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttentionProcessor
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass
class SharedAttention:
    """Input of the attention processors for one denoising step."""

    self_attention: Tensor
    """(n,) bool: whether the edited picture takes the source's self-attention map; or (2, n) for each guidance half."""
    self_pixels: int | None = None
    """Self-attention is shared in layers of at most so many pixels; None shares it in all layers."""
    mapper: Tensor | None = None
    """(n, T, T): weights of the source tokens' cross-attention for each edited token; None leaves cross-attention
    unchanged."""
    own_weight: Tensor | None = None
    """(n, T): weight of each edited token's own cross-attention."""
    watched: Tensor | None = None
    """(2, n, T) bool: tokens of the source and of the edited caption whose cross-attention is recorded."""
    watched_pixels: int = 0
    """Number of pixels of the layers where it is recorded."""


def share_source_rows(states: Tensor, shares: Tensor) -> Tensor:
    """Replace the edited rows of (4n, ...) by those of their source in the pairs that share.

    shares: (n,), or (2, n) for each guidance half.
    """
    halves = states.unflatten(0, (2, 2, -1))  # (guidance half, source/edited, n, ...)
    source, edited = halves[:, 0], halves[:, 1]
    chosen = shares.view(-1, shares.shape[-1], *([1] * (source.dim() - 2)))
    return torch.stack([source, torch.where(chosen, source, edited)], dim=1).flatten(0, 2)


def share_cross_maps(maps: Tensor, mapper: Tensor, own: Tensor) -> Tensor:
    """Mix the source's cross-attention into that of the edited captions; maps (4n, H, P, T).

    Only the conditional half has words (Hertz et al. 2022, sec. 3.2): edited = source @ mapper + own edited.
    """
    source, edited = maps.unflatten(0, (2, 2, -1))[1]  # (n, H, P, T) each
    mixed = source @ mapper[:, None].to(maps) + edited * own[:, None, None].to(maps)
    return torch.cat([maps[: 3 * len(own)], mixed])


def attended_words(maps: Tensor, watched: Tensor) -> Tensor:
    """(2, n, P): attention of the conditional source and edited pictures to the watched tokens, mean over heads."""
    conditional = maps.unflatten(0, (2, 2, -1))[1]
    return (conditional * watched[:, :, None, None].to(maps)).sum(-1).mean(2)


class SharingProcessor:
    """A diffusers attention processor that shares maps by `state.shared`; plain attention while it is None."""

    def __init__(self, state: "SharingState") -> None:
        self.state = state

    def __call__(
        self,
        attention: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        crosses = encoder_hidden_states is not None
        context = encoder_hidden_states if encoder_hidden_states is not None else hidden_states
        query = attention.to_q(hidden_states)
        key = cast(nn.Linear, attention.to_k)(context)
        value = cast(nn.Linear, attention.to_v)(context)
        shared = self.state.shared
        pixels = query.shape[1]
        if shared is not None and not crosses and pixels <= (shared.self_pixels or pixels):
            query, key = share_source_rows(query, shared.self_attention), share_source_rows(key, shared.self_attention)
        query, key, value = (x.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for x in (query, key, value))
        if crosses and shared is not None and shared.mapper is not None and shared.own_weight is not None:
            maps = (query @ key.transpose(-1, -2) * attention.scale).softmax(-1)
            maps = share_cross_maps(maps, shared.mapper, shared.own_weight)
            if shared.watched is not None and pixels == shared.watched_pixels:
                self.state.attended.append(attended_words(maps, shared.watched).float())
            mixed = maps @ value
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, scale=attention.scale)
        joined = mixed.transpose(1, 2).flatten(2)
        project, dropout = cast(nn.ModuleList, attention.to_out)
        return dropout(project(joined))


@dataclass
class SharingState:
    """Connects the sampler and the attention processors: input of the current step, and recorded attention."""

    shared: SharedAttention | None = None
    attended: list[Tensor] = field(default_factory=list)
    """(2, n, P) for each watched layer, until the sampler clears the list."""


def install_sharing(unet: UNet2DConditionModel) -> SharingState:
    """Install the processor in a U-Net; its output is unchanged until `shared` is set."""
    holder = SharingState()
    unet.set_attn_processor(cast(AttentionProcessor, SharingProcessor(holder)))
    return holder
