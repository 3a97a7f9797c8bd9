"""Read text files: lines and JSON lines.

Lines end with LF or CRLF only: U+2028, U+2029 and U+0085 are ordinary characters. A byte order mark is skipped. A line
that cannot be read is reported with its place and problem, and the lines around it are read. Text is always valid
Unicode: an unpaired surrogate becomes U+FFFD.

    file or bytes -> Line, JsonLine

`LineCount` counts the bad lines of a file, and raises if most lines are bad.
"""

import io
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol, runtime_checkable

import pyarrow as pa

from hive_ray import storage
from hive_ray.console import warn

NOT_UTF8 = "not_utf8"
NOT_JSON = "not_json"
NOT_AN_OBJECT = "not_an_object"
TOO_LONG = "too_long"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
OTHER_ENCODINGS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
"""First bytes of files in other encodings -> the encoding."""
BINARY_FILES = {
    b"\x1f\x8b": "is compressed by gzip; name it .gz",
    b"BZh": "is compressed by bzip2; name it .bz2",
    b"\x28\xb5\x2f\xfd": "is compressed by Zstandard; name it .zst",
    b"\xfd7zXZ": "is compressed by xz; unpack it",
    b"PK\x03\x04": "is a ZIP archive or a spreadsheet; unpack it, or save it as text",
    b"PAR1": "is a Parquet file; name it .parquet",
}
"""First bytes of files that are not text -> what they are and what to do."""
JSON_KINDS = {list: "array", str: "string", int: "number", float: "number", bool: "boolean", type(None): "null"}
SAMPLE_CHARS = 80
"""How many characters of a line a message shows."""
MAX_SAMPLES = 5
"""How many bad lines a message shows."""
MAX_LINE_BYTES = 1 << 26
"""Longest line in bytes; longer lines are skipped without being held in memory."""


class TextError(ValueError):
    """A file that as a whole is not text of the expected format."""


@runtime_checkable
class LineReader(Protocol):
    """A stream whose lines can be read in parts."""

    def readline(self, size: int, /) -> bytes:
        """A line with its end, or its first `size` bytes; empty at the end."""
        ...


@dataclass(frozen=True)
class Line:
    """A line of text without its end."""

    place: str
    """File and line number, for messages."""
    text: str
    problem: str = ""
    """Why it cannot be used: `NOT_UTF8` or `TOO_LONG`; "" if it can."""
    detail: str = ""
    """The problem in words."""

    @property
    def sample(self) -> str:
        """Place, problem and first characters of the line, for messages about skipped lines."""
        return f"{self.place}: {self.detail or self.problem}: {self.text[:SAMPLE_CHARS]!r}"


@dataclass(frozen=True)
class JsonLine(Line):
    """A line with the JSON value that it holds; `problem` may also be `NOT_JSON` or, for objects, `NOT_AN_OBJECT`."""

    value: Any = None


class LineCount:
    """Counts the lines and the bad lines of a file, and keeps the first bad lines for messages."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines = 0
        self.bad = 0
        self.first: list[str] = []

    def add(self, wrong: str = "") -> None:
        """Count a line; `wrong` is its place and problem, or "" for a good line."""
        self.lines += 1
        if wrong:
            self.bad += 1
            if len(self.first) < MAX_SAMPLES:
                self.first.append(wrong)

    def raise_if_mostly_bad(self, advice: str = "") -> None:
        """Raise a TextError, which ends with `advice`, if more than half of the lines are bad."""
        if 2 * self.bad > self.lines:
            raise TextError(f"{self.name}: {self}{f'. {advice}' if advice else ''}")

    def __str__(self) -> str:
        shown = "".join(f"\n  {wrong}" for wrong in self.first)
        more = f"\n  (and {self.bad - len(self.first)} more)" if self.bad > len(self.first) else ""
        return f"{self.bad} of {self.lines} lines cannot be used:{shown}{more}"


def read_lines(address: str) -> Iterator[Line]:
    """Yield the lines of a file without blank ones; its ending decides the decompression.

    Raises FileNotFoundError, and TextError if the file has another encoding or cannot be decompressed to its end.
    """
    with open_stream(address) as stream:
        yield from parse_lines(stream, address)


def parse_lines(source: bytes | BinaryIO, name: str) -> Iterator[Line]:
    """Yield the lines of bytes or of a binary stream, as `read_lines`; `name` is the file name in places."""
    for number, raw in enumerate(raw_lines(source, name), 1):
        place = f"{name}, line {number}"
        if len(raw) > MAX_LINE_BYTES:
            detail = f"longer than {MAX_LINE_BYTES >> 20} MiB; write one object or text a line"
            yield Line(place, raw[: 4 * SAMPLE_CHARS].decode(errors="replace")[:SAMPLE_CHARS], TOO_LONG, detail)
            continue
        raw = raw.removesuffix(b"\n").removesuffix(b"\r")
        if not raw.strip():
            continue
        try:
            yield Line(place, raw.decode())
        except UnicodeDecodeError as error:
            detail = f"byte 0x{raw[error.start]:02x} is not UTF-8; save the file as UTF-8 (it may be Windows-1252)"
            yield Line(place, raw.decode(errors="replace"), NOT_UTF8, detail)


def read_json_lines(address: str, *, objects: bool = False) -> Iterator[JsonLine]:
    """Yield the JSON lines of a file; with `objects`, other JSON values are a problem. Raises as `read_lines`."""
    return map(_object if objects else _json, read_lines(address))


def parse_json_lines(source: bytes | BinaryIO, name: str, *, objects: bool = False) -> Iterator[JsonLine]:
    """Yield the JSON lines of bytes or of a binary stream, as `read_json_lines`."""
    return map(_object if objects else _json, parse_lines(source, name))


def parse_json(text: str) -> Any:
    """Parse JSON; all strings in the value are valid Unicode.

    Raises ValueError for invalid JSON, too deep nesting, and integers with thousands of digits.
    """
    try:
        return replace_surrogates(json.loads(text))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_objects(address: str, number: str) -> Iterator[JsonLine]:
    """Yield the JSON objects of a file, one on each line, that have the number `number`, such as the steps of a log.

    Other lines are skipped, with a warning at the end. Raises as `read_lines`.
    """
    count = LineCount(address)
    for line in read_json_lines(address, objects=True):
        wrong = line.problem and line.sample
        if not wrong and type(line.value.get(number)) not in (int, float):
            wrong = f"{line.place}: no number {number!r}: {line.text[:SAMPLE_CHARS]!r}"
        count.add(wrong)
        if not wrong:
            yield line
    if count.bad:
        warn(f"{address}: {count}")


def replace_surrogates(value: Any) -> Any:
    """Replace unpaired surrogates by U+FFFD in all strings of a JSON value, keys included."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [replace_surrogates(inner) for inner in value]
    if isinstance(value, dict):
        return {replace_surrogates(key): replace_surrogates(inner) for key, inner in value.items()}
    return value


