"""Align the tokens of an edited caption with those of its source caption.

T tokens of a caption, the padding included
"""

from difflib import SequenceMatcher

import torch
from torch import Tensor

Span = range
"""The positions of a word's tokens in the caption."""


def align_tokens(source: list[int], edited: list[int]) -> list[int]:
    """For each edited token the index of the source token that it keeps or replaces one to one; -1 for new tokens.

    Equal texts give 0, 1, 2, ...
    """
    alignment = [-1] * len(edited)
    for kind, low, high, first, last in SequenceMatcher(a=source, b=edited, autojunk=False).get_opcodes():
        if kind == "equal" or (kind == "replace" and high - low == last - first):
            alignment[first:last] = range(low, high)
    return alignment


def refine_tokens(source: list[int], edited: list[int]) -> list[int]:
    """For each edited token the equal source token it is aligned with, -1 for new tokens (Google's refinement).

    Needleman-Wunsch with gap 0, match 1, mismatch -1. Among equal alignments, one that skips an edited token comes
    first, then one that skips a source token. Neither text has padding. Equal texts give 0, 1, 2, ...
    """
    best = [[0] * (len(edited) + 1) for _ in range(len(source) + 1)]
    for i, before in enumerate(source, start=1):
        for j, after in enumerate(edited, start=1):
            matched = best[i - 1][j - 1] + (1 if before == after else -1)
            best[i][j] = max(best[i][j - 1], best[i - 1][j], matched)
    alignment = [-1] * len(edited)
    i = len(source)
    j = len(edited)
    while i and j:
        if best[i][j] == best[i][j - 1]:
            j -= 1
        elif best[i][j] == best[i - 1][j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            alignment[j] = i
    return alignment


def word_spans(lengths: list[int], num_tokens: int) -> list[Span]:
    """The token span of each word of a caption, after the start token; lengths: number of tokens of each word.

    Spans are cut to T = num_tokens, start and end tokens included; the spans of later words are empty.
    """
    spans, first = [], 1
    for length in lengths:
        last = min(first + length, num_tokens - 1)
        spans.append(range(min(first, last), last))
        first += length
    return spans


def aligned_mapper(alignment: list[int], num_tokens: int) -> Tensor:
    """(T, T) of 0 and 1: column j marks the source token of edited token j, and is zero for new tokens.

    Tokens after the end of the alignment map to the token in the same position.
    """
    mapper = torch.zeros(num_tokens, num_tokens)
    for edited, source in enumerate([*alignment, *range(len(alignment), num_tokens)]):
        if source >= 0:
            mapper[source, edited] = 1
    return mapper


def swapped_mapper(source: list[Span], edited: list[Span], swapped: list[bool], num_tokens: int) -> Tensor:
    """(T, T): column j holds the weights of the source tokens that edited token j maps to (Google's word swap).

    source, edited: one span for each word; swapped: whether the word changes. If a changed word has a tokens before and
    b after, each of the b tokens gets the sum of the a tokens divided by b; if a = b, tokens map one to one. Tokens
    between changed words map in order. Tokens after the last changed word map to the same position, even if a and b
    differ, as in google/prompt-to-prompt's seq_aligner.
    """
    mapper = torch.zeros(num_tokens, num_tokens)
    i = j = 0
    for before, after, changes in zip(source, edited, swapped, strict=True):
        if not changes or not before or not after:  # a word that was cut has no tokens
            continue
        between = before.start - i
        mapper[torch.arange(between) + i, torch.arange(between) + j] = 1
        if len(before) == len(after):
            mapper[torch.tensor(before), torch.tensor(after)] = 1
        else:
            mapper[before.start : before.stop, after.start : after.stop] = 1 / len(after)
        i, j = before.stop, after.stop
    mapper.diagonal()[j:] = 1
    return mapper


def changed_tokens(source: list[int], edited: list[int]) -> tuple[list[int], list[int]]:
    """The removed tokens of the source and the new tokens of the edited caption, by `refine_tokens`."""
    kept = refine_tokens(source, edited)
    gone = sorted(set(range(len(source))) - set(kept))
    return gone, [index for index, source_index in enumerate(kept) if source_index < 0]
