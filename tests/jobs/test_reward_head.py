"""A reward model of denoising errors on a cluster: measured, fitted, and used by the stages after it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import tiny_clip, tiny_stable_diffusion, tiny_tokenizer
from tiny_settings import tiny_config

from hive_ray.artifacts.building import write_rows
from hive_ray.artifacts.manifest import fingerprint_of, read_manifest
from hive_ray.artifacts.selection import read_rows
from hive_ray.config import DenoisingError, LearningCurve
from hive_ray.editor.denoising_errors import errors_of_edits
from hive_ray.editor.model import Editor
from hive_ray.images import encode
from hive_ray.presets import shapes
from hive_ray.reward.model import RewardModel
from hive_ray.reward.objective import is_held_out, is_trained_on
from hive_ray.schemas import DENOISING_ERRORS, EDIT_MEASURES, EVALUATION, PAIRS, PROMPTS, RANKINGS
from jobs import evaluate_editor, reward_curve, score_pairs, train_reward
from jobs.actors.judging import Head, load_reward
from jobs.actors.scoring import rewards_of
from jobs.evaluate_editor import TIE_WITHIN, measures_of, metrics_of
from jobs.report import gather_report
from jobs.reward_head import new_edits_by_ranking, prior_rewards, problem_with_ranking, share_of_head
from jobs.run import Run

pytestmark = pytest.mark.ray

TEXTS = {"source_caption": "a dog", "edited_caption": "a dog , red", "split": "rank"}
SCALES = {"seed": 0, "guidance_scale": 7.5, "image_guidance_scale": 1.5}
PROMPTS_RANKED, BROKEN = 24, 3
"""How many prompts are ranked, and of which one an edit cannot be read."""


def picture(seed):
    return encode(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def ranking(number, annotator, ranks):
    edits = [{"edit_id": f"{number}-{place}", "image": picture(10 * number + place), **SCALES} for place in range(3)]
    if number == BROKEN:
        edits[1]["image"] = b"no picture"
    return TEXTS | {
        "ranking_id": f"{number}-{annotator}", "prompt_id": f"p{number}", "instruction": "make it red",
        "source_image": picture(1000 + number), "edits": edits, "editor": "sft", "annotator": annotator, "ranks": ranks,
    }  # fmt: skip


def rankings(numbers):
    orders = [[1, 2, 3], [2, 1, 3], [3, 2, 1], [1, 1, 2]]
    rows = [ranking(number, "one", orders[number % 4]) for number in numbers]
    return rows + [ranking(number, "two", orders[(number + 1) % 4]) for number in list(numbers)[:4]]


def prompt(number):
    kept = {"prompt_id": f"t{number}", "instruction": "add a hat", "source_image": picture(2000 + number)}
    return TEXTS | kept | {"split": "test"}


def pair(number):
    numbers = dict.fromkeys(("shared_attention", "clip_image", "clip_source_text", "clip_edited_text"), 0.0)
    return TEXTS | numbers | {
        "pair_id": f"pair{number}", "instruction_id": "i", "instruction": "make it red", "clip_direction": 0.0,
        "source_image": picture(3000 + number), "edited_image": picture(4000 + number), "weight": 1.0, "seed": 0,
        "origin": "generated", "split": "train",
    }  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory, shared_cluster):
    folder = tmp_path_factory.mktemp("run")
    base, clip, start, root = (folder / name for name in ("base", "clip", "start", "run"))
    editor = Editor.build(tiny_stable_diffusion(base))
    editor.save(root / "editors" / "sft", editor.card)
    tiny_clip(clip)
    RewardModel.from_scratch(tiny_tokenizer(), resolution=16, max_tokens=12).save(start, {"warning": ""})
    run = Run(
        str(root),
        tiny_config(str(base), str(clip)).changed({"reward": {"start": str(start)}, "evaluation": {"judge": "none"}}),
    )
    write_rows(run.path("rankings"), RANKINGS, rankings(range(PROMPTS_RANKED)), {})
    write_rows(run.path("prompts"), PROMPTS, [prompt(number) for number in range(3)], {})
    write_rows(run.path("pairs"), PAIRS, [pair(number) for number in range(5)], {})
    return run


def with_features(run, features, name="", **changed):
    """The run, or one beside it that shares what was made of pictures, with a reward model of this kind."""
    section = DenoisingError(levels=(250, 650), draws=1, precision="fp32", train_blip=False).model_copy(update=changed)
    config = run.config.changed({"reward": {"features": features, "denoising_error": section}})
    run = replace(run, config=config)
    if not name:
        return run
    made = {one: run.path(one) for one in ("rankings", "prompts", "pairs", "editors/sft", "denoising_errors")}
    return replace(run, root=f"{run.root}/{name}", elsewhere=made)


def card(run, name="reward"):
    return json.loads(Path(run.path(name), "card.json").read_text())


@pytest.fixture(scope="module")
def errors(run):
    """The run with a reward model of errors alone."""
    run = with_features(run, "denoising_error")
    train_reward.build(run)
    return run


def test_every_edit_is_measured_once_by_the_editor_that_all_rounds_share(errors):
    rows = list(read_rows(errors.path("denoising_errors"), DENOISING_ERRORS))
    good = [number for number in range(PROMPTS_RANKED) if number != BROKEN]
    assert sorted(row["edit_id"] for row in rows) == sorted(
        f"{number}-{place}" for number in good for place in range(3)
    )
    assert read_manifest(errors.path("denoising_errors")).dropped  # two people ranked the broken one, it counts once
    editor, settings = Editor.load(errors.path("editors/sft")), errors.config.reward.denoising_error
    [row] = [row for row in rows if row["edit_id"] == "5-1"]
    [expected] = errors_of_edits(editor, [picture(1005)], [picture(51)], ["make it red"], settings).tolist()
    assert row["features"] == pytest.approx(expected, rel=1e-3)


def test_the_card_compares_the_model_with_all_others_on_the_same_held_out_rankings(errors):
    said, rate = card(errors), errors.config.reward.held_out_rate
    usable = [row for row in rankings(range(PROMPTS_RANKED)) if row["prompt_id"] != f"p{BROKEN}"]
    held_out = [row for row in usable if is_held_out(row["prompt_id"], rate)]
    assert said["held_out_rankings"] == len(held_out) > 0
    assert said["train_rankings"] == len(usable) - len(held_out)
    assert said["bad_rankings"] == 2
    assert set(said["beside"]) >= {"clip_direction", "clip_image", "clip", "blip_start", "sum"}
    assert set(said["minus"]) == {"held_out_before_training", *said["beside"]}
    assert said["shared"] == {}  # of the prompts that two people ranked none is held out
    assert said["cost"] == {"network_evaluations": 6, "network_evaluations_of_sampling": 6}
    assert "reward/accuracy" in said["train"]["intervals"]
    assert 0 <= said["across_prompts"]["held_out"] <= 1


def test_the_model_scores_as_its_head_says_and_knows_its_editor_by_a_relative_address(errors):
    head = Head.load(errors.path("reward"))
    assert head.editor == "../editors/sft"
    rows = {row["edit_id"]: row["features"] for row in read_rows(errors.path("denoising_errors"), DENOISING_ERRORS)}
    [reward] = load_reward(errors.path("reward")).score([picture(1005)], [picture(51)], ["make it red"])
    assert reward == pytest.approx(head.linear(torch.tensor(rows["5-1"])).item(), abs=1e-3)


def test_the_stages_after_it_score_pairs_and_edits_by_it(errors):
    score_pairs.build(errors, "weighted")
    pairs = [pair(number) for number in range(5)]
    columns = [[one[name] for one in pairs] for name in ("source_image", "edited_image", "instruction")]
    expected = load_reward(errors.path("reward")).score(*columns)
    assert list(rewards_of(errors.path("rewards")).values()) == pytest.approx(expected, abs=2e-3)
    evaluate_editor.measure(errors, "sft", "evaluation/sft", (1.5,), 3)
    rows = list(read_rows(errors.path("evaluation/sft"), EVALUATION))
    columns = [[row[name] for row in rows] for name in ("source_image", "edited_image", "instruction")]
    assert [row["reward"] for row in rows] == pytest.approx(
        load_reward(errors.path("reward")).score(*columns), abs=1e-4
    )
    shown = replace(errors, config=errors.config.changed({"evaluation": {"editors": ("sft",)}}))
    report = gather_report(shown, metrics_of(shown), TIE_WITHIN)
    assert "BLIP + denoising errors + CLIP, held-out rankings" in report.reward_accuracy


def test_what_is_finished_is_kept_and_other_levels_are_refused(errors, capfd):
    train_reward.build(errors)
    printed = capfd.readouterr().out
    assert all(f"{name}: kept" in printed for name in ("denoising_errors", "edit_measures", "reward"))
    with pytest.raises(FileExistsError, match=r"denoisingerror\.draws was 1, is 2"):
        train_reward.build(with_features(errors, "denoising_error", draws=2))
    other_ridge = with_features(errors, "denoising_error", ridge=3.0)
    with pytest.raises(FileExistsError, match=r"reward was made otherwise: denoisingerror\.ridge was 1000\.0, is 3\.0"):
        train_reward.build(other_ridge)


def test_blip_as_it_is_becomes_one_more_feature(errors):
    both = with_features(errors, "both", "both")
    train_reward.build(both)
    said = card(both)
    assert said["features"][-1] == "BLIP's reward"
    assert set(said["beside"]) >= {"clip", "blip", "denoising_error", "sum"}
    assert "blip_start" not in said["beside"]
    given = ([picture(1005)], [picture(51)], ["make it red"])
    measured = {row["edit_id"]: row["blip"] for row in read_rows(both.path("reward_measures"), EDIT_MEASURES)}
    assert measured["5-1"] == pytest.approx(RewardModel.load(both.config.reward.start).score(*given)[0], abs=1e-4)
    head = Head.load(both.path("reward"))
    rows = {row["edit_id"]: row["features"] for row in read_rows(both.path("denoising_errors"), DENOISING_ERRORS)}
    [reward] = load_reward(both.path("reward")).score(*given)
    assert reward == pytest.approx(head.linear(torch.tensor([*rows["5-1"], measured["5-1"]])).item(), abs=1e-3)


def test_clips_similarity_to_the_source_becomes_one_more_feature(errors):
    seen = with_features(errors, "both", "seen", clip_image=True)
    train_reward.build(seen)
    assert card(seen)["features"][-2:] == ["CLIP's similarity to the source", "BLIP's reward"]
    given = ([picture(1005)], [picture(51)], ["make it red"])
    [measured] = [row for row in read_rows(seen.path("reward_measures"), EDIT_MEASURES) if row["edit_id"] == "5-1"]
    head = Head.load(seen.path("reward"))
    assert head.clip == seen.config.evaluation.clip
    rows = {row["edit_id"]: row["features"] for row in read_rows(seen.path("denoising_errors"), DENOISING_ERRORS)}
    [reward] = load_reward(seen.path("reward")).score(*given)
    features = torch.tensor([*rows["5-1"], measured["clip_image"], measured["blip"]])
    assert reward == pytest.approx(head.linear(features).item(), abs=1e-3)
    assert measures_of(seen, "model") == ("reward", "clip_image")
    assert measures_of(errors, "model") == ("reward",)
    assert measures_of(seen, "clip_image") == ("clip_image",)


def test_the_head_begins_as_minus_the_error_and_may_weigh_each_other_kind_of_feature_as_one():
    names = [f"error@{level}, {condition}" for level in (250, 650) for condition in ("instruction", "source")]
    found = prior_rewards([*names, "CLIP's similarity to the source", "BLIP's reward"])
    assert found.tolist() == [
        [-0.5, 0, -0.5, 0, 0, 0],
        [0, 0.5, 0, 0.5, 0, 0],
        [0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    assert prior_rewards(names[:1]).tolist() == [[-1]]


def test_a_later_round_learns_from_all_rankings_by_the_first_rounds_editor(errors):
    second = errors.after()
    write_rows(second.path("rankings"), RANKINGS, rankings(range(PROMPTS_RANKED, PROMPTS_RANKED + 6)), {})
    train_reward.build(second)
    assert Head.load(second.path("reward")).editor == "../../../editors/sft"
    assert card(second)["train_rankings"] > card(errors)["train_rankings"]
    assert load_reward(second.path("reward")).score([picture(1)], [picture(2)], ["make it red"])


def test_the_learning_curve_fits_heads_on_nested_shares(errors):
    reward = {"curve": LearningCurve(shares=(0.5, 1.0))}
    found = reward_curve.build(replace(errors, config=errors.config.changed({"reward": reward})))
    fewest, most = (point["rankings"] for point in found["points"])
    assert 0 < fewest < most == card(errors)["train_rankings"]


def test_without_a_held_out_ranking_nobody_knows_what_it_is_worth(errors, capfd):
    run = with_features(errors, "denoising_error", "all_learned")
    train_reward.build(replace(run, config=run.config.changed({"reward": {"held_out_rate": 0.0}})))
    assert "its accuracy is unknown" in card(run)["warning"]
    assert "an edit takes 6 network evaluations to score, 6 to sample" in capfd.readouterr().out


def test_rankings_share_edits_and_each_is_measured_in_the_first(errors):
    edits_of = new_edits_by_ranking([errors.path("rankings")], errors.config.reward)
    assert edits_of["0-one"] == ["0-0", "0-1", "0-2"]
    assert "0-two" not in edits_of


def test_a_head_that_learns_from_a_share_measures_no_other_edits(errors):
    run = with_features(errors, "denoising_error", "few", learned_rate=0.5)
    run.elsewhere.pop("denoising_errors")
    train_reward.build(run)
    rate = run.config.reward.held_out_rate
    prompts = {row["prompt_id"] for row in read_rows(errors.path("rankings"), RANKINGS, ["prompt_id"])}
    learned = {prompt for prompt in prompts if is_trained_on(prompt, rate, 0.5)}
    held_out = {prompt for prompt in prompts if is_held_out(prompt, rate)}
    measured = {row["prompt_id"] for row in read_rows(run.path("denoising_errors"), DENOISING_ERRORS)}
    broken = {f"p{BROKEN}"}
    assert measured == (learned | held_out) - broken < prompts - broken
    assert card(run)["train_prompts"] == len(learned - broken)


class Told(Exception):
    """What BLIP's training was told."""


