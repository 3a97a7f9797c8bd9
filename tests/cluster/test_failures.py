"""A job whose cluster is lost ends soon, with 1, and says that the same command goes on."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from local_server import free_port
from ray.exceptions import ActorDiedError, NodeDiedError, RaySystemError, RayTaskError, RpcError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from hive_ray.cluster import failures
from hive_ray.cluster.failures import RESUME_HINT, explain_ray_error

ROOT = Path(__file__).parents[2]


def raised(cause: Exception) -> RayTaskError:
    return RayTaskError("work", "Traceback ...", cause)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            NodeDiedError("node 1 died.\nmore"),
            f"Stopped: the cluster failed: NodeDiedError: node 1 died. {RESUME_HINT}",
        ),
        (ActorDiedError(), "Stopped: the cluster failed: ActorDiedError: The actor died unexpectedly"),
        (RaySystemError("the store is full"), "the store is full"),
        (RpcError("unreachable"), "RpcError: unreachable"),
        (WorkerGroupError("lost", {0: ActorDiedError()}), "Stopped: training lost its workers: ActorDiedError"),
        (ControllerError(NodeDiedError("node 1 died")), "Stopped: training was lost: NodeDiedError: node 1 died"),
        (raised(ValueError("too few rows")), "ValueError: too few rows"),
        (raised(OSError("no space")), "OSError: no space"),
    ],
)
def test_what_ray_raises_is_told_in_a_sentence(error, words):
    assert words in explain_ray_error(error)
    assert "\n" not in explain_ray_error(error)


@pytest.mark.parametrize(
    "error",
    [
        raised(KeyError("a bug")),
        ActorDiedError(raised(KeyError("a bug in a constructor"))),
        WorkerGroupError("failed", {0: KeyError("a bug"), 1: ActorDiedError()}),
        WorkerGroupError("failed", {}),
        KeyError("a bug"),
    ],
)
def test_bugs_keep_their_traceback(error):
    assert explain_ray_error(error) is None


def test_a_head_that_is_away_for_long_is_lost_and_one_that_comes_back_is_not(monkeypatch):
    monkeypatch.setattr(failures, "HEAD_TIMEOUT_S", 0.5)
    port = free_port()
    what_is_lost = failures._head_at(f"127.0.0.1:{port}")
    assert what_is_lost() == ""
    time.sleep(0.3)
    with socket.create_server(("127.0.0.1", port)):
        assert what_is_lost() == ""
    time.sleep(0.3)
    assert what_is_lost() == ""  # away for 0.3 s again
    time.sleep(0.3)
    assert what_is_lost() == f"its head at 127.0.0.1:{port} has not answered for 0.5 s"


def started(folder: Path) -> subprocess.Popen:
    """A stage of many rows; what it says goes to <folder>/log."""
    command = [sys.executable, "-m", "jobs.write_instructions", "shapes", "--run", str(folder / "run")]
    command += ["--instructions.num-captions", "40000"]
    with (folder / "log").open("w") as log:
        return subprocess.Popen(
            command, cwd=ROOT, env=os.environ | {"RAY_ADDRESS": ""}, stdout=log, stderr=log, start_new_session=True
        )


def wait_for(found: Callable[[], list], job: subprocess.Popen, folder: Path) -> list:
    """What is found, once there is something."""
    until = time.monotonic() + 200
    while not (seen := found()):
        assert job.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < until
        time.sleep(0.05)
    return seen


def parts(job: subprocess.Popen, name: str) -> list[psutil.Process]:
    return [child for child in psutil.Process(job.pid).children() if child.name() == name]


@pytest.mark.ray
def test_a_raylet_that_dies_as_ray_starts_is_not_waited_for(tmp_path):
    job = started(tmp_path)
    [raylet] = wait_for(lambda: parts(job, "raylet"), job, tmp_path)
    raylet.kill()
    assert job.wait(60) == 1
    assert "Ray's raylet ended" in last_words(tmp_path / "log")


@pytest.mark.ray
@pytest.mark.parametrize("part", ["gcs_server", "raylet"])
def test_a_stage_whose_cluster_dies_says_that_the_same_command_goes_on(tmp_path, part):
    job = started(tmp_path)
    wait_for(lambda: list(tmp_path.glob("run/instructions/data/*")), job, tmp_path)
    [victim] = parts(job, part)
    victim.kill()
    assert job.wait(60) == 1
    said = last_words(tmp_path / "log")
    assert said.splitlines()[-1].startswith("Stopped: the ")
    assert said.endswith("What is finished stays: the same command goes on from there")
    assert "core_worker.cc:2465" not in said


def last_words(log: Path) -> str:
    """What a job has said, once what is told after its end is there, too."""
    until = time.monotonic() + 10
    while not (said := log.read_text().rstrip()).endswith("goes on from there") and time.monotonic() < until:
        time.sleep(0.1)
    return said


@pytest.mark.ray
def test_ctrl_c_ends_a_stage_with_a_sentence_and_what_is_finished_stays(tmp_path):
    job = started(tmp_path)
    finished = wait_for(lambda: list(tmp_path.glob("run/instructions/data/part-*")), job, tmp_path)
    os.killpg(job.pid, signal.SIGINT)  # as a terminal does: Ray's processes, too
    assert job.wait(60) == 130
    said = last_words(tmp_path / "log")
    assert "Stopped by Ctrl-C. What is finished stays: the same command goes on from there" in said.splitlines()
    assert all(file.exists() for file in finished)
