"""Prompt-to-Prompt: two pictures drawn side by side, the edited one looking where the source looks.

Rows of a batch come in four equal parts, n pairs each (InstructPix2Pix's order):

    [unconditional source, unconditional edited, conditional source, conditional edited]

`SharedAttention` is told before every denoising step which pairs share (a boolean a pair), so pairs with different
thresholds, scales and seeds go through the network together and none changes another.

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
    """What the attention processors look at during one denoising step."""

    self_attention: Tensor
    """(n,) bool: the edited picture takes the source's self-attention map; or (2, n) for each guidance half."""
    self_pixels: int | None = None
    """The most pixels of a layer whose self-attention is taken; None takes every layer's."""
    mapper: Tensor | None = None
    """(n, T, T): source token -> edited token, how much of the source's cross-attention the edited takes; None never
    touches cross-attention."""
    own_weight: Tensor | None = None
    """(n, T): how much of its own cross-attention each edited token keeps beside that."""
    watched: Tensor | None = None
    """(2, n, T) bool: the tokens of the source and of the edited caption whose cross-attention is added up."""
    watched_pixels: int = 0
    """The pixels of the layers where it is."""


def share_source_rows(states: Tensor, shares: Tensor) -> Tensor:
    """(4n, ...) with the edited rows replaced by their source's in the pairs that share: (n,), or (2, n) by half."""
    halves = states.unflatten(0, (2, 2, -1))  # (guidance half, source/edited, n, ...)
    source, edited = halves[:, 0], halves[:, 1]
    chosen = shares.view(-1, shares.shape[-1], *([1] * (source.dim() - 2)))
    return torch.stack([source, torch.where(chosen, source, edited)], dim=1).flatten(0, 2)


def share_cross_maps(maps: Tensor, mapper: Tensor, own: Tensor) -> Tensor:
    """Cross-attention maps (4n, H, P, T) with the edited captions' tokens looking where the source's look.

    Only the conditional half has words (Hertz et al. 2022, sec. 3.2): edited = source @ mapper + own edited.
    """
    source, edited = maps.unflatten(0, (2, 2, -1))[1]  # (n, H, P, T) each
    mixed = source @ mapper[:, None].to(maps) + edited * own[:, None, None].to(maps)
    return torch.cat([maps[: 3 * len(own)], mixed])


def attended_words(maps: Tensor, watched: Tensor) -> Tensor:
    """(2, n, P): how much the conditional source and edited pictures look at the watched tokens, mean over heads."""
    conditional = maps.unflatten(0, (2, 2, -1))[1]
    return (conditional * watched[:, :, None, None].to(maps)).sum(-1).mean(2)


class SharingProcessor:
    """A diffusers attention processor that shares maps as `state` says; without a state it is plain attention."""

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
    """Where the sampler puts what the current step shares, and finds what was seen."""

    shared: SharedAttention | None = None
    attended: list[Tensor] = field(default_factory=list)
    """(2, n, P) of each layer that is watched, until the sampler takes them."""


def install_sharing(unet: UNet2DConditionModel) -> SharingState:
    """Make a U-Net's attention shareable; what it computes is unchanged until `shared` is set."""
    holder = SharingState()
    unet.set_attn_processor(cast(AttentionProcessor, SharingProcessor(holder)))
    return holder
