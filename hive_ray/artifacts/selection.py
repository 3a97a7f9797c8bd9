"""Rows of finished tables by their position: which rows `where` keeps, and how they are read."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from hive_ray import storage
from hive_ray.artifacts.building import ROWS_PER_FILE, ROWS_PER_GROUP
from hive_ray.artifacts.manifest import finished_manifest, table_digest
from hive_ray.errors import ContractError
from hive_ray.schemas import Row, Rows
from hive_ray.seeds import id_for

Where = Mapping[str, Any]
"""Column -> the value that a row must have there, or a predicate of the value."""


@dataclass(frozen=True)
class Selection:
    """N rows of finished tables, in their order. Row i is row `row_of[i]` of the file `files[file_of[i]]`."""

    paths: tuple[str, ...]
    schema: pa.Schema
    files: list[str]
    file_of: np.ndarray
    """(N,)"""
    row_of: np.ndarray
    """(N,)"""

    def __len__(self) -> int:
        return len(self.file_of)

    def read(self, start: int, stop: int, columns: list[str] | None = None) -> pa.Table:
        """The rows start..stop, without `stop`, as a table of the schema or of some of its columns."""
        wanted = self.schema if columns is None else pa.schema([self.schema.field(name) for name in columns])
        parts = [
            _read_at(self.files[index], self.row_of[start:stop][self.file_of[start:stop] == index], wanted)
            for index in dict.fromkeys(self.file_of[start:stop].tolist())
        ]
        return pa.concat_tables([wanted.empty_table(), *parts]).replace_schema_metadata(self.schema.metadata)

    def key(self) -> str:
        """An id of these rows in this order, made from the fingerprints of their tables."""
        return id_for(*self.paths, table_digest(*self.paths), self.file_of.tobytes() + self.row_of.tobytes())

    @property
    def path(self) -> str:
        """The addresses of the tables, for messages."""
        return ", ".join(self.paths)


def select(
    path: str | Sequence[str], schema: pa.Schema, *, where: Where | None = None, limit: int | None = None
) -> Selection:
    """The rows of a finished table that `where` keeps, at most `limit`. Only the columns of `where` are read.

    Several tables of one schema are read as one, in the given order.
    """
    paths = (path,) if isinstance(path, str) else tuple(path)
    manifests = [finished_manifest(one, schema) for one in paths]
    tables = list(zip(paths, manifests, strict=True))
    files = [storage.join(one, name) for one, manifest in tables for name in manifest.files]
    if where:
        kept = [_matching(storage.read_columns(file, list(where)), where) for file in files]
    else:
        kept = [np.arange(rows) for manifest in manifests for rows in manifest.file_rows]
    file_of = np.repeat(np.arange(len(files)), np.array([len(rows) for rows in kept], dtype=np.int64))[:limit]
    row_of = np.concatenate([np.empty(0, dtype=np.int64), *kept])[:limit]
    return Selection(paths, schema, files, file_of, row_of)


def _matching(table: pa.Table, where: Where) -> np.ndarray:
    keep = np.ones(table.num_rows, dtype=bool)
    for column, wanted in where.items():
        values = table[column].to_pylist()
        keep &= np.array([wanted(value) if callable(wanted) else value == wanted for value in values], dtype=bool)
    return np.flatnonzero(keep)


@storage.retry_s3
def _read_at(file: str, rows: np.ndarray, wanted: pa.Schema) -> pa.Table:
    """Rows of one file, by increasing row number. Only the row groups that hold them are read."""
    with storage.open_parquet(file) as parquet:
        missing = sorted(set(wanted.names) - set(parquet.schema_arrow.names))
        if missing:
            raise ContractError(f"{file} has no columns {missing}: make its table again with this version")
        sizes = [parquet.metadata.row_group(index).num_rows for index in range(parquet.num_row_groups)]
        ends = np.cumsum(sizes)
        group_of = np.searchsorted(ends, rows, side="right")
        groups = np.unique(group_of)
        table = parquet.read_row_groups(groups.tolist(), columns=wanted.names).select(wanted.names)
    starts = np.cumsum([0, *(sizes[group] for group in groups)])[:-1]  # of each group inside `table`
    places = rows - (ends[group_of] - np.array(sizes)[group_of]) + starts[np.searchsorted(groups, group_of)]
    return table.take(places).cast(wanted)


def read_rows(
    path: str | Sequence[str], schema: pa.Schema, columns: list[str] | None = None, *, where: Where | None = None
) -> Iterator[Row]:
    """Stream the rows of a finished table, or of several tables of one schema, in their order."""
    selection = select(path, schema, where=where)
    small = not any(_may_be_large(schema.field(name).type) for name in columns or schema.names)
    # Each read opens its files again, so small rows are read many at a time.
    step = ROWS_PER_FILE if small else ROWS_PER_GROUP
    for start in range(0, len(selection), step):
        yield from selection.read(start, start + step, columns).to_pylist()


def _may_be_large(kind: pa.DataType) -> bool:
    """Whether a column of this type may hold pictures or latents."""
    return pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


@storage.retry_s3
def read_edit_ids(file: str, *columns: str) -> Rows:
    """The rows of a file of `candidates`: these columns, and the ids of the edits. No picture is read."""
    with storage.open_parquet(file) as parquet:
        leaves = [parquet.schema.column(index).path for index in range(len(parquet.schema))]
        ids = [path for path in leaves if path.startswith("edits.") and path.endswith(".edit_id")]
        return parquet.read(columns=[*columns, *ids]).to_pylist()
