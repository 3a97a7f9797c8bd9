"""Filter pairs: drop reasons, and the best pairs of an instruction (rules of InstructPix2Pix, and picture checks)."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from hive_ray.config import Pairs
from hive_ray.images import decode
from hive_ray.schemas import Row, Rows

SafetyCheck = Callable[[list[bytes]], list[bool]]
"""Encoded pictures -> whether each is unsafe (`safety.SafetyChecker`)."""

SOURCE_IS_FLAT, EDITED_IS_FLAT = "source_image_is_flat", "edited_image_is_flat"
EDIT_CHANGED_NOTHING = "edit_changed_nothing"
UNSAFE = "unsafe"
NEAR_DUPLICATE = "near_duplicate"
NOT_AMONG_THE_BEST = "not_among_the_best"

GRID = 16
"""Cells along each side of the grid in which pictures are compared."""


def min_similarities(settings: Pairs) -> dict[str, float]:
    """CLIP similarity column -> its minimum."""
    return {
        "clip_image": settings.least_clip_image,
        "clip_source_text": settings.least_clip_source_text,
        "clip_edited_text": settings.least_clip_edited_text,
        "clip_direction": settings.least_clip_direction,
    }


@dataclass(frozen=True)
class PairStatistics:
    """Contrast and mean colours of the pictures of a pair, (source, edited) each."""

    contrast: tuple[float, float]
    colours: tuple[np.ndarray, np.ndarray]


def measure_pair(pair: Row) -> PairStatistics:
    """Measure the pictures of a pair; each is decoded once."""
    source = decode(pair["source_image"])
    edited = decode(pair["edited_image"])
    return PairStatistics((contrast(source), contrast(edited)), (mean_colours(source), mean_colours(edited)))


def contrast(pixels: np.ndarray) -> float:
    """RMS contrast (Peli 1990) of the channel with the highest contrast, 0..127.5; 0 for a picture of one colour.

    pixels: (H, W, 3) uint8. Channels are measured separately, since colours of equal brightness may differ.
    """
    return float(pixels.std(axis=(0, 1)).max())


def mean_colours(pixels: np.ndarray) -> np.ndarray:
    """The mean colour of each cell of a grid over a picture (H, W, 3) uint8: (GRID, GRID, 3), 0..255."""
    picture = Image.fromarray(pixels)
    return np.asarray(picture.resize((GRID, GRID), Image.Resampling.BOX), dtype=np.float32)


def difference(first: np.ndarray, second: np.ndarray) -> float:
    """The difference of two pictures: the greatest difference of their `mean_colours` in any channel and cell, 0..255.

    Means of cells suppress noise and compression, as in other tests for near-duplicates. The greatest difference
    counts, since most edits are local. A difference hash (Krawetz 2013) describes the brightness of the whole picture
    in 64 bits, and a recoloured thing or a small new one may change none of them.
    """
    return float(np.abs(first - second).max())


def drop_reason(pair: Row, look: PairStatistics, settings: Pairs) -> str | None:
    """Why to drop a pair by itself, such as `clip_direction_below_0.2`; None if it passes.

    Contrast is checked first, since similarities of a flat picture are meaningless.
    """
    source_contrast, edited_contrast = look.contrast
    if source_contrast < settings.least_contrast:
        return SOURCE_IS_FLAT
    if edited_contrast < settings.least_contrast:
        return EDITED_IS_FLAT
    if difference(*look.colours) < settings.least_difference:
        return EDIT_CHANGED_NOTHING
    for column, limit in min_similarities(settings).items():
        if not pair[column] >= limit:  # of NaN as well
            return f"{column}_below_{limit:g}"
    return None


def keep_best(pairs: Rows, settings: Pairs, flagged: SafetyCheck) -> tuple[Rows, list[tuple[str, Row]]]:
    """The kept pairs of one instruction, best first, and the dropped ones as (reason, pair).

    Of the pairs that pass and are not flagged, the `keep_per_instruction` with the greatest clip_direction are kept,
    without near-duplicates of better ones. Ties are broken by pair_id, so the order of the input does not matter.
    """
    looks = [(pair, measure_pair(pair)) for pair in pairs]
    reasons = [drop_reason(pair, look, settings) for pair, look in looks]
    dropped = [(reason, pair) for reason, pair in zip(reasons, pairs, strict=True) if reason]
    passed = [passed_look for reason, passed_look in zip(reasons, looks, strict=True) if not reason]
    passed.sort(key=lambda pair_and_look: (-pair_and_look[0]["clip_direction"], pair_and_look[0]["pair_id"]))
    kept: list[tuple[Row, PairStatistics]] = []
    unsafe_ones = _flagged_pairs([pair for pair, _ in passed], flagged)
    for (pair, look), unsafe in zip(passed, unsafe_ones, strict=True):
        if unsafe:
            dropped.append((UNSAFE, pair))
        elif len(kept) == settings.keep_per_instruction:
            dropped.append((NOT_AMONG_THE_BEST, pair))
        elif any(_pair_difference(look, better) < settings.least_difference for _, better in kept):
            dropped.append((NEAR_DUPLICATE, pair))
        else:
            kept.append((pair, look))
    return [pair for pair, _ in kept], dropped


def _flagged_pairs(pairs: Rows, flagged: SafetyCheck) -> list[bool]:
    """Whether either picture of each pair is flagged."""
    flags = flagged([pair[side] for side in ("source_image", "edited_image") for pair in pairs])
    return [source or edited for source, edited in zip(flags[: len(pairs)], flags[len(pairs) :], strict=True)]


def _pair_difference(first: PairStatistics, second: PairStatistics) -> float:
    """The difference of two pairs: that of their sources or of their edited pictures, whichever is greater."""
    return max(difference(a, b) for a, b in zip(first.colours, second.colours, strict=True))
