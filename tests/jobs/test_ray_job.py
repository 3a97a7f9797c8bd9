"""A stage goes out by `ray job submit`, unchanged, to a cluster of its own with real processes; and from a shell."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest
from llm_server import Chat
from local_server import free_port

from hive_ray.artifacts.manifest import read_manifest

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).parent / "ray")
SECRET = "sk-that-no-log-may-hold"

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The addresses of the dashboard and the head of a `ray start --head` cluster that has an endpoint of its own, its
    folder, and the environment that it was started in; stopped afterwards."""
    dashboard, port = free_port(), free_port()
    services = {"OPENAI_BASE_URL": "http://127.0.0.1:9/the-clusters-own", "OPENAI_API_KEY": "the-clusters-own"}
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_agent_register_timeout_ms": "300000"}
    folder = tempfile.mkdtemp(prefix="ray-job-", dir="/tmp")  # sockets allow no long paths
    head = [RAY, "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}"]
    head += [f"--dashboard-agent-listen-port={free_port()}"]  # else the same one for each cluster of a machine
    head += ["--num-cpus=4", "--include-dashboard=true", "--disable-usage-stats", f"--temp-dir={folder}"]
    with open(tmp_path_factory.mktemp("head") / "head.log", "w") as log:
        process = subprocess.Popen(head, env=environment | services, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{dashboard}"
    deadline = time.monotonic() + 200
    while not answers(f"{address}/api/jobs/") and time.monotonic() < deadline:
        time.sleep(0.2)
    yield address, f"127.0.0.1:{port}", folder, environment
    os.killpg(process.pid, signal.SIGKILL)  # it would take half a minute to go by itself
    process.wait(timeout=60)
    shutil.rmtree(folder, ignore_errors=True)


def answers(address: str) -> bool:
    """Whether a server answers at this address, with success."""
    try:
        with urllib.request.urlopen(address, timeout=20):
            return True
    except OSError:
        return False


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """What git would ship of the working tree: the packages alone."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("hive_ray", "jobs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "weights"))
    return folder


def submitted(cluster, checkout, *entrypoint: str, told: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    """Submit a job, with these variables in its runtime environment, and wait for it."""
    address, _, _, environment = cluster
    submit = [RAY, "job", "submit", "--address", address, "--working-dir", str(checkout)]
    if told:
        submit += ["--runtime-env-json", json.dumps({"env_vars": told})]
    deadline = time.monotonic() + 120
    while True:  # a head that has just been started has no agent for jobs yet
        done = subprocess.run(
            [*submit, "--", *entrypoint], env=environment, capture_output=True, text=True, timeout=300
        )
        if "No available agent" not in done.stderr or time.monotonic() > deadline:
            return done


def stage(run: str, writer: str = "shapes") -> list[str]:
    command = [sys.executable, "-m", "jobs.write_instructions", "shapes", "--run", run, "--instructions.writer", writer]
    return [*command, "--instructions.num-captions", "20", "--instructions.resources.num-actors", "1"]


def test_a_stage_runs_unchanged_as_a_ray_job(cluster, checkout, tmp_path):
    done = submitted(cluster, checkout, *stage(str(tmp_path / "run")))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "instructions: 20 rows" in done.stdout
    assert read_manifest(str(tmp_path / "run" / "instructions")).rows_out == 20


def test_a_run_folder_among_the_jobs_files_is_refused(cluster, checkout):
    done = submitted(cluster, checkout, *stage("runs/one"))
    assert done.returncode != 0
    assert "lies among the files that Ray keeps of a job, and goes with them: give --run s3://" in done.stdout


def test_what_the_job_and_its_shell_say_reaches_the_workers_and_the_shell_has_the_last_word(
    cluster, checkout, tmp_path
):
    told = {"OPENAI_API_KEY": "x", "OPENAI_BASE_URL": "http://127.0.0.1:9/of-the-job", "PYTHONPATH": "/nowhere"}
    with Chat() as chat:
        own = ["env", f"OPENAI_BASE_URL={chat.address}", "PYTHONPATH=."]
        done = submitted(cluster, checkout, *own, *stage(str(tmp_path / "run"), "openai"), told=told)
        assert done.returncode == 0, done.stdout + done.stderr
        assert chat.seen
    assert read_manifest(str(tmp_path / "run" / "instructions")).rows_in == 20


def test_what_a_shell_says_reaches_the_workers_of_a_cluster_that_it_joins_and_no_log(cluster, tmp_path):
    _, head, folder, environment = cluster
    with Chat() as chat:
        services = {"OPENAI_BASE_URL": chat.address, "OPENAI_API_KEY": SECRET}
        done = subprocess.run(
            stage(str(tmp_path / "run"), "openai"),
            env=environment | services | {"RAY_ADDRESS": head},
            cwd=ROOT, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert chat.seen
    logs = [path for path in Path(folder).rglob("*") if path.is_file() and "/logs/" in str(path)]
    assert logs
    assert not [path for path in logs if SECRET.encode() in path.read_bytes()]
