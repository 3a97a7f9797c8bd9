"""Damaged copies of good datasets: nothing but named errors, and every row in an account.

Arrow's readers are C++: what they read is read in a process of its own, so that its crash is seen.
"""

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path

import foreign
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from foreign import picture
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutate import COUNT, mutated

from hive_ray.config import Importing
from hive_ray.pairs.formats.digests import dataset_digest
from hive_ray.pairs.formats.imported import ImportedPair, UnreadablePart, imported_rows
from hive_ray.pairs.formats.pair_reader import read_pairs
from hive_ray.pairs.formats.pictures import PictureReader
from hive_ray.schemas import IMPORTED, Counted, Dropped, to_table

NUM_PAIRS = 6


def rows(write=lambda number, name: picture(2 * number + (name == "b"))) -> list[dict]:
    return [
        {
            "instruction": f"make circle {number} blue", "source_caption": f"a circle {number}",
            "source_image": write(number, "a"), "edited_image": write(number, "b"),
        }
        for number in range(NUM_PAIRS)
    ]  # fmt: skip


def path(number: int, name: str) -> str:
    return f"{number}_{name}.png"


def parquet(embedded: list[dict], **options) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(map(foreign.embedded, embedded))), buffer, row_group_size=2, **options)
    return buffer.getvalue()


