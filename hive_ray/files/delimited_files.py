"""Read tables of delimited values (CSV, TSV).

    file or bytes -> TableRow

A row that cannot be read is reported with its place and problem, and the rows around it are read. The text rules are
those of `text_files`.
"""

import csv
import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from hive_ray.files.text_files import NOT_UTF8, TOO_LONG, Line, TextError, open_stream, raw_lines, replace_surrogates

WRONG_COLUMNS = "wrong_number_of_columns"
QUOTE_NOT_CLOSED = "quote_not_closed"
NOT_A_ROW = "not_a_row"
MAX_ROW_CHARS = 1 << 20
"""Longest row of a table over several lines, in characters; a longer row has an unclosed quote."""
UNDECODED = re.compile("[\udc80-\udcff]")
"""Characters that `surrogateescape` makes of bytes that are not UTF-8."""


@dataclass(frozen=True)
class TableRow(Line):
    """A row of delimited values by column; `problem` may also be `WRONG_COLUMNS`, `QUOTE_NOT_CLOSED` or `NOT_A_ROW`.

    A row may span lines; `place` names the first of them.
    """

    values: dict[str, str] | None = None
    lines: int = 1
    """Number of lines of the row."""


def read_table(address: str, delimiter: str) -> tuple[list[str], Iterator[TableRow]]:
    """The columns that the first row names, and the rows below it; columns without a name are left out.

    Raises as `read_lines`, and TextError if the first row names no column, or a column twice.
    """
    rows = _table_rows(address, delimiter)
    header = next(rows, None)
    if header is None:
        return [], iter(())
    columns = list(header.values or {})
    return columns, rows


def _table_rows(address: str, delimiter: str) -> Iterator[TableRow]:
    """Yield the header as a row, then the rows."""
    with open_stream(address) as stream:
        yield from parse_table(stream, address, delimiter)


def parse_table(source: bytes | Iterable[bytes], name: str, delimiter: str) -> Iterator[TableRow]:
    """Yield the header as a row, then the rows, of bytes, of a binary stream or of lines of bytes."""
    records = _Records(_decoded(source, name), name, delimiter)
    columns: list[str] = []
    for record in records:
        if columns:
            yield _row(record, columns)
            continue
        columns = _header(record)
        records.width = len(columns)
        names = dict(zip(columns, columns, strict=True))
        names.pop("", None)
        yield TableRow(record.place, replace_surrogates(record.text), values=names, lines=record.lines)


class _Record(NamedTuple):
    """The values of a row without their columns; otherwise as TableRow."""

    place: str
    text: str
    values: list[str]
    lines: int = 1
    problem: str = ""
    detail: str = ""


class _Records:
    """Iterates over the rows of a table; a row spans several lines if a quoted value contains newlines.

    An unclosed quote makes only its own line a bad row, and the lines below are read again as rows. A quote is unclosed
    if the row has a closing quote within a value, a number of values other than `width`, or no end.
    """

    def __init__(self, lines: Iterator[str], name: str, delimiter: str) -> None:
        self.lines = lines
        self.name = name
        self.delimiter = delimiter
        self.width = 0
        """Number of values that a row of several lines must have; 0 allows any number."""
        self.number = 0
        """Number of lines taken so far."""
        self.ahead: deque[str] = deque()
        """Lines that were taken and put back."""

    def __iter__(self) -> Iterator[_Record]:
        while (first := self._take()) is not None:
            if first.strip(" \r\n"):
                yield self._record(first)

    def _take(self) -> str | None:
        line = self.ahead.popleft() if self.ahead else next(self.lines, None)
        self.number += line is not None
        return line

    def _record(self, first: str) -> _Record:
        place = f"{self.name}, line {self.number}"
        if '"' in first:
            begins = self.number
            values, text = self._quoted(first)
            if values is not None:
                return _Record(place, text, values, self.number - begins + 1)
        return self._alone(first, place)

    def _quoted(self, first: str) -> tuple[list[str] | None, str]:
        """The values and the text of the row that begins with this line; None, and no line is taken, if it has none."""
        taken = [first]

        def lines() -> Iterator[str]:
            yield first
            size = len(first)
            while size <= MAX_ROW_CHARS and (line := self._take()) is not None:
                taken.append(line)
                size += len(line)
                yield line

        try:
            values = next(csv.reader(lines(), delimiter=self.delimiter, strict=True))
        except csv.Error:
            values = None
        if values is not None and (len(taken) == 1 or self.width in (0, len(values))):
            return values, "".join(taken).rstrip("\r\n")
        self.ahead.extendleft(reversed(taken[1:]))
        self.number -= len(taken) - 1
        return None, ""

    def _alone(self, line: str, place: str) -> _Record:
        """The values of a row of one line, parsed without strict quotes."""
        text = line.rstrip("\r\n")
        reader = csv.reader([line, ""], delimiter=self.delimiter)
        try:
            values = next(reader)
        except csv.Error as error:
            if len(line) > csv.field_size_limit():
                return _Record(
                    place, text, [], 1, TOO_LONG, f"a value is longer than {csv.field_size_limit():,} characters"
                )
            detail = "a carriage return in a value without quotes" if "\r" in text else str(error)
            return _Record(place, text, [], 1, NOT_A_ROW, detail)
        if reader.line_num > 1:
            return _Record(place, text, [], 1, QUOTE_NOT_CLOSED, "a quote is opened and not closed")
        return _Record(place, text, values)


def _header(record: _Record) -> list[str]:
    if record.problem:
        raise TextError(f"{record.place}: {record.detail}; the first row must name the columns")
    columns = [replace_surrogates(name) for name in record.values]
    twice = sorted({name for name in columns if name and columns.count(name) > 1})
    if twice:
        raise TextError(f"{record.place} names {', '.join(twice)} more than once; give each column its own name")
    if not any(columns):
        raise TextError(f"{record.place}: no column has a name; the first row must name the columns")
    return columns


def _row(record: _Record, columns: list[str]) -> TableRow:
    text = record.text
    problem, detail = record.problem, record.detail
    if not text.isascii() and UNDECODED.search(text):
        problem, detail = NOT_UTF8, "it is not UTF-8; save the file as UTF-8 (it may be Windows-1252)"
        text = replace_surrogates(text)
    elif not problem and len(record.values) != len(columns):
        problem, detail = WRONG_COLUMNS, f"{len(record.values)} values for {len(columns)} columns"
    if problem:
        return TableRow(record.place, text, problem, detail, lines=record.lines)
    values = {name: value for name, value in zip(columns, record.values, strict=True) if name}
    return TableRow(record.place, text, values=values, lines=record.lines)


def _decoded(source: bytes | Iterable[bytes], name: str) -> Iterator[str]:
    """Yield lines with their line ends; bytes that are not UTF-8 become unpaired surrogates."""
    for raw in raw_lines(source, name):
        yield raw.decode(errors="surrogateescape").replace("\0", "\ufffd")
