"""A pair as somebody's dataset gives it, and what makes it a row of `imported`."""

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
"""Keys of JSON, the first that is there: ours or HIVE's, InstructPix2Pix's, UltraEdit's, MagicBrush's, HQ-Edit's."""
FILE_NAME = "_file_name"
"""How the name of a column of pictures ends in the metadata files of Hugging Face's ImageFolder."""
OWN_COLUMNS = ("seed", "shared_attention", "origin", "split")
"""What `writing` adds: it is taken at its word, so that no twin leaves its pair's split on the way."""
BATCH_PAIRS = 8
"""Whose pictures are decoded at once, and are in memory."""
ROWS_NOT_READ = "rows_not_read"
"""What counts the rows of the parts that could not be read."""


@dataclass(frozen=True)
class MissingPicture:
    """Why there is no picture: the reason of the drop, and what was seen and what to do, in words."""

    reason: str
    detail: str


@dataclass(frozen=True)
class UnreadablePart:
    """A part of a dataset that gives no pair: a line, a folder, a row group, the rest of a file."""

    reason: str
    sample: str
    """Where it is and what is wrong with it."""
    rows: int = 0
    """Rows that it was to hold, where there may be more than one and their number is known."""


@dataclass(frozen=True)
class ImportedPair:
    """A pair as a dataset gives it.

    `instruction` and captions are text, {"text": text}, or lists of these. `split_group` names what must not straddle a
    split; "" is the source caption, or the source picture where there is none. A `split` that is given is kept.
    `place` says where the pair stands, for messages.
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
    """Rows of `imported`, at most `num_pairs` and each once, and `Dropped` with a sample for the others.

    Each of several instructions of a pair is a row. Reasons beside those of `UnreadablePart` and `MissingPicture`:
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
    """Raise a ValueError if none of `what` is kept, and `Stopped` if it is a smaller share than `least_kept`."""
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
    """The pictures of a pair as tables keep them; none where its instruction is missing."""
    if isinstance(pair, UnreadablePart) or not texts(pair.instruction):
        return ()
    return stored_picture(pair.source_image, "source"), stored_picture(pair.edited_image, "edited")


def _rows(
    pair: ImportedPair | UnreadablePart, pictures: tuple[bytes | MissingPicture, ...], settings: Importing
) -> Iterator[Result]:
    """A row for each instruction of a pair, or why there is none."""
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
    """A picture as tables keep it, or why there is none; `name` says which one, for messages."""
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
    """The first text of a value with single spaces; "" where there is none."""
    return next(iter(texts(value)), "")


def texts(value: Any) -> list[str]:
    """The texts of a text, a {"text": text}, or a list of these, with single spaces and without empty ones."""
    if isinstance(value, str):
        words = " ".join(replace_surrogates(value).split())
        return [words] if words else []
    if isinstance(value, dict):
        return texts(first_value(value, ("text", *INSTRUCTION))) if value.keys() & {"text", *INSTRUCTION} else []
    if isinstance(value, list):
        return [words for item in value if not isinstance(item, list) for words in texts(item)]
    return []


def first_value(row: Row, keys: tuple[str, ...]) -> Any:
    """The first value that is there under these keys and neither null nor ""; else ""."""
    return next((row[key] for key in keys if row.get(key) not in (None, "")), "")


def own_values(row: Row) -> Row:
    """What `writing` has added to a row; nothing if somebody else wrote it."""
    if row.get("origin") not in ORIGINS or row.get("split") not in SPLITS:
        return {}
    known = {"origin": row["origin"], "split": row["split"]}
    seed, shared_attention = row.get("seed"), row.get("shared_attention")
    if isinstance(seed, int) and -(2**63) <= seed < 2**63:
        known["seed"] = int(seed)
    return known | {"shared_attention": finite_or(shared_attention, 0.0)}


def finite_or(value: Any, otherwise: float) -> float:
    """A finite number as it is, anything else as `otherwise`."""
    known = isinstance(value, int | float) and abs(value) < 1e30 and math.isfinite(value)
    return float(value) if known else otherwise
