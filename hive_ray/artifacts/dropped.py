"""What is kept of dropped rows for inspection: the measures of every row, and a few rows with their pictures.

    <table>/__dropped__/part-00000.parquet    every dropped row without its pictures, with the reason
    <table>/__examples__/part-00000.parquet   the first rows of each reason, with their pictures

Each shard has one file in each folder. They are written before the shard's own file, so that a finished shard always
has them, and a shard that is made again replaces them. Readers of a Parquet folder (Hugging Face datasets, Arrow,
Spark) skip names that begin with underscores, so they do not read these rows as rows of the table.
"""

import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq

from hive_ray import storage
from hive_ray.schemas import Dropped, Result, Row, Rows, table_name, to_table

DROPPED_FOLDER, EXAMPLES_FOLDER = "__dropped__", "__examples__"
MAX_FILES = 256
"""Files of a table that are read for its dropped rows. Of more files, as many are read at even distances."""


def strip_pictures(results: Iterable[Result], schema: pa.Schema, num_examples: int) -> Iterator[Result]:
    """The results as they come. Of the dropped rows of each reason, only the first `num_examples` keep their pictures.

    It takes them off one by one, so that the pictures of a shard's dropped rows are never in memory together.
    """
    seen: Counter[str] = Counter()
    pictures = _pictures(schema)
    for result in results:
        if isinstance(result, Dropped) and result.row is not None:
            seen[result.reason] += 1
            if seen[result.reason] > num_examples:
                result = replace(result, row=_without(pictures, result.row))
        yield result


def write_dropped(path: str, number: int, dropped: Iterable[Dropped], schema: pa.Schema) -> None:
    """Write the rows that the dropped ones of a shard carry, if there are any."""
    pictures = _pictures(schema)
    rows = [drop.row | {"reason": drop.reason} for drop in dropped if drop.row is not None]
    measured = [_without(pictures, row) for row in rows]
    examples = [row for row in rows if row.keys() & pictures]
    _write(_file(path, DROPPED_FOLDER, number), measured, _dropped_schema(schema, pictures), rows_per_group=1 << 20)
    _write(_file(path, EXAMPLES_FOLDER, number), examples, _dropped_schema(schema, set()), rows_per_group=1)


def read_kept_and_dropped(
    path: str, files: list[str], schema: pa.Schema, columns: list[str]
) -> tuple[pa.Table, pa.Table]:
    """These columns of the rows in these files of the table at `path`, and of the rows that were dropped with them.

    At most MAX_FILES files are read.
    """
    nothing = pa.schema([schema.field(name) for name in columns]).empty_table()
    kept, dropped = [nothing], [nothing]
    for file in evenly_spaced(files):
        kept.append(_read(storage.join(path, file), columns))
        dropped_file = storage.join(path, DROPPED_FOLDER, file.rpartition("/")[2])
        if storage.exists(dropped_file):
            dropped.append(_read(dropped_file, columns))
    return pa.concat_tables(kept), pa.concat_tables(dropped)


def read_examples(path: str, max_rows: int) -> dict[str, Rows]:
    """Reason -> at most `max_rows` rows that were dropped for it, with their pictures.

    The first rows of all shards come before the second row of any shard.
    """
    folder = storage.join(path, EXAMPLES_FOLDER)
    places: dict[str, list[tuple[int, str, int]]] = defaultdict(list)
    for file in evenly_spaced([name for name in storage.list_files(folder) if not name.startswith(".")]):
        seen = Counter()
        for group, reason in enumerate(_read(storage.join(folder, file), ["reason"])["reason"].to_pylist()):
            places[reason].append((seen[reason], file, group))
            seen[reason] += 1
    return {
        reason: [_read_group(storage.join(folder, file), group) for _, file, group in sorted(of_reason)[:max_rows]]
        for reason, of_reason in places.items()
    }


def evenly_spaced(files: list[str]) -> list[str]:
    """At most MAX_FILES of the files, at even distances."""
    return files[:: -(-len(files) // MAX_FILES) or 1]


def _pictures(schema: pa.Schema) -> set[str]:
    """The columns of pictures, which are the only large binaries of a table."""
    return {field.name for field in schema if pa.types.is_large_binary(field.type)}


def _without(pictures: set[str], row: Row) -> Row:
    return {name: value for name, value in row.items() if name not in pictures}


def _dropped_schema(schema: pa.Schema, without: set[str]) -> pa.Schema:
    fields = [
        *(field for field in schema if field.name not in without),
        pa.field("reason", pa.string(), nullable=False),
    ]
    return pa.schema(fields, metadata={"table": f"dropped {table_name(schema)}"})


def _file(path: str, folder: str, number: int) -> str:
    return storage.join(path, folder, f"part-{number:05d}.parquet")


def _write(file: str, rows: Rows, schema: pa.Schema, rows_per_group: int) -> None:
    if rows:
        buffer = io.BytesIO()
        pq.write_table(to_table(rows, schema), buffer, row_group_size=rows_per_group)
        storage.write_bytes(file, buffer.getvalue())


def _read(file: str, columns: list[str]) -> pa.Table:
    return storage.read_columns(file, columns).replace_schema_metadata()


@storage.retry_s3
def _read_group(file: str, group: int) -> Row:
    with storage.open_parquet(file) as parquet:
        return parquet.read_row_group(group).to_pylist()[0]
