"""Two runs side by side."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hive_ray import storage
from hive_ray.artifacts.building import write_rows
from hive_ray.presets import shapes
from hive_ray.schemas import CAPTIONS, Dropped
from jobs.compare import ABSENT, as_text, build
from jobs.own_settings import Comparison
from jobs.run import write_settings

ROOT = Path(__file__).parents[2]
INTERVAL = {"value": 0.5, "low": 0.4, "high": 0.6}
SUMMARY = {
    "baseline": "sft",
    "editors": [
        {"editor": "sft", "num_prompts": 4, "num_edits": 4, "metrics": {"right": INTERVAL}},
        {"editor": "finetuned", "num_prompts": 4, "num_edits": 8, "metrics": {"right": INTERVAL | {"value": 0.55}}},
    ],
    "differences": {"finetuned": {"right": {"value": 0.05, "low": -0.1, "high": 0.2}}},
}


def make_run(root: str, seed: int, kept: int, finished: bool) -> str:
    """A run folder with a table, and with an evaluation and models if it is `finished`."""
    write_settings(root, shapes().changed({"instructions": {"seed": seed}}))
    rows = [{"caption_id": f"c{number}", "caption": "a red ball"} for number in range(kept)]
    dropped = [Dropped("too long")] * (4 - kept)
    write_rows(storage.join(root, "captions"), CAPTIONS, rows + dropped, {})
    manifest = storage.read_json(storage.join(root, "captions/manifest.json"))
    storage.write_text(storage.join(root, "captions/manifest.json"), json.dumps(manifest | {"seconds": 0.1}))
    if finished:
        made = {"fingerprint": {}, "metrics": {"train/loss": 0.25, "images": 8}, "seconds": 90.0}
        storage.write_text(storage.join(root, "editors/sft/made.json"), json.dumps(made))
        storage.write_text(storage.join(root, "reward/card.json"), json.dumps({"held_out": {"reward/accuracy": 0.625}}))
        storage.write_text(storage.join(root, "reward/made.json"), json.dumps(made | {"metrics": {}, "seconds": 30.0}))
        storage.write_text(storage.join(root, "summary.json"), json.dumps(SUMMARY))
    return root


@pytest.fixture
def runs(root):
    """A finished run and one that has come to its first table."""
    return make_run(storage.join(root, "a"), 0, 4, True), make_run(storage.join(root, "b"), 7, 3, False)


def test_settings_that_differ_and_results_stand_side_by_side(runs, capsys):
    compared = build(Comparison(runs=runs))
    assert compared.sections["settings that differ"] == [("instructions.seed", "0", "7")]
    assert compared.sections["evaluation"] == [
        ("sft: edits of prompts", "4 of 4", ABSENT),
        ("sft: right", "0.500 [0.400, 0.600]", ABSENT),
        ("finetuned: edits of prompts", "8 of 4", ABSENT),
        ("finetuned: right", "0.550 [0.400, 0.600]; +0.050 from sft", ABSENT),
    ]
    assert compared.sections["tables"] == [
        ("captions", "4 rows from 4 in 0s", "3 rows from 4 in 0s"), ("captions: dropped, too long", ABSENT, "1"),
    ]  # fmt: skip
    assert compared.sections["models"] == [
        ("editors/sft", "made in 1m 30s", ABSENT),
        ("editors/sft: train/loss", "0.2500", ABSENT),
        ("reward", "made in 30s", ABSENT),
        ("reward: accuracy on held-out preferences", "0.625", ABSENT),
    ]
    assert compared.sections["time"] == [("tables and models together", "2m 0s", "0s")]
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"A: {runs[0]}", f"B: {runs[1]}"]
    (seeds,) = (line.split() for line in lines if "instructions.seed" in line)
    assert seeds == ["instructions.seed", "0", "7"]


def test_what_a_run_does_not_have_is_told(runs, capsys):
    compared = build(Comparison(runs=runs))
    assert compared.missing[0] == ()
    assert [words.partition(" ")[0] for words in compared.missing[1]] == ["evaluation", "models"]
    assert "   without evaluation (no summary.json: evaluate_editor has not finished)\n" in capsys.readouterr().out


def test_runs_that_are_alike_have_no_settings_that_differ(runs):
    assert "settings that differ: none" in as_text(build(Comparison(runs=(runs[0], runs[0]))))


def test_paths_in_the_run_folder_and_in_the_package_do_not_differ(runs):
    for run, checkout in zip(runs, ("/one", "/another/checkout"), strict=True):
        package = f"{checkout}/hive_ray/shapes"
        pairs = {"base": f"{package}/weights/base", "clip": f"{package}/nothing"}
        rankings = {"annotations": f"{run}/said.jsonl"}
        write_settings(run, shapes().changed({"pairs": pairs, "rankings": rankings}))
    assert build(Comparison(runs=runs)).sections["settings that differ"] == [
        ("pairs.clip", '"/one/hive_ray/shapes/nothing"', '"/another/checkout/hive_ray/shapes/nothing"')
    ]


def test_a_page_and_json_hold_the_same(runs, root, capsys):
    address = storage.join(root, "compared.html")
    build(Comparison(runs=runs, html=address, as_json=True))
    found = json.loads(capsys.readouterr().out)
    assert found["sections"]["settings that differ"] == [["instructions.seed", "0", "7"]]
    page = storage.read_text(address)
    for words in (*runs, "instructions.seed", "0.500 [0.400, 0.600]", "B is without evaluation"):
        assert words in page


def test_settings_of_another_version_are_compared_as_they_are(runs):
    file = storage.join(runs[1], "config.yaml")
    storage.write_text(file, "instructions: {seed: 7, bygone: 1}\n")
    changed = {
        name: (first, second) for name, first, second in build(Comparison(runs=runs)).sections["settings that differ"]
    }
    assert changed["instructions.bygone"] == (ABSENT, "1")
    assert changed["instructions.seed"] == ("0", "7")


def test_a_folder_that_is_no_run_is_refused_in_one_line(tmp_path):
    command = [sys.executable, "-m", "jobs", "compare", str(tmp_path), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.startswith(f"FileNotFoundError: {tmp_path} holds no config.yaml, no finished table and no model")
    assert len(done.stderr.splitlines()) == 1
