import gzip
import io
import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutate import mutated

from hive_ray import storage
from hive_ray.pairs.captions import caption_rows, read_captions
from hive_ray.schemas import Dropped

CAPTIONS = ["a red fox", 'a sign that says "stop, now"', "ein Fuchs im Schnee, schön"]
ROWS = [{"id": number, "text": caption} for number, caption in enumerate(CAPTIONS)]


def parquet(rows: list[dict]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def arrow(rows: list[dict]) -> bytes:
    """As `datasets.save_to_disk` writes: an IPC stream."""
    table, buffer = pa.Table.from_pylist(rows), io.BytesIO()
    with pa.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_table(table)
    return buffer.getvalue()


def separated(delimiter: str) -> bytes:
    lines = [f'{row["id"]}{delimiter}"{row["text"].replace(chr(34), chr(34) * 2)}"' for row in ROWS]
    return "\r\n".join([f"id{delimiter}text", *lines]).encode()


FILES = {
    "captions.txt": "\r\n".join(CAPTIONS).encode(),
    "captions": b"\xef\xbb\xbf" + "\n".join(CAPTIONS).encode(),
    "captions.jsonl": "\n".join(map(json.dumps, ROWS)).encode() + b"\n\n",
    "captions.jsonl.gz": gzip.compress("\n".join(map(json.dumps, ROWS)).encode(), mtime=0),
    "captions.csv": separated(","),
    "captions.tsv": b"\xef\xbb\xbf" + separated("\t"),
    "captions.parquet": parquet(ROWS),
    "captions.arrow": arrow(ROWS),
}


def read(address: str, column: str = "text", most: int = 100) -> list[str]:
    return [row["caption"] for row in caption_rows(read_captions(address, column), most) if isinstance(row, dict)]


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_captions(root, name):
    address = storage.join(root, name)
    storage.write_bytes(address, FILES[name])
    assert read(address) == CAPTIONS


@pytest.mark.parametrize(("make", "ending"), [(parquet, "parquet"), (arrow, "arrow")])
def test_a_dataset_folder_gives_all_of_its_files_in_order(root, make, ending):
    for number, row in enumerate(ROWS):
        storage.write_bytes(storage.join(root, "data", f"train-{number:05d}-of-00003.{ending}"), make([row]))
    storage.write_text(storage.join(root, "dataset_info.json"), "{}")
    assert read(root) == CAPTIONS


def test_a_column_of_lists_gives_each_caption(tmp_path):
    (tmp_path / "coco.parquet").write_bytes(parquet([{"captions": ["a cat", "one cat"]}, {"captions": []}]))
    assert read(str(tmp_path / "coco.parquet"), "captions") == ["a cat", "one cat"]


def test_what_is_no_caption_is_dropped_with_its_reason():
    texts = ["a  cat", "", None, " \t", 7, "a cat", " a\ncat ", "a dog"]
    rows = list(caption_rows(texts, 100))
    assert [row.reason if isinstance(row, Dropped) else row["caption"] for row in rows] == [
        "a cat", "empty", "empty", "empty", "not_text", "duplicate", "duplicate", "a dog",
    ]  # fmt: skip


def test_no_more_are_read_than_wanted():
    def texts():
        yield from ("a cat", "a cat", "a dog")
        raise AssertionError("read on")

    first, repeated, last = caption_rows(texts(), 2)
    assert (first["caption"], repeated, last["caption"]) == ("a cat", Dropped("duplicate"), "a dog")


def test_a_large_file_is_not_held_in_memory(tmp_path):
    path = tmp_path / "large.txt"
    with path.open("w") as stream:
        for number in range(2_000):
            stream.write(f"{number} " + "x" * 10_000 + "\n")
    tracemalloc.start()
    count = sum(1 for _ in read_captions(str(path), "caption"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 2_000
    assert peak < path.stat().st_size / 10


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"Prompt,Category\na cat,Animals\n", r"no column 'text', only Prompt, Category; set instr"),
        ("a.csv", b"", r"no column 'text', only none"),
        ("a.parquet", parquet([{"caption": "a cat"}]), r"no column 'text', only caption"),
        ("a.csv", b"id;text\n1;a cat\n", r"no column 'text', only id;text"),
        ("a.csv", b"text,text\na,b\n", "line 1 names text more than once"),
        (
            "a.parquet",
            parquet([{"text": 7}]),
            r"a\.parquet: the column 'text' holds int64, and text is wanted; set instr",
        ),
        (
            "a.jsonl",
            b'{"txet": "a cat"}\n',
            r"1 of 1 lines cannot be used:\n.*line 1 has no column 'text', only txet; set ins",
        ),
        ("a.jsonl", b'{"text": "a cat"}\n{"text": "a d\n{', r"2 of 3 lines cannot be used:\n.*line 2: not JSON"),
        (
            "a.jsonl",
            b'{"text": 7}\n' * 2 + b'{"text": "a cat"}',
            r"2 of 3 lines cannot be used:\n  .*: 7 is a int, and no text",
        ),
        ("a.jsonl", b'[{"text": "a cat"}]\n', r"line 1: a JSON array; write one object a line"),
        ("a.txt", "a cat".encode("utf-16"), r"captions file .*a\.txt is UTF-16 text, and UTF-8 is wanted"),
        ("a.txt.gz", gzip.compress(b"a cat\n" * 9999, mtime=0)[:40], r"a\.txt\.gz cannot be read to its end"),
        ("a.parquet", b"PAR1 of another kind", r"a\.parquet cannot be read"),
        ("a.jsonl.gz", b"not compressed", r"a\.jsonl\.gz cannot be read"),
        ("a.txt", "schön".encode("latin-1"), r"a\.txt, line 1: byte 0xf6 is not UTF-8"),
        ("a.docx", b"", r"ends with \.docx; it may be one of \.txt, "),
        ("folder/readme.md", b"", r"folder has no \.parquet and no \.arrow files"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_what_is_wrong(tmp_path, name, content, message):
    storage.write_bytes(str(tmp_path / name), content)
    with pytest.raises(ValueError, match=message):
        read(str(tmp_path / name.split("/")[0]))


def test_captions_that_do_not_exist_are_said_so(root):
    with pytest.raises(FileNotFoundError, match="do not exist"):
        read(storage.join(root, "nothing.txt"))


# --- Bad lines --------------------------------------------------------------------------------------------

GOOD = {f"a cat {number}" for number in range(4)}
JSON = [json.dumps({"text": caption}).encode() for caption in sorted(GOOD)]
SEPARATED = [caption.encode() for caption in sorted(GOOD)]


def became(path) -> tuple[list[str], dict[str, str]]:
    """The captions, and what was dropped: reason -> what its row looked like."""
    rows = list(caption_rows(read_captions(str(path), "text"), 100))
    dropped = [row for row in rows if isinstance(row, Dropped)]
    return [row["caption"] for row in rows if isinstance(row, dict)], {row.reason: row.sample for row in dropped}


@pytest.mark.parametrize(
    ("name", "bad", "reason", "words"),
    [
        ("a.jsonl", b'{"text": "a d', "not_json", "line 3: not JSON (Unterminated string"),
        ("a.jsonl", b"[1]", "not_an_object", "line 3: a JSON array"),
        ("a.jsonl", b'"a dog"', "not_an_object", "line 3: a JSON string"),
        ("a.jsonl", b'{"txet": "a dog"}', "column_missing", "line 3 has no column 'text', only txet"),
        ("a.jsonl", b'{"text": "\xff"}', "not_utf8", "line 3: byte 0xff is not UTF-8"),
        ("a.jsonl", b'{"text": 7}', "not_text", "7 is a int"),
        ("a.jsonl", b'{"text": null}', "empty", ""),
        ("a.jsonl", b"9" * 5000, "not_json", "line 3: not JSON (Exceeds the limit"),
        ("a.jsonl", b"[" * 5000, "not_json", "line 3: the beginning of a JSON array"),
        ("a.txt", "schön".encode("latin-1"), "not_utf8", "line 3: byte 0xf6 is not UTF-8"),
        ("a.csv", b"a dog,2", "wrong_number_of_columns", "line 3: 2 values for 1 columns"),
        ("a.csv", b'"a dog', "quote_not_closed", "line 3: a quote is opened and not closed"),
        ("a.csv", b"a\rdog", "not_a_row", "line 3: a carriage return"),
        ("a.csv", b"x" * 140_000, "too_long", "line 3: a value is longer than 131,072 characters"),
        ("a.csv", b"\xff", "not_utf8", "line 3: it is not UTF-8"),
    ],
)
def test_a_bad_line_is_dropped_by_its_reason_and_the_lines_around_it_are_kept(tmp_path, name, bad, reason, words):
    lines = list(JSON if name == "a.jsonl" else SEPARATED)
    head = [b"text"] if name == "a.csv" else []
    lines[2 - len(head) : 2 - len(head)] = [bad]
    (tmp_path / name).write_bytes(b"\n".join([*head, *lines]))
    captions, dropped = became(tmp_path / name)
    assert (set(captions), len(captions)) == (GOOD, 4)
    assert list(dropped) == [reason]
    assert words in (dropped[reason] or "")


def test_half_of_the_lines_may_be_bad_and_no_more(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join([*JSON, *[b"{"] * 4]))
    assert len(became(path)[0]) == 4
    path.write_bytes(b"\n".join([*JSON, *[b"{"] * 5]))
    with pytest.raises(ValueError, match="5 of 9 lines cannot be used"):
        became(path)
    path.write_bytes(b"\n".join([b"{"] * 2 + JSON))
    with pytest.raises(ValueError, match="2 of 3 lines cannot be used"):  # read no further than the first caption
        list(caption_rows(read_captions(str(path), "text"), 1))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b'{"text": "a smiling dog \\ud83d"}\n{"text": "a\xe2\x80\xa8cat"}\n'),
        ("a.arrow", None),
        ("a.parquet", None),
    ],
)
def test_half_an_emoji_and_line_separators_are_text(tmp_path, name, content):
    halved = pa.array(["a smiling dog \ud83d".encode(errors="surrogatepass"), "a\u2028cat".encode()], pa.binary())
    table = pa.table(
        {"text": pa.StringArray.from_buffers(2, *halved.buffers()[1:])}
    )  # as writers that check nothing do
    if name == "a.arrow":
        with pa.ipc.new_stream(str(tmp_path / name), table.schema) as writer:
            writer.write_table(table)
    elif name == "a.parquet":
        pq.write_table(table, tmp_path / name)
    else:
        (tmp_path / name).write_bytes(content)
    assert became(tmp_path / name) == (["a smiling dog \ufffd", "a cat"], {})


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())])
def test_a_text_in_parquet_that_is_not_utf8_is_dropped(tmp_path, kind):
    values = pa.array([b"a cat", b"sch\xf6n", b"a dog"], pa.binary())
    text = pa.StringArray.from_buffers(3, *values.buffers()[1:])
    column = pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 2], pa.int32()), text)
    if not pa.types.is_dictionary(kind):
        column = pa.array([b"a cat", b"sch\xf6n", None, b"a dog"], pa.binary()).cast(kind, safe=False)
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    captions, dropped = became(tmp_path / "a.parquet")
    assert captions == ["a cat", "a dog"]
    assert set(dropped) == {"not_utf8", "empty"}
    assert "a.parquet, row 1: not UTF-8: b'sch\\xf6n'" in dropped["not_utf8"]


