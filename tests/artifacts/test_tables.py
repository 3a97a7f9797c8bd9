import dataclasses
import json
import sys
import time
from pathlib import Path

import drivers
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from hive_ray import config, storage
from hive_ray.artifacts import building
from hive_ray.artifacts.building import Mapped, build_table, write_rows, write_shard
from hive_ray.artifacts.manifest import Manifest, count_rows, fingerprint_of, read_manifest, table_digest
from hive_ray.artifacts.selection import read_rows, select
from hive_ray.cluster.mapping import map_table
from hive_ray.config import Resources
from hive_ray.errors import ContractError
from hive_ray.presets import shapes
from hive_ray.schemas import Counted, Dropped
from hive_ray.seeds import id_for


def schema(name: str) -> pa.Schema:
    fields = [pa.field("word_id", pa.string(), nullable=False), pa.field("size", pa.int64(), nullable=False)]
    return pa.schema(fields, metadata={"table": name, "id": "word_id"})


WORDS, SIZED = schema("words"), schema("sized")
MADE = {"words.seed": 0}


def words(count: int) -> list[dict]:
    return [{"word_id": f"w{index:04d}", "size": index} for index in range(count)]


class SlowDoubler:
    """Every row twice, but each third row is dropped; notes every call that it starts."""

    def __init__(self, device: str, seconds: float, calls: str):
        self.seconds, self.calls = seconds, calls

    def __call__(self, rows):
        with open(self.calls, "a") as stream:
            stream.writelines(f"{row['word_id']}\n" for row in rows)
        time.sleep(self.seconds)
        made = []
        for row in rows:
            if row["size"] % 3 == 2:
                made.append(Dropped("third"))
            else:
                made += [{"word_id": f"{row['word_id']}-{copy}", "size": row["size"]} for copy in "ab"]
        return made


class InDriver:
    """A plan that needs no cluster: three rows a shard, some time for each."""

    rows_in, rows_per_shard = 30, 3

    def __init__(self, seconds: float):
        self.seconds = seconds

    def run(self, path, shards):
        for number in shards:
            time.sleep(self.seconds)
            mapped = Mapped.of(words(30)[3 * number : 3 * number + 3])
            yield write_shard(path, number, mapped, WORDS, rows_in=3)


def build_in_driver(folder: Path, seconds: float, out: str = "sized"):
    return build_table(str(folder / out), WORDS, MADE, lambda: InDriver(seconds))


def kill_when_three_shards_are_written(data: Path, act, *arguments, cluster: str = "") -> dict[str, int]:
    """Runs a driver, kills it with SIGKILL half-way; the files that it left, each with its inode."""
    driver = drivers.start(act, *arguments, cluster=cluster)
    drivers.kill_when(lambda: len(list(data.glob("part-*"))) >= 3, driver)
    left = {part.name: part.stat().st_ino for part in data.glob("part-*")}
    assert len(left) >= 3
    return left


def same_but_for_the_clock(one: Manifest, other: Manifest) -> bool:
    return dataclasses.replace(one, seconds=0, rows_timed=0) == dataclasses.replace(other, seconds=0, rows_timed=0)


def build_sized(folder: Path, *, out: str = "sized", actors: int = 2, batch: int = 2, seconds: float = 0.0):
    return build_table(
        str(folder / out),
        SIZED,
        {"sized.copies": 2},
        lambda: map_table(
            str(folder / "words"), WORDS, SlowDoubler, produces=SIZED, rows_per_shard=4,
            resources=Resources(num_actors=actors, num_gpus=0, num_cpus=1, batch_size=batch),
            seconds=seconds, calls=str(folder / f"calls-{out}"),
        ),
    )  # fmt: skip


def build_slowly(folder: Path):
    return build_sized(folder, seconds=0.25)


@pytest.fixture(scope="module")
def cluster(shared_cluster):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test file
    return shared_cluster


def write_words(path: Path, count: int = 10, made=MADE, **options) -> Manifest:
    return write_rows(str(path), WORDS, words(count), made, **options)


def test_written_rows_are_read_back_in_order(tmp_path):
    manifest = write_words(tmp_path, 3000)

    assert list(read_rows(str(tmp_path), WORDS)) == words(3000)
    assert count_rows(str(tmp_path)) == 3000
    assert (manifest.rows_in, manifest.rows_out, manifest.dropped) == (3000, 3000, {})
    assert manifest.file_rows == [1024, 1024, 952]
    assert read_manifest(str(tmp_path)) == manifest


