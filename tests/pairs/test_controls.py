import torch

from hive_ray.pairs.alignment import word_spans
from hive_ray.pairs.controls import (
    Caption,
    cross_and_self_controls,
    instruct_pix2pix_controls,
    prompt_to_prompt_controls,
)

TOKENS = 6


def caption(*words: int) -> Caption:
    """Words of one token each; 0 starts and 1 ends and fills up."""
    tokens = [0, *words, 1]
    padded = tokens + [1] * (TOKENS - len(tokens))
    return Caption([str(word) for word in words], tokens, padded, word_spans([1] * len(words), len(tokens)))


def test_instruct_pix2pix_shares_below_the_threshold_in_both_halves():
    controls = instruct_pix2pix_controls(torch.tensor([0.5, 1.0, 0.0]), 5)  # i / (N - 1) = 0, 1/4, 1/2, 3/4, 1
    assert controls.self_steps.shape == (5, 2, 3)
    assert torch.equal(controls.self_steps[:, 0], controls.self_steps[:, 1])
    assert controls.self_steps[:, 0].sum(0).tolist() == [2, 4, 0]
    shared = controls.at(0, side=4, watch=True)
    assert shared.mapper is None
    assert shared.self_pixels is None


def test_one_step_shares_above_a_threshold_of_zero():
    assert instruct_pix2pix_controls(torch.tensor([0.1, 0.0]), 1).self_steps[0, 0].tolist() == [True, False]


def test_kept_words_are_taken_in_the_steps_that_share_self_attention():
    controls = cross_and_self_controls([caption(5, 6)], [caption(5, 6, 7)], torch.tensor([0.5]), 3)
    taken = controls.mapped_weight[:, 0].tolist()
    assert taken[0] == [1, 1, 1, 0, 1, 1]  # the new word has no source
    assert taken[1] == taken[2] == [0] * TOKENS
    assert torch.equal(controls.own_weight, 1 - controls.mapped_weight)


def googles(swaps: bool, changed_steps: float = 0.8, scale: float = 1.0, edited: Caption | None = None):
    return prompt_to_prompt_controls(
        [caption(5, 6)], [edited or caption(5, 7)], swaps_words=[swaps], self_replace_steps=torch.tensor([0.4]),
        cross_replace_steps=torch.tensor([0.8]), changed_replace_steps=torch.tensor([changed_steps]),
        changed_scale=scale, num_steps=5,
    )  # fmt: skip


def test_google_shares_self_attention_in_the_conditional_half_and_small_layers_alone():
    controls = googles(swaps=True)
    assert controls.self_steps[:, :, 0].tolist() == [[False, step < 2] for step in range(5)]
    assert controls.at(0, side=4, watch=False).self_pixels == 16


def test_a_swapped_word_takes_the_sources_map_in_the_first_steps():
    controls = googles(swaps=True)
    assert controls.mapped_weight[:, 0].tolist() == [[1] * TOKENS] * 4 + [[0] * TOKENS]
    assert controls.own_weight[:, 0].tolist() == [[0] * TOKENS] * 4 + [[1] * TOKENS]


def test_the_changed_words_may_have_a_span_and_a_scale_of_their_own():
    controls = googles(swaps=True, changed_steps=0.2, scale=3.0)
    assert controls.mapped_weight[0, 0].tolist() == [1, 1, 3, 1, 1, 1]
    assert controls.mapped_weight[1, 0].tolist() == [1, 1, 0, 1, 1, 1]
    assert controls.own_weight[1, 0].tolist() == [0, 0, 1, 0, 0, 0]


def test_a_refined_captions_new_word_keeps_its_own_map_scaled():
    controls = googles(swaps=False, scale=3.0)
    assert controls.mapped_weight[0, 0].tolist() == [1, 1, 0, 1, 1, 1]
    assert controls.own_weight[0, 0].tolist() == [0, 0, 3, 0, 0, 0]
    assert controls.own_weight[4, 0].tolist() == [1] * TOKENS  # no step of cross-attention: nothing is scaled


def test_changed_words_are_watched_on_both_sides_where_asked():
    controls = googles(swaps=False, edited=caption(5, 6, 7))
    watched = controls.at(0, side=4, watch=True)
    assert watched.watched_pixels == 16
    assert watched.watched[:, 0].nonzero().tolist() == [[1, 3]]
    assert controls.at(0, side=4, watch=False).watched is None


def test_steps_are_shares_cut_to_whole_ones_though_shares_are_fp32():
    controls = prompt_to_prompt_controls(
        [caption(5)] * 3, [caption(5)] * 3, swaps_words=[False] * 3,
        self_replace_steps=torch.tensor([0.7, 0.29, 0.299]), cross_replace_steps=torch.zeros(3),
        changed_replace_steps=torch.zeros(3), changed_scale=1.0, num_steps=100,
    )  # fmt: skip
    assert controls.self_steps[:, 1].sum(0).tolist() == [70, 29, 29]
