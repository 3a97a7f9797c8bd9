"""Lines, JSON lines and tables of values, whatever bytes there are."""

import bz2
import csv
import gzip
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hive_ray.files.delimited_files import NOT_A_ROW, QUOTE_NOT_CLOSED, WRONG_COLUMNS, parse_table, read_table
from hive_ray.files.text_files import (
    MAX_LINE_BYTES,
    NOT_AN_OBJECT,
    NOT_UTF8,
    TOO_LONG,
    LineCount,
    TextError,
    parse_json,
    parse_json_lines,
    parse_lines,
    read_json_lines,
    read_lines,
    read_objects,
    replace_surrogates,
)

ANY = settings(derandomize=True, deadline=None, max_examples=150)
PIECES = st.sampled_from(
    [b"\n", b"\r", b"\r\n", b'"', b'""', b",", b"\xff", b"\xef\xbb\xbf", b"\0", b"a", b'{"a": 1}', b"[", b" "]
)
BYTES = st.one_of(st.binary(max_size=60), st.lists(PIECES, max_size=40).map(b"".join))
TEXT = st.text(st.characters(codec="utf-8"))
WITH_HALVES = st.text(st.one_of(st.characters(), st.sampled_from('\ud83d\ude00\u2028\u2029\x85\ufeff\0\r\n"')))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=4,
)  # fmt: skip


def lines(data: bytes) -> list[str]:
    return [line.problem or line.text for line in parse_lines(data, "file")]


def values(data: bytes, *, objects: bool = True) -> list:
    return [line.problem or line.value for line in parse_json_lines(data, "file", objects=objects)]


def rows(data: bytes, delimiter: str = ",") -> list:
    """The rows below the header: their values, or what is wrong with them."""
    return [row.problem or list(row.values.values()) for row in parse_table(data, "file", delimiter)][1:]


def problem(data: bytes) -> str:
    [line] = [line for line in parse_json_lines(data, "file", objects=True) if line.problem]
    return line.detail


# --- Lines ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"])
def test_a_line_ends_with_a_newline_and_with_no_other_separator(separator):
    text = f"one{separator}two"
    assert lines(f"{text}\nthree\r\n\n  \nfour".encode()) == [text, "three", "four"]
    assert values(json.dumps({"a": text}, ensure_ascii=False).encode() + b"\n") == [{"a": text}]


def test_a_byte_order_mark_is_passed_over_where_files_were_joined_too():
    mark = b"\xef\xbb\xbf"
    assert lines(mark + b"one\ntwo") == ["one", "two"]
    assert values(mark + b'{"a": 1}\n' + mark + b'{"a": 2}\n') == [{"a": 1}, {"a": 2}]
    assert rows(mark + b"a,b\n1,2\n") == [["1", "2"]]


def test_a_line_in_another_encoding_is_one_line():
    data = "one\nschön\nthree".encode("latin-1")
    assert lines(data) == ["one", NOT_UTF8, "three"]
    bad = list(parse_lines(data, "file"))[1]
    assert (
        bad.sample
        == "file, line 2: byte 0xf6 is not UTF-8; save the file as UTF-8 (it may be Windows-1252): 'sch\ufffdn'"
    )
    assert values(b'{"a": "\xff"}\n{"a": 1}') == [NOT_UTF8, {"a": 1}]
    assert rows(b"a,b\n1,\xff\n3,4\n") == [NOT_UTF8, ["3", "4"]]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("one\ntwo".encode("utf-16"), "file is UTF-16 text, and UTF-8 is wanted; save it as UTF-8"),
        ("one\ntwo".encode("utf-32"), "file is UTF-32 text"),
        ("one\ntwo".encode("utf-16-le"), "it is no text, or UTF-16; save it as UTF-8"),
        ("one\ntwo".encode("utf-16-be"), "it is no text, or UTF-16"),
        (gzip.compress(b"one", mtime=0), "is compressed by gzip; name it .gz"),
        (bz2.compress(b"one" * 99), "is compressed by bzip2; name it .bz2"),
        (b"PK\x03\x04\x14\x00\x08\x00", "is a ZIP archive or a spreadsheet"),
        (b"PAR1\x15\x04\x15\xfe", "is a Parquet file; name it .parquet"),
        (b"one\rtwo\rthree", "lines that end with a carriage return alone; save it with newlines"),
    ],
)
def test_a_file_of_another_kind_is_named_as_a_whole(data, words):
    for read in (lines, values, rows):
        with pytest.raises(TextError, match=words):
            read(data)


def test_text_may_begin_as_an_archive_does():
    assert lines(b"PAR1 is a cat\nBZh too\n") == ["PAR1 is a cat", "BZh too"]


