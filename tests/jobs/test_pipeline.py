"""Every job on a CPU at the smallest size, through the sd15 preset and a tiny random Stable Diffusion."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import drivers
import numpy as np
import pytest
import ray
import yaml
from diffusers import StableDiffusionInstructPix2PixPipeline
from safetensors.torch import load
from tiny_models import tiny_clip, tiny_stable_diffusion
from tiny_settings import ONE, tiny_config

from hive_ray import storage
from hive_ray.annotation.database import Database
from hive_ray.annotation.feedback import store_feedback
from hive_ray.artifacts.manifest import read_manifest, table_digest
from hive_ray.artifacts.model_store import model_digest
from hive_ray.artifacts.selection import read_rows
from hive_ray.cluster.starting import start_ray
from hive_ray.cluster.switch import SPECIAL_PATHS, SWITCH_VARIABLE, takes_special_path
from hive_ray.config import LearningCurve
from hive_ray.reward.judges import combine_rewards
from hive_ray.reward.objective import is_held_out
from hive_ray.reward.probes import PROBES
from hive_ray.schemas import (
    CANDIDATES,
    CAPTIONS,
    CHOSEN,
    EVALUATION,
    INSTRUCTIONS,
    LATENTS,
    PAIRS,
    PROMPTS,
    RANKINGS,
    REWARDS,
    SCORED_PAIRS,
    SPREADS,
)
from jobs import (
    encode_latents,
    evaluate_editor,
    make_pairs,
    pipeline,
    reward_curve,
    score_pairs,
    train_editor,
    write_instructions,
)
from jobs.actors.scoring import rewards_of
from jobs.command import read_command
from jobs.run import Run, run_of, write_settings

pytestmark = pytest.mark.ray

TABLES = {
    "captions": CAPTIONS, "instructions": INSTRUCTIONS, "prompts": PROMPTS, "pairs": PAIRS, "candidates": CANDIDATES,
    "spreads": SPREADS, "chosen": CHOSEN, "rankings": RANKINGS, "rewards": REWARDS, "scored_pairs": SCORED_PAIRS,
}  # fmt: skip
FOR_TRAINING = {"latents": LATENTS}
"""Made where an editor is trained, and looked at by nothing else."""
MEASURES = dict.fromkeys(("evaluation/sft", "evaluation/finetuned", "curves/finetuned"), EVALUATION)
WEIGHTS = (
    "editors/sft/unet/diffusion_pytorch_model.safetensors",
    "editors/finetuned/unet/diffusion_pytorch_model.safetensors",
    "reward/model.safetensors",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory, faulty_s3):
    folder = tmp_path_factory.mktemp("run")
    base, clip = folder / "base", folder / "clip"
    tiny_stable_diffusion(base)
    tiny_clip(clip)
    # With the keys of S3: drivers join it, and Ray Train's controller has the keys of its node alone.
    start_ray(num_cpus=4)
    run = Run(str(folder / "run"), tiny_config(str(base), str(clip)))
    pipeline.build(run)
    yield run
    ray.shutdown()


def card(run, model):
    return json.loads(Path(run.path(model), "card.json").read_text())


def test_every_stage_leaves_a_finished_table_or_model(run):
    for table in TABLES | FOR_TRAINING:
        assert read_manifest(run.path(table)).rows_out > 0, table
    for model in ("editors/sft", "editors/finetuned", "reward"):
        assert card(run, model)
    assert json.loads(Path(run.path("summary.json")).read_text())["baseline"] == "sft"
    for page in ("pairs.html", "report.html"):
        assert "<svg" in Path(run.path(page)).read_text()


def test_diffusers_opens_the_editor(run):
    pipe = StableDiffusionInstructPix2PixPipeline.from_pretrained(run.path("editors/finetuned"))
    assert pipe.unet.config.in_channels == 8


def test_the_card_of_the_finetuned_editor_asks_for_five(run):
    assert card(run, "editors/finetuned")["instruction_suffix"] == ", image quality is five out of five"
    assert card(run, "editors/sft")["instruction_suffix"] == ""


def test_no_caption_is_in_training_and_held_out(run):
    trained = {row["source_caption"] for row in read_rows(run.path("pairs"), PAIRS) if row["origin"] != "cycle"}
    held_out = {row["source_caption"] for row in read_rows(run.path("prompts"), PROMPTS)}
    assert trained
    assert held_out
    assert not trained & held_out


def test_twins_are_there_and_levels_fill_one_to_five(run):
    rows = list(read_rows(run.path("scored_pairs"), SCORED_PAIRS))
    assert {row["origin"] for row in rows} == {"generated", "cycle"}
    assert {row["quality_level"] for row in rows} <= {1, 2, 3, 4, 5}
    assert all(row["instruction"].endswith("out of five") for row in rows)


def test_another_judge_beside_the_first_scores_alone_and_both_are_combined(run, capfd):
    scoring = run.config.scoring.model_copy(update={"judges": ("model", "clip"), "clip": run.config.evaluation.clip})
    before = read_manifest(run.path("rewards"))
    capfd.readouterr()
    score_pairs.build(Run(run.root, run.config.model_copy(update={"scoring": scoring})), "weighted")
    assert "rewards: kept" in capfd.readouterr().out
    assert read_manifest(run.path("rewards")) == before
    tables = [rewards_of(run.path(name)) for name in ("rewards", "rewards_clip", "rewards_combined")]
    each, combined = np.array([list(table.values()) for table in tables[:2]]), list(tables[2].values())
    assert len({tuple(table) for table in tables}) == 1
    np.testing.assert_allclose(combined, combine_rewards(each, "mean"), atol=1e-5)
    pairs = {row["pair_id"]: row["clip_image"] + row["clip_direction"] for row in read_rows(run.path("pairs"), PAIRS)}
    assert tables[1] == pytest.approx(pairs, abs=1e-4)
    shaped = list(read_rows(run.path("scored_pairs_weighted"), SCORED_PAIRS))
    assert {row["pair_id"]: row["reward"] for row in shaped} == pytest.approx(tables[2])
    assert np.mean([row["weight"] for row in shaped]) == pytest.approx(1, abs=1e-5)


def test_the_reward_card_says_what_it_is_worth(run):
    said = card(run, "reward")
    assert set(said["beside"]) == {"clip_direction", "clip_image", "clip"}  # one annotator a prompt
    assert set(said["noticed"]) == set(PROBES)
    assert all(rate["low"] <= rate["value"] <= rate["high"] for rate in said["noticed"].values())
    assert sum(one["preferences"] for one in said["calibration"]) > 0
    assert "Reward model" in Path(run.path("report.html")).read_text()
    assert "trained to please" in json.loads(Path(run.path("summary.json")).read_text())["warnings"][0]


def test_what_rewards_look_like_lies_beside_the_scored_pairs_and_in_the_summary(run):
    said, rows = card(run, "scored_pairs"), list(read_rows(run.path("scored_pairs"), SCORED_PAIRS))
    assert said["reward"]["mean"] == pytest.approx(np.mean([row["reward"] for row in rows]), abs=1e-5)
    assert {int(level): count for level, count in said["levels"].items() if count} == Counter(
        row["quality_level"] for row in rows
    )
    assert "level edges" in Path(run.path("scored_pairs/rewards.svg")).read_text()
    assert json.loads(Path(run.path("summary.json")).read_text())["rewards"] == said


def test_the_learning_curve_trains_on_nested_shares_and_keeps_what_is_done(run, capfd):
    reward = run.config.reward.model_copy(update={"curve": LearningCurve(shares=(0.6, 1.0))})
    curved = Run(run.root, run.config.model_copy(update={"reward": reward}))
    found = reward_curve.build(curved)
    assert "reward: kept" in capfd.readouterr().out  # all of them are the run's own model
    fewest, most = (point["rankings"] for point in found["points"])
    assert 0 < fewest < most == card(run, "reward")["train_rankings"]
    assert card(run, "reward_curve/0.6")["train_rankings"] == fewest
    assert "<svg" in Path(run.path("reward_curve.svg")).read_text()
    assert reward_curve.build(curved) == found
    assert "reward_curve/0.6: kept" in capfd.readouterr().out


def test_all_edits_of_a_prompt_are_in_its_row_and_the_best_of_them_is_one_more(run):
    settings = run.config.evaluation
    evaluate_editor.measure(run, "sft", "best_of_3", (settings.image_guidance_scale,), settings.num_prompts, 3)
    single = {row["prompt_id"]: row for row in read_rows(run.path("evaluation/sft"), EVALUATION)}
    rows = list(read_rows(run.path("best_of_3"), EVALUATION))
    first = {row["prompt_id"]: row for row in rows if row["editor"] == "sft"}
    best = {row["prompt_id"]: row for row in rows if row["editor"] == "sft, best of 3"}
    assert first.keys() == best.keys() == single.keys()
    assert len(rows) == 2 * len(single)
    for prompt, row in first.items():
        assert row["seed"] == single[prompt]["seed"]
        assert row["reward"] == pytest.approx(single[prompt]["reward"], abs=1e-3)
        assert best[prompt]["reward"] >= row["reward"]
        rewards = {draw["seed"]: draw["reward"] for draw in row["draws"]}
        assert len(rewards) == 3
        assert rewards[row["seed"]] == row["reward"]
        assert max(rewards.values()) == rewards[best[prompt]["seed"]] == best[prompt]["reward"]
        assert best[prompt]["draws"] == single[prompt]["draws"] == []
    assert any(best[prompt]["seed"] != row["seed"] for prompt, row in first.items())


def test_a_second_run_rebuilds_nothing_and_says_so(run, capfd):
    capfd.readouterr()
    pipeline.build(run)
    printed = capfd.readouterr().out
    for table in TABLES:
        assert f"{table}: kept" in printed
    for model in ("editors/sft", "editors/finetuned", "reward"):
        assert f"{model}: kept" in printed


def test_a_changed_setting_is_refused_by_its_name(run):
    pairs = run.config.pairs.model_copy(update={"seed": 1})
    changed = Run(run.root, run.config.model_copy(update={"pairs": pairs}))
    with pytest.raises(FileExistsError, match=r"pairs\.seed was 0, is 1"):
        make_pairs.build(changed)


def test_latents_of_other_settings_are_not_trained_on(run):
    editor = run.config.editor.model_copy(update={"resolution": 32, "flip": False})
    changed = Run(run.root, run.config.model_copy(update={"editor": editor}))
    with pytest.raises(
        FileExistsError, match=r"latents was made.*editor\.flip was True, is False; editor\.resolution was 64"
    ):
        encode_latents.build(changed)


def test_other_batches_and_workers_make_the_same_rows(run, tmp_path):
    resources = ONE.model_copy(update={"batch_size": 1})
    pairs = run.config.pairs.model_copy(update={"resources": resources})
    other = Run(str(tmp_path), run.config.model_copy(update={"pairs": pairs}))
    write_instructions.build(other)
    make_pairs.build(other)
    texts = [name for name in PAIRS.names if not name.endswith("_image") and not name.startswith("clip_")]
    ours, theirs = (list(read_rows(one.path("pairs"), PAIRS, texts)) for one in (run, other))
    assert ours == theirs


def test_a_driver_killed_in_every_stage_on_an_s3_that_fails_leaves_the_rows_of_an_undisturbed_run_on_a_disk(
    run, tmp_path, faulty_s3
):
    faulty_s3.rate = 0.05
    settings, log = tmp_path / "config.yaml", tmp_path / "log"
    settings.write_text(yaml.safe_dump(json.loads(run.config.model_dump_json())))
    told = {"cluster": ray.get_runtime_context().gcs_address, "log": log}
    for stage in range(1, len(pipeline.stages_of(run)) + 1):
        log.unlink(missing_ok=True)
        driver = drivers.start(drive, settings, faulty_s3.root, **told)
        drivers.kill_when(lambda stage=stage: written(f"[{stage}/", log), driver, after_s=1)  # in the stage's work
        assert written(f"[{stage}/", log), log.read_text()
    last = drivers.start(drive, settings, faulty_s3.root, **told)
    last.join(timeout=drivers.LONGEST_S)
    assert last.exitcode == 0, log.read_text()

    assert faulty_s3.failed > 20
    faulty_s3.rate = 0.0
    other = Run(faulty_s3.root, run.config)
    for page in ("pairs.html", "report.html", "edits.png", "summary.json"):
        assert storage.exists(other.path(page)), page
    assert_same(run, other)


def assert_same(run, other):
    """Two runs have the same rows and weights."""
    for table, schema in (TABLES | FOR_TRAINING | MEASURES).items():
        assert without_nan(other.path(table), schema) == without_nan(run.path(table), schema), table
    for weights in WEIGHTS:
        ours, theirs = (load(storage.read_bytes(one.path(weights))) for one in (run, other))
        assert all((ours[name] == theirs[name]).all() for name in ours), weights


def without_nan(table, schema):
    """A table's rows with None for what was not measured: NaN is not equal to itself."""
    rows = read_rows(table, schema)
    return [{name: None if value != value else value for name, value in row.items()} for row in rows]


