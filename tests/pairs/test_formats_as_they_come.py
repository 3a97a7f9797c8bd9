"""Datasets as people have them: pictures by path, metadata files, systems' own files, broken parts among good ones."""

import base64
import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import foreign
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from foreign import picture
from PIL import Image

from hive_ray import storage
from hive_ray.config import Importing
from hive_ray.errors import Stopped
from hive_ray.pairs.formats.digests import dataset_digest
from hive_ray.pairs.formats.files import data_files, is_system_file
from hive_ray.pairs.formats.imported import imported_rows
from hive_ray.pairs.formats.pair_reader import read_pairs
from hive_ray.pairs.formats.text_rows import read_prompts
from hive_ray.pairs.formats.writing import WRITERS
from hive_ray.schemas import IMPORTED, PAIRS, PROMPTS, Counted, Dropped, to_table

INPUTS = Path(__file__).parents[1] / "inputs"


def imported(dataset, **settings) -> list[dict]:
    settings = Importing(dataset=str(dataset), **settings)
    rows = list(imported_rows(read_pairs(settings), settings))
    to_table([row for row in rows if isinstance(row, dict)], IMPORTED)
    return rows


def instructions(rows: list[dict]) -> list[str]:
    return [row["instruction"] for row in rows if isinstance(row, dict)]


def drops(rows: list[dict]) -> list[str]:
    return [row.reason for row in rows if isinstance(row, Dropped)]


def samples(rows: list[dict]) -> str:
    return "\n".join(row.sample for row in rows if isinstance(row, Dropped))


def write_pictures(folder: str, number: int = 4) -> None:
    """0_a.png, 0_b.png, ..."""
    for place in range(number):
        storage.write_bytes(storage.join(folder, f"{place}_a.png"), picture(2 * place))
        storage.write_bytes(storage.join(folder, f"{place}_b.png"), picture(2 * place + 1))


def by_path(number: int, write=lambda path: path) -> dict:
    return {
        "instruction": f"make circle {number} blue", "source_image": write(f"images/{number}_a.png"),
        "edited_image": write(f"images/{number}_b.png"),
    }  # fmt: skip


BLUE = [f"make circle {number} blue" for number in range(4)]


def pathed(path: str) -> dict:
    return {"bytes": None, "path": path}


# --- Pictures by path -------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [str, pathed], ids=["strings", "structs"])
@pytest.mark.parametrize("file", ["train-00000.parquet", "data/train-00000.parquet", "train/data-00000.arrow"])
def test_columns_of_paths_are_read_from_the_file_and_the_dataset_s_folder_on(root, write, file):
    write_pictures(storage.join(root, "images"))
    rows = [by_path(number, write) for number in range(4)]
    (foreign.parquet if file.endswith("parquet") else foreign.arrow)(storage.join(root, file), rows)
    found = imported(root)
    assert instructions(found) == BLUE
    assert [row["source_image"] for row in found] == [picture(2 * number) for number in range(4)]


@pytest.mark.parametrize(
    ("write", "setting"),
    [
        (lambda path: path.removeprefix("images/"), "."),
        (lambda path: f"/home/someone/else/{path}", "."),
        (lambda path: f"file:///home/someone/{path}", "."),
        (lambda path: "C:\\data\\" + path.replace("/", "\\"), "."),
        (lambda path: path.replace("/", "\\"), "."),
        (lambda path: f"./{path}", "."),
        (lambda path: path.removeprefix("images/"), "images"),
        (lambda path: f"data/../{path}", "."),
    ],
    ids=["images", "absolute", "file", "windows", "backslashes", "dot", "setting", "dots inside"],
)
def test_paths_of_other_machines_are_found_by_their_last_parts(tmp_path, write, setting):
    write_pictures(str(tmp_path / "images"))
    foreign.parquet(str(tmp_path / "train.parquet"), [by_path(number, write) for number in range(4)])
    assert instructions(imported(tmp_path, pictures=setting)) == BLUE