def test_a_list_of_captions_with_a_bad_one_keeps_the_others(tmp_path):
    values = pa.array([b"a cat", b"\xff", b"a dog"], pa.binary())
    text = pa.StringArray.from_buffers(3, *values.buffers()[1:])
    pq.write_table(
        pa.table({"text": pa.ListArray.from_arrays(pa.array([0, 3], pa.int32()), text)}), tmp_path / "a.parquet"
    )
    captions, dropped = became(tmp_path / "a.parquet")
    assert (captions, list(dropped)) == (["a cat", "a dog"], ["not_utf8"])


MUTATED = {
    "a.txt": [FILES["captions.txt"], FILES["captions"]],
    "a.jsonl": [FILES["captions.jsonl"], '{"text": "a\u2028b"}\n{"text": ["x", "y"]}\n{"text": "ü"}\n'.encode()],
    "a.parquet": [FILES["captions.parquet"]],
    "a.arrow": [FILES["captions.arrow"], arrow([{"text": ["a cat", "a dog"]}, {"text": []}])],
    "a.csv": [FILES["captions.csv"], b'id,text\n1,"a\nb"\n2,"c ""d"""\n3,e\n'],
}


@pytest.mark.parametrize("name", MUTATED)
def test_captions_in_mutated_files_are_kept_dropped_or_the_file_is_named(tmp_path, name):
    path = tmp_path / name
    read, refused = 0, []
    for content in mutated(MUTATED[name]):
        path.write_bytes(content)
        try:
            values = list(read_captions(str(path), "text"))
            rows = list(caption_rows(values, 100))
        except ValueError as error:
            refused.append(str(error))
            continue
        read += 1
        assert len(rows) == len(values)
        for row in rows:
            if isinstance(row, Dropped):
                assert row.reason
                assert row.sample is None or row.sample.encode()
            else:
                assert row["caption"].encode()
    assert read > len(refused) or name.endswith(("parquet", "arrow"))
    assert read > 0
    assert all(words.startswith(f"captions file {path}") for words in refused)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.lists(st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from("\ud83d\u2028\n\r\"'")))))
def test_every_caption_is_in_the_account(texts):
    rows = list(caption_rows(texts, 1000))
    assert len(rows) == len(texts)
    kept = [row["caption"] for row in rows if isinstance(row, dict)]
    assert len(set(kept)) == len(kept)
    assert {row.reason for row in rows if isinstance(row, Dropped)} <= {"empty", "duplicate"}
    assert all(caption.encode().strip() for caption in kept)