def test_columns_and_rows_can_be_chosen(tmp_path):
    write_words(tmp_path, 2000)
    odd = {"size": lambda size: size % 1000 == 7}

    assert list(read_rows(str(tmp_path), WORDS, ["size"], where=odd)) == [{"size": 7}, {"size": 1007}]
    assert len(select(str(tmp_path), WORDS, where={"word_id": "w0003"})) == 1
    assert select(str(tmp_path), WORDS, limit=5).read(3, 9).to_pylist() == words(5)[3:]


def test_a_file_of_small_rows_is_opened_once_and_one_with_pictures_for_each_group(tmp_path, monkeypatch):
    opened, opening = [], storage.open_parquet
    monkeypatch.setattr(storage, "open_parquet", lambda path: opened.append(path) or opening(path))
    write_words(tmp_path / "words", 100)
    assert list(read_rows(str(tmp_path / "words"), WORDS)) == words(100)
    assert len(opened) == 1
    pictures = pa.schema([*WORDS, pa.field("picture", pa.large_binary(), nullable=False)], metadata=WORDS.metadata)
    rows = [row | {"picture": b"p"} for row in words(100)]
    write_rows(str(tmp_path / "pictures"), pictures, rows, {})
    opened.clear()
    assert list(read_rows(str(tmp_path / "pictures"), pictures)) == rows
    assert len(opened) == 4  # groups of 32
    opened.clear()
    assert [row["size"] for row in read_rows(str(tmp_path / "pictures"), pictures, ["size"])] == [*range(100)]
    assert len(opened) == 1


def test_dropped_rows_are_counted_by_reason(tmp_path):
    rows = [*words(2), Dropped("blank"), Dropped("blank"), Dropped("long")]
    manifest = write_rows(str(tmp_path), WORDS, rows, MADE)

    assert (manifest.rows_in, manifest.rows_out, manifest.dropped) == (5, 2, {"blank": 2, "long": 1})


def test_numbers_that_are_counted_are_summed_and_survive_a_shard(tmp_path):
    rows = [*words(2), Counted({"tokens": 3, "dollars": 0.5}), Counted({"tokens": 4})]
    manifest = write_rows(str(tmp_path), WORDS, rows, MADE)

    assert (manifest.rows_out, manifest.counts) == (2, {"dollars": 0.5, "tokens": 7})
    assert [shard.counts for shard in building._written_shards(str(tmp_path))] == [manifest.counts]


def test_a_table_from_the_same_settings_is_kept_untouched(tmp_path, capsys):
    first = write_words(tmp_path)
    never = (pytest.fail("rows were made again") for _ in range(1))

    assert write_rows(str(tmp_path), WORDS, never, MADE) == first
    assert "words: kept, 10 rows (nothing changed)" in capsys.readouterr().out


def test_other_settings_are_refused_by_name_and_value_or_rebuilt(tmp_path):
    write_words(tmp_path)
    with pytest.raises(FileExistsError, match=r"words.seed was 0, is 1.*--rebuild"):
        write_words(tmp_path, made={"words.seed": 1})

    assert write_words(tmp_path, 4, made={"words.seed": 1}, on_mismatch=r"rebuild").rows_out == 4


def test_a_folder_that_is_no_table_is_never_written_over(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"move it away"):
        write_words(tmp_path, on_mismatch=r"rebuild")


def test_an_unfinished_table_cannot_be_read(tmp_path):
    write_words(tmp_path)
    (tmp_path / "manifest.json").unlink()
    for read in (count_rows, table_digest, lambda path: list(read_rows(path, WORDS))):
        with pytest.raises(FileNotFoundError, match=r"has no manifest.json: the job that makes it has not finished"):
            read(str(tmp_path))


def test_a_table_of_another_name_is_a_broken_contract(tmp_path):
    write_words(tmp_path)
    with pytest.raises(ContractError, match=r"holds the table 'words', but 'sized' was wanted"):
        next(read_rows(str(tmp_path), SIZED))