def test_an_absolute_path_that_is_there_is_read_as_it_is(tmp_path):
    write_pictures(str(tmp_path / "elsewhere" / "images"))
    rows = [by_path(number, lambda path: str(tmp_path / "elsewhere" / path)) for number in range(4)]
    foreign.parquet(str(tmp_path / "dataset" / "train.parquet"), rows)
    foreign.json_lines(str(tmp_path / "dataset" / "mine.jsonl"), rows)
    assert instructions(imported(tmp_path / "dataset")) == BLUE
    assert instructions(imported(tmp_path / "dataset" / "mine.jsonl")) == BLUE


def test_a_path_that_leaves_the_dataset_is_not_read_unless_the_settings_allow_it(tmp_path):
    write_pictures(str(tmp_path / "images"))
    rows = [by_path(number, lambda path: f"../{path}") for number in range(4)]
    foreign.json_lines(str(tmp_path / "dataset" / "mine.jsonl"), rows)
    foreign.parquet(str(tmp_path / "parquet" / "train.parquet"), rows)
    for dataset in ("dataset/mine.jsonl", "parquet"):
        with pytest.raises(ValueError, match=r"4 picture_outside\n.*'\.\./images/0_a\.png' leaves the folder"):
            imported(tmp_path / dataset)
        assert instructions(imported(tmp_path / dataset, pictures="..")) == BLUE


@pytest.mark.parametrize(
    ("value", "reason", "message"),
    [
        (base64.b64encode(picture(1) * 2).decode(), "picture_is_no_file", r"source_image and .* hold base64 text"),
        (base64.b64encode(picture(1, "JPEG")).decode(), "picture_is_no_file", r"base64 text \('/9j/"),
        ("data:image/png;base64,iVBOR", "picture_is_no_file", r"a data address"),
        ([[0, 1], [2, 3]], "picture_is_no_file", r"the column source_image holds list<.*write it as \{bytes, path\}"),
        (3.5, "picture_is_no_file", r"the column source_image holds double, and no pictures"),
        ({"width": 3}, "picture_is_no_file", r"source_image holds struct<width"),
        ("https://example.org/a.png", "picture_is_address", r"is an address, and nothing is fetched; download it"),
        ("a\0b.png", "picture_is_no_file", r"a text of 7 characters"),
        ("gone.png", "picture_missing", r"'gone\.png' is not there; set importing\.pictures \('\.'\)"),
        (pathed("gone.png"), "picture_missing", r"'gone\.png' is not there"),
        ({"bytes": None, "path": ""}, "picture_missing", r"there is none"),
        ("images", "picture_missing", r"'images' is not there"),
        ("/dev/zero", "picture_missing", r"is not there"),
        ("n" * 300, "picture_unreadable", r"cannot be read"),
    ],
)  # fmt: skip
def test_what_is_no_picture_is_refused_by_column_and_kind(tmp_path, value, reason, message):
    write_pictures(str(tmp_path / "images"))
    row = by_path(0) | {"source_image": value}
    foreign.parquet(str(tmp_path / "train.parquet"), [row])
    with pytest.raises(ValueError, match=rf"can be kept: 1 {reason}\n.*train\.parquet.*{message}"):
        imported(tmp_path)
    foreign.json_lines(str(tmp_path / "mine.jsonl"), [row, by_path(1)])
    found = imported(tmp_path / "mine.jsonl")
    assert (drops(found), instructions(found)) == ([reason], ["make circle 1 blue"])
    assert "mine.jsonl, line 1: source picture: " in samples(found)


def test_a_column_of_base64_ends_the_reading_of_its_file_and_not_of_others(tmp_path):
    write_pictures(str(tmp_path / "images"))
    encoded = base64.b64encode(picture(1) * 2).decode()
    foreign.parquet(str(tmp_path / "train-0.parquet"), [by_path(n) | {"edited_image": encoded} for n in range(50)])
    foreign.parquet(str(tmp_path / "train-1.parquet"), [by_path(number) for number in range(4)])
    found = imported(tmp_path)
    assert (drops(found), instructions(found)) == (["picture_is_no_file"], BLUE)
    assert Counted({"rows_not_read": 49}) in found


# --- Folders with metadata files --------------------------------------------------------------------------


def line(number: int, **keys: str) -> dict:
    """A line of a metadata file, its pictures under these keys."""
    files = {"a": f"{number}_a.png", "b": f"{number}_b.png"}
    return {"edit_prompt": f"make circle {number} blue"} | {key: files[which] for key, which in keys.items()}


