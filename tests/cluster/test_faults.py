"""Nodes, disks and stores that fail while a table is made: it ends up as the undisturbed one, byte for byte."""

import random
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
import ray
from ray.cluster_utils import Cluster

from hive_ray import storage
from hive_ray.artifacts.building import build_table, write_rows
from hive_ray.artifacts.manifest import Manifest, table_digest
from hive_ray.cluster.mapping import map_table
from hive_ray.cluster.starting import start_ray
from hive_ray.config import Resources

pytestmark = pytest.mark.ray

SCHEMA = pa.schema(
    [pa.field("number_id", pa.string(), nullable=False), pa.field("text", pa.string(), nullable=False)],
    metadata={"table": "numbers", "id": "number_id"},
)
COUNT, PER_SHARD = 96, 4


class Slow:
    """Maps a row in `seconds`, to a text of `size` bytes that do not pack."""

    def __init__(self, device: str, seconds: float, size: int):
        self.seconds, self.size = seconds, size

    def __call__(self, rows):
        time.sleep(self.seconds * len(rows))
        return [row | {"text": row["text"] + noise(row["number_id"], self.size)} for row in rows]


def noise(name: str, size: int) -> str:
    return random.Random(name).randbytes(size // 2).hex()


def build(folder: str, *, out="out", seconds=0.05, size=64, **resources) -> Manifest:
    """The table <folder>/<out>, made of <folder>/in."""
    source = storage.join(folder, "in")
    rows = [{"number_id": f"n{number}", "text": "x"} for number in range(COUNT)]
    write_rows(source, SCHEMA, rows, {"count": COUNT})
    plan = Resources(**({"num_actors": 2, "num_gpus": 0, "batch_size": 2} | resources))
    return build_table(
        storage.join(folder, out),
        SCHEMA,
        {"in": table_digest(source), "size": size},
        lambda: map_table(
            source, SCHEMA, Slow, produces=SCHEMA, resources=plan, rows_per_shard=PER_SHARD, seconds=seconds, size=size
        ),
    )


def contents(folder: str, manifest: Manifest, out="out") -> list[bytes]:
    return [storage.read_bytes(storage.join(folder, out, name)) for name in manifest.files]


def shards_written(folder: str, out="out") -> int:
    data = storage.join(folder, out, "data")
    return sum(name.endswith(".parquet") for name in storage.list_files(data))


def wait_until(condition) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def by_value():
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test file


@pytest.fixture(scope="module")
def cluster(by_value, shared_cluster):
    """A cluster whose workers can import this file."""


def test_a_pool_that_may_grow_makes_the_same_table(tmp_path, cluster):
    manifest = build(str(tmp_path), num_actors=4, least_actors=1)
    fixed = build(str(tmp_path), out="fixed", num_actors=1)
    assert contents(str(tmp_path), manifest) == contents(str(tmp_path), fixed, "fixed")


def test_an_s3_that_fails_and_goes_away_for_a_while_costs_time_alone(faulty_s3, cluster):
    s3_root, faulty_s3.rate = faulty_s3.root, 0.05
    with ThreadPoolExecutor(1) as pool:
        building = pool.submit(build, s3_root)
        wait_until(lambda: shards_written(s3_root) >= 3)
        faulty_s3.fail_for(4.0)
        manifest = building.result(120)
    faulty_s3.rate = 0.0
    assert faulty_s3.failed > 10
    assert (manifest.rows_out, manifest.dropped) == (COUNT, {})
    assert contents(s3_root, manifest) == contents(s3_root, build(s3_root, out="undisturbed"), "undisturbed")


def test_a_node_may_go_and_another_come(tmp_path, by_value, monkeypatch):
    ray.shutdown()  # of the shared cluster
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        cluster.wait_for_nodes()
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        start_ray()

        with ThreadPoolExecutor(1) as pool:  # Ray adds nodes from the main thread alone
            building = pool.submit(build, str(tmp_path), seconds=0.1)
            wait_until(lambda: shards_written(str(tmp_path)) >= 4)
            cluster.remove_node(nodes[0], allow_graceful=False)
            cluster.add_node(num_cpus=1)
            manifest = building.result(120)
        undisturbed = build(str(tmp_path), out="undisturbed", seconds=0.0)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert (manifest.rows_out, manifest.dropped) == (COUNT, {})
    assert contents(str(tmp_path), manifest) == contents(str(tmp_path), undisturbed, "undisturbed")


FULL = """
    import sys
    sys.path[:0] = {paths}
    from importlib.util import module_from_spec, spec_from_file_location
    spec = spec_from_file_location("test_faults", {file})
    faults = module_from_spec(spec)
    sys.modules["test_faults"] = faults
    spec.loader.exec_module(faults)
    faults.ray.cloudpickle.register_pickle_by_value(faults)
    faults.start_ray(num_cpus=2)
    import subprocess
    from hive_ray.artifacts.manifest import read_manifest
    from hive_ray.errors import Stopped
    try:
        faults.build({disk}, seconds=0.0, size=20_000)
    except Stopped as stopped:
        print(stopped)
    print("finished", read_manifest({disk} + "/out") is not None, faults.shards_written({disk}))
    subprocess.run(["mount", "-o", "remount,size=20M", {disk}], check=True)
    manifest = faults.build({disk}, seconds=0.0, size=20_000)
    undisturbed = faults.build({disk}, out="undisturbed", seconds=0.0, size=20_000)
    print("rows", manifest.rows_out, manifest.dropped)
    print("same", faults.contents({disk}, manifest) == faults.contents({disk}, undisturbed, "undisturbed"))
"""


def test_a_full_disk_stops_the_stage_in_words_and_a_larger_one_lets_it_go_on(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    code = textwrap.dedent(FULL).format(paths=sys.path, file=repr(__file__), disk=repr(str(disk)))
    mount = f"mount -t tmpfs -o size=1M none {disk}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    (tmp_path / "full.py").write_text(code)
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f"{mount} && exec {sys.executable} {tmp_path / 'full.py'}"],
        capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "No space left on device" in done.stdout
    assert "what is finished stays: fix the cause and run again" in done.stdout
    assert "finished False" in done.stdout
    assert f"rows {COUNT} {{}}" in done.stdout
    assert "same True" in done.stdout