def test_the_fingerprint_names_each_setting_and_leaves_out_what_only_changes_speed():
    pairs = shapes().pairs
    made = fingerprint_of(pairs, instructions="abc")

    assert (made["pairs.seed"], made["input.instructions"]) == (0, "abc")
    assert made["pairs.guidance_scale"] == [3.0, 4.0]
    assert not any("resources" in key for key in made)
    other = {"resources": Resources(num_actors=64), "inspection": config.Inspection(num_shown=1)}
    faster = pairs.model_copy(update=other)
    assert fingerprint_of(faster, instructions="abc") == made


def test_settings_that_came_later_leave_the_fingerprint_of_pairs_as_it_was():
    def digest(**changed) -> str:
        return id_for(json.dumps(fingerprint_of(config.Pairs(base="x", **changed)), sort_keys=True))

    assert digest() == digest(single_file=config.SingleFile()) == "448f58aecf8ada8e"
    others = [{"tokenizer": "owner/name"}, {"prediction_type": "v_prediction"}]
    assert digest() not in {digest(single_file=other) for other in others}


def test_a_digest_follows_what_the_table_was_made_from(tmp_path):
    for name, seed in {"a": 0, "b": 0, "c": 1}.items():
        write_words(tmp_path / name, made={"words.seed": seed})
    one, same, other = (table_digest(str(tmp_path / name)) for name in "abc")
    assert one == same != other


def test_a_killed_build_is_completed_and_no_finished_shard_is_made_twice(tmp_path, capsys):
    data = tmp_path / "sized" / "data"
    left = kill_when_three_shards_are_written(data, build_in_driver, tmp_path, 0.3)
    assert read_manifest(str(tmp_path / "sized")) is None

    manifest = build_in_driver(tmp_path, 0.0)

    assert "words: resumed" in capsys.readouterr().out
    assert len(left) < 10
    assert {name: (data / name).stat().st_ino for name in left} == left
    assert same_but_for_the_clock(manifest, build_in_driver(tmp_path, 0.0, out="undisturbed"))
    assert list(read_rows(str(tmp_path / "sized"), WORDS)) == words(30)


@pytest.mark.ray
def test_a_killed_ray_driver_leaves_a_table_that_the_next_run_completes_exactly_once(tmp_path, cluster, capsys):
    write_words(tmp_path / "words", 43)
    data = tmp_path / "sized" / "data"
    left = kill_when_three_shards_are_written(data, build_slowly, tmp_path, cluster=cluster)
    assert len(left) < 11
    assert read_manifest(str(tmp_path / "sized")) is None

    manifest = build_sized(tmp_path)
    undisturbed = build_sized(tmp_path, out="undisturbed", actors=1, batch=3)

    assert "sized: resumed" in capsys.readouterr().out
    assert count_rows(str(tmp_path / "sized")) == 2 * (43 - 14)
    assert same_but_for_the_clock(manifest, undisturbed)
    for name in manifest.files:
        assert (tmp_path / "sized" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()
    assert {name: (data / name).stat().st_ino for name in left} == left


def test_a_build_with_other_settings_does_not_go_on_with_an_unfinished_one(tmp_path):
    building._begin(str(tmp_path / "sized"), {"sized.copies": 3}, {"rows_in": 1, "rows_per_shard": 1})
    with pytest.raises(FileExistsError, match=r"sized.copies was 3, is 2"):
        build_sized(tmp_path)


def test_parquet_of_a_table_says_which_shard_it_is(tmp_path):
    shard = write_shard(str(tmp_path), 7, Mapped.of([*words(2), Dropped("x")]), WORDS, rows_in=3)
    file = pq.ParquetFile(storage.join(str(tmp_path), "data/part-00007.parquet"))
    assert file.schema_arrow.equals(WORDS)
    assert list(building._written_shards(str(tmp_path))) == [shard]


def test_several_tables_are_read_as_one(tmp_path):
    parts = [str(tmp_path / name) for name in ("one", "none", "two")]
    for path, rows in zip(parts, (words(3), [], words(5)[3:]), strict=True):
        write_rows(path, WORDS, rows, {"path": path}, rows_per_file=2)
    assert list(read_rows(parts, WORDS)) == words(5)
    selection = select(parts, WORDS, where={"word_id": lambda name: name > "w0001"}, limit=2)
    assert selection.read(0, 2).to_pylist() == words(4)[2:]
    assert len(select(parts[1], WORDS)) == 0
    assert table_digest(*parts) != table_digest(*parts[::-1]) != table_digest(parts[0])
