"""A kill between any two calls that change something loses nothing and leaves nothing: tests/kill_at_each_call.py."""

import json
import os
import select
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


@pytest.fixture(scope="module")
def killing(shim):
    """The process that kills: it has imported what all scenarios need."""
    paths = os.pathsep.join(map(str, (TESTS.parent, TESTS)))
    environment = os.environ | {"PYTHONPATH": paths, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, str(TESTS / "kill_at_each_call.py")],
        env=environment | {"LD_PRELOAD": str(shim)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    yield process
    process.communicate(timeout=LONGEST_S)


def run(killing: subprocess.Popen, arguments: list[str], **environment: str) -> dict:
    """What the process says of a scenario."""
    print(json.dumps({"arguments": arguments, "environment": environment}), file=killing.stdin, flush=True)
    answered, _, _ = select.select([killing.stdout], [], [], LONGEST_S)
    assert answered, f"{arguments[0]} takes longer than {LONGEST_S} s"
    result = json.loads(killing.stdout.readline())
    assert "failed" not in result, result["failed"]
    return result


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
def test_a_kill_at_any_system_call_changes_nothing(scenario, killing, folder):
    told = run(killing, [scenario, str(folder / "disk")])
    assert told["kills"] > 10
    assert told["wrong"] == []


@pytest.mark.parametrize("scenario", ["mapped_table", "model", "training"])
def test_a_kill_at_any_request_to_s3_changes_nothing(scenario, killing, moto_address, tmp_path, monkeypatch):
    from conftest import bucket_for

    root = bucket_for(tmp_path, moto_address, monkeypatch)
    with KillingS3(moto_address) as door:
        settings = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        settings["AWS_ENDPOINT_URL"] = door.address
        told = run(killing, [scenario, str(tmp_path / "s3"), root, door.address], **settings)
    assert told["kills"] >= 5
    assert told["wrong"] == []
