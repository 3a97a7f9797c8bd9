"""Hugging Face datasets by their columns: Parquet files, or the Arrow files of `save_to_disk`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from hive_ray import storage
from hive_ray.config import Importing
from hive_ray.pairs.formats.found import OURS, Found, ours
from hive_ray.schemas import Row

ROWS_AT_A_TIME = 16


@dataclass(frozen=True)
class Columns:
    """The names that one dataset has for what is wanted; "" for what it has not."""

    instruction: str
    source_image: str
    edited_image: str
    source_caption: str = ""
    edited_caption: str = ""
    inverse_instruction: str = ""
    together: str = ""

    @property
    def needed(self) -> set[str]:
        """Columns by which the dataset is known."""
        return {self.instruction, self.source_image, self.edited_image}


COLUMNS = {
    "instructpix2pix-clip-filtered": Columns(
        "edit_prompt", "original_image", "edited_image", "original_prompt", "edited_prompt"
    ),
    "MagicBrush": Columns("instruction", "source_img", "target_img", together="img_id"),  # the turns of one session
    "HQ-Edit": Columns("edit", "input_image", "output_image", "input", "output", "inverse_edit"),
    "UltraEdit": Columns("edit_prompt", "source_image", "edited_image", "source_caption", "target_caption"),
    "diffusers": Columns("edit_prompt", "input_image", "edited_image", "source_caption", "edited_caption"),
    "hive_ray": Columns("instruction", "source_image", "edited_image", "source_caption", "edited_caption"),
}
"""Whose columns; "diffusers" is what train_instruct_pix2pix.py expects and `writing` writes."""


def hugging_face(dataset: str, settings: Importing) -> Iterator[Found]:
    """The pairs of one split; ValueError if a file cannot be read or has columns that nobody knows."""
    for file in split_files(dataset, (".parquet", ".arrow"), settings.split_name):
        try:
            yield from _parquet(file) if file.endswith(".parquet") else _arrow(file)
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{file} cannot be read: {error}") from error


def split_files(dataset: str, endings: tuple[str, ...], split_name: str) -> list[str]:
    """The files of one split of a dataset folder, in order; a file is itself."""
    if storage.is_file(dataset):
        return [dataset]
    names = storage.list_data(dataset, *endings)
    chosen = [name for name in names if any(part.startswith(split_name) for part in name.split("/"))]
    if not chosen:
        raise ValueError(
            f"{dataset} has no file of the split {split_name!r}, but {len(names)} others ({', '.join(names[:3])}); "
            'set importing.split_name to how the wanted ones begin, or to "" for all'
        )
    return [storage.join(dataset, name) for name in chosen]


def _parquet(file: str) -> Iterator[Found]:
    with storage.open_parquet(file) as table:
        columns = _columns_of(file, table.schema_arrow.names)
        for batch in table.iter_batches(ROWS_AT_A_TIME, columns=_to_read(columns, table.schema_arrow.names)):
            yield from (_found(row, columns) for row in batch.to_pylist())


def _arrow(file: str) -> Iterator[Found]:
    files, inside = storage.filesystem(file)
    with pa.ipc.open_stream(files.open_input_stream(inside)) as table:
        columns = _columns_of(file, table.schema.names)
        for batch in table:
            wanted = batch.select(_to_read(columns, table.schema.names))
            for start in range(0, len(wanted), ROWS_AT_A_TIME):
                yield from (_found(row, columns) for row in wanted.slice(start, ROWS_AT_A_TIME).to_pylist())


def _columns_of(file: str, names: list[str]) -> Columns:
    for columns in COLUMNS.values():
        if columns.needed <= set(names):
            return columns
    known = "; ".join(f"{name}: {', '.join(sorted(columns.needed))}" for name, columns in COLUMNS.items())
    raise ValueError(f"{file} has the columns {', '.join(names)}, as no known dataset ({known}); rename them")


def _to_read(columns: Columns, names: list[str]) -> list[str]:
    """Only what is used: no masks."""
    return [name for name in names if name in {*vars(columns).values(), *OURS}]


def _found(row: Row, columns: Columns) -> Found:
    values = {name: row.get(theirs) for name, theirs in vars(columns).items() if theirs}
    pictures = {name: _embedded(values[name]) for name in ("source_image", "edited_image")}
    return Found(**values | pictures | ours(row))


def _embedded(picture: Any) -> bytes | None:
    """A picture of {bytes, path} or of bytes alone; None where only the path on somebody's disk is left."""
    return picture.get("bytes") if isinstance(picture, dict) else picture
