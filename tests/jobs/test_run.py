import pytest
import yaml

from hive_ray.presets import shapes
from jobs.run import Run, read_command


@pytest.fixture
def first(tmp_path):
    return Run(str(tmp_path / "one"), shapes())


def test_a_later_round_makes_its_own_and_finds_the_rest_in_the_first(first):
    third = first.after().after()
    assert (third.number, third.root) == (3, f"{first.root}/rounds/3")
    own = ("candidates", "rankings", "thumbs", "reward", "rewards", "scored_pairs", "editors/finetuned", "summary.json")
    own += (
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
        lambda one: one.rankings.seed,
        lambda one: one.editor.finetune.seed,
        lambda one: one.editor.dpo.training.seed,
    ):
        assert len({seed(one.config) for one in rounds}) == 3
    assert len({one.config.reward.training.seed for one in rounds}) == 1
    assert rounds[1].config.evaluation.editors == ("current", "sft", "finetuned")


def test_a_command_finds_a_round_by_its_folder_and_has_the_settings_of_its_run(first):
    flags = ["--candidates.num-edits", "3", "--rankings.annotator", "people", "--rankings.annotations", "first.jsonl"]
    run = read_command(["--run", first.root, *flags])
    second = read_command(["--run", f"{first.root}/rounds/2"])
    assert (second.config, second.root, second.number) == (run.after().config, run.after().root, 2)
    assert second.config.candidates.num_edits == 3
    assert second.config.rankings.annotations == ""  # the first round's speak of other edits
    assert second.path("pairs") == f"{first.root}/pairs"


def test_a_rounds_own_settings_file_gives_the_same_round_back(first):
    read_command(["--run", first.root, "--candidates.seed", "5"])
    folder = f"{first.root}/rounds/3"
    told = read_command(["--run", folder, "--rankings.annotations", "third.jsonl"])
    assert told.config.rankings.annotations == "third.jsonl"
    again = read_command(["--run", folder, "--config", f"{folder}/config.yaml"])
    assert again.config.candidates.seed == told.config.candidates.seed
    with open(f"{folder}/config.yaml") as file:
        assert yaml.safe_load(file)["candidates"]["seed"] == 5


def test_there_is_no_folder_of_the_first_round(first):
    read_command(["--run", first.root])
    with pytest.raises(ValueError, match="round 1 is the run folder"):
        read_command(["--run", f"{first.root}/rounds/1"])
