"""Scoring an editor's own edits, and training on them, through Ray Data, Ray Train and DeepSpeed."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_models import tiny_stable_diffusion
from tiny_settings import ONE, TWO, tiny_config

from hive_ray.artifacts.building import write_rows
from hive_ray.artifacts.manifest import read_manifest
from hive_ray.artifacts.selection import read_rows
from hive_ray.config import CandidateScoring, Dpo, Nft, Training
from hive_ray.editor.model import Editor
from hive_ray.images import encode
from hive_ray.presets import shapes
from hive_ray.reward.model import RewardModel, load_tokenizer
from hive_ray.schemas import CANDIDATE_REWARDS, CANDIDATES, PROMPTS, RANKINGS, SCORED_CANDIDATES, Dropped, to_table
from hive_ray.seeds import seed_for
from jobs import pipeline, sample_candidates, score_candidates, score_pairs, train_editor
from jobs.actors.scoring import CandidateRanker, CandidateShaper, edits_of
from jobs.run import Run

TRAINING = Training(
    total_images=8, batch_size=4, micro_batch_size=2, learning_rate=1e-3, checkpoint_images=8, workers=TWO,
    ema_decay=0.0,
)  # fmt: skip
REWARDS_OF = {"p0": (1.0, 3.0, 2.0), "p1": (7.0, 7.5, 7.1)}


def picture(number: int) -> bytes:
    return encode(np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def prompt(number: int) -> dict:
    words = {"instruction": "make it red", "source_caption": "a cat", "edited_caption": "a red cat", "split": "rank"}
    return {"prompt_id": f"p{number}", "source_image": picture(number), **words}


def candidate(number: int) -> dict:
    edits = [
        {
            "edit_id": f"p{number}e{place}", "image": picture(10 * number + place + 1), "seed": place,
            "guidance_scale": 7.5, "image_guidance_scale": 1.5,
        }
        for place in range(3)
    ]  # fmt: skip
    return prompt(number) | {"edits": edits, "editor": "sft"}


def ranking(number: int, annotator: str, ranks: list[int]) -> dict:
    return candidate(number) | {"ranking_id": f"r{number}{annotator}", "annotator": annotator, "ranks": ranks}


@pytest.fixture
def rewards(tmp_path):
    """Rewards of two prompts' edits; their advantages are -1, 1, 0 and -0.2, 0.3, -0.1 over a deviation of 0.5972."""
    rows = [
        {"edit_id": f"{name}e{place}", "prompt_id": name, "reward": reward}
        for name, numbers in REWARDS_OF.items()
        for place, reward in enumerate(numbers)
    ]
    write_rows(str(tmp_path / "rewards"), CANDIDATE_REWARDS, rows, {})
    return str(tmp_path / "rewards")


def test_each_edit_is_weighted_by_its_optimality(rewards):
    shaped = CandidateShaper(rewards, "judge", clip=2.0)([candidate(0), candidate(1)])
    deviation = np.sqrt((1 + 1 + 0.04 + 0.09 + 0.01) / 6)
    expected = 0.5 + np.array([-1, 1, 0, -0.2, 0.3, -0.1]) / (4 * deviation)
    assert [row["weight"] for row in shaped] == pytest.approx(expected.tolist(), abs=1e-6)
    assert [row["pair_id"] for row in shaped] == ["p0e0", "p0e1", "p0e2", "p1e0", "p1e1", "p1e2"]
    assert shaped[4] == edits_of(candidate(1))[1] | {
        "weight": shaped[4]["weight"], "reward": 7.5, "reward_model": "judge"
    }  # fmt: skip
    assert shaped[4]["edited_image"] == picture(12)


def test_for_rejection_the_best_edit_is_kept_where_it_is_clearly_better(rewards):
    shaped = CandidateShaper(rewards, "judge", least_advantage=0.6)([candidate(0), candidate(1)])
    assert [row.reason if isinstance(row, Dropped) else row["pair_id"] for row in shaped] == [
        "not_the_best", "p0e1", "not_the_best", "not_the_best", "not_clearly_better", "not_the_best",
    ]  # fmt: skip
    assert shaped[1]["weight"] == 1.0


def test_an_edit_without_a_reward_is_dropped_with_its_reason(rewards):
    assert CandidateShaper(rewards, "judge")([candidate(2)]) == [Dropped("no_reward")] * 3


