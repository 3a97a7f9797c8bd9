"""A kill between any two calls that change something loses nothing and leaves nothing: tests/kill_at_each_call.py."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from killing_s3 import KillingS3

from tests.kill_scenarios import SCENARIOS

TESTS = Path(__file__).parents[1]
LONGEST_S = 600


@pytest.fixture(scope="session")
def shim(tmp_path_factory) -> Path:
    """What counts system calls, compiled."""
    library = tmp_path_factory.mktemp("shim") / "kill_at_a_call.so"
    source = TESTS / "kill_at_a_call.cpp"
    subprocess.run(["g++", "-O1", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    return library


def run(arguments: list[str], **environment: str) -> dict:
    paths = os.pathsep.join(map(str, (TESTS.parent, TESTS)))
    environment = os.environ | {"PYTHONPATH": paths, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"} | environment
    command = [sys.executable, str(TESTS / "kill_at_each_call.py"), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LONGEST_S, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def folder(tmp_path):
    """In memory where this machine has a place for that: each file is synced, which takes a disk milliseconds."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as fast:
        yield Path(fast)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_kill_at_any_system_call_changes_nothing(scenario, shim, folder):
    told = run([scenario, str(folder / "disk")], LD_PRELOAD=str(shim))
    assert told["kills"] > 10
    assert told["wrong"] == []


@pytest.mark.parametrize("scenario", ["mapped_table", "model", "training"])
def test_a_kill_at_any_request_to_s3_changes_nothing(scenario, moto_address, tmp_path, monkeypatch):
    from conftest import bucket_for

    root = bucket_for(tmp_path, moto_address, monkeypatch)
    with KillingS3(moto_address) as door:
        told = run([scenario, str(tmp_path / "s3"), root, door.address], AWS_ENDPOINT_URL=door.address)
    assert told["kills"] >= 5
    assert told["wrong"] == []
