import importlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import yaml
from ray.cluster_utils import Cluster

from hive_ray.artifacts.building import write_rows
from hive_ray.cluster.starting import num_nodes, start_ray
from hive_ray.presets import shapes
from hive_ray.schemas import PROMPTS
from jobs import pipeline, sample_candidates
from jobs.command import JOBS, config_of, module_of, read_command
from jobs.run import (
    MADE_BY,
    Run,
    check_inputs,
    check_nodes_see,
    check_run_folder,
    inputs_of,
    job_that_makes,
    run_command,
    run_of,
    write_settings,
)


def started(arguments: list[str]) -> Run:
    """The run of a command line, with its settings in its folder."""
    command = read_command(arguments)
    run = run_of(command)
    write_settings(run.root, config_of(command))
    return run


@pytest.fixture
def first(tmp_path):
    return Run(str(tmp_path / "one"), shapes())


def test_a_later_round_makes_its_own_and_finds_the_rest_in_the_first(first):
    third = first.after().after()
    assert (third.number, third.root) == (3, f"{first.root}/rounds/3")
    own = ("candidates", "rankings", "thumbs", "reward", "rewards", "scored_pairs", "editors/finetuned", "summary.json")
    own += (
        "spreads",
        "chosen",
        "evaluation/sft",
        "evaluation/current",
        "curves/current",
        "pairs_of_mine",
        "metrics/editors/finetuned.jsonl",
    )
    assert all(third.path(name) == f"{first.root}/rounds/3/{name}" for name in own)
    shared = ("captions", "instructions", "pairs", "prompts", "latents", "imported", "answers", "editors/sft")
    shared += ("pairs/manifest.json", "metrics/editors/sft.jsonl")
    assert all(third.path(name) == f"{first.root}/{name}" for name in shared)


def test_a_round_starts_from_the_editor_that_the_one_before_made(first):
    second, third = first.after(), first.after("weighted").after()
    assert first.path("editors/current") == f"{first.root}/editors/sft"
    assert second.path("editors/current") == f"{first.root}/editors/finetuned"
    assert second.path("metrics/editors/current.jsonl") == f"{first.root}/metrics/editors/finetuned.jsonl"
    assert first.after("weighted").path("editors/current") == f"{first.root}/editors/weighted"
    assert third.path("editors/current") == f"{first.root}/rounds/2/editors/finetuned"


def test_whatever_is_drawn_from_the_same_prompts_has_another_seed_in_each_round(first):
    rounds = [first, first.after(), first.after().after()]
    for seed in (
        lambda one: one.candidates.seed,
        lambda one: one.choosing.seed,
        lambda one: one.rankings.seed,
        lambda one: one.editor.finetune.seed,
        lambda one: one.editor.dpo.training.seed,
        lambda one: one.editor.nft.training.seed,
    ):
        assert len({seed(one.config) for one in rounds}) == 3
    assert len({one.config.reward.training.seed for one in rounds}) == 1
    assert rounds[1].config.evaluation.editors == ("current", "sft", "shuffled", "finetuned")


def test_a_command_finds_a_round_by_its_folder_and_has_the_settings_of_its_run(first):
    flags = ["--candidates.num-edits", "3", "--rankings.annotator", "people", "--rankings.annotations", "first.jsonl"]
    run = started(["--run", first.root, *flags])
    second = started(["--run", f"{first.root}/rounds/2"])
    assert (second.config, second.root, second.number) == (run.after().config, run.after().root, 2)
    assert second.config.candidates.num_edits == 3
    assert second.config.rankings.annotations == ""  # the first round's speak of other edits
    assert second.path("pairs") == f"{first.root}/pairs"


def test_a_rounds_own_settings_file_gives_the_same_round_back(first):
    started(["--run", first.root, "--candidates.seed", "5"])
    folder = f"{first.root}/rounds/3"
    told = started(["--run", folder, "--rankings.annotations", "third.jsonl"])
    assert told.config.rankings.annotations == "third.jsonl"
    again = started(["--run", folder, "--config", f"{folder}/config.yaml"])
    assert again.config.candidates.seed == told.config.candidates.seed
    with open(f"{folder}/config.yaml") as file:
        assert yaml.safe_load(file)["candidates"]["seed"] == 5


def test_there_is_no_folder_of_the_first_round(first):
    started(["--run", first.root])
    with pytest.raises(ValueError, match="round 1 is the run folder"):
        started(["--run", f"{first.root}/rounds/1"])


def ended(*arguments: str) -> str:
    """What a job says as it ends before it has begun."""
    with pytest.raises(SystemExit) as caught:
        run_command(lambda run: pytest.fail("it was built"), read_command([*arguments]))
    assert not ray.is_initialized()
    return caught.value.code


def test_a_run_folder_among_a_ray_jobs_files_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    folder = tmp_path / "runtime_resources/working_dir_files/_ray_pkg_a1b2"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    said = ended("shapes", "--run", "runs/one")
    assert said.startswith(f"ValueError: the run folder {folder}/runs/one lies among the files that Ray keeps of a job")
    assert "s3://" in said
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("root", ["/tmp/_ray_pkg_0f", "/tmp/ray/runtime_resources/x", "/r/runtime_resources"])
def test_whatever_lies_there_is_refused(root):
    with pytest.raises(ValueError, match="lies among the files that Ray keeps"):
        check_run_folder(root)


@pytest.mark.parametrize("root", ["s3://bucket/_ray_pkg_a/one", "/data/my_runtime_resources/one", "/a_ray_pkg_1/b"])
def test_other_folders_are_taken(root):
    check_run_folder(root)


def test_a_run_folder_that_cannot_be_written_is_told_before_ray_is_started(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"the run folder .*/file/runs/one cannot be written: .*/file is no folder; give"):
        check_run_folder(str(tmp_path / "file" / "runs" / "one"))
    check_run_folder(str(tmp_path / "not" / "there" / "yet"))