@pytest.mark.parametrize(
    ("arm", "stages"),
    [
        ("scored", ("score_pairs.build",)),
        ("weighted", ("score_pairs.weighted",)),
        ("level", ("score_pairs.build",)),
        ("dpo", ("score_candidates.rank",)),
        ("weighted+dpo", ("score_pairs.weighted", "score_candidates.rank")),
        ("dpo+rejection", ("score_candidates.rank", "sample_candidates.unguided", "score_candidates.best")),
        ("nft", ("score_candidates.build",)),
        ("rejection", ("sample_candidates.unguided", "score_candidates.best")),
    ],
)
def test_the_pipeline_makes_what_its_arm_needs_and_no_more(tmp_path, arm, stages):
    run = Run(str(tmp_path), shapes().changed({"editor": {"arm": arm}, "importing": {"rankings": ""}}))
    named = [f"{stage.__module__.removeprefix('jobs.')}.{stage.__name__}" for stage in pipeline.stages_of(run)]
    before, after = 7, ("train_editor.controls", "train_editor.finetune", "evaluate_editor.build")
    assert named[:before] == [
        "write_instructions.build", "make_pairs.build", "train_editor.build", "sample_candidates.build",
        "choose_candidates.build", "collect_rankings.build", "train_reward.build",
    ]  # fmt: skip
    assert tuple(named[before:]) == (*stages, *after)


@pytest.mark.parametrize(
    ("arm", "shaped"),
    [
        ("scored", "conditional scored_pairs"),
        ("weighted", "weighted scored_pairs_weighted"),
        ("level", "level scored_pairs_level"),
    ],
)
def test_score_pairs_makes_the_table_of_the_arm_that_finetuned_is(tmp_path, monkeypatch, arm, shaped):
    monkeypatch.setattr(score_pairs, "table_digest", lambda path: "digest")
    run = Run(str(tmp_path), shapes().changed({"editor": {"arm": arm}}), arm="finetuned")
    rewards, scored = score_pairs.stages(run)
    assert rewards.name == "rewards"
    assert f"{scored.fingerprint(run)['scoring.shaping']} {scored.name}" == shaped
    assert train_editor.arm_of(run, "finetuned").table == scored.name


def test_what_is_missing_is_named_with_the_command_that_makes_it(tmp_path):
    run = Run(str(tmp_path), shapes())
    with pytest.raises(FileNotFoundError, match=r"/candidates is not finished.*jobs\.sample_candidates --config \S+ "):
        score_candidates.build_for_arm(run)
    with pytest.raises(FileNotFoundError, match=r"candidates_unguided is not.*sample_candidates .* --arm rejection"):
        score_candidates.build_for_arm(replace(run, arm="rejection"))
    write_rows(run.path("candidates"), CANDIDATES, [candidate(0)], {})
    with pytest.raises(FileNotFoundError, match=r"/reward is not finished.*jobs\.train_reward"):
        score_candidates.build_for_arm(replace(run, arm="nft"))
    without = replace(run, config=run.config.changed({"candidate_scoring": {"ranked_rate": 0.0}}), arm="dpo")
    with pytest.raises(ValueError, match=r"arm 'dpo' has no scored.* or dpo with .*ranked_rate above 0"):
        score_candidates.build_for_arm(without)


@pytest.fixture(scope="module")
def run(tmp_path_factory, shared_cluster):
    folder, base = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("base")
    editor = Editor.build(tiny_stable_diffusion(base))
    with torch.no_grad():
        editor.unet.conv_in.weight[:, 4:].copy_(editor.unet.conv_in.weight[:, :4])
    editor.save(folder / "editors" / "sft", editor.card)
    RewardModel.from_scratch(load_tokenizer(base), resolution=64, max_tokens=16).save(folder / "reward", {})
    write_rows(str(folder / "prompts"), PROMPTS, [prompt(number) for number in range(4)], {})
    write_rows(str(folder / "candidates"), CANDIDATES, [candidate(number) for number in range(4)], {})
    said = [ranking(0, "one", [1, 2, 3]), ranking(0, "two", [1, 3, 2]), ranking(1, "one", [2, 1, 2])]
    write_rows(str(folder / "rankings"), RANKINGS, said, {})
    config = tiny_config(str(base), "no clip").changed(
        {"editor": {"finetune": TRAINING, "nft": Nft(training=TRAINING, beta=0.5)}, "candidates": {"num_edits": 2}}
    )
    scoring = CandidateScoring(judge="people", least_advantage=0.0, resources=ONE)
    return Run(str(folder), config.model_copy(update={"candidate_scoring": scoring}))


def moved(run: Run, name: str) -> bool:
    before, after = (Editor.load(run.path(f"editors/{one}")).unet.conv_out.weight for one in ("sft", name))
    return not torch.equal(before, after)