def test_blip_learns_from_the_prompts_that_it_leaves_to_no_head(errors, monkeypatch):
    def fit(*_, **told):
        raise Told(told)

    monkeypatch.setattr(train_reward, "fit", fit)
    run = with_features(errors, "both", "apart", learned_rate=0.5, train_blip=True)
    rate = run.config.reward.held_out_rate
    rows = list(read_rows(errors.path("rankings"), RANKINGS, ["prompt_id"]))
    prompts = {row["prompt_id"] for row in rows if not is_held_out(row["prompt_id"], rate)}
    for share in (1.0, 0.8):
        with pytest.raises(Told) as caught:
            train_reward.build(run, share=share)
        by_head = {prompt for prompt in prompts if is_trained_on(prompt, rate, 0.5 * share)}
        by_blip = {prompt for prompt in prompts if is_trained_on(prompt, rate, share)} - by_head
        assert by_head
        assert len(caught.value.args[0]["rows"]()) == sum(row["prompt_id"] in by_blip for row in rows) > 0
    assert share_of_head(errors.config.reward, 1.0) == 0  # at a rate of 1 both learn from all


def test_what_is_wrong_with_a_ranking_is_said():
    assert problem_with_ranking([1, 2], ["a", "b"], {"a", "b"}) == ""
    assert problem_with_ranking([1, 2], ["a", "b"], {"a"}) == "nothing was measured of b"
    assert "leave gaps" in problem_with_ranking([1, 3], ["a", "b"], {"a", "b"})


