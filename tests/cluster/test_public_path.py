"""HIVE_RAY_ONE_MACHINE=0: a table and trainings by public API of Ray alone, with what the special paths make."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import lines
import pytest
import ray
import torch
from lines import interrupt_when_awaited, log, train, training, weights, write_points
from ray.util import placement_group_table

from hive_ray.cluster.starting import start_ray
from hive_ray.cluster.switch import SPECIAL_PATHS, SWITCH_VARIABLE, takes_special_path
from hive_ray.config import Resources
from tests.cluster import test_faults as faults
from tests.cluster import test_fitting as fitting

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
LONGEST_S = 300.0


def test_public_api_alone_makes_the_same_table_and_training_and_imports_no_internals(tmp_path, monkeypatch):
    monkeypatch.setenv("HIVE_RAY_CACHE", str(tmp_path / "cache"))
    special, public = tmp_path / "special", tmp_path / "public"
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    command = [sys.executable, str(ROOT / "tests" / "public_path.py"), str(public)]
    environment = os.environ | {SWITCH_VARIABLE: "0", "PYTHONPATH": paths}
    alone = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LONGEST_S)
    assert alone.returncode == 0, alone.stderr
    seen = json.loads(alone.stdout.splitlines()[-1])
    assert seen["special"] == []
    # Ray itself listens on the loopback address alone; public API does not keep PyTorch's rendezvous from the others.
    assert {name for name in seen["reachable"] if not name.startswith("ray::RayTrain")} == set()

    for module in (lines, faults):
        ray.cloudpickle.register_pickle_by_value(module)  # workers cannot import a test file
    start_ray(num_cpus=3)
    try:
        assert all(map(takes_special_path, SPECIAL_PATHS))
        made = faults.build(str(special), seconds=0.0)
        write_points(special)
        train(special)
    finally:
        ray.shutdown()
    assert faults.contents(str(public), made) == faults.contents(str(special), made)
    assert log(public) == log(special)
    for name, weight in weights(public).items():
        assert torch.equal(weight, weights(special)[name])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    for module in (lines, fitting):
        ray.cloudpickle.register_pickle_by_value(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HIVE_RAY_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv(SWITCH_VARIABLE, "0")
        start_ray(num_cpus=4)
        yield
        ray.shutdown()


def test_a_worker_that_dies_as_it_is_handed_its_work_leaves_its_place_to_the_next_try(tmp_path, cluster, capfd):
    write_points(tmp_path)
    whole = Resources(num_actors=2, num_gpus=0, num_cpus=2)  # all of the cluster
    train(tmp_path, settings=training(workers=whole), breaks=fitting.DiesOnArrival(str(tmp_path / "flag")))
    assert "line: a worker died as it started; all start again" in capfd.readouterr().out
    assert log(tmp_path)[-1]["images"] == 48
    until = time.monotonic() + 30
    while {group["state"] for group in placement_group_table().values()} != {"REMOVED"}:
        assert time.monotonic() < until
        time.sleep(0.2)


def test_ctrl_c_is_a_keyboard_interrupt_and_later_ones_are_the_callers(tmp_path, cluster):
    write_points(tmp_path)
    go = tmp_path / "go"
    handler = signal.getsignal(signal.SIGINT)
    interrupt_when_awaited(go)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, awaits=str(go))
    assert signal.getsignal(signal.SIGINT) is handler
    go.touch()
    train(tmp_path, awaits=str(go))
    assert log(tmp_path)[-1]["images"] == 48
