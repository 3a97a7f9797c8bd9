import os
import signal
import sys

import pyarrow as pa
import pytest
import ray

from hive_ray.artifacts.building import build_table, write_rows
from hive_ray.artifacts.manifest import read_manifest, table_digest
from hive_ray.artifacts.selection import read_rows
from hive_ray.cluster import mapping
from hive_ray.cluster.mapping import map_rows, map_table
from hive_ray.cluster.starting import require_resources
from hive_ray.config import Resources
from hive_ray.errors import ContractError, Stopped
from hive_ray.schemas import Dropped

FIELDS = [pa.field("number_id", pa.string(), nullable=False), pa.field("value", pa.int64(), nullable=False)]
NUMBERS = pa.schema(FIELDS, metadata={"table": "numbers", "id": "number_id"})
SQUARES = pa.schema(FIELDS, metadata={"table": "squares", "id": "number_id"})


def numbers(count: int) -> list[dict]:
    return [{"number_id": f"n{value}", "value": value} for value in range(count)]


class Squarer:
    """Squares values; raises on those in `poison`, whatever batch they come in."""

    def __init__(self, device: str = "cpu", poison: tuple[int, ...] = ()):
        assert device == "cpu"
        self.poison = poison

    def __call__(self, rows):
        for row in rows:
            if row["value"] in self.poison:
                raise ValueError(f"{row['value']} is poison")
        return [row | {"value": row["value"] ** 2} for row in rows]


class DiesOnce:
    """Kills its own process on the first row 9 that it ever meets."""

    def __init__(self, device: str, flag: str):
        self.flag = flag

    def __call__(self, rows):
        if any(row["value"] == 9 for row in rows) and not os.path.exists(self.flag):
            open(self.flag, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return rows


class Stopper(Squarer):
    """Will not go on past the row 8."""

    def __call__(self, rows):
        if any(row["value"] == 8 for row in rows):
            raise Stopped("enough at 8")
        return super().__call__(rows)


class Absent(Squarer):
    """Cannot be loaded where its file is not there."""

    def __init__(self, device: str, file: str):
        super().__init__(device)
        with open(file):
            pass


class Teller(Squarer):
    """Says what its process has in the environment."""

    def __call__(self, rows):
        names = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "AWS_ENDPOINT_URL")
        raise Stopped(" ".join(f"{name}={os.environ.get(name)}" for name in names))


class Misspeller:
    def __init__(self, device: str):
        pass

    def __call__(self, rows):
        return [{"number_id": row["number_id"], "valeu": row["value"]} for row in rows]


@pytest.fixture(scope="module")
def cluster(shared_cluster):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test file


def build(folder, actor=Squarer, *, count=20, out="squares", actors=2, batch=4, where=None, limit=None, **kwargs):
    source = str(folder / "numbers")
    write_rows(source, NUMBERS, numbers(count), {"count": count})
    resources = Resources(num_actors=actors, num_gpus=0, num_cpus=1, batch_size=batch)
    return build_table(
        str(folder / out),
        SQUARES,
        {"numbers": table_digest(source)},
        lambda: map_table(
            source, NUMBERS, actor, produces=SQUARES, resources=resources, where=where, limit=limit,
            rows_per_shard=6, **kwargs,
        ),
    )  # fmt: skip


def values(folder) -> list[int]:
    return [row["value"] for row in read_rows(str(folder / "squares"), SQUARES)]


@pytest.mark.ray
def test_an_actor_that_cannot_be_loaded_stops_the_stage_in_words_and_a_rerun_goes_on(tmp_path, cluster):
    file = tmp_path / "model"
    with pytest.raises(Stopped, match=r"squares cannot begin: FileNotFoundError: .*model"):
        build(tmp_path, Absent, file=str(file))
    file.touch()
    assert build(tmp_path, Absent, file=str(file)).rows_out == 20


@pytest.mark.ray
def test_actors_reach_the_services_of_who_plans_the_stage_and_no_others(tmp_path, cluster, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "the shell's")  # after the cluster was started
    monkeypatch.setenv("OPENAI_BASE_URL", "http://shell/v1")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with pytest.raises(Stopped) as stopped:
        build(tmp_path, Teller)
    words = "OPENAI_API_KEY=the shell's OPENAI_BASE_URL=http://shell/v1 AWS_ENDPOINT_URL=None"
    assert str(stopped.value) == words


