"""Text as people's programs write it: lines, JSON lines, and tables of separated values.

Lines end with a newline alone (or CR and newline): U+2028, U+2029 and U+0085 are text like any other. A byte order mark
is passed over. A line that cannot be read is one line, with its place and what is wrong with it; the lines around it
are read. Text is always valid: what no encoding can hold, half an emoji, becomes U+FFFD.

    file or bytes -> Line, JsonLine, TableRow
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa

from hive_ray import storage

NOT_UTF8 = "not_utf8"
NOT_JSON = "not_json"
NOT_AN_OBJECT = "not_an_object"
WRONG_COLUMNS = "wrong_number_of_columns"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
OTHER_ENCODINGS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
"""How files in other encodings begin."""
SHOWN = 80
"""Characters of a line that messages show."""


class TextError(ValueError):
    """A file that is no text of the wanted kind, as a whole."""


@dataclass(frozen=True)
class Line:
    """A line of text without its end."""

    place: str
    """File and line number, for messages."""
    text: str
    problem: str = ""
    """Why it cannot be used: `NOT_UTF8`; "" if it can."""
    detail: str = ""
    """The problem in words."""

    @property
    def sample(self) -> str:
        """Place, problem and how the line begins, for an account of what was left out."""
        return f"{self.place}: {self.detail or self.problem}: {self.text[:SHOWN]!r}"


@dataclass(frozen=True)
class JsonLine(Line):
    """A line with the JSON value that it holds; `problem` may also be `NOT_JSON` or, for objects, `NOT_AN_OBJECT`."""

    value: Any = None


@dataclass(frozen=True)
class TableRow(Line):
    """A row of separated values by column; `problem` may also be `WRONG_COLUMNS`. A row may span lines; `place` names
    the last of them."""

    values: dict[str, str] | None = None


def read_lines(address: str) -> Iterator[Line]:
    """The lines of a file, unpacked as its ending says; blank ones are passed over.

    Raises FileNotFoundError, and TextError if the file is in another encoding or cannot be unpacked to its end.
    """
    with _opened(address) as stream:
        yield from parse_lines(stream, address)


def parse_lines(source: bytes | BinaryIO, name: str) -> Iterator[Line]:
    """The lines of bytes or of a binary stream; `name` begins their places. Raises TextError as `read_lines`."""
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    for number, raw in enumerate(stream, 1):
        if number == 1:
            _refuse_other_encodings(raw, name)
            raw = raw.removeprefix(BYTE_ORDER_MARK)
        raw = raw.removesuffix(b"\n").removesuffix(b"\r")
        if not raw.strip():
            continue
        place = f"{name}, line {number}"
        try:
            yield Line(place, raw.decode())
        except UnicodeDecodeError as error:
            seen = f"byte 0x{raw[error.start]:02x} is not UTF-8; save the file as UTF-8 (it may be Windows-1252)"
            yield Line(place, raw.decode(errors="replace"), NOT_UTF8, seen)


def read_json_lines(address: str, *, objects: bool = False) -> Iterator[JsonLine]:
    """The JSON lines of a file; `objects`: a value that is no object is a problem. Raises as `read_lines`."""
    return map(_object if objects else _json, read_lines(address))


def parse_json_lines(source: bytes | BinaryIO, name: str, *, objects: bool = False) -> Iterator[JsonLine]:
    """The JSON lines of bytes or of a binary stream, as `read_json_lines`."""
    return map(_object if objects else _json, parse_lines(source, name))


def parse_json(text: str) -> Any:
    """The value of JSON text, valid as text everywhere in it; ValueError if it is none.

    It is none, too, where Python's reader gives up: nested too deeply, or a whole number of thousands of digits.
    """
    try:
        return repaired(json.loads(text))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_table(address: str, delimiter: str) -> tuple[list[str], Iterator[TableRow]]:
    """The columns that the first row names, and the rows below it. Raises as `read_lines`."""
    rows = _table_rows(address, delimiter)
    header = next(rows, None)
    if header is None:
        return [], iter(())
    columns = list(header.values or {})
    return columns, rows


def repaired(value: Any) -> Any:
    """The value with each half of a surrogate pair in its texts, keys too, made U+FFFD."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [repaired(inner) for inner in value]
    if isinstance(value, dict):
        return {repaired(key): repaired(inner) for key, inner in value.items()}
    return value


def _json(line: Line) -> JsonLine:
    if line.problem:
        return JsonLine(line.place, line.text, line.problem, line.detail)
    try:
        return JsonLine(line.place, line.text, value=parse_json(line.text))
    except ValueError as error:
        return JsonLine(line.place, line.text, NOT_JSON, f"not JSON ({error})")


def _object(line: Line) -> JsonLine:
    found = _json(line)
    if found.problem or isinstance(found.value, dict):
        return found
    return JsonLine(line.place, line.text, NOT_AN_OBJECT, f"a {type(found.value).__name__}, and no object")


def _table_rows(address: str, delimiter: str) -> Iterator[TableRow]:
    """The header as a row of itself, then the rows."""
    with _opened(address) as stream:
        yield from parse_table(stream, address, delimiter)


@contextmanager
def _opened(address: str) -> Iterator[BinaryIO]:
    """The bytes of a file, unpacked as its ending says."""
    files, inside = storage.filesystem(address)
    try:
        with files.open_input_stream(inside, buffer_size=1 << 16) as stream:
            yield io.BufferedReader(stream)
    except FileNotFoundError:
        raise
    except (pa.ArrowInvalid, OSError, EOFError) as error:
        if "AWS Error" in str(error):
            raise
        raise TextError(f"{address} cannot be read to its end: {error}") from error


def parse_table(source: Iterable[bytes], name: str, delimiter: str) -> Iterator[TableRow]:
    """The header as a row of itself, then the rows, of lines of bytes."""
    reader = csv.reader(_decoded(source, name), delimiter=delimiter)
    columns: list[str] = []
    while True:
        place = f"{name}, line {reader.line_num + 1}"
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield TableRow(place, "", WRONG_COLUMNS, str(error))
            continue
        if not values:
            continue
        text = delimiter.join(values)
        if not columns:
            columns = [repaired(value) for value in values]
            yield TableRow(place, repaired(text), values=dict(zip(columns, columns, strict=True)))
        elif any("\udc80" <= character <= "\udcff" for character in text):
            yield TableRow(place, repaired(text), NOT_UTF8, "it is not UTF-8; save the file as UTF-8")
        elif len(values) != len(columns):
            seen = f"{len(values)} values for {len(columns)} columns"
            yield TableRow(place, text, WRONG_COLUMNS, seen)
        else:
            yield TableRow(place, text, values=dict(zip(columns, values, strict=True)))


def _decoded(source: Iterable[bytes], name: str) -> Iterator[str]:
    """Lines with their ends; bytes that are not UTF-8 are halves of surrogate pairs."""
    for number, raw in enumerate(source):
        if number == 0:
            _refuse_other_encodings(raw, name)
            raw = raw.removeprefix(BYTE_ORDER_MARK)
        yield raw.decode(errors="surrogateescape").replace("\0", "\ufffd")


def _refuse_other_encodings(first: bytes, name: str) -> None:
    for mark, encoding in OTHER_ENCODINGS.items():
        if first.startswith(mark):
            raise TextError(f"{name} is {encoding} text, and UTF-8 is wanted; save it as UTF-8")
    if b"\0" in first[:SHOWN]:
        raise TextError(f"{name} begins with {first[:8].hex()}: it is no text, or UTF-16; save it as UTF-8 text")
