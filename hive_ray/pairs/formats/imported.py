"""Pairs of other people's datasets, and their conversion to rows of `imported`."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from hive_ray.config import Importing
from hive_ray.errors import Stopped
from hive_ray.files.text_files import replace_surrogates
from hive_ray.images import ImageError, map_in_threads, to_stored
from hive_ray.schemas import ORIGINS, SPLITS, Counted, Dropped, Result, Row
from hive_ray.seeds import id_for, split_for

INSTRUCTION = ("instruction", "edit", "edit_prompt")
SOURCE_CAPTION = ("source_caption", "input", "caption", "original_prompt")
"""The published prompt.json says `input`; what InstructPix2Pix's own text generator writes says `caption`."""
EDITED_CAPTION = ("edited_caption", "output", "edited_prompt", "target_caption")
SOURCE_IMAGE = ("source_img", "source_image", "original_image", "input_image")
EDITED_IMAGE = ("edited_img", "edited_image", "target_img", "target_image", "output_image")
"""Keys in the order of preference: those of hive_ray, HIVE, InstructPix2Pix, UltraEdit, MagicBrush and HQ-Edit."""
FILE_NAME = "_file_name"
"""Suffix of picture columns in the metadata files of Hugging Face's ImageFolder."""
OWN_COLUMNS = ("seed", "shared_attention", "origin", "split")
"""Columns that `writing` adds. They are kept, so that a twin stays in the split of its pair."""
BATCH_PAIRS = 8
"""Pairs whose pictures are decoded and held in memory at a time."""
ROWS_NOT_READ = "rows_not_read"
"""Name of the count of rows in unreadable parts."""


@dataclass(frozen=True)
class MissingPicture:
    """Why a picture is missing: the drop reason, and a message for people."""

    reason: str
    detail: str


@dataclass(frozen=True)
class UnreadablePart:
    """A part of a dataset that cannot be read: a line, a folder, a row group, the rest of a file."""

    reason: str
    sample: str
    """Its place and its problem."""
    rows: int = 0
    """Number of rows that it should contain, if known and more than one; otherwise 0."""


@dataclass(frozen=True)
class ImportedPair:
    """A pair of a dataset.

    `instruction` and captions are text, {"text": text}, or lists of these. Pairs of one `split_group`
    are in the same split; "" stands for the source caption, or the source picture without a caption. A given `split` is
    kept. `place` is the file and row, for messages.
    """

    instruction: Any
    source_image: bytes | MissingPicture | None
    edited_image: bytes | MissingPicture | None
    source_caption: Any = ""
    edited_caption: Any = ""
    inverse_instruction: Any = ""
    split_group: str = ""
    seed: int = 0
    shared_attention: float = 0.0
    origin: str = "imported"
    split: str = ""
    place: str = ""


def imported_rows(pairs: Iterable[ImportedPair | UnreadablePart], settings: Importing) -> Iterator[Result]:
    """Yield at most `num_pairs` distinct rows of `imported`, and `Dropped` with a sample for other pairs.

    Each instruction of a pair is a row. Reasons besides those of `UnreadablePart` and `MissingPicture`:
    "instruction_missing", "picture_missing", "picture_unreadable", "pictures_are_equal", "duplicate".

    Raises a ValueError if nothing can be kept, and `Stopped` if it is a smaller share than `least_kept`.
    """
    pair_ids: set[str] = set()
    dropped: Counter[str] = Counter()
    samples: dict[str, str] = {}
    source = iter(pairs)
    while batch := list(islice(source, min(BATCH_PAIRS, settings.num_pairs - len(pair_ids)))):
        for pair, pictures in zip(batch, map_in_threads(_kept_pictures, batch), strict=True):
            for row in _rows(pair, pictures, settings):
                if isinstance(row, dict) and isinstance(pair, ImportedPair) and row["pair_id"] in pair_ids:
                    row = _dropped("duplicate", pair.place, f"{row['instruction']!r} of the same pictures came before")
                if isinstance(row, Dropped):
                    dropped[row.reason] += 1
                    samples.setdefault(row.reason, row.sample or "")
                elif isinstance(row, Counted):
                    dropped[ROWS_NOT_READ] += int(row.values[ROWS_NOT_READ])
                else:
                    pair_ids.add(row["pair_id"])
                yield row
                if len(pair_ids) == settings.num_pairs:
                    return
    require_enough_rows(f"pairs of {settings.dataset}", len(pair_ids), dropped, samples, settings.least_kept)