def test_a_row_that_raises_does_not_take_its_batch_along():
    mapped = map_rows(Squarer(poison=(1,)), numbers(3))
    assert [row["value"] for row in mapped[::2]] == [0, 4]
    assert mapped[1] == Dropped("error: ValueError: 1 is poison")


def test_a_shard_of_large_pictures_has_fewer_rows(tmp_path, monkeypatch):
    pictures = pa.schema(
        [pa.field("picture_id", pa.string(), nullable=False), pa.field("image", pa.binary(), nullable=False)],
        metadata={"table": "pictures", "id": "picture_id"},
    )
    source = str(tmp_path / "pictures")
    rows = [{"picture_id": str(number), "image": os.urandom(10_000)} for number in range(40)]
    write_rows(source, pictures, rows, {})

    def rows_per_shard(most: int) -> int:
        plan = map_table(source, pictures, Squarer, produces=SQUARES, resources=Resources(), rows_per_shard=most)
        return plan.rows_per_shard

    assert rows_per_shard(256) == 256
    monkeypatch.setattr(mapping, "MAX_SHARD_BYTES", 100_000)
    assert rows_per_shard(256) == 8  # 10 kB each
    assert rows_per_shard(5) == 5
    monkeypatch.setattr(mapping, "MAX_SHARD_BYTES", 1)
    assert rows_per_shard(256) == 1


@pytest.mark.ray
def test_workers_do_not_stand_behind_whatever_else_runs_on_this_machine(cluster):
    @ray.remote
    def niceness() -> int:
        return os.nice(0)

    assert ray.get(niceness.remote(), timeout=60) == os.nice(0)


@pytest.mark.ray
def test_rows_keep_their_order_whatever_the_batch_size_and_the_number_of_actors(tmp_path, cluster):
    build(tmp_path, poison=(3, 11))
    build(tmp_path, poison=(3, 11), out="other", actors=1, batch=5)

    assert values(tmp_path) == [value**2 for value in range(20) if value not in (3, 11)]
    for name in read_manifest(str(tmp_path / "squares")).files:
        assert (tmp_path / "squares" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


@pytest.mark.ray
def test_rows_that_fail_are_counted_and_named_in_the_manifest(tmp_path, cluster):
    manifest = build(tmp_path, poison=(3, 11))
    assert (manifest.rows_in, manifest.rows_out) == (20, 18)
    assert manifest.dropped == {
        "error: ValueError: 3 is poison": 1,
        "error: ValueError: 11 is poison": 1,
    }


@pytest.mark.ray
def test_a_stage_that_mostly_fails_stops_with_the_first_error_and_can_be_run_again(tmp_path, cluster):
    with pytest.raises(RuntimeError, match=r"of 20 rows failed, the first with 'ValueError: .* is poison'"):
        build(tmp_path, poison=tuple(range(2, 20)))
    assert build(tmp_path).rows_out == 20


@pytest.mark.ray
def test_a_stage_that_must_not_go_on_stops_with_its_words_and_keeps_what_is_finished(tmp_path, cluster):
    with pytest.raises(Stopped, match=r"^enough at 8$"):
        build(tmp_path, Stopper, actors=1)
    manifest = build(tmp_path)
    assert (manifest.rows_out, manifest.dropped) == (20, {})


@pytest.mark.ray
def test_only_the_chosen_rows_are_mapped(tmp_path, cluster):
    manifest = build(tmp_path, where={"value": lambda value: value % 2 == 1}, limit=4)
    assert manifest.rows_in == 4
    assert values(tmp_path) == [1, 9, 25, 49]


@pytest.mark.ray
def test_an_actor_that_dies_is_replaced_and_no_row_is_lost(tmp_path, cluster):
    build(tmp_path, DiesOnce, flag=str(tmp_path / "flag"))
    assert values(tmp_path) == list(range(20))


@pytest.mark.ray
def test_an_actor_is_held_to_its_contract(tmp_path, cluster):
    with pytest.raises(Exception, match=r"missing \['value'\], unexpected \['valeu'\]") as caught:
        build(tmp_path, Misspeller)
    assert ContractError.__name__ in str(caught.value)


@pytest.mark.ray
def test_a_stage_that_could_never_be_placed_is_refused_with_both_numbers(cluster):
    with pytest.raises(
        ValueError, match=r"squares asks for 64 actors with 1 CPU each, 64 in all, but the cluster has 4"
    ):
        require_resources("squares", Resources(num_actors=64, num_gpus=0, num_cpus=1))