def as_jsonl(folder: str, rows: list[dict]) -> None:
    foreign.json_lines(storage.join(folder, "metadata.jsonl"), rows)


def as_csv(folder: str, rows: list[dict]) -> None:
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    storage.write_text(storage.join(folder, "metadata.csv"), "\ufeff" + "\r\n".join(lines) + "\r\n")


def as_parquet(folder: str, rows: list[dict]) -> None:
    foreign.parquet(storage.join(folder, "metadata.parquet"), rows)


@pytest.mark.parametrize("write", [as_jsonl, as_csv, as_parquet])
@pytest.mark.parametrize(
    "keys",
    [
        {"file_name": "a", "source_image": "a", "edited_image": "b"},
        {"file_name": "a", "edited_image": "b"},
        {"original_image": "a", "edited_image": "b"},
        {"input_image_file_name": "a", "edited_image_file_name": "b"},
        {"original_image_file_name": "a", "output_image_file_name": "b"},
    ],
    ids=lambda keys: "+".join(keys),
)
def test_a_folder_with_metadata_beside_the_pictures_is_read(tmp_path, write, keys):
    write_pictures(str(tmp_path / "train"))
    write(str(tmp_path / "train"), [line(number, **keys) for number in range(4)])
    for dataset in (tmp_path, tmp_path / "train"):
        found = imported(dataset)
        assert instructions(found) == BLUE
        assert [row["edited_image"] for row in found] == [picture(2 * number + 1) for number in range(4)]


def test_each_metadata_file_of_a_folder_is_read_from_where_it_lies_and_one_split_alone(root):
    keys = {"source_image": "a", "edited_image": "b"}
    for number, folder in enumerate(("train/one", "train/two", "test")):
        place = storage.join(root, folder)
        storage.write_bytes(storage.join(place, "0_a.png"), picture(10 * number))
        storage.write_bytes(storage.join(place, "0_b.png"), picture(10 * number + 1))
        as_jsonl(place, [line(0, **keys) | {"edit_prompt": folder}])
    found = imported(root)
    assert instructions(found) == ["train/one", "train/two"]
    assert [row["source_image"] for row in found] == [picture(0), picture(10)]
    assert len({row["instruction_id"] for row in found}) == 2
    assert instructions(imported(root, split_name="test")) == ["test"]
    assert len(imported(root, split_name="")) == 3


def test_a_folder_of_jsonl_files_of_any_name_is_read_and_a_test_file_alone_is_not(tmp_path):
    write_pictures(str(tmp_path))
    keys = {"source_image": "a", "edited_image": "b"}
    for name, numbers in (("one.jsonl", (0, 1)), ("two.jsonl", (2, 3))):
        foreign.json_lines(str(tmp_path / name), [line(number, **keys) for number in numbers])
    (tmp_path / "three.jsonl.gz").write_bytes(gzip.compress(json.dumps(line(0, **keys)).encode()))
    assert instructions(imported(tmp_path)) == [BLUE[0], BLUE[1], BLUE[2], BLUE[3]]  # one.jsonl, three, two
    for name in ("one.jsonl", "three.jsonl.gz"):
        (tmp_path / name).unlink()
    (tmp_path / "two.jsonl").rename(tmp_path / "test.jsonl")
    with pytest.raises(ValueError, match=r"no file of the split 'train', but 1 others \(test\.jsonl\)"):
        imported(tmp_path)


# --- Systems' own files -----------------------------------------------------------------------------------

LITTER = (
    ".DS_Store", "._train-0.parquet", "__MACOSX/._train-0.parquet", "Thumbs.db", "desktop.ini",
    "@eaDir/train-0.parquet", ".ipynb_checkpoints/train-0-checkpoint.parquet", "lost+found/train.parquet",
    "train-1.parquet.crdownload", "train-1.parquet.part", "_SUCCESS", "README.md",
    "dataset_info.json", "state.json", ".cache/huggingface/x.parquet",
)  # fmt: skip


