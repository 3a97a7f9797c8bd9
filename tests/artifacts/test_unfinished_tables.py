"""What a kill, a full disk or an empty result leaves of a table, and what the next run makes of it."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pytest

from hive_ray.artifacts.building import MAX_SAMPLE_CHARS, Mapped, build_table, write_rows, write_shard
from hive_ray.artifacts.manifest import Manifest, read_manifest
from hive_ray.errors import Stopped
from hive_ray.schemas import Dropped

FIELDS = [pa.field("word_id", pa.string(), nullable=False)]
WORDS = pa.schema(FIELDS, metadata={"table": "words", "id": "word_id"})
MADE = {"seed": 0}


def words(count: int) -> list[dict]:
    return [{"word_id": f"w{number}"} for number in range(count)]


def write(path: Path, rows=None, made=MADE, **options) -> Manifest:
    return write_rows(str(path), WORDS, words(4) if rows is None else rows, made, **options)


class Plan:
    """Two rows a shard, each as it is told."""

    rows_per_shard = 2

    def __init__(self, rows: list[dict]) -> None:
        self.rows, self.rows_in, self.made = rows, len(rows), []

    def run(self, path, shards):
        for number in shards:
            self.made.append(number)
            mapped = Mapped.of(self.rows[2 * number : 2 * number + 2])
            yield write_shard(path, number, mapped, WORDS, rows_in=2)


def build(path: Path, plan: Plan, **options) -> Manifest:
    return build_table(str(path), WORDS, MADE, lambda: plan, **options)


def drops(count: int, reason: str = "blank") -> list[dict]:
    return [Dropped(reason, sample=f"line {number}: it is blank") for number in range(count)]


def test_a_folder_with_nothing_but_an_unfinished_file_is_empty(tmp_path):
    (tmp_path / ".building.json.0a1b2c3d").touch()
    assert write(tmp_path).rows_out == 4


def test_remains_that_say_nothing_are_refused_or_made_again(tmp_path):
    write(tmp_path)
    for name in ("manifest.json", "building.json"):
        (tmp_path / name).unlink()
    with pytest.raises(FileExistsError, match=r"data/part-00000.parquet.*pass --rebuild"):
        write(tmp_path)
    assert write(tmp_path, on_mismatch="rebuild").rows_out == 4


@pytest.mark.parametrize("left", [b"", b'{"fingerpr', b"\0" * 10])
def test_a_manifest_that_the_disk_lost_is_written_again(tmp_path, left):
    made = build(tmp_path, Plan(words(4)))
    (tmp_path / "manifest.json").write_bytes(left)
    assert read_manifest(str(tmp_path)) is None
    again = Plan(words(4))
    assert build(tmp_path, again).files == made.files
    assert again.made == []


def test_a_removal_that_was_broken_off_is_gone_on_with(tmp_path):
    """As a kill leaves it: the manifest is gone, one shard too, and what is being made is still said."""
    build(tmp_path, Plan(words(4)))
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "data" / "part-00000.parquet").unlink()
    with pytest.raises(FileExistsError, match=r"seed was 0, is 1.*--rebuild"):
        write(tmp_path, made={"seed": 1})
    assert write(tmp_path, made={"seed": 1}, on_mismatch="rebuild").fingerprint == {"seed": 1}


def test_rows_of_this_process_are_read_again_by_rebuild(tmp_path):
    write(tmp_path)
    assert write(tmp_path, words(2)).rows_out == 4
    assert write(tmp_path, words(2), on_mismatch="rebuild").rows_out == 2


def test_a_table_that_keeps_no_row_is_not_finished_and_says_why(tmp_path):
    for _ in range(2):
        with pytest.raises(Stopped) as stopped:
            build(tmp_path, Plan(drops(4)))
        assert "words: 0 rows from 4; dropped: 4 blank" in str(stopped.value)
        assert "blank: line 0: it is blank" in str(stopped.value)
        assert "--rebuild" in str(stopped.value)
        assert read_manifest(str(tmp_path)) is None


def test_rebuild_makes_a_table_again_that_kept_no_row(tmp_path):
    with pytest.raises(Stopped):
        build(tmp_path, Plan(drops(4)))
    assert build(tmp_path, Plan(words(4)), on_mismatch="rebuild").rows_out == 4


def test_rows_of_this_process_that_are_all_dropped_are_no_table(tmp_path):
    with pytest.raises(Stopped, match=r"0 rows from 3; dropped: 3 blank"):
        write(tmp_path, drops(3))
    assert write(tmp_path, words(2)).rows_out == 2


def test_less_than_the_wanted_share_is_not_finished_until_less_is_wanted(tmp_path):
    rows = words(1) + drops(3)
    with pytest.raises(Stopped, match=r"1 rows from 4, and at least 50% are wanted \(least_kept\)"):
        build(tmp_path, Plan(rows), least_kept=0.5)
    lower = Plan(rows)
    assert build(tmp_path, lower, least_kept=0.25).rows_out == 1
    assert lower.made == []


def test_no_rows_in_make_an_empty_table(tmp_path):
    assert build(tmp_path / "built", Plan([])).rows_out == 0
    assert write(tmp_path / "written", []).rows_out == 0
    assert write(tmp_path / "may", drops(2), may_be_empty=True).dropped == {"blank": 2}


def test_a_reason_keeps_its_first_samples(tmp_path, capsys):
    rows = [*words(2), *drops(5), Dropped("long", sample="x" * 1000), Dropped("other")]
    manifest = write(tmp_path, rows, rows_per_file=2)
    assert manifest.samples == {
        "blank": [f"line {number}: it is blank" for number in range(3)],
        "long": ["x" * MAX_SAMPLE_CHARS],
    }
    assert read_manifest(str(tmp_path)).samples == manifest.samples
    assert "words: blank, such as line 0: it is blank" in capsys.readouterr().out


def test_a_manifest_of_before_there_were_samples_is_read(tmp_path):
    write(tmp_path)
    file = tmp_path / "manifest.json"
    old = json.loads(file.read_text())
    del old["samples"]
    file.write_text(json.dumps(old))
    assert read_manifest(str(tmp_path)).samples == {}
    assert write(tmp_path).rows_out == 4


def test_a_finished_table_has_no_half_written_files_of_processes_that_are_gone(tmp_path):
    plan = Plan(words(4))
    (tmp_path / "data").mkdir()
    left = tmp_path / "data" / ".part-00000.parquet.00000000-1-1-ab.unfinished"
    left.touch()
    os.utime(left, (0, 0))
    build(tmp_path, plan)
    assert not left.exists()
