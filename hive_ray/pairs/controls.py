"""Controls: in which steps the edited picture of a pair takes attention maps from its source.

InstructPix2Pix shares self-attention in both guidance halves and all layers, in the steps below a threshold. Google's
Prompt-to-Prompt changes the conditional half only: cross-attention of words, and self-attention of small layers.

    N steps, n pairs, T tokens
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hive_ray.pairs.alignment import (
    Span,
    align_tokens,
    aligned_mapper,
    changed_tokens,
    refine_tokens,
    swapped_mapper,
)
from hive_ray.pairs.prompt_to_prompt import SharedAttention


@dataclass(frozen=True)
class Caption:
    """The words and tokens of a caption."""

    words: list[str]
    tokens: list[int]
    """Token ids with start and end tokens, without padding."""
    padded: list[int]
    """(T,) token ids with padding."""
    spans: list[Span]
    """The token span of each word."""


@dataclass(frozen=True)
class Controls:
    """The controls of n pairs for all steps."""

    self_steps: Tensor
    """(N, 2, n) bool: step, guidance half, pair."""
    small_layers_only: bool = False
    """Whether self-attention is shared only in layers of `control_side` and smaller."""
    mapper: Tensor | None = None
    """(n, T, T): source token -> edited token; None leaves cross-attention as it is."""
    mapped_weight: Tensor | None = None
    """(N, n, T): weight of the mapped source attention of each edited token."""
    own_weight: Tensor | None = None
    """(N, n, T): weight of each edited token's own attention."""
    changed: Tensor | None = None
    """(2, n, T) bool: the changed tokens of the source and of the edited caption."""

    def at(self, step: int, *, side: int, watch: bool) -> SharedAttention:
        """The shared attention of a step. Layers of side x side pixels are the small ones, and with `watch` their
        cross-attention to changed words is recorded."""
        pixels = side**2
        shared = SharedAttention(self.self_steps[step], self_pixels=pixels if self.small_layers_only else None)
        if self.mapper is not None and self.mapped_weight is not None and self.own_weight is not None:
            shared.mapper, shared.own_weight = self.mapper * self.mapped_weight[step][:, None], self.own_weight[step]
            shared.watched, shared.watched_pixels = self.changed if watch else None, pixels
        return shared

    def to(self, device: torch.device) -> "Controls":
        """Move all tensors to a device."""
        tensors: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **tensors)


def same_number_of_words(source: str, edited: str) -> bool:
    """Whether a word swap is possible."""
    return len(source.split()) == len(edited.split())


def instruct_pix2pix_controls(shared_attention: Tensor, num_steps: int) -> Controls:
    """Self-attention is the source's in step i of N while shared_attention (n,) > i / (N - 1), as in
    generate_img_dataset.py."""
    return Controls(self_steps=_below_threshold(shared_attention, num_steps)[:, None].expand(-1, 2, -1))


def cross_and_self_controls(
    sources: list[Caption], edits: list[Caption], shared_attention: Tensor, num_steps: int
) -> Controls:
    """InstructPix2Pix's controls; in the same steps kept and replaced tokens take the source's cross-attention.

    Padding is aligned as part of the captions.
    """
    shares = _below_threshold(shared_attention, num_steps)
    pairs = zip(sources, edits, strict=True)
    alignments = [align_tokens(source.padded, edited.padded) for source, edited in pairs]
    aligned = torch.tensor(alignments) >= 0
    taken = (shares[..., None] & aligned).float()
    return Controls(
        self_steps=shares[:, None].expand(-1, 2, -1),
        mapper=torch.stack([aligned_mapper(alignment, len(alignment)) for alignment in alignments]),
        mapped_weight=taken,
        own_weight=1 - taken,
        changed=_changed(sources, edits),
    )


def prompt_to_prompt_controls(
    sources: list[Caption],
    edits: list[Caption],
    *,
    swaps_words: list[bool],
    self_replace_steps: Tensor,
    cross_replace_steps: Tensor,
    changed_replace_steps: Tensor,
    changed_scale: float,
    num_steps: int,
) -> Controls:
    """Word swap or refinement of each pair, with self-attention replacement and re-weighting (Hertz et al. 2022).

    The steps are shares (n,) of N, rounded down. In the steps of cross-attention,
    edited = changed_scale (a mapped + (1 - a) edited), where a is 1 for words with a source, and changed_scale applies
    to changed words (1 for kept words).
    """
    mappers = torch.stack(
        [
            _swap(source, edited) if swaps else _refinement(source, edited)
            for source, edited, swaps in zip(sources, edits, swaps_words, strict=True)
        ]
    )
    changed = _changed(sources, edits)
    has_source = (mappers.sum(1) > 0).float()  # (n, T)
    scale = torch.where(changed[1], changed_scale, 1.0)
    begun = torch.arange(num_steps)[:, None]
    crosses = torch.where(
        changed[1],
        (begun < _whole_steps(changed_replace_steps, num_steps))[..., None],
        (begun < _whole_steps(cross_replace_steps, num_steps))[..., None],
    ).float()  # (N, n, T)
    self_steps = begun < _whole_steps(self_replace_steps, num_steps)
    return Controls(
        self_steps=torch.stack([torch.zeros_like(self_steps), self_steps], dim=1),
        small_layers_only=True,
        mapper=mappers,
        mapped_weight=crosses * scale * has_source,
        own_weight=crosses * scale * (1 - has_source) + (1 - crosses),
        changed=changed,
    )


def _below_threshold(shared_attention: Tensor, num_steps: int) -> Tensor:
    """(N, n) bool: shared_attention > i / (N - 1), in the order and precision of InstructPix2Pix's comparison."""
    return torch.stack([shared_attention > step / max(1, num_steps - 1) for step in range(num_steps)])


def _whole_steps(shares: Tensor, num_steps: int) -> Tensor:
    """int(N x), with a tolerance so that an fp32 share of 0.7 gives 7 of 10 steps."""
    return (shares * num_steps + 1e-4).long()


def _swap(source: Caption, edited: Caption) -> Tensor:
    swapped = [before != after for before, after in zip(source.words, edited.words, strict=True)]
    return swapped_mapper(source.spans, edited.spans, swapped, len(edited.padded))


def _refinement(source: Caption, edited: Caption) -> Tensor:
    return aligned_mapper(refine_tokens(source.tokens, edited.tokens), len(edited.padded))


def _changed(sources: list[Caption], edits: list[Caption]) -> Tensor:
    changed = torch.zeros(2, len(sources), len(sources[0].padded), dtype=torch.bool)
    for pair, (source, edited) in enumerate(zip(sources, edits, strict=True)):
        for side, tokens in enumerate(changed_tokens(source.tokens, edited.tokens)):
            changed[side, pair, tokens] = True
    return changed