def arrow(embedded: list[dict]) -> list[bytes]:
    """A stream, and a file to read anywhere in it."""
    table, written = pa.Table.from_pylist(list(map(foreign.embedded, embedded))), []
    for new in (pa.ipc.new_stream, pa.ipc.new_file):
        buffer = io.BytesIO()
        with new(buffer, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
        written.append(buffer.getvalue())
    return written


def tar(format: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for row in rows():
            key = f"{'long/' * 30 if row['instruction'].endswith('2 blue') else ''}{row['instruction']}"
            words = json.dumps({name: value for name, value in row.items() if isinstance(value, str)}).encode()
            contents = {"source.png": row["source_image"], "edited.png": row["edited_image"], "json": words}
            for name, content in contents.items():
                member = tarfile.TarInfo(f"{key}.{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def packed(data: bytes, how: str) -> bytes:
    buffer = pa.BufferOutputStream()
    with pa.CompressedOutputStream(buffer, how) as stream:
        stream.write(data)
    return buffer.getvalue().to_pybytes()


def lines(values: list[dict]) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def csv() -> bytes:
    named = rows(path)
    return "\n".join([",".join(named[0]), *(",".join(row.values()) for row in named), ""]).encode()


GOOD = {
    "parquet": lambda: [
        parquet(rows()), parquet(rows(path)), parquet(rows(), compression="zstd", use_dictionary=False),
        parquet(rows(), data_page_version="2.0", write_page_checksum=True), parquet(rows(path), compression="gzip"),
    ],
    "arrow": lambda: [*arrow(rows()), *arrow(rows(path))],
    "tar": lambda: [tar(tarfile.PAX_FORMAT), tar(tarfile.GNU_FORMAT), tar(tarfile.USTAR_FORMAT)],
    "tar.gz": lambda: [packed(tar(tarfile.PAX_FORMAT), how) for how in ("gzip", "zstd", "bz2")],
    "jsonl": lambda: [lines(rows(path))],
    "csv": lambda: [csv()],
    "seeds": lambda: [json.dumps([["0", ["1", "2"]], ["1", ["3"]]]).encode()],
    "prompt": lambda: [b'{"input": "a cat", "edit": "make it a dog", "output": "a dog"}'],
    "metadata": lambda: [lines([{"seed": seed, "p2p_threshold": 0.25} for seed in (1, 2)])],
}  # fmt: skip
"""What of a dataset is damaged -> good copies of it."""


def place_of(kind: str, folder: Path) -> Path:
    """Where the damaged file goes; what belongs to it is written."""
    if kind in ("seeds", "prompt", "metadata"):
        words = {"input": "a cat", "edit": "make it a dog", "output": "a dog"}
        foreign.prompt_folder(str(folder), "0", words, ["1", "2"], [{"seed": 1}])
        foreign.prompt_folder(str(folder), "1", words, ["3"])
        (folder / "seeds.json").write_bytes(good_copies("seeds")[0])
        names = {"seeds": "seeds.json", "prompt": "0/prompt.json", "metadata": "0/metadata.jsonl"}
        return folder / names[kind]
    for number in range(NUM_PAIRS):
        for which, name in enumerate("ab"):
            (folder / path(number, name)).write_bytes(picture(2 * number + which))
    return folder / {"jsonl": "metadata.jsonl", "csv": "metadata.csv"}.get(kind, f"train.{kind}")


def account(dataset: str) -> Counter[str]:
    """What became of a dataset: "kept", drop reasons and "refused"; any error but those with our words is raised."""
    importing, found = Importing(dataset=dataset), Counter()
    dataset_digest(dataset, ".")
    try:
        read = list(imported_rows(read_pairs(importing), importing))
    except ValueError as error:
        if type(error) is not ValueError or not str(error):
            raise
        return Counter({"refused": 1})
    for row in read:
        if isinstance(row, Counted):
            found.update(row.values)
        elif isinstance(row, Dropped):
            assert row.row is None
            assert row.sample
            found[row.reason] += 1
        else:
            found["kept"] += 1
    to_table([row for row in read if isinstance(row, dict)], IMPORTED)
    return found


@cache
def good_copies(kind: str) -> list[bytes]:
    return GOOD[kind]()


def rows_in(kind: str, data: bytes, otherwise: int) -> int:
    """The rows of a damaged file that can be read to its end, where that is known."""
    if kind == "jsonl":
        return sum(bool(line.strip()) for line in data.split(b"\n"))
    if kind == "parquet" and any(data.endswith(footer(good)) for good in good_copies("parquet")):
        return NUM_PAIRS
    return otherwise


def footer(good: bytes) -> bytes:
    """What says how many rows a Parquet file has, and where."""
    return good[-8 - int.from_bytes(good[-8:-4], "little") :]


def read_damaged(kind: str, count: int) -> Counter[str]:
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        file = place_of(kind, Path(folder))
        for number, data in enumerate(mutated(good_copies(kind), count)):
            file.write_bytes(data)
            Path(os.environ["LAST"]).write_text(f"{kind}, copy {number}")
            found = account(folder)
            total += found
            if not found.keys() & {"refused", "file_unreadable"}:
                assert found.total() == rows_in(kind, data, found.total())
    return total


@pytest.mark.parametrize("kind", ["jsonl", "csv", "seeds", "prompt", "metadata"])
def test_mutated_text_raises_nothing_but_named_errors_and_loses_no_row(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("LAST", str(tmp_path / "last"))
    assert read_damaged(kind, COUNT)["kept"] > 0


def test_mutated_files_raise_nothing_but_named_errors_and_lose_no_row(tmp_path):
    here, last, kinds = Path(__file__), tmp_path / "last", ["parquet", "arrow", "tar", "tar.gz"]
    paths = os.pathsep.join(map(str, (here.parents[2], here.parents[1])))
    done = subprocess.run(
        [sys.executable, str(here), str(COUNT), *kinds], env=os.environ | {"LAST": str(last), "PYTHONPATH": paths},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.returncode} at {last.read_text()}\n{done.stderr[-3000:]}"
    assert all(json.loads(line)["kept"] > 0 for line in done.stdout.splitlines())
    assert len(done.stdout.splitlines()) == len(kinds)


TEXT = st.text(max_size=30)
NESTED = st.sampled_from(["bytes", "path", "text"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.just(path(0, "a")) | st.just(path(1, "b")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT | NESTED, inner),
    max_leaves=6,
)  # fmt: skip
KEYS = st.sampled_from(["instruction", "edit", "source_image", "edited_image", "file_name", "seed", "split", "origin"])
EXAMPLES = settings(
    max_examples=60, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@EXAMPLES
@given(values=st.lists(st.dictionaries(KEYS | TEXT, VALUES) | VALUES, max_size=4))
def test_any_json_in_a_line_is_a_pair_or_a_drop(tmp_path, values):
    for number in range(2):
        for which, name in enumerate("ab"):
            (tmp_path / path(number, name)).write_bytes(picture(2 * number + which))
    good = {"instruction": "e", "source_image": path(0, "a"), "edited_image": path(0, "b")}
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(value) + "\n" for value in [*values, good]))
    found = account(str(tmp_path / "mine.jsonl"))
    assert found["kept"] >= 1
    assert found.total() >= len(values) + 1


@EXAMPLES
@given(
    text=st.text(max_size=80) | st.lists(st.sampled_from(["..", ".", "a", "", "~", "C:\\", "\\", "\0"])).map("/".join)
)
def test_any_text_in_place_of_a_picture_is_read_within_the_dataset_or_refused(tmp_path, text):
    (tmp_path / "dataset").mkdir(exist_ok=True)
    (tmp_path / "a").write_bytes(b"outside")
    picture = PictureReader(str(tmp_path / "dataset" / "mine.jsonl"), str(tmp_path / "dataset"), ".").read(text)
    assert picture != b"outside" or text.startswith("/")


@EXAMPLES
@given(
    instruction=VALUES, source=st.binary(max_size=20) | st.none(), caption=VALUES,
    together=TEXT, reason=TEXT.filter(bool), rows=st.integers(0, 9),
)  # fmt: skip
def test_whatever_a_reader_finds_is_in_the_account(instruction, source, caption, together, reason, rows):
    good = ImportedPair("e", picture(1), picture(2), place="here")
    strange = ImportedPair(
        instruction, source, picture(1), source_caption=caption, edited_caption=caption, split_group=together
    )
    read = list(imported_rows([strange, UnreadablePart(reason, "there", rows), good], Importing()))
    to_table([row for row in read if isinstance(row, dict)], IMPORTED)
    assert sum(isinstance(row, Dropped) for row in read) >= 2
    assert sum(isinstance(row, dict) for row in read) == 1
    assert sum(row.values["rows_not_read"] for row in read if isinstance(row, Counted)) == max(0, rows - 1)


if __name__ == "__main__":
    for kind in sys.argv[2:]:
        print(json.dumps(read_damaged(kind, int(sys.argv[1]))))
