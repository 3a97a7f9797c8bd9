"""Prompt-to-Prompt: two pictures drawn side by side, the edited one looking where the source looks.

Rows of a batch come in four equal parts, n pairs each (InstructPix2Pix's order):

    [unconditional source, unconditional edited, conditional source, conditional edited]

`SharedAttention` is told before every denoising step which pairs share (a boolean a pair), so pairs with different
thresholds, scales and seeds go through the network together and none changes another.

    H heads, P pixels of an attention layer, T text tokens, D channels of a head
"""

from dataclasses import dataclass
from difflib import SequenceMatcher

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.nn import functional as F


@dataclass
class SharedAttention:
    """What the attention processors look at during one denoising step."""

    self_attention: Tensor
    """(n,) bool: the edited picture takes the source's self-attention map (Hertz et al. 2022; InstructPix2Pix)."""
    cross_attention: Tensor | None = None
    """(n,) bool: it takes the source's cross-attention map of aligned words too; None never does."""
    alignment: Tensor | None = None
    """(n, T) int: for each token of the edited caption the source caption's token it stands for, -1 where none."""


def align_tokens(source: list[int], edited: list[int]) -> list[int]:
    """For each edited token the index of the source token it keeps or replaces one for one; -1 for new ones.

    Equal texts give 0, 1, 2, ...
    """
    alignment = [-1] * len(edited)
    for kind, low, high, first, last in SequenceMatcher(a=source, b=edited, autojunk=False).get_opcodes():
        if kind == "equal" or (kind == "replace" and high - low == last - first):
            alignment[first:last] = range(low, high)
    return alignment


def take_source(states: Tensor, shares: Tensor) -> Tensor:
    """(4n, ...) with the edited rows replaced by their source's in the pairs (n,) that share, in both halves."""
    halves = states.unflatten(0, (2, 2, -1))  # (guidance half, source/edited, n, ...)
    source, edited = halves[:, 0], halves[:, 1]
    chosen = shares.view(1, -1, *([1] * (source.dim() - 2)))
    return torch.stack([source, torch.where(chosen, source, edited)], dim=1).flatten(0, 2)


def share_cross_maps(maps: Tensor, shares: Tensor, alignment: Tensor) -> Tensor:
    """Cross-attention maps (4n, H, P, T) with the edited captions' aligned tokens looking where the source's look.

    Only the conditional half has words to align (Hertz et al. 2022, sec. 3: refinement); new words keep their own.
    """
    source, edited = maps.unflatten(0, (2, 2, -1))[1]  # (n, H, P, T) each
    index = alignment.clamp_min(0)[:, None, None, :].expand_as(source)
    aligned = (alignment >= 0)[:, None, None, :] & shares[:, None, None, None]
    mixed = torch.where(aligned, source.gather(-1, index), edited)
    return torch.cat([maps[: 3 * len(shares)], mixed])


class SharingProcessor:
    """A diffusers attention processor that shares maps as `state` says; without a state it is plain attention."""

    def __init__(self, state: "StateHolder") -> None:
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
        query, key, value = attention.to_q(hidden_states), attention.to_k(context), attention.to_v(context)
        shared = self.state.shared
        if shared is not None and not crosses:
            query, key = take_source(query, shared.self_attention), take_source(key, shared.self_attention)
        query, key, value = (x.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for x in (query, key, value))
        if crosses and shared is not None and shared.cross_attention is not None and shared.alignment is not None:
            maps = (query @ key.transpose(-1, -2) * attention.scale).softmax(-1)
            mixed = share_cross_maps(maps, shared.cross_attention, shared.alignment) @ value
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, scale=attention.scale)
        joined = mixed.transpose(1, 2).flatten(2)
        return attention.to_out[1](attention.to_out[0](joined))


@dataclass
class StateHolder:
    """Where the sampler puts what the current step shares."""

    shared: SharedAttention | None = None


def install(unet: UNet2DConditionModel) -> StateHolder:
    """Make a U-Net's attention shareable; what it computes is unchanged until `shared` is set."""
    holder = StateHolder()
    unet.set_attn_processor(SharingProcessor(holder))
    return holder