def require_enough_rows(
    what: str, kept: int, dropped: Counter[str], samples: dict[str, str], least_kept: float
) -> None:
    """Raise a ValueError if nothing was kept, and `Stopped` if less than the share `least_kept` was."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.most_common() if count) or "it is empty"
    shown = "".join(f"\n  {reason}: {sample}" for reason, sample in samples.items())
    if not kept:
        raise ValueError(f"none of the {what} can be kept: {reasons}{shown}")
    if kept < least_kept * (kept + dropped.total()):
        raise Stopped(
            f"{kept} of the {what} can be kept, a smaller share than importing.least_kept, {least_kept}: {reasons}; "
            f"correct the dataset or the setting{shown}"
        )


def _kept_pictures(pair: ImportedPair | UnreadablePart) -> tuple[bytes | MissingPicture, ...]:
    """The pictures of a pair in the form for tables; an empty tuple if the instruction is missing."""
    if isinstance(pair, UnreadablePart) or not texts(pair.instruction):
        return ()
    return stored_picture(pair.source_image, "source"), stored_picture(pair.edited_image, "edited")


def _rows(
    pair: ImportedPair | UnreadablePart, pictures: tuple[bytes | MissingPicture, ...], settings: Importing
) -> Iterator[Result]:
    """Yield a row for each instruction of a pair, or a dropped row."""
    if isinstance(pair, UnreadablePart):
        yield Dropped(pair.reason, sample=pair.sample)
        if pair.rows > 1:
            yield Counted({ROWS_NOT_READ: pair.rows - 1})
        return
    instructions, inverses = texts(pair.instruction), texts(pair.inverse_instruction)
    if not instructions:
        yield _dropped("instruction_missing", pair.place, f"no text, but {str(pair.instruction)[:40]!r}")
        return
    source, edited = pictures
    if isinstance(source, MissingPicture):
        yield _dropped(source.reason, pair.place, source.detail)
        return
    if isinstance(edited, MissingPicture):
        yield _dropped(edited.reason, pair.place, edited.detail)
        return
    if pair.source_image == pair.edited_image or source == edited:
        yield _dropped("pictures_are_equal", pair.place, "the edited picture is the source picture")
        return
    for number, instruction in enumerate(instructions):
        inverse = inverses[number] if len(inverses) == len(instructions) else (inverses or [""])[0]
        yield _row(pair, instruction, inverse, source, edited, settings)


def _row(pair: ImportedPair, instruction: str, inverse: str, source: bytes, edited: bytes, settings: Importing) -> Row:
    source_caption, edited_caption = text(pair.source_caption), text(pair.edited_caption)
    together = id_for(pair.split_group or source_caption or source)
    split = split_for(together, rank_rate=settings.rank_rate, test_rate=settings.test_rate)
    return {
        "pair_id": id_for("imported", instruction, source, edited),
        "instruction_id": id_for(together, instruction, edited_caption),
        "instruction": instruction,
        "source_caption": source_caption,
        "edited_caption": edited_caption,
        "inverse_instruction": inverse,
        "source_image": source,
        "edited_image": edited,
        "seed": pair.seed,
        "shared_attention": pair.shared_attention,
        "origin": "cycle" if pair.origin == "cycle" else "imported",
        "split": pair.split or split,
    }


def stored_picture(picture: bytes | MissingPicture | None, name: str) -> bytes | MissingPicture:
    """Convert a picture to the form for tables, or say why it is missing; `name` is for messages."""
    if isinstance(picture, MissingPicture):
        return MissingPicture(picture.reason, f"{name} picture: {picture.detail}")
    if not picture:
        return MissingPicture("picture_missing", f"{name} picture: it is empty")
    try:
        return to_stored(picture)
    except ImageError as error:
        return MissingPicture("picture_unreadable", f"{name} picture: {error}")


def _dropped(reason: str, place: str, detail: str) -> Dropped:
    return Dropped(reason, sample=f"{place}: {detail}" if place else detail)


def text(value: Any) -> str:
    """The first text of a value with single spaces; "" if there is none."""
    return next(iter(texts(value)), "")


def texts(value: Any) -> list[str]:
    """The non-empty texts of a text, a {"text": text}, or a list of these, with single spaces."""
    if isinstance(value, str):
        words = " ".join(replace_surrogates(value).split())
        return [words] if words else []
    if isinstance(value, dict):
        return texts(first_value(value, ("text", *INSTRUCTION))) if value.keys() & {"text", *INSTRUCTION} else []
    if isinstance(value, list):
        return [words for item in value if not isinstance(item, list) for words in texts(item)]
    return []


def first_value(row: Row, keys: tuple[str, ...]) -> Any:
    """The first value under these keys that is neither null nor ""; "" if there is none."""
    return next((row[key] for key in keys if row.get(key) not in (None, "")), "")


def own_values(row: Row) -> Row:
    """The values that `writing` adds to a row; an empty dictionary for rows of other programs."""
    if row.get("origin") not in ORIGINS or row.get("split") not in SPLITS:
        return {}
    known = {"origin": row["origin"], "split": row["split"]}
    seed, shared_attention = row.get("seed"), row.get("shared_attention")
    if isinstance(seed, int) and -(2**63) <= seed < 2**63:
        known["seed"] = int(seed)
    return known | {"shared_attention": finite_or(shared_attention, 0.0)}


def finite_or(value: Any, otherwise: float) -> float:
    """The value as float if it is a finite number, else `otherwise`."""
    known = isinstance(value, int | float) and abs(value) < 1e30 and math.isfinite(value)
    return float(value) if known else otherwise
