"""People rank in place of the simulated annotators: the pipeline waits for them, and goes on from what they said.

Its pairs are somebody else's, and it is the sd15 preset with everything small, on the CPU.
"""

import json
import runpy
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import foreign
import pytest
import yaml
from annotation_site import make_candidates
from tiny_models import tiny_clip, tiny_stable_diffusion
from tiny_settings import tiny_config
from work import hired

from hive_ray.annotation.models import RANK
from hive_ray.annotation.task_queue import AssignmentPolicy, TaskQueue
from hive_ray.artifacts.manifest import count_rows, read_manifest
from hive_ray.artifacts.selection import read_rows
from hive_ray.config import Preview, Resources
from hive_ray.errors import Stopped
from hive_ray.presets import sd15
from hive_ray.schemas import RANKINGS, SCORED_PAIRS
from jobs import collect_rankings, convert_editor, evaluate_editor, export_annotations, pipeline, train_editor
from jobs.command import read_command
from jobs.own_settings import Conversion
from jobs.run import Run, run_of, write_settings
from serve.annotate import prepare

pytestmark = pytest.mark.ray

NUM_PAIRS = 40


@pytest.fixture(scope="module", autouse=True)
def cluster(shared_cluster):
    """All of these tests use it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The models that a run starts from, a dataset to import, and settings that name them."""
    folder = tmp_path_factory.mktemp("people")
    base, clip = tiny_stable_diffusion(folder / "base"), tiny_clip(folder / "clip")
    foreign.parquet(str(folder / "dataset" / "train-0.parquet"), [foreign.hq_edit(2 * one) for one in range(NUM_PAIRS)])
    config = tiny_config(str(base), str(clip)).changed({
        "importing": {
            "dataset": str(folder / "dataset"), "clip": str(clip), "rank_rate": 0.3, "test_rate": 0.2,
            "drop_swapped": False, "resources": Resources(num_gpus=0, batch_size=8),
        },
        "rankings": dict(sd15().rankings),
        "editor": {"preview": Preview(num_inference_steps=1)},
        "evaluation": {"judge": "none", "curve_prompts": 0},
    })  # fmt: skip
    (folder / "settings.yaml").write_text(yaml.safe_dump(json.loads(config.model_dump_json())))
    return folder


@pytest.fixture(scope="module")
def stopped(folder) -> str:
    """Where the pipeline stopped for people, in its words; then they ranked, and the same command was given again."""
    with pytest.raises(Stopped) as stopped:
        pipeline.build(command(folder))
    run = command(folder)
    people_rank(run)
    export_annotations.build(run)
    pipeline.build(command(folder))
    return str(stopped.value)


def command(folder: Path) -> Run:
    run = run_of(read_command(["--config", str(folder / "settings.yaml"), "--run", str(folder / "run")]))
    write_settings(run.root, run.config)
    return run


def people_rank(run: Run) -> None:
    """Ada ranks all there is to rank, in the order in which it was made."""
    database, _ = prepare(run.root, run.config.annotation)
    desk, person = TaskQueue(database, AssignmentPolicy(RANK, 60.0)), hired(database, "Ada")
    while (showing := desk.next(person)) is not None:
        answer = {"ranks": [1 + place for place in showing.shown]}
        desk.submit(person, showing.assignment_id, f"{showing.assignment_id}", answer, 1.0)
    database.close()


@pytest.fixture
def ranked(tmp_path, monkeypatch) -> Run:
    """A run with candidates, and beside it, in this process's folder alone, a file of what somebody said of them."""
    monkeypatch.chdir(tmp_path)
    candidates = make_candidates("run", 3)
    said = [{"prompt_id": row["prompt_id"], "annotator": "Ada", "ranks": [4, 3, 2, 1]} for row in candidates]
    Path("said.jsonl").write_text("".join(json.dumps(line) + "\n" for line in said))
    rankings = sd15().rankings.model_copy(update={"annotations": "said.jsonl"})
    return Run(str(tmp_path / "run"), sd15().model_copy(update={"rankings": rankings}))


def test_a_file_of_rankings_is_read_where_the_job_runs_and_not_where_its_workers_do(ranked):
    collect_rankings.build(ranked)
    rows = list(read_rows(ranked.path("rankings"), RANKINGS))
    assert [(row["prompt_id"], row["annotator"], row["ranks"]) for row in rows] == [
        (f"p{number}", "Ada", [4, 3, 2, 1]) for number in range(3)
    ]


def test_each_line_of_a_file_that_fits_by_half_is_kept_or_named(ranked, capfd):
    candidates = make_candidates(f"{ranked.root}/two", 12)
    run = replace(ranked, root=f"{ranked.root}/two")
    good = [{"prompt_id": row["prompt_id"], "annotator": "Ada", "ranks": [1, 2, 3, 4]} for row in candidates[:10]]
    other = [{"prompt_id": f"f{number}", "annotator": "Ada", "order": ["x", "y"]} for number in range(10)]
    Path("said.jsonl").write_text("\n".join(map(json.dumps, other + good)))
    manifest = collect_rankings.build(run)
    assert (manifest.rows_in, manifest.rows_out, manifest.dropped) == (12, 10, {"unknown_prompt": 10})
    assert manifest.counts == {"lines": 20}
    assert len(manifest.samples["unknown_prompt"]) == 3
    assert "said.jsonl, line 1: prompt 'f0' is none of the 12 candidates" in manifest.samples["unknown_prompt"][0]
    assert "10 of 20 lines fit the candidates; left out: 10 unknown_prompt" in capfd.readouterr().out


