"""Training an editor on rankings through Ray Train and DeepSpeed, whole and by adapters."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from compvis import SD15, checkpoint, tiny
from pydantic import ValidationError
from tiny_models import MAX_TOKENS, QUALITY, WORDS, tiny_stable_diffusion
from tiny_settings import editor_settings, tiny_config

from bench.training import write_pairs
from hive_ray import storage
from hive_ray.artifacts.building import write_rows
from hive_ray.artifacts.manifest import fingerprint_of, read_manifest
from hive_ray.artifacts.selection import read_rows
from hive_ray.config import Dpo, EditorFile, Nft, Preview, Resources, Training
from hive_ray.editor.lora import LORA_WEIGHTS_FILE
from hive_ray.editor.model import Editor
from hive_ray.errors import Stopped
from hive_ray.images import encode
from hive_ray.presets import sd15
from hive_ray.schemas import PAIRS, RANKINGS, SCORED_PAIRS
from hive_ray.seeds import id_for
from hive_ray.shapes.pretraining.words import train_tokenizer
from jobs import encode_latents, export_editor, sample_candidates, score_candidates, score_pairs, train_editor
from jobs.evaluate_editor import training_judges
from jobs.run import Run
from jobs.train_editor import ARMS, informative_rankings

WORKERS = Resources(num_gpus=0, num_cpus=1, num_actors=2)


def ranking(index: int) -> dict:
    rng = np.random.default_rng(index)
    pictures = [encode(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(4)]
    edits = [
        {"edit_id": f"{index}-{seed}", "image": image, "seed": seed, "guidance_scale": 7.5, "image_guidance_scale": 1.5}
        for seed, image in enumerate(pictures[1:])
    ]
    row = {"ranking_id": f"ranking-{index}", "prompt_id": f"prompt-{index}", "instruction": "make it red"}
    row |= {"source_caption": "a cat", "edited_caption": "a red cat", "source_image": pictures[0], "split": "rank"}
    return row | {"edits": edits, "editor": "sft", "annotator": "one", "ranks": [1, 2, 2] if index else [1, 1, 1]}


@pytest.fixture(scope="module")
def start(tmp_path_factory, shared_cluster):
    folder, editor = (
        tmp_path_factory.mktemp("run"),
        Editor.build(tiny_stable_diffusion(tmp_path_factory.mktemp("base"))),
    )
    with torch.no_grad():
        editor.unet.conv_in.weight[:, 4:].copy_(editor.unet.conv_in.weight[:, :4])
    editor.save(folder / "editors" / "sft", editor.card)
    write_rows(str(folder / "rankings"), RANKINGS, [ranking(index) for index in range(4)], {})
    return folder, editor


@pytest.mark.ray
@pytest.mark.parametrize(
    ("lora_rank", "stage", "precision", "micro", "latents"), [(0, 2, "bf16", 1, "none"), (2, 3, "fp32", 2, "fp32")]
)
def test_an_editor_learns_from_rankings_and_is_exported_at_any_time(
    start, lora_rank, stage, precision, micro, latents, monkeypatch
):
    folder, before = start
    training = Training(
        total_images=8, batch_size=4, micro_batch_size=micro, learning_rate=1e-3, checkpoint_images=4, workers=WORKERS,
        zero_stage=stage, precision=precision, ema_decay=0.5,
    )  # fmt: skip
    changed = {"resolution": 64, "lora_rank": lora_rank, "gradient_checkpointing": True, "dpo": Dpo(training=training)}
    changed |= {"start": str(folder / "editors" / "sft"), "latents": latents, "resources": WORKERS}
    preset = sd15()
    config = preset.model_copy(update={"editor": preset.editor.model_copy(update=changed)})
    run = Run(str(folder), config, "rebuild", arm="dpo")
    remove = storage.remove_tree  # what is exported is the last checkpoint
    monkeypatch.setattr(storage, "remove_tree", lambda path: None if "/checkpoints/" in path else remove(path))
    metrics = train_editor.build(run, "dpo")

    lines = [json.loads(line) for line in (folder / "metrics" / "editors" / "dpo.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    # The reference itself; the ranking that says nothing takes no row's place.
    assert lines[0]["train/loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert lines[0]["train/error"] == pytest.approx(lines[0]["train/reference_error"], rel=1e-6)
    assert lines[-1]["train/error"] != lines[-1]["train/reference_error"]
    assert 0 <= metrics["train/implicit_accuracy"] <= 1
    after = Editor.load(folder / "editors" / "dpo")
    moved = {
        name
        for name, value in after.unet.state_dict().items()
        if not torch.equal(value, before.unet.state_dict()[name])
    }
    if lora_rank:
        assert {name.rsplit(".", 2)[-2] for name in moved} == {"to_q", "to_k", "to_v", "0"}
    else:
        assert len(moved) > 0.9 * len(after.unet.state_dict())
    assert (folder / "editors" / "dpo" / LORA_WEIGHTS_FILE).is_file() == bool(lora_rank)
    encoded = read_manifest(str(folder / "ranking_latents"))
    assert (encoded.rows_out if encoded else 0) == (0 if latents == "none" else 4)

    exported = Editor.load(export_editor.build(run))
    for name, value in exported.unet.state_dict().items():
        assert torch.equal(value, after.unet.state_dict()[name]), name


@pytest.mark.ray
@pytest.mark.parametrize(("lora_rank", "stage"), [(0, 2), (2, 3)])
def test_an_editor_learns_levels_is_looked_at_and_exported_and_is_the_start_of_another_loss(
    start, lora_rank, stage, tmp_path, monkeypatch
):
    folder, _ = start
    write_pairs(str(tmp_path), count=24)
    scored = [
        row | {"reward": 0.0, "reward_model": "judge", "quality_level": 5 if place % 2 else 2}
        for place, row in enumerate(read_rows(str(tmp_path / "pairs"), PAIRS))
    ]
    write_rows(str(tmp_path / "scored_pairs_level"), SCORED_PAIRS, scored, {})
    training = Training(
        total_images=8, batch_size=4, micro_batch_size=2, learning_rate=1e-3, checkpoint_images=4, workers=WORKERS,
        zero_stage=stage, ema_decay=0.5, validation_rows=2,
    )  # fmt: skip
    preset, preview = sd15(), Preview(num_inference_steps=1)
    changed = {"resolution": 64, "lora_rank": lora_rank, "latents": "none", "preview": preview}
    changed |= {"level_guidance_scale": 2.0}
    one_step = training.model_copy(update={"total_images": 4, "validation_rows": 0})
    changed |= {"finetune": training, "dpo": Dpo(training=one_step)}
    elsewhere = {"editors/current": str(folder / "editors" / "sft"), "rankings": str(folder / "rankings")}
    run = Run(str(tmp_path), preset.changed({"editor": changed}), arm="level", elsewhere=elsewhere)
    remove = storage.remove_tree  # what is exported is the last checkpoint
    monkeypatch.setattr(storage, "remove_tree", lambda path: None if "/checkpoints/" in path else remove(path))
    metrics = train_editor.build(run, "level")

    assert math.isfinite(metrics["validation/loss"])
    trained = Editor.load(tmp_path / "editors" / "level")
    assert trained.card.level_guidance_scale == 2.0
    levels = trained.unet.class_embedding.weight
    assert levels[[2, 5]].any(1).all()
    assert not levels[[1, 3, 4]].any()  # no row has these
    exported = Editor.load(export_editor.build(run))
    assert torch.equal(exported.unet.class_embedding.weight, levels)

    again = Run(str(tmp_path), run.config, elsewhere=elsewhere | {"editors/current": str(tmp_path / "editors/level")})
    train_editor.build(again, "dpo")
    lines = [json.loads(line) for line in (tmp_path / "metrics" / "editors" / "dpo.jsonl").read_text().splitlines()]
    first = next(line for line in lines if "train/error" in line)
    assert first["train/error"] == pytest.approx(first["train/reference_error"], rel=1e-6)
    moved = Editor.load(tmp_path / "editors" / "dpo").unet.class_embedding.weight
    assert torch.equal(moved, levels) == bool(lora_rank)


def test_the_table_of_levels_is_read_with_them_and_no_phrase_is_asked_for(tmp_path):
    for name, changed in (
        ("level", {}),
        ("finetuned", {"editor": {"arm": "level"}}),
        ("finetuned", {"scoring": {"shaping": "level"}}),
    ):
        run = Run(str(tmp_path), sd15().changed(changed))
        arm = train_editor.arm_of(run, name)
        assert arm.objective is train_editor.LevelTraining
        assert "quality_level" in arm.columns(run.config.editor)
        assert train_editor._plan(run, name)[2] == ""
    plain = train_editor.arm_of(Run(str(tmp_path), sd15()), "finetuned")
    assert plain.objective is train_editor.EditorTraining
    assert "quality_level" not in plain.columns(sd15().editor)


@pytest.mark.ray
def test_a_released_checkpoint_of_one_file_is_trained_on(start, tmp_path):
    tokenizer = train_tokenizer([WORDS, QUALITY], MAX_TOKENS)
    tokenizer.save_pretrained(tmp_path / "vocabulary" / "tokenizer")
    torch.save({"state_dict": checkpoint(tiny(SD15, len(tokenizer)), in_channels=8)}, tmp_path / "released.ckpt")
    file = EditorFile(tokenizer=str(tmp_path / "vocabulary"))
    write_pairs(str(tmp_path / "run"), count=8)
    config = tiny_config(str(tmp_path / "released.ckpt"), "none").changed({"editor": {"single_file": file}})
    run = Run(str(tmp_path / "run"), config)
    encode_latents.build(run)
    metrics = train_editor.build(run)

    assert metrics["images"] == config.editor.sft.total_images
    before = Editor.build(tmp_path / "released.ckpt", single_file=file)
    after = Editor.load(tmp_path / "run" / "editors" / "sft")
    for (name, old), new in zip(before.unet.state_dict().items(), after.unet.state_dict().values(), strict=True):
        assert 0 < (new - old).abs().max() < 1e-3, name


def test_settings_that_came_later_leave_the_fingerprint_of_a_training_as_it_was():
    def digest(dpo: dict) -> str:
        return id_for(json.dumps(fingerprint_of(editor_settings(dpo=Dpo(**dpo))), sort_keys=True))

    before = digest({})
    assert before == "be56f0605f571dcc"
    assert before == digest({"min_rank_gap": 1, "timesteps": (0.0, 1.0), "safeguard": 0.0, "shuffled": False})
    others = [{"min_rank_gap": 2}, {"timesteps": (0.3, 1.0)}, {"safeguard": 1.0}, {"safeguard_margin": 0.9}]
    assert before not in {digest(one) for one in [*others, {"shuffled": True}]}


def test_an_unknown_arm_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"arm 'dop' is unknown; did you mean 'dpo'\? .* sft, .* joined by \+"):
        train_editor.build(Run(str(tmp_path), sd15()), "dop")


@pytest.mark.parametrize(
    ("arm", "makes"),
    [
        ("sft", "make_pairs"),
        ("finetuned", "score_pairs .* --arm finetuned"),
        ("weighted", "score_pairs .* --arm weighted"),
        ("level", "score_pairs .* --arm level"),
        ("dpo", "collect_rankings"),
        ("shuffled", "collect_rankings"),
        ("nft", "score_candidates .* --arm nft"),
        ("rejection", "score_candidates .* --arm rejection"),
    ],
)
def test_an_arm_without_its_table_names_the_command_that_makes_it(tmp_path, arm, makes):
    with pytest.raises(FileNotFoundError, match=rf"is not finished; this makes it: python -m jobs\.{makes}"):
        train_editor.build(Run(str(tmp_path), sd15()), arm)


@pytest.mark.parametrize(
    ("chosen", "makes"),
    [
        ("dpo", "collect_rankings"),
        ("weighted", "score_pairs .* --arm finetuned"),
        ("rejection", "score_candidates .* --arm finetuned"),
    ],
)
def test_what_finetuned_is_trained_on_is_what_its_arm_is(tmp_path, chosen, makes):
    run = Run(str(tmp_path), sd15().changed({"editor": {"arm": chosen}}))
    with pytest.raises(FileNotFoundError, match=rf"/{ARMS[chosen].table} is not finished.*python -m jobs\.{makes}"):
        train_editor.finetune(run)


def test_an_arm_is_decided_by_its_own_settings_alone():
    before = editor_settings()
    settings = editor_settings(
        arm="nft", nft=Nft(beta=0.5), dpo=Dpo(beta=3.0), level_rate_factor=7.0, level_guidance_scale=2.0
    )
    for name in ("sft", "control", "conditional", "rejection"):
        assert fingerprint_of(ARMS[name].fingerprinted_settings(settings)) == fingerprint_of(
            ARMS[name].fingerprinted_settings(before)
        )
    own = {
        "dpo": {"editor.dpo.beta"},
        "nft": {"editor.nft.beta"},
        "level": {"editor.level_rate_factor", "editor.level_guidance_scale"},
    }
    for name, of_arm in own.items():
        ours, theirs = (fingerprint_of(ARMS[name].fingerprinted_settings(one)) for one in (settings, before))
        assert {key for key in ours if ours[key] != theirs.get(key)} == of_arm


def test_what_a_reward_model_pleases_is_said_of_arms_and_of_their_sums(tmp_path):
    run = Run(str(tmp_path), sd15().changed({"editor": {"arm": "weighted+dpo"}}))
    assert training_judges(run, "finetuned") == training_judges(run, "weighted") == ("model",)
    assert training_judges(run, "dpo") == ()
    assert training_judges(run, "dpo+nft") == ("model",)
    ranked = replace(run, config=run.config.changed({"candidate_scoring": {"ranked_rate": 0.5}}))
    assert training_judges(ranked, "dpo") == ("model",)
    assert training_judges(ranked, "shuffled") == ()


def test_arms_joined_by_a_plus_are_trained_each_and_all_that_they_changed_is_added_up(start, tmp_path, monkeypatch):
    monkeypatch.setenv("HIVE_RAY_CACHE", str(tmp_path / "cache"))
    _, editor = start
    shifts, trained = {"sft": 0.0, "weighted": 1.0, "dpo": -0.25}, []

    def train(run: Run, name: str) -> dict:
        moved = {key: value + shifts[name] for key, value in editor.unet.state_dict().items()}
        editor.with_weights(moved).save(tmp_path / "editors" / name, editor.card)
        trained.append(name)
        return {}

    monkeypatch.setattr(train_editor, "_trained", train)
    run = Run(str(tmp_path), sd15().changed({"editor": {"arm": "weighted+dpo"}}))
    train_editor.build(run)
    for name in ("finetuned", "weighted+dpo"):
        train_editor.build(run, name)
        added = Editor.load(tmp_path / "editors" / name).unet.conv_out.weight
        torch.testing.assert_close(added, editor.unet.conv_out.weight + 0.75)
    assert trained == ["sft", "weighted", "dpo", "weighted", "dpo"]
    with pytest.raises(ValueError, match=r"finetuned is added up, not trained: name one of its parts, weighted or dpo"):
        train_editor.arm_of(run, "finetuned")


@pytest.mark.ray
def test_rankings_of_which_too_many_are_broken_end_the_training_with_the_reason(start, tmp_path):
    folder, _ = start
    rows = [ranking(index) for index in range(4)]
    rows[2]["edits"][1]["image"] = b"no picture"
    write_rows(str(tmp_path / "rankings"), RANKINGS, rows, {})
    editor = {"start": str(folder / "editors" / "sft"), "resolution": 64, "resources": WORKERS}
    run = Run(str(tmp_path), sd15().changed({"editor": editor}))
    with pytest.raises(Stopped, match="unreadable_picture"):
        encode_latents.build_for_rankings(run, [run.path("rankings")])


def test_an_arm_is_added_once(tmp_path):
    run = Run(str(tmp_path), sd15())
    assert train_editor.parts_of(run, "dpo+nft") == ["dpo", "nft"]
    assert train_editor.parts_of(run, "released+by-others") == ["released+by-others"]
    with pytest.raises(ValueError, match=r"arm 'dpo\+dpo' names an arm twice"):
        train_editor.arm_of(run, "dpo+dpo")


def test_a_sum_of_arms_has_no_table_of_its_own(tmp_path):
    config = sd15().changed({"editor": {"arm": "weighted+dpo"}})
    run = Run(str(tmp_path), config, arm="finetuned")
    for job in (score_pairs.build_for_arm, score_candidates.build_for_arm, sample_candidates.build_for_arm):
        with pytest.raises(ValueError, match=r"weighted\+dpo is several arms, .*name one, --arm weighted"):
            job(run)


def test_what_hears_the_phrase_from_the_beginning_is_trained_in_its_own_round_by_a_table_that_score_pairs_makes(
    tmp_path,
):
    first = Run(str(tmp_path), sd15())
    with pytest.raises(FileNotFoundError, match=r"jobs\.score_pairs .*--arm conditional$"):
        train_editor.training(first, "conditional_sft")
    second = first.after()
    write_rows(second.path("scored_pairs_conditional"), SCORED_PAIRS, [], {}, may_be_empty=True)
    editor = Editor.build(tiny_stable_diffusion(tmp_path / "base"))
    editor.save(tmp_path / "start", editor.card)
    config = second.config.changed({"editor": {"start": str(tmp_path / "start")}})
    told = train_editor.training(replace(second, config=config), "conditional_sft")
    assert told["run"] == second.root
    assert told["start"] == str(tmp_path / "start")


@pytest.mark.parametrize(
    ("arm", "words"),
    [
        (
            "dop",
            "'dop' is unknown; did you mean 'dpo'.* scored, conditional, level, weighted, dpo, nft, rejection, or",
        ),
        ("dpo+conditional", "'conditional' is unknown; .*several of weighted, dpo, nft, rejection, joined by"),
        ("dpo+dpo", "names an arm twice"),
        ("weighted_dpo", r"'weighted_dpo' is gone: 'weighted\+dpo' adds up"),
    ],
)
def test_an_arm_that_nothing_trains_or_adds_up_is_refused_at_once(arm, words):
    with pytest.raises(ValidationError, match=words):
        editor_settings(arm=arm)


def test_the_control_of_dpo_is_dpo_with_ranks_at_random(start):
    run = Run(str(start[0]), sd15())
    dpo, shuffled = (train_editor.training(run, name) for name in ("dpo", "shuffled"))
    assert shuffled["editor"].dpo == dpo["editor"].dpo.model_copy(update={"shuffled": True})
    assert shuffled["fingerprint"] == dpo["fingerprint"] | {"editor.dpo.shuffled": True}
    assert all(shuffled[name] == dpo[name] for name in ("objective", "settings", "start", "table", "suffix"))


def test_rankings_that_say_nothing_are_left_out_and_where_all_do_the_setting_is_named(start):
    table = str(start[0] / "rankings")
    assert len(informative_rankings([table], Dpo())) == 3
    with pytest.raises(ValueError, match=r"none of the rankings in .* has two edits that are 2 ranks apart: lower "):
        informative_rankings([table], Dpo(min_rank_gap=2))


def test_the_controls_that_the_evaluation_names_are_trained(monkeypatch):
    config = sd15().changed({"evaluation": {"editors": ("sft", "shuffled", "weighted", "control", "finetuned")}})
    trained = []
    monkeypatch.setattr(train_editor, "build", lambda run, name: trained.append(name))
    train_editor.controls(Run("nowhere", config))
    assert trained == ["shuffled", "control"]


def test_imported_pairs_that_are_not_there_are_made_by_importing(tmp_path):
    run = Run(str(tmp_path), sd15().changed({"importing": {"dataset": "somewhere"}}))
    with pytest.raises(FileNotFoundError, match=r"pairs is not finished; this makes it: python -m jobs\.import_pairs"):
        train_editor.build(run)
