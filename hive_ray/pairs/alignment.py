"""Which tokens of an edited caption stand for which of its source caption.

T tokens of a caption, the padding included
"""

from difflib import SequenceMatcher

import torch
from torch import Tensor

Span = range
"""The tokens of one word, by their place in the caption."""


def align_tokens(source: list[int], edited: list[int]) -> list[int]:
    """For each edited token the index of the source token it keeps or replaces one for one; -1 for new ones.

    Equal texts give 0, 1, 2, ...
    """
    alignment = [-1] * len(edited)
    for kind, low, high, first, last in SequenceMatcher(a=source, b=edited, autojunk=False).get_opcodes():
        if kind == "equal" or (kind == "replace" and high - low == last - first):
            alignment[first:last] = range(low, high)
    return alignment


def refine_tokens(source: list[int], edited: list[int]) -> list[int]:
    """For each edited token the equal source token it is aligned with, -1 for new ones (Google's refinement).

    Needleman-Wunsch with gap 0, match 1, mismatch -1; of equal ways the one that skips an edited token, then a source
    token. Both without padding. Equal texts give 0, 1, 2, ...
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
    """Where each word of a caption stands, behind the start token; lengths: tokens of each word.

    Words that the caption's T = num_tokens (start and end among them) do not hold are cut, to nothing at last.
    """
    spans, first = [], 1
    for length in lengths:
        last = min(first + length, num_tokens - 1)
        spans.append(range(min(first, last), last))
        first += length
    return spans


def aligned_mapper(alignment: list[int], num_tokens: int) -> Tensor:
    """(T, T) of 0 and 1: column j marks the source token of edited token j, and is empty where there is none.

    Behind the alignment's end every token stands for the one in its place.
    """
    mapper = torch.zeros(num_tokens, num_tokens)
    for edited, source in enumerate([*alignment, *range(len(alignment), num_tokens)]):
        if source >= 0:
            mapper[source, edited] = 1
    return mapper


def swapped_mapper(source: list[Span], edited: list[Span], swapped: list[bool], num_tokens: int) -> Tensor:
    """(T, T): column j weighs the source tokens that edited token j stands for (Google's word swap).

    One span a word on each side, and whether the word changes. A changed word of a tokens that becomes one of b gives
    each of the b the sum of the a, over b, unless a = b: then one for one. Tokens between follow each other; those
    behind the last changed word stand for the one in their own place, even where a and b differ, as in
    google/prompt-to-prompt's seq_aligner.
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
    """The source's removed tokens and the edited caption's new ones, by `refine_tokens`."""
    kept = refine_tokens(source, edited)
    gone = sorted(set(range(len(source))) - set(kept))
    return gone, [index for index, source_index in enumerate(kept) if source_index < 0]
