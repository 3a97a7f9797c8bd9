"""How far a run is; and a run that was made before stages were declared, which is kept."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hive_ray import storage
from hive_ray.presets import SHAPES_WEIGHTS
from hive_ray.schemas import PROMPTS
from jobs import import_rankings, make_pairs, pipeline
from jobs.command import read_command
from jobs.run import Run, run_of
from jobs.stage import State, TableStage
from jobs.status import next_command, statuses_of, table

ROOT = Path(__file__).parents[2]
BEFORE = ROOT / "tests" / "data" / "run_before.json"
"""What a finished quickstart says of its tables and models, without their rows and weights: its settings, and what
decided each. Made before jobs/stage.py was there."""


@pytest.fixture
def before(tmp_path) -> Run:
    """The run of BEFORE."""
    root = tmp_path / "run"
    for name, content in json.loads(BEFORE.read_text().replace("SHAPES_WEIGHTS", str(SHAPES_WEIGHTS))).items():
        text = content if isinstance(content, str) else json.dumps(content)
        storage.write_text(str(root / name), text)
    run = run_of(read_command(["--config", str(root / "config.yaml"), "--run", str(root)]))
    note_what_the_shipped_rankings_are(run)
    return run


def note_what_the_shipped_rankings_are(run: Run) -> None:
    """As the run does once it has compared the rankings with its table: their files have other times here."""
    made_from = import_rankings.IMPORTED_RANKINGS_STAGE.finished(run).fingerprint
    note = {"was": made_from["input.content"], "is": import_rankings.content_of(run.config.importing)}
    storage.write_text(run.path("imported_rankings_seen.json"), json.dumps(note))


def states(run: Run) -> dict[str, State]:
    return {status.stage.name: status.state for status in statuses_of(run)}


def test_all_of_a_run_that_was_made_before_is_kept(before):
    statuses = statuses_of(before)
    assert [(one.stage.name, one.reason) for one in statuses if one.state != State.FINISHED] == []
    assert len(statuses) == 29
    assert next_command(before, statuses) == f"make serve EDITOR_FOLDER={before.root}/editors/finetuned"


def test_a_changed_setting_is_named_and_what_reads_the_table_is_stale_too(before):
    changed = replace(before, config=before.config.changed({"choosing": {"num_ranked": 100}}))
    statuses = {one.stage.name: one for one in statuses_of(changed)}
    assert statuses["chosen"].state == State.STALE
    assert statuses["chosen"].reason == "choosing.num_ranked was 480, is 100"
    assert statuses["rankings"].reason == "chosen will be made again"
    kept = [name for name, one in statuses.items() if one.state == State.FINISHED]
    assert "candidates" in kept
    assert "editors/rejection" not in kept  # its reward model learned from the rankings
    assert "editors/dpo" not in kept
    command = next_command(changed, list(statuses.values()))
    assert command == f"{changed.command('choose_candidates')} --rebuild"


def test_what_is_missing_and_what_is_begun_are_told(before):
    storage.remove_tree(before.path("pairs"))
    storage.remove_tree(before.path("candidates"))
    storage.write_text(before.path("candidates/building.json"), "{}")
    found = states(before)
    assert found["pairs"] == State.MISSING
    assert found["candidates"] == State.UNFINISHED
    assert found["editors/sft"] == State.STALE
    assert found["prompts"] == State.FINISHED
    statuses = statuses_of(before)
    assert next_command(before, statuses) == before.command("make_pairs")
    shown = table(before, statuses)
    [line] = [line for line in shown.splitlines() if line.startswith("pairs")]
    assert line.split() == ["pairs", "missing"]
    assert "    pairs will be made again" in shown.splitlines()


def test_the_command_shows_a_run_by_its_own_settings_and_starts_no_cluster(before):
    code = f"from jobs.__main__ import main; import sys; sys.argv = ['hive-ray', 'status', {before.root!r}]; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    [line] = [line for line in done.stdout.splitlines() if line.startswith("editors/dpo")]
    assert line.split()[:2] == ["editors/dpo", "finished"]
    assert "next:  make serve EDITOR_FOLDER=" in done.stdout
    assert "Ray" not in done.stdout + done.stderr


def test_each_manifest_of_a_stage_that_reads_nothing_is_read_once(before, monkeypatch):
    read = []
    reading = storage.read_json
    monkeypatch.setattr(storage, "read_json", lambda path: read.append(path) or reading(path))
    missing = replace(before, root=f"{before.root}-nothing")
    stage = TableStage(name="captions", schema=PROMPTS, fingerprint=lambda run: {})
    assert stage.status(missing).finished is None
    read.clear()
    table(before, [stage.status(before)])
    assert read == [before.path("captions/manifest.json")]


def test_a_folder_that_is_no_run_is_said(tmp_path):
    command = [sys.executable, "-m", "jobs.status", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert f"{tmp_path}/config.yaml is not there: name the folder of a run with --run" in done.stderr


def test_a_later_round_begins_with_the_candidates(before):
    names = [stage.name for stage in pipeline.declared(before.after())]
    assert names[:4] == ["candidates", "spreads", "chosen", "rankings"]
    assert "pairs" not in names


def test_a_stage_whose_input_is_not_there_names_the_command_that_makes_it(tmp_path):
    run = Run(str(tmp_path), pipeline_settings())
    stage = TableStage(name="prompts", schema=PROMPTS, reads=("instructions",), fingerprint=lambda run: {})
    with pytest.raises(FileNotFoundError, match=r"instructions is not finished; this makes it: .*write_instructions"):
        stage.make(run)
    assert make_pairs.PAIRS_STAGE.status(run).state == State.MISSING


def pipeline_settings():
    return run_of(read_command([])).config
