"""What people rank is chosen on the cluster from a small editor's candidates, and simulated people rank just that."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_models import tiny_clip, tiny_stable_diffusion, tiny_tokenizer
from tiny_settings import tiny_config

from hive_ray.artifacts.building import write_rows
from hive_ray.artifacts.chosen import inclusion_probabilities, read_chosen
from hive_ray.artifacts.manifest import read_manifest, table_digest
from hive_ray.artifacts.selection import read_rows
from hive_ray.editor.model import Editor
from hive_ray.images import encode
from hive_ray.reward.model import RewardModel
from hive_ray.reward.objective import is_held_out
from hive_ray.schemas import CANDIDATES, CHOSEN, RANKINGS, SPREADS, Rows
from jobs import choose_candidates, collect_rankings
from jobs.actors.candidate_measures import CandidateMeasurer
from jobs.run import Run

pytestmark = pytest.mark.ray

NUM_PROMPTS = 40
CAPTION = "a small {} circle on a white background"
ALIKE = 10
"""The first prompts: their edits are all the same picture."""


@pytest.fixture(scope="module", autouse=True)
def cluster(shared_cluster):
    """All of these tests use it."""


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A tiny base, a CLIP, an editor and a reward model."""
    folder = tmp_path_factory.mktemp("models")
    tiny_stable_diffusion(folder / "base")
    tiny_clip(folder / "clip")
    editor = Editor.build(folder / "base")
    editor.save(folder / "editor", editor.card)
    RewardModel.from_scratch(tiny_tokenizer(), resolution=64, max_tokens=16).save(folder / "reward", {})
    return folder


def picture(*seed: int) -> bytes:
    return encode(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def candidates() -> Rows:
    rows = []
    for number in range(NUM_PROMPTS):
        pictures = [picture(number, 1 + (place if number >= ALIKE else 0)) for place in range(3)]
        edits = [
            {"edit_id": f"p{number}e{place}", "image": image, "seed": place, "guidance_scale": 7.5,
             "image_guidance_scale": 1.5}
            for place, image in enumerate(pictures)
        ]  # fmt: skip
        rows.append(
            {
                "prompt_id": f"p{number}", "instruction": "make it red", "source_caption": CAPTION.format("blue"),
                "edited_caption": CAPTION.format("red"), "source_image": picture(number, 0), "split": "rank",
                "edits": edits, "editor": "the editor",
            }
        )  # fmt: skip
    return rows


@pytest.fixture
def run(tmp_path, models) -> Run:
    """Twelve of forty prompts are to be ranked; a share of these is held out, or drawn."""
    config = tiny_config(str(models / "base"), str(models / "clip")).changed({
        "choosing": {"num_ranked": 12, "random_rate": 0.25},
        "reward": {"start": str(models / "reward"), "held_out_rate": 0.25},
    })  # fmt: skip
    run = Run(str(tmp_path / "run"), config, elsewhere={"editors/current": str(models / "editor")})
    write_rows(run.path("candidates"), CANDIDATES, candidates(), {"of": "this test"})
    return run


def choosing(run: Run, **changed) -> Run:
    return replace(run, config=run.config.changed({"choosing": changed}))


def rows_of(run: Run) -> Rows:
    return list(read_rows(run.path("chosen"), CHOSEN))


def ids(run: Run) -> list[str]:
    """The chosen prompts in their order."""
    return [row["prompt_id"] for row in rows_of(run)]


def by_spread(run: Run) -> set[str]:
    return {row["prompt_id"] for row in rows_of(run) if row["chosen_by"] == "spread"}


# --- What is chosen ---------------------------------------------------------------------------------------


def test_prompts_whose_edits_differ_are_chosen_and_the_held_out_ones_are_random(run):
    manifest = choose_candidates.build(run)
    assert (manifest.rows_in, manifest.rows_out, manifest.dropped) == (NUM_PROMPTS, 12, {"not_chosen": 28})
    rows = rows_of(run)
    assert [row["place"] for row in rows] == list(range(12))
    held_out = [row for row in rows if is_held_out(row["prompt_id"], 0.25)]
    assert len(held_out) == 3
    assert {row["chosen_by"] for row in held_out} == {"random"}
    spreads = {row["prompt_id"]: row for row in read_rows(run.path("spreads"), SPREADS)}
    assert all(spreads[f"p{number}"]["spread"] < 1e-8 for number in range(ALIKE))
    assert all(math.isnan(row["disagreement"]) for row in spreads.values())
    others = [name for name in spreads if not is_held_out(name, 0.25)]
    best = sorted(others, key=lambda name: -spreads[name]["spread"])[:6]
    assert by_spread(run) == set(best)
    chosen = run.path("chosen")
    probabilities = inclusion_probabilities(chosen, read_chosen(chosen, run.path("candidates")))
    assert sum(1 / probability for probability in probabilities.values()) == pytest.approx(NUM_PROMPTS, rel=1e-5)


def test_the_reward_model_is_asked_for_its_doubt(run, models):
    temperature = 1e-3  # the untrained model's rewards lie near each other
    config = run.config.changed({"choosing": {"by": "both"}, "reward": {"temperature": temperature}})
    choose_candidates.build(replace(run, config=config))
    measured = list(read_rows(run.path("spreads"), SPREADS))
    alike = [row["disagreement"] for row in measured[:ALIKE]]
    assert alike == pytest.approx([1.0] * ALIKE, abs=1e-3)  # of equal pictures nobody knows which is better
    actor = CandidateMeasurer(str(models / "editor"), str(models / "reward"), temperature)
    [alone] = actor(candidates()[22:23])
    assert measured[22]["disagreement"] == pytest.approx(alone["disagreement"], abs=0.01)
    assert np.std([row["disagreement"] for row in measured[ALIKE:]]) > 0.05
    assert {row["chosen_by"] for row in rows_of(run)} == {"both", "random"}


def test_without_a_reward_model_its_doubt_cannot_be_asked_for(run):
    config = run.config.changed({"choosing": {"by": "both"}, "reward": {"start": "Salesforce/blip-itm-base-coco"}})
    with pytest.raises(ValueError, match=r"choosing\.by is 'both'.*'Salesforce/blip-itm-base-coco' is none"):
        choose_candidates.build(replace(run, config=config))


def test_a_later_round_asks_the_reward_model_of_the_round_before(run):
    second = choosing(run, by="disagreement").after()
    with pytest.raises(ValueError, match=rf"{run.root}/reward.* is none"):
        choose_candidates.SPREADS_STAGE.fingerprint(second)


def test_at_random_nothing_is_measured(run):
    choose_candidates.build(choosing(run, by="random"))
    assert read_manifest(run.path("spreads")) is None
    rows = rows_of(run)
    assert len(rows) == 12
    assert {row["chosen_by"] for row in rows} == {"random"}
    assert all(math.isnan(row["spread"]) for row in rows)


def test_all_are_chosen_where_no_number_is_given(run):
    assert choose_candidates.build(choosing(run, num_ranked=0)).rows_out == NUM_PROMPTS
    assert {row["probability"] for row in rows_of(run)} == {1.0}


# --- Kept, refused, made again ----------------------------------------------------------------------------


def test_the_choice_is_kept_and_another_one_is_refused_or_made_again(run, capfd):
    choose_candidates.build(run)
    first = ids(run)
    choose_candidates.build(run)
    assert "chosen: kept, 12 rows" in capfd.readouterr().out
    other = choosing(run, num_ranked=20)
    with pytest.raises(FileExistsError, match=r"choosing\.num_ranked was 12, is 20"):
        choose_candidates.build(other)
    choose_candidates.build(replace(other, on_mismatch="rebuild"))
    assert len(rows_of(run)) == 20
    Path(run.path("chosen"), "manifest.json").unlink()  # as a kill leaves it
    choose_candidates.build(replace(run, on_mismatch="rebuild"))
    assert ids(run) == first


def test_a_choice_from_other_candidates_is_named(run):
    choose_candidates.build(run)
    manifest = Path(run.path("candidates"), "manifest.json")
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"fingerprint": {"of": "another run"}}))
    with pytest.raises(ValueError, match="was chosen from other candidates"):
        collect_rankings.build(run)


