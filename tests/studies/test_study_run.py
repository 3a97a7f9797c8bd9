"""The whole study once, with tiny models."""

from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from tiny_models import tiny_clip, tiny_stable_diffusion
from tiny_settings import ONE, tiny_config

from hive_ray.artifacts.manifest import read_manifest, table_digest
from hive_ray.artifacts.selection import read_rows
from hive_ray.config import Config, DenoisingError, Watching
from hive_ray.presets import SHAPES_WEIGHTS
from hive_ray.schemas import CANDIDATES, EVALUATION, PAIRS, PROMPTS, RANKINGS
from jobs.own_settings import PARTS, Study
from studies import study
from studies.study import ABLATIONS, Entry, ablated_run, build, first_run, scores_of, weak_run, with_settings

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NUM_SHIPPED = 12
NUM_PROMPTS = 2


def tiny_preset(folder) -> Config:
    """A preset of tiny models that imports the first shipped rankings, with the reward model of the shapes preset."""
    tiny_stable_diffusion(folder / "base")
    tiny_clip(folder / "clip")
    shipped = pq.read_table(SHAPES_WEIGHTS.parent / "rankings" / "rankings.parquet")
    pq.write_table(shipped.slice(0, NUM_SHIPPED), folder / "shipped.parquet")
    config = tiny_config(str(folder / "base"), str(folder / "clip"))
    training = config.editor.sft.model_copy(
        update={"total_images": 4, "workers": ONE, "watching": Watching(tracker="none", num_previews=0)}
    )
    return with_settings(
        config,
        {
            "importing.rankings": str(folder / "shipped.parquet"),
            "instructions.num_captions": 40,
            "pairs.least_clip_image": 0.0,
            "editor.sft": training,
            "editor.finetune": training,
            "editor.dpo.training": training,
            "editor.nft.training": training,
            "candidate_scoring.ranked_rate": 0.5,
            "candidate_scoring.least_advantage": 0.0,
            "candidate_scoring.resources": config.reward.resources,
            "choosing.num_ranked": 4,
            "choosing.random_rate": 0.5,
            "reward.training": training,
            "reward.features": "both",
            "reward.denoising_error": DenoisingError(levels=(450,), draws=1),
        },
    )


@pytest.fixture(scope="module")
def studied(tmp_path_factory, shared_cluster):
    folder = tmp_path_factory.mktemp("study")
    preset = tiny_preset(folder)
    settings = Study(
        run=str(folder / "runs"), seeds=(101,), num_prompts=NUM_PROMPTS, best_of=2,
        arms=("control", "dpo", "rejection", "dpo+rejection"), first_seed_arms=(),
        second_round_prompts=16, second_round_ranked=4,
        weak_arms=("control", "level", "conditional_sft"), weak_sft_images=4, weak_images=4,
        curve=(5, 1000), out=folder / "docs" / "study.md",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "ABLATIONS", ABLATIONS[-1:])
        build(settings, preset)
        yield settings, preset


def test_every_editor_of_every_part_is_in_the_document(studied):
    settings, preset = studied
    text = settings.out.read_text()
    for part in PARTS:
        assert f"](study-{part}.svg)" in text
        assert "<svg" in settings.out.with_name(f"study-{part}.svg").read_text()
        for entry in study.ENTRIES[part](settings, first_run(settings, 101, preset)):
            assert f"| {entry.name} |" in text
    assert "sft, best of 2" in text
    assert f"{NUM_PROMPTS} held-out prompts of each, 2 edits of a prompt" in text


def test_all_editors_edit_the_same_prompts(studied):
    settings, preset = studied
    first = first_run(settings, 101, preset)
    entries = [entry for part in PARTS for entry in study.ENTRIES[part](settings, first)]
    tables = {entry.run.path(f"evaluation/{entry.arm}") for entry in entries}
    assert len(tables) == 15
    prompts = [
        {(row["prompt_id"], row["source_image"]) for row in read_rows(table, EVALUATION, ["prompt_id", "source_image"])}
        for table in tables
    ]
    assert len(prompts[0]) == NUM_PROMPTS
    assert all(of_table == prompts[0] for of_table in prompts)
    weak_prompts, ours = (
        {row["prompt_id"] for row in read_rows(run.path("prompts"), PROMPTS)}
        for run in (weak_run(settings, first), first)
    )
    assert weak_prompts == ours


def test_the_weak_start_learns_from_more_pairs_than_the_filter_passes(studied):
    settings, preset = studied
    first = first_run(settings, 101, preset)
    raw, filtered = (
        {row["pair_id"] for row in read_rows(run.path("pairs"), PAIRS, ["pair_id"])}
        for run in (weak_run(settings, first), first)
    )
    assert filtered < raw


def test_fewer_rankings_are_among_more_and_one_more_person_ranks_the_same_edits(studied):
    settings, preset = studied
    entries = study.curve(settings, first_run(settings, 101, preset))
    tables = [entry.run.dpo_ranking_tables() for entry in entries[1:]]
    few, everything = ({row["ranking_id"] for row in read_rows(of_entry, RANKINGS)} for of_entry in tables[:2])
    assert few < everything
    theirs, again = (list(read_rows(table, RANKINGS)) for table in tables[2])
    edits_of = {row["prompt_id"]: row["edits"] for row in theirs}
    assert {row["prompt_id"]: row["edits"] for row in again} == edits_of
    assert len(again) == len(edits_of)  # once each, however many people ranked them before
    assert {row["annotator"] for row in again} == {"simulated-0"}
    counts = [sum(read_manifest(table).rows_out for table in of_entry) for of_entry in tables]
    assert counts == [5, NUM_SHIPPED, NUM_SHIPPED + len(edits_of)]
    assert [entry.num_rankings for entry in entries] == [0, *counts]
    assert [entry.name for entry in entries] == ["sft", *(f"{count} rankings" for count in counts)]


def test_own_prompts_at_random_are_others_of_the_same_candidates(studied):
    settings, preset = studied
    first = first_run(settings, 101, preset)
    run = ablated_run(first, "own prompts at random", {"choosing.by": "random"})
    candidates = {row["prompt_id"] for row in read_rows(first.path("candidates"), CANDIDATES, ["prompt_id"])}
    ours = {row["prompt_id"] for row in read_rows(run.path("rankings"), RANKINGS, ["prompt_id"])}
    assert len(ours) == 4
    assert ours < candidates
    digests = [table_digest(one.path("rankings")) for one in (run, first)]
    assert digests[0] != digests[1]


def test_the_same_study_again_makes_nothing_and_a_part_alone_tells_all_that_is_finished(studied, capfd):
    settings, preset = studied
    before = settings.out.read_text()
    capfd.readouterr()
    after = build(replace(settings, parts=("curve",)), preset)
    assert after.partition("Settings")[0] == before.partition("Settings")[0]
    printed = capfd.readouterr().out
    assert "kept" in printed
    assert " rows from " not in printed
    assert "images" not in printed


def test_an_unfinished_editor_is_left_out_of_the_scores(studied):
    settings, preset = studied
    first = first_run(settings, 101, preset)
    entries = [
        Entry("dpo", first, "dpo", scored=True, tells_best=True),
        Entry("later", replace(first, root=f"{first.root}/none"), "dpo"),
    ]
    scores = scores_of({101: entries})
    assert list(scores) == ["dpo", "dpo, best of 2"]
    sizes = {name: [len(edits) for edits in scores[name][101]["right"].values()] for name in scores}
    assert sizes == {"dpo": [2] * NUM_PROMPTS, "dpo, best of 2": [1] * NUM_PROMPTS}