@pytest.mark.ray
def test_an_editor_learns_from_its_own_edits_as_people_ranked_them(run, capfd):
    score_candidates.build_for_arm(replace(run, arm="nft"))
    rows = {row["pair_id"]: row for row in read_rows(run.path("scored_candidates"), SCORED_CANDIDATES)}
    assert {name: row["reward"] for name, row in rows.items()} == {
        "p0e0": -1.0, "p0e1": -2.5, "p0e2": -2.5, "p1e0": -2.0, "p1e1": -1.0, "p1e2": -2.0,
    }  # fmt: skip
    assert rows["p0e0"]["weight"] == 1.0
    assert rows["p0e1"]["weight"] < 0.5
    assert read_manifest(run.path("scored_candidates")).dropped == {"no_reward": 6}

    train_editor.build(run, "nft")
    log = run.path("metrics/editors/nft.jsonl")
    with open(log) as file:
        first, last = map(json.loads, file)
    assert first["train/error"] == pytest.approx(first["train/reference_error"], rel=1e-6)
    assert last["train/error"] != last["train/reference_error"]
    assert 0 < first["train/optimality"] < 1
    assert moved(run, "nft")

    capfd.readouterr()
    finetuned = replace(run, config=run.config.changed({"editor": {"arm": "nft"}}))
    told, as_arm = train_editor.training(finetuned, "finetuned"), train_editor.training(run, "nft")
    assert told["fingerprint"] == as_arm["fingerprint"]
    assert (told["name"], told["objective"]) == ("editors/finetuned", as_arm["objective"])


@pytest.mark.ray
def test_dpo_learns_from_people_and_from_the_reward_model_s_own_rankings(run, capfd):
    changed = {"candidate_scoring": {"ranked_rate": 0.5, "judge": "reward"}, "editor": {"dpo": Dpo(training=TRAINING)}}
    both = replace(run, config=run.config.changed(changed), arm="dpo")
    with pytest.raises(FileNotFoundError, match=r"rankings_by_reward is not finished.*score_candidates .* --arm dpo"):
        train_editor.build(both, "dpo")
    assert score_candidates.build_for_arm(both).rows_out == 2
    ranked = list(read_rows(both.path("rankings_by_reward"), RANKINGS))
    rewards = {row["edit_id"]: row["reward"] for row in read_rows(both.path("candidate_rewards"), CANDIDATE_REWARDS)}
    for row in ranked:
        given = [rewards[edit["edit_id"]] for edit in row["edits"]]
        assert row["ranks"][given.index(max(given))] == 1
        assert row["ranks"][given.index(min(given))] == 3
    train_editor.build(both, "dpo")
    assert moved(both, "dpo")
    assert len(train_editor.informative_rankings(both.dpo_ranking_tables(), both.config.editor.dpo)) == 5


@pytest.mark.ray
def test_rejection_fine_tuning_takes_the_best_of_edits_that_were_drawn_without_guidance(run):
    rejection = replace(run, arm="rejection")
    sample_candidates.build_for_arm(rejection)
    drawn = list(read_rows(run.path("candidates_unguided"), CANDIDATES))
    assert {(edit["guidance_scale"], edit["image_guidance_scale"]) for row in drawn for edit in row["edits"]} == {
        (1.0, 1.0)
    }
    seed = run.config.candidates.seed
    guided = {seed_for(seed, row["prompt_id"], draw) for row in drawn for draw in range(2)}
    assert not guided & {edit["seed"] for row in drawn for edit in row["edits"]}
    score_candidates.build_for_arm(rejection)
    rewards = {
        row["edit_id"]: row["reward"] for row in read_rows(run.path("candidate_rewards_unguided"), CANDIDATE_REWARDS)
    }
    kept = list(read_rows(run.path("best_candidates"), SCORED_CANDIDATES))
    for row, drawn_row in zip(kept, drawn, strict=True):
        best = max(drawn_row["edits"], key=lambda edit: rewards[edit["edit_id"]])
        assert (row["pair_id"], row["edited_image"], row["weight"]) == (best["edit_id"], best["image"], 1.0)

    train_editor.build(run, "rejection")
    assert moved(run, "rejection")


def test_the_reward_model_ranks_the_prompts_on_which_it_sees_the_greatest_difference(rewards):
    rows = [candidate(0), candidate(1), candidate(2)]
    ranked = CandidateRanker(rewards, "judge", rate=0.5)(rows)
    assert ranked[1:] == [Dropped("alike"), Dropped("no_reward")]
    assert ranked[0]["ranks"] == [3, 1, 2]
    assert ranked[0]["annotator"] == "reward model"
    assert to_table(ranked[:1], RANKINGS).num_rows == 1
    assert CandidateRanker(rewards, "judge", rate=1.0)(rows)[2] == Dropped("no_reward")
    assert [row["ranks"] for row in CandidateRanker(rewards, "judge", rate=1.0)(rows)[:2]] == [[3, 1, 2], [3, 1, 2]]
    assert CandidateRanker(rewards, "other", rate=0.5)(rows)[0]["ranking_id"] != ranked[0]["ranking_id"]
