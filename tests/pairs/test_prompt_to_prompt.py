import pytest
import torch
from tiny_models import tiny_unet

from hive_ray.pairs.prompt_to_prompt import (
    SharedAttention,
    align_tokens,
    install,
    share_cross_maps,
    take_source,
)

TOKENS, PAIRS = 6, 3


def test_equal_texts_align_one_to_one():
    assert align_tokens([5, 6, 7], [5, 6, 7]) == [0, 1, 2]


def test_a_replaced_word_stands_for_the_old_one_and_a_new_one_for_none():
    assert align_tokens([5, 6, 7], [5, 9, 7]) == [0, 1, 2]
    assert align_tokens([5, 6, 7], [5, 6, 8, 9, 7]) == [0, 1, -1, -1, 2]
    assert align_tokens([5, 6, 8, 7], [5, 9, 7]) == [0, -1, 3]


def test_only_sharing_pairs_take_the_source_in_both_halves():
    states = torch.arange(8.0).view(8, 1, 1)  # n = 2: unconditional s0 s1 e0 e1, conditional s0 s1 e0 e1
    shared = take_source(states, torch.tensor([True, False])).flatten().tolist()
    assert shared == [0, 1, 0, 3, 4, 5, 4, 7]


def test_aligned_words_look_where_the_source_looks_in_the_conditional_half_alone():
    maps = torch.arange(4.0).view(4, 1, 1, 1) + torch.tensor([0.1, 0.2, 0.3])  # n = 1, H = P = 1, T = 3
    mixed = share_cross_maps(maps, torch.tensor([True]), torch.tensor([[1, -1, 0]]))
    assert torch.equal(mixed[:3], maps[:3])
    assert mixed[3].flatten().tolist() == pytest.approx([2.2, 3.2, 2.1])


def run(unet, latents, context, shared=None):
    holder = install(unet)
    holder.shared = shared
    with torch.no_grad():
        return unet(latents, 500, context).sample


def inputs(unet, pairs=PAIRS):
    generator = torch.Generator().manual_seed(0)
    side, width = unet.config.sample_size, unet.config.cross_attention_dim
    latents = torch.randn(4 * pairs, unet.config.in_channels, side, side, generator=generator)
    return latents, torch.randn(4 * pairs, TOKENS, width, generator=generator)


class MapsInFull:
    """Plain reference: every attention map written out, one pair at a time, sharing by assignment."""

    def __init__(self, shared):
        self.shared = shared

    def __call__(self, attention, hidden_states, encoder_hidden_states=None, **_):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        heads = attention.heads
        query, key, value = (
            layer(x).unflatten(-1, (heads, -1)).transpose(1, 2)
            for layer, x in (
                (attention.to_q, hidden_states),
                (attention.to_k, context),
                (attention.to_v, context),
            )
        )
        maps = torch.softmax(query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5, -1)
        pairs = len(maps) // 4
        for pair in range(pairs):
            if encoder_hidden_states is None and self.shared.self_attention[pair]:
                maps[pairs + pair], maps[3 * pairs + pair] = (
                    maps[pair].clone(),
                    maps[2 * pairs + pair].clone(),
                )
            if encoder_hidden_states is not None and self.shared.cross_attention[pair]:
                for token, source in enumerate(self.shared.alignment[pair].tolist()):
                    if source >= 0:
                        maps[3 * pairs + pair, :, :, token] = maps[2 * pairs + pair, :, :, source].clone()
        return attention.to_out[0]((maps @ value).transpose(1, 2).flatten(2))


def test_installing_changes_nothing_until_something_is_shared():
    unet = tiny_unet()
    latents, context = inputs(unet)
    with torch.no_grad():
        plain = unet(latents, 500, context).sample
    assert torch.allclose(run(unet, latents, context), plain, atol=1e-5)


def test_sharing_agrees_with_a_reference_that_writes_every_map_out():
    unet = tiny_unet()
    latents, context = inputs(unet)
    shared = SharedAttention(
        self_attention=torch.tensor([True, False, True]),
        cross_attention=torch.tensor([True, True, False]),
        alignment=torch.tensor([[0, 1, 2, 3, 4, 5], [0, -1, 1, 2, -1, 5], [0, 1, 2, 3, 4, 5]]),
    )
    ours = run(unet, latents, context, shared)
    unet.set_attn_processor(MapsInFull(shared))
    with torch.no_grad():
        reference = unet(latents, 500, context).sample
    assert torch.allclose(ours, reference, atol=1e-5)


def test_a_pair_is_the_same_whatever_pairs_are_beside_it():
    unet = tiny_unet()
    latents, context = inputs(unet)
    shares = torch.tensor([True, False, True])
    together = run(unet, latents, context, SharedAttention(shares))
    for pair in range(PAIRS):
        own = [pair + PAIRS * part for part in range(4)]
        alone = run(unet, latents[own], context[own], SharedAttention(shares[pair : pair + 1]))
        assert torch.allclose(together[own], alone, atol=1e-5)