def test_systems_own_files_are_no_data_in_any_layout(root):
    write_pictures(root)
    rows = [foreign.clip_filtered(10 * number) for number in range(4)]
    foreign.parquet(storage.join(root, "parquet", "train-0.parquet"), rows)
    as_jsonl(storage.join(root, "metadata"), [line(n, source_image="a", edited_image="b") for n in range(4)])
    write_pictures(storage.join(root, "metadata"))
    for name in LITTER:
        for folder in ("parquet", "metadata"):
            storage.write_bytes(storage.join(root, folder, name), b"\0\0\0\1Bud1")
    assert [len(imported(storage.join(root, folder))) for folder in ("parquet", "metadata")] == [4, 4]
    assert set(data_files(storage.join(root, "parquet"))) == {
        "train-0.parquet", "README.md", "dataset_info.json", "state.json"
    }  # fmt: skip


@pytest.mark.parametrize("name", ["Thumbs.db", "THUMBS.DB", "._a.png", "x.crdownload", ".DS_Store", "lost+found"])
def test_a_systems_own_name_is_known(name):
    assert is_system_file(name)


@pytest.mark.parametrize("name", ["a.png", "thumbs.db.png", "data", "part-00000.parquet", "train.partition.jsonl"])
def test_a_name_of_data_is_no_system_s(name):
    assert not is_system_file(name)


def test_a_loop_of_links_in_a_folder_ends(tmp_path):
    foreign.parquet(str(tmp_path / "data" / "train.parquet"), [foreign.hq_edit(1)])
    os.symlink(tmp_path, tmp_path / "data" / "loop")
    assert len(imported(tmp_path)) == 1


# --- Archives ---------------------------------------------------------------------------------------------


def members(number: int, key: str = "") -> dict[str, bytes]:
    key = key or f"{number:04d}"
    words = json.dumps({"instruction": f"make circle {number} blue"}).encode()
    return {
        f"{key}.source.png": picture(2 * number), f"{key}.edited.png": picture(2 * number + 1), f"{key}.json": words,
    }  # fmt: skip


def archive(contents: dict[str, bytes | None], format: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar archive; None is a folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            if content is None:
                member.type = tarfile.DIRTYPE
            else:
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content or b""))
    return buffer.getvalue()


FOUR = {name: content for number in range(4) for name, content in members(number).items()}


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_dots_folders_links_and_systems_files_in_a_shard(tmp_path, format):
    long = "folder/" * 20 + "n" * 120 + "ö"
    contents = {"./": None, "./folder/": None} | {f"./{name}": content for name, content in members(0).items()}
    contents |= {"._0001.json": b"\0\5\26\7", "__MACOSX/._0001.source.png": b"\0", ".DS_Store": b"Bud1"}
    contents |= members(1, long) | members(2, "/absolute/0002") | members(3, "../0003")
    contents |= {"../0003.mask.png": b"mask"}
    (tmp_path / "train.tar").write_bytes(archive(contents, format))
    assert instructions(imported(tmp_path)) == BLUE
    assert drops(imported(tmp_path)) == []