def test_a_read_only_disk_is_told_before_ray_is_started(tmp_path):
    mount = f"mount -t tmpfs -o ro none {tmp_path}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a file system")
    job = f"{sys.executable} -m jobs.make_pairs shapes --run {tmp_path}/runs/one"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", f"{mount} && exec {job}"], capture_output=True, text=True)
    assert done.returncode == 1
    words = f"the run folder {tmp_path}/runs/one cannot be written: {tmp_path} is read-only for you; give another --run"
    assert done.stderr == f"OSError: {words}\n"


@pytest.mark.parametrize(
    ("name", "missing", "makes"),
    [
        ("make_pairs", "instructions", "write_instructions"),
        ("sample_candidates", "prompts", "make_pairs"),
        ("choose_candidates", "candidates", "sample_candidates"),
        ("train_reward", "rankings", "collect_rankings"),
    ],
)
def test_a_job_that_lacks_a_table_names_the_command_that_makes_it_before_ray_is_started(tmp_path, name, missing, makes):
    command = read_command(["shapes", "--run", str(tmp_path / "run")])
    module = importlib.import_module(module_of(name))
    with pytest.raises(SystemExit) as caught:
        run_command(lambda run: pytest.fail("it was built"), command, module)
    assert not ray.is_initialized()
    root = tmp_path / "run"
    makes = f"python -m jobs.{makes} --config {root}/config.yaml --run {root}"
    assert (root / "config.yaml").exists()
    assert caught.value.code == f"FileNotFoundError: {root}/{missing} is not finished; this makes it: {makes}"


def test_a_later_round_that_lacks_its_editor_names_the_training_of_the_round_before(first):
    write_rows(first.path("prompts"), PROMPTS, [], {}, may_be_empty=True)
    reads = inputs_of(sample_candidates, first)
    with pytest.raises(FileNotFoundError, match=rf"editors/sft is not finished; .*train_editor .*--run {first.root}$"):
        check_inputs(first, reads)
    with pytest.raises(FileNotFoundError, match=rf"/finetuned is not .*train_editor .*{first.root} --arm finetuned$"):
        check_inputs(first.after(), reads)


def test_what_stages_read_and_write_is_made_by_a_job():
    run = Run("nowhere", shapes().changed({"scoring": {"judges": ("model", "clip")}}))
    arms = ("scored", "nft", "rejection", "dpo")
    runs = [replace(run, config=run.config.changed({"editor": {"arm": arm}})) for arm in arms]
    stages = [stage for one in runs for stage in pipeline.declared(one)]
    names = {name for stage in stages for name in (stage.name, *stage.reads)}
    assert {*MADE_BY} - names <= {"imported", "reward_blip", "candidate_rewards_by_people"}
    for name in names:
        job, *flags = job_that_makes(name).split()
        assert job in JOBS
        if flags:
            assert flags[0] == "--arm"
    assert job_that_makes("editors/dpo") == "train_editor --arm dpo"
    assert job_that_makes("scored_pairs_weighted") == "score_pairs --arm weighted"
    with pytest.raises(KeyError):
        job_that_makes("nothing")


def test_each_table_is_made_by_the_job_whose_stage_declares_it():
    config = shapes().changed({"averaging": {"editors": ("dpo", "rejection")}, "reward": {"features": "both"}})
    run = Run("nowhere", config)
    declared = {name: importlib.import_module(module_of(name)) for name in JOBS}
    declared = {name: module for name, module in declared.items() if hasattr(module, "stages")}
    assert len(declared) > 10
    for name, module in declared.items():
        for arm in ("sft", "dpo", "rejection"):
            if name == "score_pairs" and arm != "sft":
                continue
            for stage in module.stages(replace(run, arm=arm)):
                if name == "import_pairs" and stage.name in ("pairs", "prompts"):
                    continue  # it makes them in place of make_pairs
                if name in ("average_editors", "reward_curve"):
                    continue  # theirs have the same names as trained ones
                assert job_that_makes(stage.name).split()[0] == name, stage.name


def test_a_cluster_that_is_not_there_is_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    said = ended("shapes", "--run", str(tmp_path / "run"))
    assert said.startswith("Stopped: the cluster at RAY_ADDRESS=nonsense cannot be joined: ")
    assert "Without RAY_ADDRESS the job starts a cluster on this machine" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.ray
def test_a_local_run_folder_is_refused_where_a_node_does_not_see_it(tmp_path, monkeypatch):
    """The second node has a file system of its own in place of `tmp_path / "local"`."""
    local = tmp_path / "local"
    local.mkdir()
    mount = f"mount -t tmpfs none {local}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a file system")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    start = f"{Path(sys.executable).parent}/ray start --address={cluster.address} --num-cpus=1 --block"
    with (tmp_path / "log").open("w") as log:
        node = subprocess.Popen(
            ["unshare", "-rm", "sh", "-c", f"{mount} && exec {start} --disable-usage-stats"],
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        start_ray()
        until = time.monotonic() + 150
        while num_nodes() < 2:
            assert time.monotonic() < until, (tmp_path / "log").read_text()
            time.sleep(0.2)
        with pytest.raises(
            ValueError, match=r"is seen by this machine, and not by .* of the cluster.*give --run s3://"
        ):
            check_nodes_see(str(local / "runs" / "one"))
        check_nodes_see(str(tmp_path / "shared" / "runs"))
        check_nodes_see("s3://bucket/runs/one")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["local", "log"]
        assert list(local.iterdir()) == []
    finally:
        os.killpg(node.pid, signal.SIGKILL)
        node.wait()
        ray.shutdown()
        cluster.shutdown()
