import pytest
import torch
from tiny_models import tiny_unet

from hive_ray.pairs.alignment import aligned_mapper
from hive_ray.pairs.prompt_to_prompt import (
    SharedAttention,
    attended_words,
    install_sharing,
    share_cross_maps,
    share_source_rows,
)

TOKENS, PAIRS = 6, 3


def test_only_sharing_pairs_take_the_source_in_both_halves():
    states = torch.arange(8.0).view(8, 1, 1)  # n = 2: unconditional s0 s1 e0 e1, conditional s0 s1 e0 e1
    shared = share_source_rows(states, torch.tensor([True, False])).flatten().tolist()
    assert shared == [0, 1, 0, 3, 4, 5, 4, 7]


def test_a_half_may_share_alone():
    states = torch.arange(8.0).view(8, 1, 1)
    shared = share_source_rows(states, torch.tensor([[False, False], [True, False]])).flatten().tolist()
    assert shared == [0, 1, 2, 3, 4, 5, 4, 7]


def test_words_look_where_the_mapper_says_in_the_conditional_half_alone():
    maps = torch.arange(4.0).view(4, 1, 1, 1) + torch.tensor([0.1, 0.2, 0.3])  # n = 1, H = P = 1, T = 3
    mapper = torch.tensor([[[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.5, 0.0, 0.0]]])
    mixed = share_cross_maps(maps, mapper, own=torch.tensor([[0.0, 1.0, 0.25]]))
    assert torch.equal(mixed[:3], maps[:3])
    assert mixed[3].flatten().tolist() == pytest.approx([2.2 + 2.3 / 2, 3.2, 2.1 + 3.3 / 4])


def test_what_is_attended_is_the_sum_over_watched_tokens_and_the_mean_over_heads():
    maps = torch.arange(4.0 * 2 * 1 * 3).view(4, 2, 1, 3)  # n = 1, H = 2, P = 1, T = 3
    watched = torch.tensor([[[True, True, False]], [[False, False, True]]])
    assert attended_words(maps, watched).flatten().tolist() == [(12 + 13 + 15 + 16) / 2, (20 + 23) / 2]


def run(unet, latents, context, shared=None):
    holder = install_sharing(unet)
    holder.shared = shared
    with torch.no_grad():
        return unet(latents, 500, context).sample


def inputs(unet, pairs=PAIRS):
    generator = torch.Generator().manual_seed(0)
    side, width = unet.config.sample_size, unet.config.cross_attention_dim
    latents = torch.randn(4 * pairs, unet.config.in_channels, side, side, generator=generator)
    return latents, torch.randn(4 * pairs, TOKENS, width, generator=generator)


CROSS = [True, True, False]
ALIGNMENTS = [[0, 1, 2, 3, 4, 5], [0, -1, 1, 2, -1, 5], [0, 1, 2, 3, 4, 5]]


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
            if encoder_hidden_states is not None and CROSS[pair]:
                for token, source in enumerate(ALIGNMENTS[pair]):
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
    taken = torch.tensor(CROSS)[:, None] & (torch.tensor(ALIGNMENTS) >= 0)
    mapper = torch.stack([aligned_mapper(alignment, TOKENS) for alignment in ALIGNMENTS]) * taken[:, None]
    shared = SharedAttention(torch.tensor([True, False, True]), mapper=mapper, own_weight=1 - taken.float())
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


def test_layers_of_more_pixels_keep_their_own_self_attention():
    unet = tiny_unet()
    latents, context = inputs(unet)
    everywhere, nowhere = torch.ones(PAIRS, dtype=torch.bool), torch.zeros(PAIRS, dtype=torch.bool)
    outputs = {
        pixels: run(unet, latents, context, SharedAttention(everywhere, self_pixels=pixels)) for pixels in (0.5, 16, 64)
    }
    assert torch.equal(outputs[0.5], run(unet, latents, context, SharedAttention(nowhere)))
    assert torch.equal(outputs[64], run(unet, latents, context, SharedAttention(everywhere)))
    assert not torch.allclose(outputs[16], outputs[64], atol=1e-5)
    assert not torch.allclose(outputs[16], outputs[0.5], atol=1e-5)


def test_self_attention_is_never_written_out(monkeypatch):
    """P x P maps of one layer would be the largest tensors of all: none is ever asked for."""
    unet = tiny_unet()
    latents, context = inputs(unet)
    largest = []
    plain = torch.Tensor.softmax
    monkeypatch.setattr(torch.Tensor, "softmax", lambda x, dim: largest.append(x.shape[-1]) or plain(x, dim))
    mapper, own = torch.eye(TOKENS).repeat(PAIRS, 1, 1), torch.zeros(PAIRS, TOKENS)
    run(unet, latents, context, SharedAttention(torch.ones(PAIRS, dtype=torch.bool), mapper=mapper, own_weight=own))
    assert set(largest) == {TOKENS}
