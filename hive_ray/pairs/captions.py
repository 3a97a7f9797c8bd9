"""Captions of any usual form, one after the other: text, JSONL, CSV, TSV, Parquet, or a Hugging Face dataset folder.

file or folder, local or s3:// -> captions

Files are read as streams, compressed ones (.gz, .bz2, .zst) too: however many captions, only one batch is in memory.
"""

import csv
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
from pyarrow import fs

from hive_ray import storage
from hive_ray.pairs.json_lines import read_json_lines
from hive_ray.schemas import Row
from hive_ray.seeds import id_for

COMPRESSED = (".gz", ".bz2", ".zst")
ROWS_AT_A_TIME = 4096


def caption_rows(texts: Iterable[Any], most: int) -> Iterator[Row]:
    """Rows of `captions`, at most `most`, the first of those that are alike; {"dropped": reason} for the others.

    White space is made single spaces. Reasons: "empty" (nothing, or only white space), "not_text", "duplicate".
    """
    seen: set[str] = set()
    for text in texts:
        caption = " ".join(text.split()) if isinstance(text, str) else ""
        caption_id = id_for(caption)
        if not caption:
            yield {"dropped": "empty" if text is None or isinstance(text, str) else "not_text"}
        elif caption_id in seen:
            yield {"dropped": "duplicate"}
        else:
            seen.add(caption_id)
            yield {"caption_id": caption_id, "caption": caption}
            if len(seen) == most:
                return


def read_captions(address: str, column: str) -> Iterator[Any]:
    """Every value of `column` in a file or folder, in order: text, or whatever else stands there; a list gives each.

    A text file has no columns: each line is a caption. A folder is a Hugging Face dataset, of Parquet files or as
    `save_to_disk` leaves it; all of its splits are read.

    Raises FileNotFoundError if nothing is there, ValueError if the format is unknown, the column is missing, or a
    file cannot be read, with the file and, where there is one, the line.
    """
    files, inside = storage.filesystem(address)
    kind = files.get_file_info(inside).type
    if kind == fs.FileType.NotFound:
        raise FileNotFoundError(f"captions {address} do not exist; give a file or a dataset folder")
    for file in _dataset_files(address) if kind == fs.FileType.Directory else [address]:
        try:
            for value in _reader(file)(file, column):
                yield from value if isinstance(value, list) else [value]
        except UnicodeDecodeError as error:
            raise ValueError(f"captions file {file} is not UTF-8 text ({error.reason}); save it as UTF-8") from error
        except (pa.ArrowInvalid, csv.Error, OSError, EOFError) as error:
            raise ValueError(f"captions file {file} cannot be read: {error}") from error


def _dataset_files(folder: str) -> list[str]:
    for suffix in (".parquet", ".arrow"):
        found = storage.list_data(folder, suffix)
        if found:
            return [storage.join(folder, name) for name in found]
    raise ValueError(f"captions folder {folder} has no .parquet and no .arrow files; give a dataset folder")


def _reader(file: str) -> Callable[[str, str], Iterator[Any]]:
    suffixes = [suffix for suffix in PurePosixPath(file).suffixes if suffix not in COMPRESSED]
    suffix = suffixes[-1].lower() if suffixes else ".txt"
    if suffix not in READERS:
        raise ValueError(f"captions file {file} ends with {suffix}; it may be one of {', '.join(READERS)}, or a folder")
    return READERS[suffix]


def _lines(file: str, column: str) -> Iterator[str]:
    with storage.open_text(file) as stream:
        yield from stream


def _json_lines(file: str, column: str) -> Iterator[Any]:
    for where, _, row in read_json_lines(file, f"captions file {file}"):
        if not isinstance(row, dict):
            raise ValueError(f"{where}: wanted an object with {column!r}, not {row!r}")
        yield row[_known(column, list(row), where)]


def _separated(delimiter: str) -> Callable[[str, str], Iterator[str | None]]:
    def read(file: str, column: str) -> Iterator[str | None]:
        with storage.open_text(file) as stream:
            rows = csv.DictReader(stream, delimiter=delimiter)
            _known(column, list(rows.fieldnames or ()), f"captions file {file}")
            for row in rows:
                yield row[column]

    return read


def _parquet(file: str, column: str) -> Iterator[Any]:
    with storage.open_parquet(file) as table:
        _known(column, table.schema_arrow.names, f"captions file {file}")
        for batch in table.iter_batches(ROWS_AT_A_TIME, columns=[column]):
            yield from batch.column(0).to_pylist()


def _arrow(file: str, column: str) -> Iterator[Any]:
    files, inside = storage.filesystem(file)
    with pa.ipc.open_stream(files.open_input_stream(inside)) as table:
        place = table.schema.names.index(_known(column, table.schema.names, file))
        for batch in table:
            yield from batch.column(place).to_pylist()


def _known(column: str, columns: list[str], where: str) -> str:
    if column not in columns:
        raise ValueError(
            f"{where} has no column {column!r}, only {', '.join(columns) or 'none'}; set instructions.caption_column"
        )
    return column


READERS: dict[str, Callable[[str, str], Iterator[Any]]] = {
    ".txt": _lines,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".parquet": _parquet,
    ".arrow": _arrow,
}
"""How a file is read, by how its name ends."""