def test_a_second_round_learns_from_all_rankings_and_starts_from_what_the_first_made(run, tmp_path, capfd):
    made = {model: card(run, model) for model in ("editors/sft", "editors/finetuned", "reward")}
    rankings = run.config.rankings.model_copy(update={"thumbs": thumbs_of(run, f"sqlite:///{tmp_path / 'thumbs'}")})
    evaluation = run.config.evaluation.model_copy(update={"curve_prompts": 0})
    config = run.config.model_copy(update={"rankings": rankings, "evaluation": evaluation})
    twice = replace(run, num_rounds=2, config=config)
    capfd.readouterr()
    pipeline.build(twice)
    printed, second = capfd.readouterr().out, twice.after()
    ours, theirs = (list(read_rows(one.path("candidates"), CANDIDATES)) for one in (run, second))
    assert [row["prompt_id"] for row in ours] == [row["prompt_id"] for row in theirs]
    assert {row["editor"] for row in theirs} == {model_digest(run.path("editors/finetuned"))}
    assert not ids_and_seeds(ours) & ids_and_seeds(theirs)
    learned_from = [run.path("rankings"), second.path("rankings"), second.path("thumbs")]
    assert card(second, "reward")["rankings"] == table_digest(*learned_from)
    rate = run.config.reward.held_out_rate
    unseen = [row for row in read_rows(learned_from, RANKINGS, ["prompt_id"]) if is_held_out(row["prompt_id"], rate)]
    assert card(second, "reward")["held_out_rankings"] == len(unseen)
    assert card(second, "editors/finetuned")["training_table"] == table_digest(second.path("scored_pairs"))
    start = json.loads(Path(second.path("editors/finetuned"), "made.json").read_text())["fingerprint"]["input.start"]
    assert start == model_digest(run.path("editors/finetuned"))
    summary = json.loads(Path(second.path("summary.json")).read_text())
    assert [one["editor"] for one in summary["editors"]] == ["current", "sft", "finetuned"]
    assert summary["baseline"] == "current"
    for made_elsewhere in ("pairs", "prompts", "latents", "editors/sft"):
        assert not Path(second.root, made_elsewhere).exists()
    assert {model: card(run, model) for model in made} == made
    assert printed.count("round 1  finetuned") == printed.count("round 2  current") == 1
    assert f"make serve EDITOR_FOLDER={second.root}/editors/finetuned" in printed

    pipeline.build(twice)
    again = capfd.readouterr().out
    assert again.count("editors/finetuned: kept") == again.count("reward: kept") == again.count("candidates: kept") == 2