def test_the_fingerprints_of_models_that_were_trained_before_are_as_they_were():
    reward = shapes().reward.model_copy(update={"features": "blip"})
    before = {name for name in type(reward).model_fields if name not in ("training", "curve", "resources")}
    expected = {f"reward.{name}" for name in before - {"features", "denoising_error"}}
    assert fingerprint_of(reward).keys() == expected
    changed = reward.model_copy(update={"denoising_error": DenoisingError(levels=(1,))})
    assert fingerprint_of(changed) == fingerprint_of(reward)
    assert fingerprint_of(reward.model_copy(update={"features": "both"})) != fingerprint_of(reward)


def test_blip_is_trained_first_as_it_would_be_alone(errors, monkeypatch):
    trained = []
    monkeypatch.setattr(train_reward, "fit", lambda *_, **arguments: trained.append(arguments))
    alone = replace(errors, config=errors.config.changed({"reward": {"features": "blip"}}))
    both = with_features(errors, "both", train_blip=True)
    train_reward.build(alone, "reward_curve/0.5", 0.5)
    blip, *others = train_reward.stages(both, "reward_curve/0.5", 0.5)
    blip.make(both)
    assert [arguments["name"] for arguments in trained] == ["reward_curve/0.5", "reward_curve/0.5_blip"]
    assert trained[0]["fingerprint"] == trained[1]["fingerprint"]
    errors_stage, measures, head = others
    assert errors_stage.name == "denoising_errors"
    assert measures.reads == ("rankings", "reward_curve/0.5_blip")
    assert head.reads == ("denoising_errors", measures.name)
    assert head.name == "reward_curve/0.5"