def _json(line: Line) -> JsonLine:
    if line.problem:
        return JsonLine(line.place, line.text, line.problem, line.detail)
    text = line.text.removeprefix("\ufeff")  # where files with byte order marks were joined
    try:
        return JsonLine(line.place, text, value=parse_json(text))
    except ValueError as error:
        is_array = text.lstrip().startswith("[")
        detail = "the beginning of a JSON array; write one object a line" if is_array else f"not JSON ({error})"
        return JsonLine(line.place, text, NOT_JSON, detail)


def _object(line: Line) -> JsonLine:
    parsed = _json(line)
    if parsed.problem or isinstance(parsed.value, dict):
        return parsed
    kind = JSON_KINDS[type(parsed.value)]
    return JsonLine(line.place, parsed.text, NOT_AN_OBJECT, f"a JSON {kind}; write one object a line")


@contextmanager
def open_stream(address: str) -> Iterator[BinaryIO]:
    """Open a file for reading; its ending decides the decompression."""
    files, inside = storage.filesystem(address)
    try:
        with files.open_input_stream(inside, buffer_size=1 << 16) as stream:
            yield io.BufferedReader(stream)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, EOFError) as error:
        if "AWS Error" in str(error):
            raise
        raise TextError(f"{address} cannot be read to its end: {error}") from error


def raw_lines(source: bytes | Iterable[bytes], name: str) -> Iterator[bytes]:
    """Yield lines with their line ends, without a byte order mark; a longer line is cut to MAX_LINE_BYTES + 1 bytes.

    Raises TextError if the first line shows that the file is not UTF-8 text.
    """
    lines = _limited(io.BytesIO(source) if isinstance(source, bytes) else source)
    first = next(lines, b"")
    _refuse_other_files(first, name)
    yield first.removeprefix(BYTE_ORDER_MARK)
    yield from lines


def _limited(source: Iterable[bytes]) -> Iterator[bytes]:
    if not isinstance(source, LineReader):
        yield from source
        return
    while line := source.readline(MAX_LINE_BYTES + 1):
        yield line
        if len(line) > MAX_LINE_BYTES:
            while not line.endswith(b"\n") and (line := source.readline(1 << 20)):
                pass


def _refuse_other_files(first: bytes, name: str) -> None:
    """Raise a TextError if the first line has another encoding or is not text."""
    for mark, encoding in OTHER_ENCODINGS.items():
        if first.startswith(mark):
            raise TextError(f"{name} is {encoding} text, and UTF-8 is wanted; save it as UTF-8")
    for mark, words in BINARY_FILES.items():
        if first.startswith(mark) and not _is_text(first):
            raise TextError(f"{name} {words}")
    if b"\0" in first[:SAMPLE_CHARS]:
        raise TextError(f"{name} begins with {first[:8].hex()}: it is no text, or UTF-16; save it as UTF-8 text")
    if not first.endswith(b"\n") and b"\r" in first.rstrip():
        raise TextError(f"{name} has lines that end with a carriage return alone; save it with newlines")


def _is_text(line: bytes) -> bool:
    try:
        return "\0" not in line.decode()
    except UnicodeDecodeError:
        return False