def thumbs_of(run, address):
    """A database in which somebody likes one of every two pairs as an edit of its source, and the other one not."""
    database, pairs = Database(address), list(read_rows(run.path("pairs"), PAIRS))
    database.migrate()
    for one, other in zip(pairs[::2], pairs[1::2], strict=False):
        kept = {name: one[name] for name in ("instruction", "source_image")}
        for pair, liked in ((one, True), (other, False)):
            edit = {"key": pair["pair_id"], "edited_image": pair["edited_image"], "editor": "served", "settings": {}}
            store_feedback(database, liked=liked, **kept, **edit)
    database.close()
    return address


def ids_and_seeds(candidates):
    return {edit[name] for row in candidates for edit in row["edits"] for name in ("edit_id", "seed")}


def test_a_later_round_takes_preferences_of_its_own_edits_alone(run):
    second = run.after()
    told = train_editor.training(second, "dpo")
    assert told["table"] == table_digest(second.path("rankings"))
    assert told["start"] == run.path("editors/finetuned")


def drive(settings: Path, run: str) -> None:
    started = run_of(read_command(["--config", str(settings), "--run", run]))
    write_settings(started.root, started.config)
    pipeline.build(started)


def written(words: str, log: Path) -> bool:
    """Whether a driver has written a line that starts with these words."""
    return log.exists() and any(line.startswith(words) for line in log.read_text().splitlines())


def test_the_public_path_makes_the_same_tables_and_models(run, tmp_path, monkeypatch):
    """The last one here: it ends the cluster of the others."""
    ray.shutdown()
    monkeypatch.setenv(SWITCH_VARIABLE, "0")
    start_ray(num_cpus=4)
    try:
        assert not any(map(takes_special_path, SPECIAL_PATHS))
        other = Run(str(tmp_path), run.config)
        pipeline.build(other)
    finally:
        ray.shutdown()
    assert_same(run, other)
