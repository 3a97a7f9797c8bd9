"""Read Hugging Face datasets by their columns: Parquet files, or the Arrow files of `save_to_disk`."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from hive_ray import storage
from hive_ray.config import Importing
from hive_ray.pairs.formats.imported import (
    EDITED_CAPTION,
    INSTRUCTION,
    OWN_COLUMNS,
    SOURCE_CAPTION,
    ImportedPair,
    MissingPicture,
    UnreadablePart,
    own_values,
)
from hive_ray.pairs.formats.pictures import IS_NO_FILE, PictureReader, type_problem
from hive_ray.pairs.formats.text_rows import EDITED_KEYS, SOURCE_KEYS
from hive_ray.schemas import Row

BATCH_ROWS = 16
READ_ERRORS = (pa.ArrowException, OSError, ValueError, OverflowError, EOFError)
"""Errors that Arrow raises for damaged files; a wrong size may look like a lack of memory."""
RANDOM_ACCESS = b"ARROW1"
"""First bytes of Arrow files that are not streams."""


@dataclass(frozen=True)
class DatasetColumns:
    """The column names of a dataset; "" for columns that it lacks."""

    instruction: str
    source_image: str
    edited_image: str
    source_caption: str = ""
    edited_caption: str = ""
    inverse_instruction: str = ""
    split_group: str = ""

    @property
    def pictures(self) -> tuple[str, str]:
        """The columns of pictures."""
        return self.source_image, self.edited_image

    @property
    def required(self) -> set[str]:
        """The columns by which the dataset is recognised."""
        return {self.instruction, self.source_image, self.edited_image}


COLUMNS = {
    "instructpix2pix-clip-filtered": DatasetColumns(
        "edit_prompt", "original_image", "edited_image", "original_prompt", "edited_prompt"
    ),
    "MagicBrush": DatasetColumns(
        "instruction", "source_img", "target_img", split_group="img_id"
    ),  # the turns of one session
    "HQ-Edit": DatasetColumns("edit", "input_image", "output_image", "input", "output", "inverse_edit"),
    "UltraEdit": DatasetColumns("edit_prompt", "source_image", "edited_image", "source_caption", "target_caption"),
    "diffusers": DatasetColumns("edit_prompt", "input_image", "edited_image", "source_caption", "edited_caption"),
    "hive_ray": DatasetColumns("instruction", "source_image", "edited_image", "source_caption", "edited_caption"),
}
"""Whose columns; "diffusers" is what train_instruct_pix2pix.py expects and `writing` writes."""


def parquet_rows(file: str, root: str, settings: Importing) -> Iterator[ImportedPair | UnreadablePart]:
    """The pairs of a Parquet file of the dataset folder `root`, and what of it cannot be read: a row, a row group, or
    all of it."""
    try:
        table = storage.open_parquet(file)
        rows = _Rows(file, root, settings, table.schema_arrow)
    except READ_ERRORS as error:
        yield _unreadable(file, "", error)
        return
    with table:
        for group in range(table.num_row_groups):
            if not rows.refusal:
                yield from _row_group(table, group, rows)
        if rows.refusal:
            yield rows.unfit(rows.refusal, table.metadata.num_rows)


def _row_group(table, group: int, rows: "_Rows") -> Iterator[ImportedPair | UnreadablePart]:
    start, held = rows.number, 0
    try:
        held = table.metadata.row_group(group).num_rows
        for batch in table.iter_batches(BATCH_ROWS, row_groups=[group], columns=rows.columns):
            yield from rows.found(batch)
            if rows.refusal:
                return
        if rows.number - start < held:
            raise ValueError(f"it has {rows.number - start} rows of {held}")
    except READ_ERRORS as error:
        yield _unreadable(
            rows.file, f", row group {group}", error, "row_group_unreadable", held - (rows.number - start)
        )
        rows.number = start + held


def parquet_values(file: str, columns: Callable[[pa.Schema], list[str]]) -> Iterator[tuple[str, Row | UnreadablePart]]:
    """Where each row of a Parquet file stands, in words, and its values in `columns`; or what cannot be read: a row, a
    row group, or all of it. "columns_unknown" is the reason of a file that has none of them."""
    number = 0
    try:
        table = storage.open_parquet(file)
    except READ_ERRORS as error:
        yield file, _unreadable(file, "", error)
        return
    with table:
        chosen = columns(table.schema_arrow)
        if not chosen:
            names = ", ".join(table.schema_arrow.names)
            yield (
                file,
                UnreadablePart(
                    "columns_unknown", f"{file} has the columns {names}, none of which is known; rename them"
                ),
            )
            return
        for group in range(table.num_row_groups):
            begin = number
            held = 0
            try:
                held = table.metadata.row_group(group).num_rows
                for batch in table.iter_batches(BATCH_ROWS, row_groups=[group], columns=chosen):
                    for row in _values(batch):
                        place = f"{file}, row {number}"
                        number += 1
                        broken = isinstance(row, Exception)
                        yield place, UnreadablePart("row_unreadable", f"{place}: {row}") if broken else row
            except READ_ERRORS as error:
                lost = begin + held - number
                yield file, _unreadable(file, f", row group {group}", error, "row_group_unreadable", lost)
                number = begin + held


def arrow_rows(file: str, root: str, settings: Importing) -> Iterator[ImportedPair | UnreadablePart]:
    """Yield the pairs of an Arrow file or stream, and an `UnreadablePart` if its rest cannot be read."""
    rows: _Rows | None = None
    try:
        for schema, batch in _arrow_batches(file):
            rows = rows or _Rows(file, root, settings, schema)
            if rows.refusal:
                yield rows.unfit(rows.refusal, 0)
                return
            batch.validate()  # Arrow does not validate files by itself, and wrong offsets would crash the process
            chosen = batch.select(rows.columns)
            for first in range(0, len(chosen), BATCH_ROWS):
                yield from rows.found(chosen.slice(first, BATCH_ROWS))
                if rows.refusal:
                    yield rows.unfit(rows.refusal, 0)
                    return
    except READ_ERRORS as error:
        where = f", from row {rows.number} on" if rows and rows.number else ""
        yield _unreadable(file, where, error)


def _arrow_batches(file: str) -> Iterator[tuple[pa.Schema, pa.RecordBatch]]:
    with _opened(file) as stream:
        if stream.read(len(RANDOM_ACCESS)) == RANDOM_ACCESS:
            table = pa.ipc.open_file(stream)
            for number in range(table.num_record_batches):
                yield table.schema, table.get_batch(number)
            return
        stream.seek(0)
        for batch in (table := pa.ipc.open_stream(stream)):
            yield table.schema, batch


@contextmanager
def _opened(file: str) -> Iterator[pa.NativeFile]:
    files, inside = storage.filesystem(file)
    with files.open_input_file(inside) as stream:
        yield stream


class _Rows:
    """Converts the batches of one file to pairs."""

    def __init__(self, file: str, root: str, settings: Importing, schema: pa.Schema) -> None:
        self.file = file
        self.number = 0
        """Number of the next row, from 0."""
        self.pictures = PictureReader(file, root, settings.pictures)
        self.refusal: UnreadablePart | None = None
        """Why the file is not read further."""
        known = find_columns(schema.names)
        if known is None:
            self.refusal = UnreadablePart("columns_unknown", describe_unknown_columns(file, schema.names))
            return
        self.known = known
        used = {*vars(known).values(), *OWN_COLUMNS}
        self.columns = [name for name in unique_names(schema.names) if name in used]  # only what is used: no masks
        problems = [type_problem(name, schema.field(name).type) for name in known.pictures]
        if any(problems):
            self.refusal = UnreadablePart(IS_NO_FILE, f"{file}: {'; '.join(filter(None, problems))}")

    def unfit(self, refusal: UnreadablePart, rows: int) -> UnreadablePart:
        """The refusal with a number of rows."""
        return UnreadablePart(refusal.reason, refusal.sample, max(0, rows))

    def found(self, batch: pa.RecordBatch) -> Iterator[ImportedPair | UnreadablePart]:
        """Yield the pairs of a batch. A file whose first row has text in place of a picture is refused."""
        for row in _values(batch):
            place = f"{self.file}, row {self.number}"
            self.number += 1
            if isinstance(row, Exception):
                yield UnreadablePart("row_unreadable", f"{place}: {row}")
                continue
            pair = self._pair(row, place)
            wrong = [
                picture for picture in (pair.source_image, pair.edited_image) if isinstance(picture, MissingPicture)
            ]
            if self.number == 1 and any(picture.reason == IS_NO_FILE for picture in wrong):
                names = " and ".join(self.known.pictures)
                self.refusal = UnreadablePart(IS_NO_FILE, f"{self.file}: {names} hold {wrong[0].detail}")
                return
            yield pair

    def _pair(self, row: Row, place: str) -> ImportedPair:
        values: dict[str, Any] = {name: row.get(theirs) for name, theirs in vars(self.known).items() if theirs}
        for name in ("source_image", "edited_image"):
            values[name] = self.pictures.read(values[name])
        return ImportedPair(**values | own_values(row), place=place)


def _values(batch: pa.RecordBatch) -> Iterator[Row | Exception]:
    """Yield the rows of a batch, or the error of a row that cannot be read."""
    try:
        batch.validate(full=True)
        yield from batch.to_pylist()
        return
    except READ_ERRORS as error:
        if len(batch) == 1:
            yield error
            return
    for number in range(len(batch)):
        yield from _values(batch.slice(number, 1))


def find_columns(names: list[str]) -> DatasetColumns | None:
    """The columns of a known dataset, or columns with the names of JSONL keys; None without them.

    Names that two columns share are ignored.
    """
    names = unique_names(names)
    for columns in COLUMNS.values():
        if columns.required <= set(names):
            return columns
    kinds = (INSTRUCTION, SOURCE_KEYS, EDITED_KEYS, SOURCE_CAPTION, EDITED_CAPTION)
    chosen = [_first_of(kind, names) for kind in kinds]
    return DatasetColumns(*chosen) if all(chosen[:3]) else None


def _first_of(candidates: tuple[str, ...], names: list[str]) -> str:
    """The first of the candidates that is among the names; "" if there is none."""
    return next((name for name in candidates if name in names), "")


def unique_names(names: list[str]) -> list[str]:
    """The names that occur exactly once."""
    return [name for name, count in Counter(names).items() if count == 1]


def describe_unknown_columns(file: str, names: list[str]) -> str:
    """The message for a file without known columns."""
    known = "; ".join(f"{name}: {', '.join(sorted(columns.required))}" for name, columns in COLUMNS.items())
    return f"{file} has the columns {', '.join(names)}, as no known dataset ({known}); rename them"


def _unreadable(
    file: str, where: str, error: Exception, reason: str = "file_unreadable", rows: int = 0
) -> UnreadablePart:
    """An unreadable part of a file; errors of S3 are raised, since the file may be fine."""
    if "AWS Error" in str(error):
        raise error
    return UnreadablePart(reason, f"{file}{where} cannot be read: {error}", rows)