def test_a_line_without_end_is_one_line_and_is_not_held(tmp_path):
    path = tmp_path / "file.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(b'{"a": 1}\n')
        for _ in range(2 * MAX_LINE_BYTES // 2**20):
            stream.write(b"x" * 2**20)
        stream.write(b'\n{"a": 2}\n')
    one, long, two = read_json_lines(str(path))
    assert (one.value, long.problem, two.value) == ({"a": 1}, TOO_LONG, {"a": 2})
    assert "longer than 64 MiB" in long.detail
    assert len(long.text) < 100
    assert two.place.endswith("line 3")


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress])
def test_an_archive_that_ends_early_is_named_after_its_whole_lines(tmp_path, compress):
    ending = {gzip.compress: "gz", bz2.compress: "bz2"}[compress]
    path = tmp_path / f"file.txt.{ending}"
    data = compress(b"".join(b"line %d of many\n" % number for number in range(20_000)))
    path.write_bytes(data[: len(data) // 2])
    found = []
    with pytest.raises(TextError, match=r"file\.txt\.\w+ cannot be read to its end"):
        found.extend(read_lines(str(path)))
    path.write_bytes(data)
    assert len(list(read_lines(str(path)))) == 20_000


def test_a_file_that_is_not_there_is_so_named(tmp_path):
    for read in (lambda path: list(read_lines(path)), lambda path: read_table(path, ",")):
        with pytest.raises(FileNotFoundError, match="nothing"):
            read(str(tmp_path / "nothing.txt"))


@ANY
@given(BYTES)
def test_every_line_of_any_bytes_is_read_or_named(data):
    try:
        found = list(parse_lines(data, "file"))
        as_json = list(parse_json_lines(data, "file"))
    except TextError:
        return
    wanted = [number for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1) if line.strip()]
    assert [line.place for line in found] == [line.place for line in as_json] == [f"file, line {one}" for one in wanted]
    for line in [*found, *as_json]:
        line.text.encode()
        line.sample.encode()


# --- JSON -------------------------------------------------------------------------------------------------


@settings(ANY, max_examples=50)
@given(st.lists(st.dictionaries(TEXT, VALUES, max_size=3), max_size=3), st.booleans(), st.sampled_from(["\n", "\r\n"]))
def test_json_lines_come_back_as_they_were_written(records, escaped, end):
    data = "".join(json.dumps(record, ensure_ascii=escaped) + end for record in records).encode()
    assert values(data) == records


@ANY
@given(WITH_HALVES)
def test_half_an_emoji_becomes_valid_text_and_nothing_else_changes(text):
    [found] = values(json.dumps([text, {text: text}]).encode(), objects=False)
    wanted = "".join(
        "\ufffd" if "\ud800" <= character <= "\udfff" else character
        for character in text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    )
    assert found == [wanted, {wanted: wanted}]
    assert replace_surrogates(text) == wanted
    wanted.encode()


def test_half_an_emoji_is_the_only_letter_that_is_lost():
    texts = ("a\ud83d", "\ud83da", "\ude00", "\ud83d\ude00", "\ud83d\ud83d\ude00")
    assert [replace_surrogates(text) for text in texts] == [
        "a\ufffd", "\ufffda", "\ufffd", "\U0001f600", "\ufffd\U0001f600",
    ]  # fmt: skip


def test_a_json_array_and_objects_over_several_lines_are_named():
    assert problem(b'[{"a": 1}, {"a": 2}]') == "a JSON array; write one object a line"
    assert problem(b"[") == "the beginning of a JSON array; write one object a line"
    assert problem(b"3") == "a JSON number; write one object a line"
    assert problem(b"null") == "a JSON null; write one object a line"
    assert problem(b"{") == "not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))"
    assert values(b'1\n"a"\ntrue\n[]\n{}') == [NOT_AN_OBJECT] * 4 + [{}]


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 50_000, "9" * 5000, "{", "", "'a'", "{a: 1}", '{"a": 1} {"a": 2}']
)
def test_what_pythons_reader_gives_up_on_is_no_json(text):
    with pytest.raises(ValueError, match=r"nested too deeply|Exceeds the limit|Expecting|Extra data"):
        parse_json(text)
    assert values(text.encode() + b'\n{"a": 1}')[-1] == {"a": 1}


def test_objects_are_read_and_other_lines_named(tmp_path, capsys):
    path = tmp_path / "log.jsonl"
    path.write_text('{"a": 1}\n[2]\n{"a": 3\n{"a": 4}\n{"a": "5"}\n{"a": true}\n{"b": 6}\n')
    assert [line.value for line in read_objects(str(path), "a")] == [{"a": 1}, {"a": 4}]
    said = capsys.readouterr().out
    assert "5 of 7 lines cannot be used" in said
    assert "log.jsonl, line 2: a JSON array" in said
    assert "log.jsonl, line 5: no number 'a'" in said


# --- Tables -----------------------------------------------------------------------------------------------


