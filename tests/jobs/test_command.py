"""The command line: what there is, what a job is asked, and what cannot be understood, at once."""

import os
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from hive_ray.choices import choose_one_of
from hive_ray.presets import PRESETS, shapes
from jobs.__main__ import main
from jobs.command import JOBS, TRAINED_ARMS, WRONG_USAGE, config_of, list_jobs, module_of, read_arguments, read_command
from jobs.train_editor import ARMS

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "ray", "diffusers", "transformers", "deepspeed", "scipy", "matplotlib")
MOST_LINES = 150
MOST_CPU_S = 1.5


def help_of(name: str, capsys, *flags: str) -> str:
    with pytest.raises(SystemExit) as ended:
        read_arguments(JOBS[name], ["--help", *flags], f"python -m {module_of(name)}")
    assert not ended.value.code
    return capsys.readouterr().out


def refused(name: str, capsys, *arguments: str) -> str:
    """What a job says of arguments that it cannot understand."""
    with pytest.raises(SystemExit) as ended:
        read_arguments(JOBS[name], list(arguments), f"python -m {module_of(name)}")
    assert ended.value.code == WRONG_USAGE
    told = capsys.readouterr()
    assert not told.out
    return told.err


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")


# --- Help -------------------------------------------------------------------------------------------------------------


def test_every_command_is_a_job_and_every_job_a_command():
    files = [*(ROOT / "jobs").glob("*.py"), *(ROOT / "studies").glob("*.py")]
    commands = {path.stem for path in files if "run_job(" in path.read_text()}
    assert commands - {"__main__", "command"} == {*JOBS}
    for name in JOBS:
        assert f'    run_job("{name}")\n' in (ROOT / f"{module_of(name).replace('.', '/')}.py").read_text()
        assert f"  {name.replace('_', '-')} " in list_jobs("hive-ray")


@pytest.mark.parametrize("name", JOBS)
def test_the_help_of_a_job_fits_on_a_few_pages_and_has_an_example_on_top(name, capsys):
    text = help_of(name, capsys)
    assert f"python -m {module_of(name)} {JOBS[name].example}".rstrip() in text.partition("--help")[0]
    if name != "pipeline":
        assert len(text.splitlines()) <= MOST_LINES


def test_the_help_of_a_job_shows_its_own_settings_with_the_presets_values(capsys):
    text = help_of("sample_candidates", capsys)
    assert "--candidates.num-edits" in text
    assert "--arm" in text
    assert "--pairs." not in text
    assert "--rounds" not in text
    assert "(default: 8)" in text
    with pytest.raises(SystemExit):
        read_arguments(JOBS["sample_candidates"], ["sd15", "--help"], "job")
    assert "(default: 50)" in capsys.readouterr().out


def test_all_flags_are_shown_where_they_are_asked_for(capsys):
    with pytest.raises(SystemExit):
        read_arguments(JOBS["make_pairs"], ["--help-all"], "job")
    text = capsys.readouterr().out
    for flag in ("--pairs.resolution", "--editor.nft.training.seed", "--reward.features", "--rounds", "--arm"):
        assert flag in text


def test_what_help_leaves_out_is_understood():
    command = read_command(["--editor.sft.watching.tracker", "none", "--reward.features", "blip"])
    assert command.editor.sft.watching.tracker == "none"
    assert command.reward.features == "blip"


@pytest.mark.parametrize("arguments", [["--help"], ["--arm", "dppo"], ["--editor.dpo.betta", "1"]])
def test_help_and_refusals_import_nothing_that_takes_long(arguments):
    loaded = f"import atexit, sys; atexit.register(lambda: print([m for m in {HEAVY} if m in sys.modules], {cpu}))"
    script = f"{loaded}; from jobs.command import run_job; run_job('train_editor', {arguments})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == (0 if arguments == ["--help"] else WRONG_USAGE), done.stderr
    modules, seconds = done.stdout.splitlines()[-1].rsplit(maxsplit=1)
    assert modules == "[]"
    assert float(seconds) < MOST_CPU_S


