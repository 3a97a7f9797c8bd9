"""Read captions from text, JSONL, CSV, TSV, Parquet, or a Hugging Face dataset folder.

file or folder, local or s3:// -> captions

Files, also compressed ones (.gz, .bz2, .zst), are read as streams, so that only one batch is in memory.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
from pyarrow import fs

from hive_ray import storage
from hive_ray.files.delimited_files import read_table
from hive_ray.files.text_files import (
    NOT_UTF8,
    SAMPLE_CHARS,
    Line,
    LineCount,
    TextError,
    read_json_lines,
    read_lines,
    replace_surrogates,
)
from hive_ray.schemas import Dropped, Row
from hive_ray.seeds import id_for

COMPRESSED = (".gz", ".bz2", ".zst")
BATCH_ROWS = 4096
EMPTY = "empty"
NOT_TEXT = "not_text"
DUPLICATE = "duplicate"
COLUMN_MISSING = "column_missing"


@dataclass(frozen=True)
class UnusableCaption:
    """A line or a row without a caption."""

    reason: str
    sample: str
    """Its place and its problem."""


def caption_rows(texts: Iterable[Any], max_captions: int) -> Iterator[Row | Dropped]:
    """Yield at most `max_captions` rows of `captions`, without duplicates, and `Dropped` for other texts.

    Runs of white space become single spaces, and unpaired surrogates U+FFFD. Reasons: "empty" (nothing, or only white
    space), "not_text", "duplicate", and those of `UnusableCaption`. Raises TextError if more than half of the texts
    before the last caption are unusable.
    """
    known: set[str] = set()
    count = LineCount("captions")
    for text in texts:
        count.add(text.sample if isinstance(text, UnusableCaption) else "")
        row = _caption_row(text)
        if not isinstance(row, Dropped) and row["caption_id"] in known:
            row = Dropped(DUPLICATE)
        yield row
        if not isinstance(row, Dropped):
            known.add(row["caption_id"])
            if len(known) == max_captions:
                count.raise_if_mostly_bad()
                return


def _caption_row(text: Any) -> Row | Dropped:
    if isinstance(text, UnusableCaption):
        return Dropped(text.reason, sample=text.sample)
    if text is not None and not isinstance(text, str):
        return Dropped(NOT_TEXT, sample=_no_text(text))
    caption = " ".join(replace_surrogates(text or "").split())
    return {"caption_id": id_for(caption), "caption": caption} if caption else Dropped(EMPTY)


def _no_text(value: Any) -> str:
    return f"{repr(value)[:SAMPLE_CHARS]} is a {type(value).__name__}, and no text"


def read_captions(address: str, column: str) -> Iterator[Any]:
    """Yield the values of `column` in a file or folder in order: str or None; the items of a list one by one.

    Yields an `UnusableCaption` for each line that cannot be read or lacks the column, and for values that are not text.

    A text file has no columns: each non-blank line is a caption. A folder is a Hugging Face dataset of Parquet files or
    from `save_to_disk`; all of its splits are read.

    Raises FileNotFoundError if the address does not exist, ValueError if the format is unknown, the column is missing
    or holds no text, or a file cannot be read, and TextError at the end of a file if more than half is unusable.
    """
    files, inside = storage.filesystem(address)
    kind = files.get_file_info(inside).type
    if kind == fs.FileType.NotFound:
        raise FileNotFoundError(f"captions {address} do not exist; give a file or a dataset folder")
    for file in _dataset_files(address) if kind == fs.FileType.Directory else [address]:
        count = LineCount(f"captions file {file}")
        try:
            for value in _reader(file)(file, column):
                for caption in value if isinstance(value, list) else [value]:
                    if not isinstance(caption, str | UnusableCaption | None):
                        caption = UnusableCaption(NOT_TEXT, f"{file}: {_no_text(caption)}")
                    count.add(caption.sample if isinstance(caption, UnusableCaption) else "")
                    yield caption
        except TextError as error:
            raise TextError(f"captions file {error}") from error
        except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
            raise ValueError(f"captions file {file} cannot be read: {error}") from error
        count.raise_if_mostly_bad()


def _dataset_files(folder: str) -> list[str]:
    for suffix in (".parquet", ".arrow"):
        names = storage.list_data(folder, suffix)
        if names:
            return [storage.join(folder, name) for name in names]
    raise ValueError(f"captions folder {folder} has no .parquet and no .arrow files; give a dataset folder")


def _reader(file: str) -> Callable[[str, str], Iterator[Any]]:
    suffixes = [suffix for suffix in PurePosixPath(file).suffixes if suffix not in COMPRESSED]
    suffix = suffixes[-1].lower() if suffixes else ".txt"
    if suffix not in READERS:
        raise ValueError(f"captions file {file} ends with {suffix}; it may be one of {', '.join(READERS)}, or a folder")
    return READERS[suffix]


def _lines(file: str, column: str) -> Iterator[str | UnusableCaption]:
    for line in read_lines(file):
        yield _unusable(line) if line.problem else line.text


def _json_lines(file: str, column: str) -> Iterator[Any]:
    for line in read_json_lines(file, objects=True):
        if line.problem:
            yield _unusable(line)
        elif column in line.value:
            yield line.value[column]
        else:
            yield UnusableCaption(COLUMN_MISSING, _no_column(line.place, column, list(line.value)))


def _separated(delimiter: str) -> Callable[[str, str], Iterator[str | UnusableCaption]]:
    def read(file: str, column: str) -> Iterator[str | UnusableCaption]:
        columns, rows = read_table(file, delimiter)
        _require(column, columns, file)
        for row in rows:
            yield row.values[column] if row.values is not None else _unusable(row)

    return read


def _unusable(line: Line) -> UnusableCaption:
    return UnusableCaption(line.problem, line.sample)


def _parquet(file: str, column: str) -> Iterator[Any]:
    with storage.open_parquet(file) as table:
        _require_text(column, table.schema_arrow, file)
        first = 0
        for batch in table.iter_batches(BATCH_ROWS, columns=[column]):
            yield from _values(batch.column(0), file, first)
            first += len(batch)


def _arrow(file: str, column: str) -> Iterator[Any]:
    files, inside = storage.filesystem(file)
    with pa.ipc.open_stream(files.open_input_stream(inside)) as table:
        _require_text(column, table.schema, file)
        place, first = table.schema.names.index(column), 0
        for batch in table:
            values = batch.column(place)
            values.cast(_as_bytes(values.type)).validate(full=True)  # a damaged file could crash the process otherwise
            yield from _values(values, file, first)
            first += len(batch)


def _as_bytes(kind: pa.DataType) -> pa.DataType:
    """The type with binary in place of string, since the bytes may not be UTF-8."""
    if pa.types.is_list(kind):
        return pa.list_(_as_bytes(kind.value_type))
    if pa.types.is_large_list(kind):
        return pa.large_list(_as_bytes(kind.value_type))
    return {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}.get(kind, kind)


def _values(column: pa.Array, file: str, first: int) -> Iterator[Any]:
    """Yield the values of a column; `first` is the number of its first row. Texts that are not UTF-8 are
    `UnusableCaption`."""
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:  # Arrow does not validate the UTF-8 of files
        values = [_value(scalar) for scalar in column]
    for number, value in enumerate(values, first):
        parts = value if isinstance(value, list) else [value]
        texts = [_decoded(part, f"{file}, row {number}") for part in parts]
        yield texts if isinstance(value, list) else texts[0]


def _value(scalar: pa.Scalar) -> Any:
    """The Python value of a scalar; bytes for a string that is not UTF-8."""
    if not scalar.is_valid:
        return None
    if isinstance(scalar, pa.DictionaryScalar):
        return _value(scalar.value)
    if isinstance(scalar, pa.ListScalar):
        return [_value(inner) for inner in scalar.values]
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return scalar.as_buffer().to_pybytes()


def _decoded(value: Any, place: str) -> Any:
    """Decode bytes; unpaired surrogates, which some writers encode, are left to `replace_surrogates`."""
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode(errors="surrogatepass")
    except UnicodeDecodeError:
        return UnusableCaption(NOT_UTF8, f"{place}: not UTF-8: {value[:SAMPLE_CHARS]!r}")


def _require_text(column: str, schema: pa.Schema, file: str) -> None:
    _require(column, schema.names, file)
    kind = schema.field(column).type
    if not _holds_text(kind):
        raise TextError(f"{file}: the column {column!r} holds {kind}, and text is wanted; {REMEDY}")


def _holds_text(kind: pa.DataType) -> bool:
    """Whether values may be text, lists of text, or null."""
    if pa.types.is_dictionary(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _holds_text(kind.value_type)
    tests = ("string", "large_string", "string_view", "binary", "large_binary", "null")
    return any(getattr(pa.types, f"is_{test}")(kind) for test in tests)


def _require(column: str, columns: list[str], place: str) -> None:
    if column not in columns:
        raise TextError(_no_column(place, column, columns))


def _no_column(place: str, column: str, columns: list[str]) -> str:
    return f"{place} has no column {column!r}, only {', '.join(columns)[: 3 * SAMPLE_CHARS] or 'none'}; {REMEDY}"


REMEDY = "set instructions.caption_column"
READERS: dict[str, Callable[[str, str], Iterator[Any]]] = {
    ".txt": _lines,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".parquet": _parquet,
    ".arrow": _arrow,
}
"""File ending -> reader."""