def test_one_bad_line_of_three_people_costs_that_line(ranked):
    candidates = make_candidates(f"{ranked.root}/three", 10)
    run = replace(ranked, root=f"{ranked.root}/three")
    lines = [
        {"prompt_id": row["prompt_id"], "annotator": who, "order": [edit["edit_id"] for edit in row["edits"]]}
        for row in candidates
        for who in ("a", "b", "c")
    ]
    lines[4]["order"] = lines[4]["order"][:2]
    Path("said.jsonl").write_text("\n".join(map(json.dumps, lines)))
    manifest = collect_rankings.build(run)
    assert (manifest.rows_out, manifest.dropped, manifest.counts) == (29, {"other_edits": 1}, {"lines": 30})
    [sample] = manifest.samples["other_edits"]
    assert "said.jsonl, line 5: prompt p1: ranks the edits" in sample
    rows = list(read_rows(run.path("rankings"), RANKINGS, ["prompt_id", "annotator", "ranks"]))
    missing = {(line["prompt_id"], line["annotator"]) for line in lines} - {
        (row["prompt_id"], row["annotator"]) for row in rows
    }
    assert missing == {("p1", "b")}
    assert all(row["ranks"] == [1, 2, 3, 4] for row in rows)


def test_what_people_said_is_known_by_its_content_and_not_by_its_file(ranked, capfd):
    collect_rankings.build(ranked)
    shutil.copy("said.jsonl", ranked.path("annotations.jsonl"))
    collect_rankings.build(Run(ranked.root, sd15()))
    assert "rankings: kept" in capfd.readouterr().out


def test_the_pipeline_waits_for_people_and_the_same_command_goes_on(folder, stopped):
    run = command(folder)
    assert stopped.startswith(f"round 1 waits for people to rank {run.path('candidates')}: ")
    assert run.command("export_annotations") in stopped
    rows = list(read_rows(run.path("rankings"), RANKINGS, ["annotator", "ranks"]))
    assert len(rows) == count_rows(run.path("candidates")) > 0
    assert all(row == {"annotator": "Ada", "ranks": [1, 2, 3]} for row in rows)
    assert Path(run.path("summary.json")).exists()


def test_imported_pairs_take_the_place_of_written_and_made_ones(folder, stopped):
    run = command(folder)
    assert read_manifest(run.path("imported")).rows_out == NUM_PAIRS
    assert read_manifest(run.path("captions")) is read_manifest(run.path("instructions")) is None
    assert '<th scope="row">imported</th>' in Path(run.path("report.html")).read_text()


def test_a_run_with_imported_pairs_goes_on_from_them_where_no_dataset_is_named(folder, stopped, capfd):
    run = command(folder)
    pipeline.build(replace(run, config=run.config.changed({"importing": {"dataset": ""}})))
    printed = capfd.readouterr().out
    assert "[1/9 train_editor.build" in printed
    assert "editors/finetuned: kept" in printed


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")  # it is run once more
def test_the_command_that_is_named_for_a_missing_table_makes_it(folder, stopped, monkeypatch):
    with pytest.raises(FileNotFoundError) as missing:
        train_editor.build(command(folder), "weighted")
    _, _, said = str(missing.value).partition("python -m ")
    module, *flags = shlex.split(said)
    monkeypatch.setattr("sys.argv", [module, *flags])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__")
    assert not ended.value.code
    train_editor.training(command(folder), "weighted")
    weights = [row["weight"] for row in read_rows(command(folder).path("scored_pairs_weighted"), SCORED_PAIRS)]
    assert len(set(weights)) > 1


def test_a_released_editor_is_measured_alone_where_nothing_was_trained(folder, stopped, tmp_path):
    run = command(folder)
    config = run.config.changed({"evaluation": {"editors": ("released",)}})
    alone = Run(str(tmp_path / "run"), config, elsewhere={"prompts": run.path("prompts")})
    released = tiny_stable_diffusion(tmp_path / "released", in_channels=8)
    convert_editor.build(Conversion(checkpoint=str(released), folder=alone.path("editors/released")))
    summary = evaluate_editor.build(alone)
    assert [one["editor"] for one in summary["editors"]] == ["released"]
    assert list(summary["editors"][0]["metrics"]) == ["clip_image", "clip_direction"]
    assert (summary["differences"], summary["win_rates"]) == ({}, {})
    assert summary["warnings"] == [f"{alone.path('reward')} is no finished reward model: nothing is measured by one."]
    assert "released" in Path(alone.path("report.html")).read_text()