cpu = "sum(__import__('os').times()[:2])"
"""The seconds of CPU time that a process has taken."""


# --- Refusals ---------------------------------------------------------------------------------------------------------


def test_a_mistaken_word_is_answered_with_the_nearest():
    assert choose_one_of(["dpo", "nft"], "dppo") == "did you mean 'dpo'? Choose one of dpo, nft"
    assert choose_one_of(["dpo", "nft"], "xyz") == "choose one of dpo, nft"


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("train_editor", ["--arm", "dppo"], "arm 'dppo' is unknown; did you mean 'dpo'?"),
        ("train_editor", ["--arm", "dpo+level"], "arm 'level' is unknown; choose one of weighted, dpo, nft, rejection"),
        ("make_pairs", ["shape"], "preset 'shape' is unknown; did you mean 'shapes'?"),
        ("make_pairs", ["--pairs.resolutoin", "64"], "--pairs.resolution"),
        ("make_pairs", ["--pairs.resolution", "many"], "invalid literal for int"),
        ("export_pairs", ["--exporting.format", "webdatset"], "'webdataset'"),
        ("evaluate_editor", ["--evaluation.judge", "shape"], "'shapes'"),
        ("pipeline", ["--editor.arm", "weighted_dpo"], "'weighted+dpo' adds up the changes of both"),
        ("pipeline", ["--config"], "--config has no file after it"),
        ("pipeline", ["--config", "--run", "x"], "--config has no file after it"),
        ("pipeline", ["--config="], "--config has no file after it"),
        ("study", ["--sedes", "1"], "--seeds"),
    ],
)
def test_what_cannot_be_understood_is_answered_with_what_there_is(name, arguments, words, capsys):
    assert words in refused(name, capsys, *arguments)


def test_a_wrong_settings_file_is_told_with_its_line_and_nothing_is_made(tmp_path, capsys):
    settings = tmp_path / "settings.yaml"
    settings.write_text("pairs:\n  resolutoin: 64\n")
    said = refused("make_pairs", capsys, f"--config={settings}", "--run", str(tmp_path / "run"))
    assert f"python -m jobs.make_pairs: {settings}, line 2: there is no setting pairs.resolutoin" in said
    assert list(tmp_path.iterdir()) == [settings]


def test_the_arms_that_can_be_named_are_those_that_can_be_trained():
    assert {*TRAINED_ARMS} == {*ARMS}
    for arm in (*TRAINED_ARMS, "dpo+rejection"):
        assert read_command(["--arm", arm]).arm == arm


# --- Settings ---------------------------------------------------------------------------------------------------------


def test_a_command_without_a_preset_has_the_shapes_presets_settings(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    command = read_command([])
    assert config_of(command) == shapes()
    assert command.run == f"{tmp_path}/runs/quickstart"
    assert config_of(read_command(["sd15"])) == PRESETS["sd15"]()


# --- The console command ----------------------------------------------------------------------------------------------


def hive_ray(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "jobs", *arguments], capture_output=True, text=True, cwd=ROOT,
        env=os.environ | {"COLUMNS": "120"},
    )  # fmt: skip


def test_the_console_command_is_installed_by_its_name():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert EntryPoint("hive-ray", scripts["hive-ray"], "console_scripts").load() is main


def test_the_console_command_lists_the_jobs_and_does_one():
    assert hive_ray().stdout == list_jobs("python -m jobs") + "\n"
    done = hive_ray("choose-candidates", "--help")
    assert done.stdout.startswith("usage: python -m jobs choose-candidates [-h] [OPTIONS]\n")
    assert (done.returncode, done.stderr) == (0, "")
    wrong = hive_ray("make-pair")
    assert wrong.returncode == WRONG_USAGE
    assert wrong.stderr.startswith("python -m jobs: there is no job 'make-pair'; did you mean 'make-pairs'")