def test_links_in_a_shard_are_passed_over(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        link = tarfile.TarInfo("0000.source.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        for name, content in FOUR.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    (tmp_path / "train.tar").write_bytes(buffer.getvalue())
    assert instructions(imported(tmp_path)) == BLUE


@pytest.mark.parametrize("packing", [".gz", ".zst", ".bz2", ".tgz", " as .tar"])
def test_packed_shards_are_read_by_what_they_are(root, packing):
    how = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".tgz": "gzip", " as .tar": "zstd"}[packing]
    name = {".tgz": "train.tgz", " as .tar": "train.tar"}.get(packing, f"train.tar{packing}")
    buffer = pa.BufferOutputStream()
    with pa.CompressedOutputStream(buffer, how) as stream:
        stream.write(archive(FOUR))
    storage.write_bytes(storage.join(root, name), buffer.getvalue().to_pybytes())
    assert instructions(imported(root)) == BLUE


@pytest.mark.parametrize("packed", [False, True])
def test_a_shard_that_was_cut_off_gives_the_pairs_before_the_damage(tmp_path, packed):
    whole = archive(FOUR)
    end = whole.index(members(2)["0002.edited.png"]) + 10
    data = gzip.compress(whole)[:-100] if packed else whole[:end]
    (tmp_path / "train-0.tar").write_bytes(data)
    (tmp_path / "train-1.tar").write_bytes(archive(members(3)))
    found = imported(tmp_path)
    assert "file_unreadable" in drops(found)
    assert "train-0.tar cannot be read to its end" in samples(found)
    assert instructions(found)[-1] == BLUE[3]
    if not packed:
        assert (instructions(found), drops(found)) == (
            [BLUE[0], BLUE[1], BLUE[3]],
            ["files_missing", "file_unreadable"],
        )


def test_a_broken_header_a_missing_end_and_a_second_archive_are_said(tmp_path):
    whole = archive(FOUR)
    place = whole.index(b"0002.source.png")
    for name, data, message in (
        ("train-0.tar", whole[:place] + b"\xff" + whole[place + 1 :], "broken header"),
        ("train-1.tar", whole[: whole.index(b"0002.source.png")], "it has no end, so it may have been cut off"),
        ("train-2.tar", archive(members(0)) + archive(members(1)), "another archive follows its end"),
        ("train-3.tar", b"", "it has no end"),
        ("train-4.tar", b"<html>not found</html>" * 100, "cannot be read to its end"),
    ):
        (tmp_path / name).write_bytes(data)
        (tmp_path / "train-9.tar").write_bytes(archive(members(9)))
        found = imported(tmp_path)
        assert drops(found) == ["file_unreadable"], name
        assert message in samples(found)
        (tmp_path / name).unlink()


def test_a_key_of_a_shard_that_is_broken_costs_itself(tmp_path):
    contents = FOUR | {"0001.json": b'{"instruction": ', "0003.json": b"[1]"} | members(4) | members(5) | members(6)
    contents |= {"0004.json": b'{"instruction": "\xff"}'}
    del contents["0002.edited.png"]
    contents["0005.source.png"] = b""
    (tmp_path / "train.tar").write_bytes(archive(contents))
    found = imported(tmp_path)
    assert instructions(found) == [BLUE[0], "make circle 6 blue"]
    assert drops(found) == ["not_json", "files_missing", "not_an_object", "not_utf8", "picture_missing"]
    assert "key 0002 has json, source; wanted 0002.source.png" in samples(found)


@pytest.mark.parametrize("name", ["pairs.zip", "pairs.7z"])
def test_an_archive_of_another_kind_is_refused_with_what_to_do(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\3\4")
    for dataset in (tmp_path, tmp_path / name):
        with pytest.raises(ValueError, match=rf"{name} is an archive; unpack it and give the folder"):
            imported(dataset)


# --- Several instructions or captions ---------------------------------------------------------------------


@pytest.mark.parametrize("write", [foreign.parquet, foreign.arrow, foreign.json_lines])
@pytest.mark.parametrize(
    "given",
    [["make it snow", " ", "add  snow"], [{"text": "make it snow"}, {"text": "add snow"}]],
    ids=["list", "texts"],
)
def test_each_of_several_instructions_is_a_pair_and_the_first_caption_counts(tmp_path, write, given):
    write_pictures(str(tmp_path / "images"))
    row = by_path(0) | {"instruction": given, "source_caption": ["", "a cat"], "edited_caption": ["a dog", "the dog"]}
    ending = {foreign.parquet: "parquet", foreign.arrow: "arrow", foreign.json_lines: "jsonl"}[write]
    write(str(tmp_path / f"train.{ending}"), [row])
    found = imported(tmp_path, rank_rate=0.4, test_rate=0.4)
    assert instructions(found) == ["make it snow", "add snow"]
    assert {(row["source_caption"], row["edited_caption"]) for row in found} == {("a cat", "a dog")}
    assert len({row["pair_id"] for row in found}) == 2
    assert len({row["split"] for row in found}) == 1


def test_instructions_and_their_inverses_belong_together(tmp_path):
    several = {"edit": ["add a hat", "make it snow"], "inverse_edit": ["remove the hat", "melt the snow"]}
    foreign.parquet(str(tmp_path / "train.parquet"), [foreign.hq_edit(1) | several])
    found = imported(tmp_path)
    assert [(row["instruction"], row["inverse_instruction"]) for row in found] == [
        ("add a hat", "remove the hat"), ("make it snow", "melt the snow"),
    ]  # fmt: skip


# --- One broken part among many ---------------------------------------------------------------------------


def test_one_broken_file_among_many_costs_itself(root):
    for number in range(4):
        foreign.parquet(storage.join(root, f"train-{number}.parquet"), [foreign.clip_filtered(10 * number)])
    storage.write_bytes(storage.join(root, "train-1.parquet"), b"")
    whole = storage.read_bytes(storage.join(root, "train-2.parquet"))
    storage.write_bytes(storage.join(root, "train-2.parquet"), whole[:-20])
    foreign.parquet(storage.join(root, "train-4.parquet"), [{"image": b"1", "text": "e"}] * 5)
    found = imported(root)
    assert [row["source_caption"] for row in found if isinstance(row, dict)] == ["a cat 0", "a cat 30"]
    assert drops(found) == ["file_unreadable", "file_unreadable", "columns_unknown"]
    assert all(f"train-{number}.parquet" in samples(found) for number in (1, 2, 4))
    assert Counted({"rows_not_read": 4}) in found


@pytest.mark.parametrize("doubled", ["mask", "edit_prompt"])
def test_a_name_that_two_columns_have_is_none_s(tmp_path, doubled):
    table = pa.Table.from_pylist([foreign.embedded(foreign.clip_filtered(1) | {"mask": 1})])
    table = pa.Table.from_arrays([*table.columns, table[doubled]], names=[*table.column_names, doubled])
    pq.write_table(table, tmp_path / "train-0.parquet")
    with pa.ipc.new_stream(tmp_path / "train-0.arrow", table.schema) as writer:
        writer.write_table(table)
    for file in (tmp_path / "train-0.parquet", tmp_path / "train-0.arrow"):
        dataset_digest(str(file), ".")
        if doubled == "mask":
            assert instructions(imported(file)) == ["make it a dog"]
        else:
            with pytest.raises(ValueError, match=r"1 columns_unknown\n.*edit_prompt, .*edit_prompt, as no known"):
                imported(file)


def test_one_broken_row_group_costs_itself(tmp_path):
    file = tmp_path / "train.parquet"
    foreign.parquet(str(file), [foreign.clip_filtered(10 * number) for number in range(6)])  # two a group
    column = pq.ParquetFile(file).metadata.row_group(1).column(2)
    data = bytearray(file.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + 30] = bytes(30)
    file.write_bytes(data)
    found = imported(tmp_path)
    assert [row["source_caption"] for row in found if isinstance(row, dict)] == [f"a cat {n}" for n in (0, 10, 40, 50)]
    assert drops(found) == ["row_group_unreadable"]
    assert "train.parquet, row group 1 cannot be read" in samples(found)
    assert Counted({"rows_not_read": 1}) in found


def test_a_row_with_text_that_is_no_utf8_costs_itself(tmp_path):
    rows = [foreign.embedded(foreign.clip_filtered(10 * number)) for number in range(4)]
    table = pa.Table.from_pylist(rows)
    wrong = pa.array([b"e", b"\xff\xfe", b"e", b"e"]).view(pa.string())
    table = table.set_column(table.schema.get_field_index("edit_prompt"), "edit_prompt", wrong)
    pq.write_table(table, tmp_path / "train.parquet")
    found = imported(tmp_path)
    assert [row["source_caption"] for row in found if isinstance(row, dict)] == [f"a cat {n}" for n in (0, 20, 30)]
    assert drops(found) == ["row_unreadable"]
    assert "train.parquet, row 1: " in samples(found)


def test_an_arrow_file_that_was_cut_off_gives_the_rows_before_the_damage(tmp_path):
    table = pa.Table.from_pylist([foreign.embedded(foreign.clip_filtered(10 * number)) for number in range(4)])
    with pa.ipc.new_stream(tmp_path / "train-0.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=1)
    with pa.ipc.new_file(tmp_path / "train-1.arrow", table.schema) as writer:  # of pyarrow's own, no stream
        writer.write_table(table.slice(3))
    data = (tmp_path / "train-0.arrow").read_bytes()
    (tmp_path / "train-0.arrow").write_bytes(data[: len(data) * 5 // 8])
    found = imported(tmp_path)
    assert [row["source_caption"] for row in found if isinstance(row, dict)] == ["a cat 0", "a cat 10", "a cat 30"]
    assert "train-0.arrow, from row 2 on cannot be read" in samples(found)


def test_one_broken_line_of_any_kind_costs_itself(tmp_path):
    write_pictures(str(tmp_path), 9)
    (tmp_path / "3_b.png").unlink()
    (tmp_path / "4_b.png").write_bytes(b"")
    (tmp_path / "5_b.png").write_bytes(b"not a picture")
    rows = [json.dumps(line(number, source_image="a", edited_image="b")).encode() for number in range(9)]
    rows[1], rows[2] = b'{"instruction": "cut', b'{"instruction": "\xff"}'
    rows[6], rows[7] = b'{"text": "e", "source_image": "0_a.png", "edited_image": "0_b.png"}', b"7"
    rows[8] = rows[8].replace(b"circle 8", "circle\u2028 \\ud83d 8".encode())
    (tmp_path / "mine.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(rows))
    found = imported(tmp_path / "mine.jsonl")
    assert instructions(found) == [BLUE[0], "make circle \ufffd 8 blue"]
    assert drops(found) == [
        "not_json", "not_utf8", "picture_missing", "picture_missing", "picture_unreadable", "keys_missing",
        "not_an_object",
    ]  # fmt: skip
    assert all(f"mine.jsonl, line {number}" in samples(found) for number in range(2, 9))
    assert len(found) == 9


def test_prompt_folders_lose_what_is_broken_and_nothing_else(tmp_path):
    words = {"input": "a cat", "edit": "make it a dog", "output": "a dog"}
    for number in range(6):
        foreign.prompt_folder(str(tmp_path), f"{number}", words, ["1", "2"], [{"seed": 1, "p2p_threshold": 0.25}])
    (tmp_path / "1" / "prompt.json").write_text('{"edit": ')
    (tmp_path / "2" / "prompt.json").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "3" / "prompt.json").write_text("[1]")
    (tmp_path / "4" / "metadata.jsonl").write_text('{"seed": 1, "p2p_thr\n{"seed": 2, "p2p_threshold": 0.75}')
    (tmp_path / "5" / "1_0.jpg").write_bytes(b"")
    (tmp_path / "5" / "2_1.jpg").unlink()
    entries = [[str(number), ["1", "2"]] for number in range(6)]
    entries += ["0", [["0"], ["1"]], ["../elsewhere", ["1"]], ["0", ["../../1"]]]
    (tmp_path / "seeds.json").write_text(json.dumps(entries))
    found = imported(tmp_path)
    assert instructions(found) == ["make it a dog"] * 4  # of the folders 0 and 4
    assert drops(found) == [
        "prompt_unreadable", "prompt_unreadable", "keys_missing", "metadata_unreadable", "picture_missing",
        "picture_missing", "entry_unfit", "entry_unfit", "picture_outside", "picture_outside",
    ]  # fmt: skip
    assert [row["shared_attention"] for row in found if isinstance(row, dict)][3] == 0.75
    assert "4/metadata.jsonl, line 1" in samples(found)


def test_a_seeds_file_that_is_broken_is_named(tmp_path):
    for content in (b"[[", b"{}", b"\xff"):
        (tmp_path / "seeds.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"seeds\.json (cannot be read|holds a dict)"):
            imported(tmp_path)


def test_an_import_that_keeps_less_than_it_should_stops_with_the_reasons(tmp_path):
    foreign.parquet(str(tmp_path / "train-0.parquet"), [foreign.clip_filtered(10 * number) for number in range(4)])
    foreign.parquet(str(tmp_path / "train-1.parquet"), [{"image": b"1", "text": "e"}] * 5)
    assert len(instructions(imported(tmp_path, least_kept=0.4))) == 4
    with pytest.raises(Stopped, match=r"4 of the pairs .* share .* 0\.5: 4 rows_not_read, 1 columns_unknown"):
        imported(tmp_path, least_kept=0.5)


def test_a_picture_that_cannot_be_read_is_named_by_its_row_and_a_damaged_exif_is_no_damage(tmp_path):
    write_pictures(str(tmp_path), 4)
    (tmp_path / "2_a.png").write_bytes((INPUTS / "phone_damaged_exif.webp").read_bytes())
    (tmp_path / "3_a.png").write_bytes(picture(1)[:-30])
    foreign.json_lines(str(tmp_path / "mine.jsonl"), [line(n, source_image="a", edited_image="b") for n in range(4)])
    found = imported(tmp_path / "mine.jsonl")
    assert instructions(found) == BLUE[:3]
    assert drops(found) == ["picture_unreadable"]
    assert "mine.jsonl, line 4: source picture" in samples(found)


def test_prompts_lose_what_is_broken_and_nothing_else(tmp_path):
    write_pictures(str(tmp_path / "evaluation"))
    lines = [
        b'{"instruction": "make it snow", "source_img": "0_a.png"}', b'{"instruction"', b"[1]", b'{"text": "e"}',
        b'{"instruction": "make it rain", "source_img": "../../a.png"}', b'{"instruction": "\\ud83d", "source_img": 3}',
        b'{"instruction": ["one", "two"], "source_img": "1_a.png"}', b'{"instruction": " ", "source_img": "1_a.png"}',
    ]  # fmt: skip
    (tmp_path / "test.jsonl").write_bytes(b"\n".join(lines))
    rows = list(read_prompts(Importing(prompts=str(tmp_path / "test.jsonl"))))
    kept = [row for row in rows if isinstance(row, dict)]
    to_table(kept, PROMPTS)
    assert [row["instruction"] for row in kept] == ["make it snow", "one", "two"]
    assert drops(rows) == [
        "not_json", "not_an_object", "keys_missing", "picture_outside", "picture_is_no_file", "instruction_missing",
    ]  # fmt: skip
    foreign.json_lines(str(tmp_path / "nothing.jsonl"), [{"instruction": "e", "source_img": "x.png"}])
    with pytest.raises(ValueError, match=r"none of the prompts of .*nothing\.jsonl can be kept: 1 picture_missing\n"):
        list(read_prompts(Importing(prompts=str(tmp_path / "nothing.jsonl"))))


@pytest.mark.parametrize("name", ["mine.jsonl", "mine.jsonl.gz", "mine.csv"])
def test_a_text_file_that_cannot_be_read_to_its_end_gives_the_lines_before(tmp_path, name):
    write_pictures(str(tmp_path))
    rows = [line(number, source_image="a", edited_image="b") for number in range(4)]
    if name == "mine.csv":
        as_csv(str(tmp_path / "good"), rows)
        (tmp_path / name).write_text((tmp_path / "good" / "metadata.csv").read_text(), encoding="utf-16")
    elif name == "mine.jsonl":
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-16")
    else:
        noise = "".join(json.dumps({"comment": os.urandom(3000).hex()}) + "\n" for _ in range(50))
        text = "".join(json.dumps(row) + "\n" for row in rows) + noise
        (tmp_path / name).write_bytes(gzip.compress(text.encode())[:-2000])
        found = imported(tmp_path / name)
        assert instructions(found) == BLUE
        assert drops(found)[-1] == "file_unreadable"
        assert "mine.jsonl.gz cannot be read to its end" in samples(found)
        return
    with pytest.raises(ValueError, match=r"1 file_unreadable\n.* is UTF-16 text, and UTF-8 is wanted"):
        imported(tmp_path / name)


@pytest.mark.parametrize("format", WRITERS)
def test_a_photograph_that_lies_on_its_side_is_upright_in_every_export(tmp_path, format):
    """Also for readers that do not look at its orientation."""
    levels = np.zeros((8, 24, 3), dtype=np.uint8)
    levels[:, :8] = 250
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees to the right
    Image.fromarray(levels).save(buffer, "JPEG", quality=95, exif=exif)
    rows = [foreign.clip_filtered(0, original_image=buffer.getvalue())]
    foreign.parquet(str(tmp_path / "dataset" / "train.parquet"), rows)
    (row,) = imported(tmp_path / "dataset")
    pair = {name: row.get(name, 0.0) for name in PAIRS.names}
    WRITERS[format](str(tmp_path / "out"), [pair], PAIRS, 10**6)
    (back,) = imported(tmp_path / "out")
    with Image.open(io.BytesIO(back["source_image"])) as image:
        assert image.getexif().get(0x0112, 1) == 1
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape == (24, 8, 3)
    assert pixels[:6].min() > 200
    assert pixels[10:].max() < 50