def test_a_quote_that_is_not_closed_costs_its_line():
    head = b"id,text\n"
    assert rows(head + b'1,"a cat\n2,a dog\n3,"a, fox"\n') == [QUOTE_NOT_CLOSED, ["2", "a dog"], ["3", "a, fox"]]
    assert rows(head + b'1,"a cat\n2,"a dog"\n3,x\n') == [QUOTE_NOT_CLOSED, ["2", "a dog"], ["3", "x"]]
    assert rows(head + b'1,"a cat') == [QUOTE_NOT_CLOSED]
    assert rows(head + b'1,"a cat\n' * 3 + b"2,b\n") == [*[QUOTE_NOT_CLOSED] * 3, ["2", "b"]]
    assert rows(head + b'1,"a cat\n2,"a dog", x\n3,"y"\n') == [QUOTE_NOT_CLOSED, WRONG_COLUMNS, ["3", "y"]]
    many = head + b'0,"a cat\n' + b"".join(b"%d,a dog\n" % number for number in range(1, 50_000))
    assert rows(many)[:2] == [QUOTE_NOT_CLOSED, ["1", "a dog"]]
    assert len(rows(many)) == 50_000


def test_values_in_quotes_may_hold_what_they_like():
    data = b'id,text\n1,"a\nb\r\nc"\n2,"say ""x"", y"\n3,"a" b\n4,a "b" c\n5,\xe2\x80\xa8\n'
    assert rows(data) == [["1", "a\nb\r\nc"], ["2", 'say "x", y'], ["3", "a b"], ["4", 'a "b" c'], ["5", "\u2028"]]
    found = list(parse_table(data, "file", ","))
    assert [(row.place, row.lines) for row in found[1:3]] == [("file, line 2", 3), ("file, line 5", 1)]


def test_other_bad_rows_are_one_row_each():
    data = b"id,text\n1\n2,a,b\n3,a\rb\n4," + b"x" * 200_000 + b"\n5,\0\n\n6,y\n"
    assert rows(data) == [WRONG_COLUMNS, WRONG_COLUMNS, NOT_A_ROW, TOO_LONG, ["5", "\ufffd"], ["6", "y"]]
    assert [row.detail for row in parse_table(data, "file", ",")][1:5] == [
        "1 values for 2 columns",
        "3 values for 2 columns",
        "a carriage return in a value without quotes",
        "a value is longer than 131,072 characters",
    ]


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"id,text,text\n", "line 1 names text more than once; give each column its own name"),
        (b'"id,text\n1,2\n', "line 1: a quote is opened and not closed; the first row must name the columns"),
        (b",,\n1,2,3\n", "line 1: no column has a name"),
    ],
)
def test_a_header_that_names_no_columns_is_named(header, words):
    with pytest.raises(TextError, match=words):
        list(parse_table(header, "file", ","))


def test_columns_without_a_name_are_left_out(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"id,,text,\n1,2,3,4\n")
    columns, found = read_table(str(tmp_path / "a.csv"), ",")
    assert columns == ["id", "text"]
    assert [row.values for row in found] == [{"id": "1", "text": "3"}]
    (tmp_path / "empty.csv").write_bytes(b"")
    columns, found = read_table(str(tmp_path / "empty.csv"), ",")
    assert (columns, list(found)) == ([], [])


@ANY
@given(BYTES, st.sampled_from(",\t"))
def test_every_line_of_any_table_is_in_one_row(data, delimiter):
    try:
        found = list(parse_table(data, "file", delimiter))
    except TextError:
        return
    spanned = []
    for row in found:
        first = int(row.place.removeprefix("file, line "))
        spanned += range(first, first + row.lines)
        row.sample.encode()
        assert bool(row.problem) == (row.values is None)
        assert all(value.encode() is not None for value in (row.values or {}).values())
    assert spanned == sorted(set(spanned))
    named = [
        number for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1) if line.strip(b" \r")
    ]
    assert set(named) <= set(spanned)


@ANY
@given(
    st.lists(st.tuples(TEXT, TEXT).map(lambda row: [value.replace("\0", "") for value in row])),
    st.sampled_from(["\n", "\r\n"]),
)
def test_tables_come_back_as_they_were_written(records, end):
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator=end, quoting=csv.QUOTE_ALL).writerows([["id", "text"], *records])
    assert rows(buffer.getvalue().encode()) == records


# --- Accounts ---------------------------------------------------------------------------------------------


def test_a_file_is_refused_where_more_than_half_of_its_lines_are_bad():
    count = LineCount("file")
    for number in range(8):
        count.add()
        count.add(f"line {number}: bad")
    count.raise_if_mostly_bad()
    count.add("line 9: bad")
    with pytest.raises(TextError) as refused:
        count.raise_if_mostly_bad("Mend it")
    words = "".join(f"\n  line {number}: bad" for number in range(5))
    assert str(refused.value) == f"file: 9 of 17 lines cannot be used:{words}\n  (and 4 more). Mend it"
