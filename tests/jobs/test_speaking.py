"""What real jobs, and their workers, say."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from terminal import run_on_terminal, screen

ROOT = Path(__file__).parents[2]
TRAINING = str(ROOT / "tests" / "speaking_training.py")

pytestmark = pytest.mark.ray


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    """Of a person's shell: no cluster to join, and this checkout."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("HIVE_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))


def run(*command: str) -> list[str]:
    """The lines on standard output; nothing may stand on standard error."""
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=200, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_a_job_says_one_object_of_json_a_line_and_under_quiet_its_result_alone(tmp_path):
    job = ("-m", "jobs.write_instructions", "shapes", "--run", str(tmp_path / "run"), "--instructions.num-captions=8")
    records = [json.loads(line) for line in run(*job, "--log-format", "json")]
    assert [(one["level"], one["stage"]) for one in records if one["level"] != "progress"] == [
        ("result", "captions"), ("result", "instructions"),
    ]  # fmt: skip
    assert records[-1]["message"].startswith("8 rows from 8 in ")
    assert run(*job, "--quiet") == ["instructions: kept, 8 rows (nothing changed)"]


def test_progress_of_training_workers_is_rewritten_on_the_drivers_terminal(tmp_path):
    status, written = run_on_terminal([sys.executable, TRAINING, str(tmp_path), "text"])
    assert status == 0
    assert written.count("/48 images, ") > 1
    assert "RayTrainWorker" not in written
    lines = [line for line in screen(written) if "Ray has been starting" not in line]
    assert lines[0].startswith("points: 20 rows from 20 in ")
    assert lines[1].startswith("line: trained on 48 images in ")
    assert lines[2:] == [
        f"line: each step's measures are in {tmp_path}/run/metrics/line.jsonl",
        f"line: curves: tensorboard --logdir {tmp_path}/run/tensorboard (pip install tensorboard)",
        "a library's words",
    ]


def test_training_workers_say_json_where_the_driver_does(tmp_path):
    records = [json.loads(line) for line in run(TRAINING, str(tmp_path), "json")]
    (trained,) = (one for one in records if one["message"].startswith("trained on 48 images in "))
    assert (trained["level"], trained["stage"]) == ("result", "line")
    assert trained["worker"].startswith("RayTrainWorker pid=")
    assert records[-1]["message"] == "a library's words"
    assert records[-1]["stage"] == "speaking_training"