# --- Who ranks what ---------------------------------------------------------------------------------------


def ranked(run: Run) -> list[str]:
    return [row["prompt_id"] for row in read_rows(run.path("rankings"), RANKINGS, ["prompt_id"])]


def test_simulated_annotators_rank_the_chosen_prompts(run):
    choose_candidates.build(run)
    collect_rankings.build(run)
    chosen = {row["prompt_id"] for row in read_chosen(run.path("chosen"), run.path("candidates"))}
    assert ranked(run) == [f"p{number}" for number in range(NUM_PROMPTS) if f"p{number}" in chosen]
    assert read_manifest(run.path("rankings")).fingerprint["input.chosen"] == table_digest(run.path("chosen"))


def test_what_people_said_of_other_candidates_counts(run):
    choose_candidates.build(run)
    chosen = {row["prompt_id"] for row in rows_of(run)}
    other = next(f"p{number}" for number in range(NUM_PROMPTS) if f"p{number}" not in chosen)
    said = [{"prompt_id": name, "annotator": "Ada", "ranks": [1, 2, 3]} for name in (*chosen, other)]
    Path(run.path("annotations.jsonl")).write_text("\n".join(map(json.dumps, said)))
    people = replace(run, config=run.config.changed({"rankings": {"annotator": "people"}}))
    collect_rankings.build(people)
    assert set(ranked(run)) == chosen | {other}
    assert "input.chosen" not in read_manifest(run.path("rankings")).fingerprint


def test_a_run_that_was_ranked_before_is_left_as_it_is(run, capfd):
    collect_rankings.build(run)
    assert len(ranked(run)) == NUM_PROMPTS
    assert "input.chosen" not in read_manifest(run.path("rankings")).fingerprint
    assert choose_candidates.build(run) is None
    assert "chosen: not made, the rankings are there" in capfd.readouterr().out
    collect_rankings.build(run)
    assert "rankings: kept" in capfd.readouterr().out
    again = replace(run, on_mismatch="rebuild")
    choose_candidates.build(again)
    collect_rankings.build(again)
    assert len(ranked(run)) == 12
