from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hive_ray import storage
from hive_ray.artifacts import dropped
from hive_ray.artifacts.building import Mapped, build_table, write_rows, write_shard
from hive_ray.artifacts.manifest import read_manifest
from hive_ray.artifacts.selection import read_rows, select
from hive_ray.cluster.mapping import MapTable, _ShardMapper
from hive_ray.config import Resources
from hive_ray.errors import ContractError
from hive_ray.schemas import Dropped

FIELDS = {"shot_id": pa.string(), "light": pa.float32(), "picture": pa.large_binary()}
SHOTS = pa.schema(
    [pa.field(name, kind, nullable=False) for name, kind in FIELDS.items()],
    metadata={"table": "shots", "id": "shot_id"},
)
MADE = {"shots.seed": 0}


def shots(count: int) -> list[dict]:
    return [{"shot_id": f"s{index:03d}", "light": index, "picture": b"p%d" % index} for index in range(count)]


class Sorter:
    """Keeps every fourth row and drops the others, dark ones with themselves and lost ones without."""

    def __init__(self, device: str):
        pass

    def __call__(self, rows):
        reasons = {1: "dark", 2: "dark", 3: "lost"}
        made = []
        for row in rows:
            reason = reasons.get(row["light"] % 4)
            whole = Dropped("dark", row=row) if reason == "dark" else Dropped("lost")
            made.append(whole if reason else row)
        return made


class InDriver:
    """A plan that needs no cluster: twelve rows a shard."""

    rows_in, rows_per_shard = 60, 12

    def run(self, path, shards):
        for number in shards:
            rows = Sorter("cpu")(shots(60)[12 * number : 12 * number + 12])
            yield write_shard(path, number, Mapped.of(dropped.strip_pictures(rows, SHOTS, 2)), SHOTS, rows_in=12)


def build(folder: Path) -> str:
    build_table(str(folder), SHOTS, MADE, InDriver)
    return str(folder)


def content(folder: Path) -> dict[str, bytes]:
    """Every Parquet file below a folder; hidden ones are the remains of killed writes."""
    files = [path for path in folder.rglob("*.parquet") if not path.name.startswith(".")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def names(rows) -> list[str]:
    return [row["shot_id"] for row in rows]


def test_the_first_of_each_reason_keep_their_pictures_and_the_others_their_numbers():
    mapped = Mapped.of(dropped.strip_pictures(Sorter("cpu")(shots(8)), SHOTS, 1))
    carried = [drop.row for drop in mapped.dropped if drop.row is not None]
    assert [set(row) for row in carried] == [set(FIELDS)] + [{"shot_id", "light"}] * 3
    assert [row["shot_id"] for row in mapped.rows] == ["s000", "s004"]
    assert mapped.dropped.count(Dropped("lost")) == 2


def test_what_was_dropped_lies_beside_the_table_and_not_in_it(tmp_path):
    path = build(tmp_path)
    assert names(read_rows(path, SHOTS)) == [f"s{index:03d}" for index in range(0, 60, 4)]
    assert read_manifest(path).dropped == {"dark": 30, "lost": 15}

    kept, lost = dropped.read_kept_and_dropped(path, read_manifest(path).files, SHOTS, ["light"])
    assert kept["light"].to_pylist() == list(range(0, 60, 4))
    assert lost["light"].to_pylist() == [index for index in range(60) if index % 4 in (1, 2)]


def test_examples_are_whole_and_come_from_every_shard_before_a_second_from_any(tmp_path):
    found = dropped.read_examples(build(tmp_path), 7)
    assert list(found) == ["dark"]
    assert names(found["dark"]) == ["s001", "s013", "s025", "s037", "s049", "s002", "s014"]
    assert found["dark"][0] == shots(2)[1] | {"reason": "dark"}


def test_no_file_holds_more_pictures_than_were_asked_for(tmp_path):
    build(tmp_path)
    files = sorted((tmp_path / dropped.EXAMPLES_FOLDER).iterdir())
    assert [pq.ParquetFile(file).metadata.num_rows for file in files] == [2] * 5
    assert "picture" not in pq.ParquetFile(tmp_path / dropped.DROPPED_FOLDER / "part-00000.parquet").schema_arrow.names


@pytest.mark.parametrize("last", ["data/part-00002.parquet", "__examples__/part-00003.parquet", "manifest.json"])
def test_a_build_that_is_killed_at_any_file_neither_loses_nor_doubles_an_example(tmp_path, monkeypatch, last):
    write = storage.write_bytes

    def killed(path, data):
        if path.endswith(last):
            raise KeyboardInterrupt
        write(path, data)

    with monkeypatch.context() as patched:
        patched.setattr(storage, "write_bytes", killed)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / "killed")
    build(tmp_path / "killed")
    assert content(tmp_path / "killed") == content(Path(build(tmp_path / "undisturbed")))


def test_a_table_without_anything_beside_it_has_no_examples(tmp_path):
    path = str(tmp_path)
    files = write_rows(path, SHOTS, shots(3), MADE).files
    assert dropped.read_examples(path, 3) == {}
    assert [len(found) for found in dropped.read_kept_and_dropped(path, files, SHOTS, ["light"])] == [3, 0]


def test_a_dropped_row_is_held_to_the_schema_as_well(tmp_path):
    with pytest.raises(ContractError, match=r"dropped shots.*missing \['light'\]"):
        write_shard(str(tmp_path), 0, Mapped.of([Dropped("dark", row={"shot_id": "a"})]), SHOTS, rows_in=1)


def test_of_very_many_files_some_are_looked_into_from_first_to_last():
    files = [str(number) for number in range(1000)]
    assert len(dropped.evenly_spaced(files)) <= dropped.MAX_FILES < 2 * len(dropped.evenly_spaced(files))
    assert int(dropped.evenly_spaced(files)[-1]) > 990
    assert dropped.evenly_spaced(files[:3]) == files[:3]
    assert dropped.evenly_spaced([]) == []


def test_batches_of_an_actor_do_not_change_which_examples_are_kept(tmp_path):
    write_rows(str(tmp_path / "shots"), SHOTS, shots(12), MADE)
    source = select(str(tmp_path / "shots"), SHOTS)
    for size in (1, 5, 12):
        one = Resources(num_gpus=0, batch_size=size)
        plan = MapTable(source, Sorter, SHOTS, one, {}, rows_per_shard=12, dropped_per_shard=2)
        (tmp_path / str(size)).mkdir()  # as the driver does, by building.json
        _ShardMapper(plan, str(tmp_path / str(size)))({"shard": [0]})
    assert len(content(tmp_path / "1")) == 3
    assert content(tmp_path / "1") == content(tmp_path / "5") == content(tmp_path / "12")
