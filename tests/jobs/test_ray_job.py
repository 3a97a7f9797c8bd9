"""A stage goes out by `ray job submit`, unchanged, to a cluster of its own with real processes."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from local_server import free_port

from hive_ray.distributed.tables import read_manifest

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).parent / "ray")


@pytest.fixture
def cluster(tmp_path):
    """The dashboard's address of a `ray start --head` cluster with a folder of its own, stopped afterwards."""
    dashboard, environment = free_port(), os.environ | {"RAY_AUTH_MODE": "disabled"}
    folder = tempfile.mkdtemp(prefix="ray-job-", dir="/tmp")  # sockets allow no long paths
    head = [RAY, "start", "--head", "--block", f"--port={free_port()}", f"--dashboard-port={dashboard}"]
    head += [f"--dashboard-agent-listen-port={free_port()}"]  # else the same one for each cluster of a machine
    head += ["--num-cpus=4", "--include-dashboard=true", "--disable-usage-stats", f"--temp-dir={folder}"]
    with open(tmp_path / "head.log", "w") as log:
        process = subprocess.Popen(head, env=environment, stdout=log, stderr=log, start_new_session=True)
    yield f"http://127.0.0.1:{dashboard}", environment
    os.killpg(process.pid, signal.SIGKILL)  # it would take half a minute to go by itself
    process.wait(timeout=60)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def checkout(tmp_path):
    """What git would ship of the working tree: the packages alone."""
    for name in ("hive_ray", "jobs"):
        shutil.copytree(
            ROOT / name, tmp_path / "checkout" / name, ignore=shutil.ignore_patterns("__pycache__", "weights")
        )
    return tmp_path / "checkout"


def submitted(command, environment):
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.ray
@pytest.mark.slow
def test_a_stage_runs_unchanged_as_a_ray_job(cluster, checkout, tmp_path):
    address, environment = cluster
    stage = [sys.executable, "-m", "jobs.write_instructions", "shapes", "--run", str(tmp_path / "run")]
    submit = [RAY, "job", "submit", "--address", address, "--working-dir", str(checkout), "--", *stage]
    submit += ["--instructions.num-captions", "20"]
    ready, deadline = [RAY, "job", "list", "--address", address], time.monotonic() + 120
    while subprocess.run(ready, env=environment, capture_output=True).returncode and time.monotonic() < deadline:
        time.sleep(1)
    # A head that has just been started has no agent for jobs yet.
    while "No available agent" in (done := submitted(submit, environment)).stderr and time.monotonic() < deadline:
        time.sleep(1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "instructions: 20 rows" in done.stdout
    assert read_manifest(str(tmp_path / "run" / "instructions")).rows_out == 20
