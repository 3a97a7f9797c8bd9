"""A pair as somebody's dataset gives it, and what makes it a row of `imported`."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from hive_ray.config import Importing
from hive_ray.images import ImageError, as_kept
from hive_ray.schemas import ORIGINS, SPLITS, Row
from hive_ray.seeds import id_for, split_for

INSTRUCTION = ("instruction", "edit", "edit_prompt")
SOURCE_CAPTION = ("source_caption", "input", "caption")
"""The published prompt.json says `input`; what InstructPix2Pix's own text generator writes says `caption`."""
EDITED_CAPTION = ("edited_caption", "output")
SOURCE_IMAGE = ("source_img", "source_image")
EDITED_IMAGE = ("edited_img", "edited_image")
"""Keys of JSON, the first that is there: ours or HIVE's, InstructPix2Pix's, UltraEdit's."""
OURS = ("seed", "shared_attention", "origin", "split")
"""What `writing` adds: it is taken at its word, so that no twin leaves its pair's split on the way."""


@dataclass(frozen=True)
class Found:
    """A pair as a dataset gives it.

    `together` names what must not straddle a split; "" is the source caption, or the source picture where there is
    none. A `split` that is given is kept. Pictures are None where they are missing.
    """

    instruction: Any
    source_image: bytes | None
    edited_image: bytes | None
    source_caption: Any = ""
    edited_caption: Any = ""
    inverse_instruction: Any = ""
    together: str = ""
    seed: int = 0
    shared_attention: float = 0.0
    origin: str = "imported"
    split: str = ""


def imported_rows(found: Iterable[Found], settings: Importing) -> Iterator[Row]:
    """Rows of `imported`, at most `num_pairs` and each once, and {"dropped": reason} for the others.

    Reasons: "instruction_missing", "picture_missing", "picture_unreadable", "pictures_are_equal", "duplicate".
    Raises a ValueError if nothing can be kept.
    """
    seen: set[str] = set()
    dropped: Counter[str] = Counter()
    for pair in found:
        row = _row(pair, settings)
        if row.get("pair_id") in seen:
            row = {"dropped": "duplicate"}
        if "dropped" in row:
            dropped[row["dropped"]] += 1
        else:
            seen.add(row["pair_id"])
        yield row
        if len(seen) == settings.num_pairs:
            return
    if not seen:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "it is empty"
        raise ValueError(
            f"no pair of {settings.dataset} can be kept: {reasons}. Pictures that a JSONL file names are looked for "
            f"from importing.pictures ({settings.pictures!r}) on; correct that or the dataset"
        )


def _row(pair: Found, settings: Importing) -> Row:
    instruction, source_caption = text(pair.instruction), text(pair.source_caption)
    edited_caption = text(pair.edited_caption)
    if not instruction:
        return {"dropped": "instruction_missing"}
    if not pair.source_image or not pair.edited_image:
        return {"dropped": "picture_missing"}
    if pair.source_image == pair.edited_image:
        return {"dropped": "pictures_are_equal"}
    try:
        source, edited = as_kept(pair.source_image), as_kept(pair.edited_image)
    except ImageError:
        return {"dropped": "picture_unreadable"}
    together = id_for(pair.together or source_caption or source)
    split = split_for(together, rank_rate=settings.rank_rate, test_rate=settings.test_rate)
    return {
        "pair_id": id_for("imported", instruction, source, edited),
        "instruction_id": id_for(together, instruction, edited_caption),
        "instruction": instruction,
        "source_caption": source_caption,
        "edited_caption": edited_caption,
        "inverse_instruction": text(pair.inverse_instruction),
        "source_image": source,
        "edited_image": edited,
        "seed": pair.seed,
        "shared_attention": pair.shared_attention,
        "origin": "cycle" if pair.origin == "cycle" else "imported",
        "split": pair.split or split,
    }


def text(value: Any) -> str:
    """Text with single spaces; "" for what is none."""
    return " ".join(value.split()) if isinstance(value, str) else ""


def first(row: Row, keys: tuple[str, ...]) -> Any:
    """The value of the first key that is there, or ""."""
    return next((row[key] for key in keys if key in row), "")


def ours(row: Row) -> Row:
    """What `writing` has added to a row; nothing if somebody else wrote it."""
    known = row.get("origin") in ORIGINS and row.get("split") in SPLITS
    return {name: row[name] for name in OURS if name in row} if known else {}
