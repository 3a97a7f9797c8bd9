"""The page that shows which pairs were kept and dropped, and why.

counts by reason, measured similarities, examples -> html
"""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

import numpy as np

from hive_ray.config import Pairs
from hive_ray.images import thumbnail
from hive_ray.pages.charts import bar_chart, histogram
from hive_ray.pages.html import CaptionedPicture, Example, chart, charts, contact_sheet, note, page, table
from hive_ray.pairs.filtering import (
    EDIT_CHANGED_NOTHING,
    EDITED_IS_FLAT,
    NEAR_DUPLICATE,
    NOT_AMONG_THE_BEST,
    SOURCE_IS_FLAT,
    UNSAFE,
    difference,
    measure_pair,
    min_similarities,
)
from hive_ray.schemas import Row, Rows

SIMILARITIES = {
    "clip_image": "CLIP: source picture to edited picture",
    "clip_direction": "CLIP: change of pictures to change of captions",
    "clip_source_text": "CLIP: source picture to its caption",
    "clip_edited_text": "CLIP: edited picture to its caption",
}
MEANINGS = {
    SOURCE_IS_FLAT: "The source picture has less contrast than least_contrast asks for.",
    EDITED_IS_FLAT: "The edited picture has less contrast than least_contrast asks for.",
    EDIT_CHANGED_NOTHING: "Source and edited picture differ nowhere by least_difference.",
    UNSAFE: "The safety checker flagged one of the pictures.",
    NEAR_DUPLICATE: "A pair of the same instruction with a greater clip_direction shows the same.",
    NOT_AMONG_THE_BEST: "It passed, but keep_per_instruction pairs with a greater clip_direction did as well.",
}
MAX_SIDE = 256
"""Longest side of the pictures on the page, pixels."""


@dataclass(frozen=True, kw_only=True)
class InspectedPairs:
    """The content of the page about a table of pairs."""

    settings: Pairs
    """The settings of the table."""
    num_kept: int
    """Sampled pairs that are rows of the table."""
    num_twins: int
    """Rows that are the reverse of a kept pair."""
    dropped: Mapping[str, int]
    """Reason -> number of pairs."""
    failed: Mapping[str, int]
    """Error -> number of instructions without pairs."""
    kept_values: Mapping[str, np.ndarray]
    """Similarity column -> values of kept pairs; for large tables a sample."""
    dropped_values: Mapping[str, np.ndarray]
    kept: Rows
    """Examples."""
    examples: Mapping[str, Rows]
    """Reason -> examples."""


def write_page(inspected: InspectedPairs) -> str:
    """The page as HTML; pairs that are flagged as unsafe are counted, not shown."""
    drawn = inspected.num_kept + sum(inspected.dropped.values())
    shown = [
        (f"Dropped: {reason}", _share(count, drawn) + _dropped(reason, inspected))
        for reason, count in _by_count(inspected.dropped).items()
    ]
    sections = [
        ("What became of the pairs", _counts(inspected)),
        ("CLIP similarities and their limits", _similarities(inspected)),
        ("Kept", contact_sheet([_example(row, inspected.settings) for row in inspected.kept])),
        *shown,
        ("Instructions that failed", _failed(inspected.failed)),
    ]
    return page("hive_ray: pairs", headline(inspected), sections)


def headline(inspected: InspectedPairs) -> str:
    """One sentence: how many pairs were kept, and the most frequent drop reason."""
    drawn = inspected.num_kept + sum(inspected.dropped.values())
    words = f"{inspected.num_kept:,} of {drawn:,} drawn pairs are kept ({_percent(inspected.num_kept, drawn)})"
    if not inspected.dropped:
        return f"{words}."
    reason, count = next(iter(_by_count(inspected.dropped).items()))
    return f"{words}; most often dropped for {reason} ({_percent(count, drawn)})."


def _counts(inspected: InspectedPairs) -> str:
    bars = {"kept": inspected.num_kept, **_by_count(inspected.dropped)}
    twins = note(f"The table also holds {inspected.num_twins:,} kept pairs backwards.") if inspected.num_twins else ""
    return chart(bar_chart(bars, x_label="drawn pairs", highlighted="kept")) + twins


def _similarities(inspected: InspectedPairs) -> str:
    limits, drawn = min_similarities(inspected.settings), []
    for column, words in SIMILARITIES.items():
        groups = {"kept": inspected.kept_values[column], "dropped": inspected.dropped_values[column]}
        groups = {name: values[np.isfinite(values)] for name, values in groups.items()}
        groups = {name: values for name, values in groups.items() if len(values)}
        if groups:
            total = sum(len(values) for values in groups.values())
            marks = {f"limit {limits[column]:g}": [limits[column]]}
            drawn.append(
                histogram(groups, words, "share of drawn pairs", total=total, vertical_lines=marks, half_width=True)
            )
    return charts(drawn) if drawn else ""


def _dropped(reason: str, inspected: InspectedPairs) -> str:
    meaning = note(MEANINGS[reason]) if reason in MEANINGS else ""
    if reason == UNSAFE:
        return meaning + note("They are not shown; some are in __examples__ next to the table.")
    sheet = contact_sheet([_example(row, inspected.settings) for row in inspected.examples.get(reason, [])])
    return meaning + (sheet or note("No example of it was kept."))


def _example(row: Row, settings: Pairs) -> Example:
    """A pair with its captions and measurements; a value below its limit is shown with the limit."""
    limits, look = min_similarities(settings), measure_pair(row)

    def value(words: str, column: str) -> str:
        return f"{words} {_against(row[column], limits[column], 3)}"

    def side(name: str, contrast: float) -> str:
        words = _against(contrast, settings.least_contrast, 1)
        return f"{name}: {row[f'{name}_caption']}\n{value('text', f'clip_{name}_text')} \u00b7 contrast {words}"

    source, edited = map(side, ("source", "edited"), look.contrast)
    both = [
        value("image", "clip_image"),
        value("direction", "clip_direction"),
        f"difference {_against(difference(*look.colours), settings.least_difference, 0)}",
    ]
    return Example(
        row["instruction"],
        (
            CaptionedPicture(thumbnail(row["source_image"], MAX_SIDE), source),
            CaptionedPicture(thumbnail(row["edited_image"], MAX_SIDE), "\n".join([edited, " \u00b7 ".join(both)])),
        ),
    )


def _against(value: float, limit: float, digits: int) -> str:
    return f"{value:.{digits}f}" + ("" if value >= limit else f" < {limit:g}")


def _failed(failed: Mapping[str, int]) -> str:
    rows = [[escape(error), f"{count:,}"] for error, count in _by_count(failed).items()]
    return table(["error", "instructions"], rows) if rows else ""


def _by_count(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _share(count: int, drawn: int) -> str:
    return note(f"{count:,} pairs, {_percent(count, drawn)} of all drawn.")


def _percent(count: int, drawn: int) -> str:
    return f"{100 * count / max(1, drawn):.1f} %"
