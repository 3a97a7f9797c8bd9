import gzip
import io
import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hive_ray import storage
from hive_ray.pairs.captions import caption_rows, read_captions

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
    "captions.jsonl.gz": gzip.compress("\n".join(map(json.dumps, ROWS)).encode()),
    "captions.csv": separated(","),
    "captions.tsv": b"\xef\xbb\xbf" + separated("\t"),
    "captions.parquet": parquet(ROWS),
    "captions.arrow": arrow(ROWS),
}


def read(address: str, column: str = "text", most: int = 100) -> list[str]:
    return [row["caption"] for row in caption_rows(read_captions(address, column), most) if "caption" in row]


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
    assert [row.get("caption") or row["dropped"] for row in rows] == [
        "a cat", "empty", "empty", "empty", "not_text", "duplicate", "duplicate", "a dog",
    ]  # fmt: skip


def test_no_more_are_read_than_wanted():
    def texts():
        yield from ("a cat", "a cat", "a dog")
        raise AssertionError("read on")

    assert [row.get("caption") for row in caption_rows(texts(), 2)] == ["a cat", None, "a dog"]


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
        ("a.jsonl", b'{"text": "a cat"}\n{"txet": "a dog"}\n', r"a\.jsonl, line 2 has no column 'text', only txet"),
        ("a.jsonl", b'{"text": "a cat"}\n{"text": "a d', r"line 2: '\{\"text\": \"a d' is not JSON"),
        ("a.jsonl", b'["a cat"]\n', r"line 1: wanted an object with 'text', not \['a cat'\]"),
        ("a.parquet", b"PAR1 of another kind", r"a\.parquet cannot be read"),
        ("a.jsonl.gz", b"not compressed", r"a\.jsonl\.gz cannot be read"),
        ("a.txt", "schön".encode("latin-1"), r"a\.txt is not UTF-8 text"),
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
