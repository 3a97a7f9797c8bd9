import pytest
import torch

from hive_ray.pairs.alignment import (
    align_tokens,
    aligned_mapper,
    changed_tokens,
    refine_tokens,
    swapped_mapper,
    word_spans,
)


def test_equal_texts_align_one_to_one():
    assert align_tokens([5, 6, 7], [5, 6, 7]) == [0, 1, 2]


def test_a_replaced_word_stands_for_the_old_one_and_a_new_one_for_none():
    assert align_tokens([5, 6, 7], [5, 9, 7]) == [0, 1, 2]
    assert align_tokens([5, 6, 7], [5, 6, 8, 9, 7]) == [0, 1, -1, -1, 2]
    assert align_tokens([5, 6, 8, 7], [5, 9, 7]) == [0, -1, 3]


def test_refinement_of_equal_texts_is_one_to_one():
    assert refine_tokens([5, 6, 7], [5, 6, 7]) == [0, 1, 2]


def test_refinement_aligns_equal_tokens_alone():
    assert refine_tokens([5, 6, 7], [5, 9, 7]) == [0, -1, 2]  # a mismatch costs 1, two gaps nothing
    assert refine_tokens([5, 6, 7], [5, 6, 8, 9, 7]) == [0, 1, -1, -1, 2]
    assert refine_tokens([5, 6, 8, 7], [5, 7]) == [0, 3]
    assert refine_tokens([1, 2], [2, 1]) == [1, -1]  # a tie: going back from the end, the edited token is left out


def test_what_changes_is_what_refinement_leaves_over():
    assert changed_tokens([5, 6, 7], [5, 8, 9, 7]) == ([1], [1, 2])
    assert changed_tokens([5, 6], [5, 6]) == ([], [])


def test_tokens_behind_an_alignment_stand_for_those_in_their_place():
    mapper = aligned_mapper([0, 2, -1], 5)
    assert mapper.nonzero().tolist() == [[0, 0], [2, 1], [3, 3], [4, 4]]


def test_words_stand_behind_the_start_token_and_are_cut_before_the_end_token():
    assert word_spans([1, 3, 1], 7) == [range(1, 2), range(2, 5), range(5, 6)]
    spans = word_spans([2, 3, 1], 5)
    assert [list(span) for span in spans] == [[1, 2], [3], []]


def test_a_swap_of_words_of_one_token_is_one_to_one():
    spans = word_spans([1, 1, 1], 8)
    assert torch.equal(swapped_mapper(spans, spans, [False, True, False], 8), torch.eye(8))


def test_a_word_of_one_token_is_shared_among_the_three_that_it_becomes():
    """A red cat -> a zzz cat, zzz of three tokens: Google's walk through both, by hand."""
    mapper = swapped_mapper(word_spans([1, 1, 1], 9), word_spans([1, 3, 1], 9), [False, True, False], 9)
    expected = torch.zeros(9, 9)
    expected[0, 0] = expected[1, 1] = 1  # start, a
    expected[2, 2:5] = 1 / 3
    expected[[5, 6, 7, 8], [5, 6, 7, 8]] = 1  # behind the last swapped word: cat's column takes the source's place 5
    assert torch.equal(mapper, expected)


def test_words_between_two_swaps_follow_each_other_though_their_places_differ():
    mapper = swapped_mapper(word_spans([2, 1, 1], 9), word_spans([1, 1, 1], 9), [True, False, True], 9)
    columns = [mapper[:, token].nonzero().flatten().tolist() for token in range(5)]
    assert columns == [[0], [1, 2], [3], [4], [4]]
    assert mapper.sum(0).tolist() == pytest.approx([1, 2, 1, 1, 1, 1, 1, 1, 1])
