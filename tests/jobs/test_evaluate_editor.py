import json
import re
from dataclasses import asdict, replace
from math import isfinite
from zlib import crc32

import pytest
from annotation_site import make_evaluation, picture
from tiny_models import tiny_clip, tiny_editor, tiny_tokenizer

import jobs.run
from hive_ray import storage
from hive_ray.artifacts.building import write_rows
from hive_ray.config import Config, DenoisingError, Evaluation
from hive_ray.evaluation.report import Report, write_report
from hive_ray.presets import sd15
from hive_ray.reward.model import RewardModel
from hive_ray.schemas import EVALUATION, PROMPTS, to_table
from hive_ray.shapes.judge import Judgement
from jobs import evaluate_editor
from jobs.actors import evaluating
from jobs.actors.evaluating import EditEvaluator, best_of_name
from jobs.evaluate_editor import (
    METRICS,
    TIE_WITHIN,
    in_words,
    is_measured,
    judge_warnings,
    judged_draws,
    metrics_of,
    print_summary,
    selection_warnings,
    summarise,
    without_pictures,
)
from jobs.report import gather_report
from jobs.run import Run
from jobs.train_editor import CONTROLS


def run(judges=("model",), editors=("sft", "finetuned"), **evaluation) -> Run:
    preset = sd15()
    sections = {
        "scoring": preset.scoring.model_copy(update={"judges": judges}),
        "evaluation": preset.evaluation.model_copy(update={"editors": editors} | evaluation),
    }
    return Run("nowhere", Config(**dict(preset) | sections))


def test_a_measure_by_the_judge_that_was_trained_against_is_warned_of():
    (words,) = judge_warnings(run(), METRICS[3:])
    assert words.startswith("finetuned: trained to please the judge behind reward.")
    assert words.endswith("look at clip_image, clip_direction, what people say.")
    (words,) = judge_warnings(run(("clip", "model"), ("sft", "weighted", "conditional"), judge="shapes"), METRICS)
    assert words.startswith(
        "weighted, conditional: trained to please the judge behind clip_direction and clip_image and"
    )
    assert words.endswith("look at right, followed, preserved, what people say.")


def test_that_the_best_of_several_was_chosen_by_its_reward_is_said():
    several = run(editors=("sft", "shuffled", "finetuned"), judge="shapes", best_of=4)
    (words,) = selection_warnings(several, METRICS)
    assert words.startswith("sft, best of 4; finetuned, best of 4: chosen by the reward.")
    assert words.endswith("look at right, followed, preserved, clip_image, clip_direction.")
    assert selection_warnings(several, METRICS[:-1]) == []
    assert selection_warnings(run(), METRICS) == []


def test_a_reward_that_sees_clip_is_warned_of_by_both_its_measures():
    seeing = {"reward": {"features": "denoising_error", "denoising_error": DenoisingError(clip_image=True)}}
    by_model = run(editors=("sft", "finetuned"), judge="shapes", best_of=4, clip="another/clip")
    several = replace(by_model, config=by_model.config.changed(seeing))
    assert selection_warnings(several, METRICS)[0].endswith("look at right, followed, preserved, clip_direction.")
    [words] = judge_warnings(several, METRICS)
    assert words.startswith("finetuned: trained to please the judge behind clip_image and reward.")
    # scoring's own CLIP is another one than the evaluation's, and decides none of its measures
    by_clip = run(("clip",), clip="another/clip")
    assert judge_warnings(replace(by_clip, config=by_clip.config.changed(seeing)), METRICS) == []


def test_nothing_is_warned_of_where_the_measures_are_by_others():
    assert judge_warnings(run(editors=("sft", "control")), METRICS) == []  # no feedback at all
    assert judge_warnings(run(("openai",)), METRICS) == []
    assert judge_warnings(run(("clip",), clip="another/clip"), METRICS) == []


@pytest.mark.parametrize(
    ("arm", "changed", "measures"),
    [
        ("weighted", {}, ["clip_direction and clip_image"]),
        ("dpo", {}, []),  # it learned from people
        ("nft", {}, ["reward"]),
        ("nft", {"judge": "people"}, []),
        ("rejection", {"judge": "people"}, ["reward"]),  # people rank no unguided edits
    ],
)
def test_whom_the_finetuned_editor_was_trained_to_please_is_what_its_arm_learned_from(arm, changed, measures):
    by_clip = run(("clip",))
    told = replace(by_clip, config=by_clip.config.changed({"editor": {"arm": arm}, "candidate_scoring": changed}))
    assert [words.split("behind ")[1].split(".")[0] for words in judge_warnings(told, METRICS)] == measures


def test_editors_that_please_different_judges_are_warned_of_apart():
    pair, edits = judge_warnings(run(("clip",), ("sft", "weighted", "nft", "conditional")), METRICS)
    assert pair.startswith("weighted, conditional: trained to please the judge behind clip_direction and clip_image.")
    assert edits.startswith("nft: trained to please the judge behind reward.")


@pytest.fixture
def measured(tmp_path):
    """Makes a run whose evaluation of these editors is done; none of them was trained in it."""

    def make(*editors: str) -> Run:
        for name in editors:
            make_evaluation(str(tmp_path), name, 2)
        storage.write_text(str(tmp_path / "reward" / "card.json"), json.dumps({"warning": ""}))
        return replace(run(editors=editors), root=str(tmp_path))

    return make


def report_of(run: Run) -> Report:
    return gather_report(run, metrics_of(run), TIE_WITHIN)


def test_an_editor_that_was_trained_elsewhere_has_no_curve_of_its_training(measured):
    assert report_of(measured("sft", "released")).losses == {"editors/sft": [], "editors/released": [], "reward": []}


def test_a_sum_of_arms_shows_the_curves_of_its_parts(measured):
    run = measured("sft", "finetuned")
    run = replace(run, config=run.config.changed({"editor": {"arm": "dpo+rejection"}}))
    log = json.dumps({"images": 1, "train/loss": 0.5})
    for name in ("dpo", "finetuned"):  # the latter by an arm of an earlier time
        storage.write_text(run.path(f"metrics/editors/{name}.jsonl"), log)
    losses = report_of(run).losses
    assert losses == {"editors/sft": [], "editors/dpo": [(1, 0.5)], "editors/rejection": [], "reward": []}


def test_a_damaged_log_costs_its_bad_lines_and_not_the_report(measured, capsys):
    run = measured("sft", "released")
    lines = [json.dumps({"images": images, "train/loss": 1 / images}) for images in (1, 2, 4)]
    log = '{"images": 3, "tr\n' + "\n".join(lines) + '\n[]\n{"images": 5, "train/loss": null}\n'
    storage.write_text(run.path("metrics/editors/sft.jsonl"), log)
    storage.write_bytes(run.path("metrics/editors/released.jsonl"), b"\0" * 99)
    losses = report_of(run).losses
    assert losses == {"editors/sft": [(1, 1.0), (2, 0.5), (4, 0.25)], "editors/released": [], "reward": []}
    said = capsys.readouterr().out
    assert f"{run.path('metrics/editors/sft.jsonl')}: 2 of 6 lines cannot be used" in said
    assert (
        f"report: no curve of editors/released: {run.path('metrics/editors/released.jsonl')} begins with 0000" in said
    )


def test_one_editor_alone_is_shown_and_compared_with_nothing(measured):
    run = measured("released")
    report, summary = report_of(run), summarise(run)
    assert (report.findings, report.differences, report.baseline) == ([], {}, "")
    assert "released" in write_report(report)
    assert (summary["differences"], summary["win_rates"]) == ({}, {})


def test_the_finding_is_of_the_last_editor_that_is_not_the_baseline(measured):
    findings = report_of(measured("weighted", "sft", "control")).findings
    assert [(one.editor, one.baseline) for one in findings] == [("sft", "control"), ("weighted", "control")]


@pytest.mark.parametrize(
    ("judge", "metrics"),
    [
        ("none", ("clip_image", "clip_direction")),
        ("shapes", ("right", "followed", "preserved", "clip_image", "clip_direction")),
    ],
)
def test_without_a_reward_model_nothing_is_measured_by_one_and_that_is_said(measured, judge, metrics):
    run = measured("sft", "finetuned")
    storage.remove_tree(run.path("reward"))
    run = replace(run, config=run.config.changed({"evaluation": {"judge": judge}}))
    report, summary = report_of(run), summarise(run)
    assert all(tuple(one.metrics) == metrics for one in report.summaries)
    assert "reward" not in report.win_rates
    assert bool(summary["win_rates"]) == (judge == "shapes")
    assert summary["warnings"] == [f"{run.path('reward')} is no finished reward model: nothing is measured by one."]
    assert not report.rewards


@pytest.mark.parametrize("shared", [{}, {"reward/accuracy": 0.75, "reward/ranking_accuracy": 0.75, "preferences": 4}])
def test_preferences_that_people_share_have_their_line_where_there_are_any(measured, shared):
    run = measured("sft")
    storage.write_text(run.path("reward/card.json"), json.dumps({"warning": "", "shared": shared}))
    lines = {} if not shared else {"reward model, held-out preferences that people share": (0.75, 0.75)}
    assert report_of(run).reward_accuracy == lines


# --- All draws of each prompt -------------------------------------------------------------------------------


def write_evaluation(run: Run, name: str, schema=EVALUATION, draws: bool = True) -> None:
    """An evaluation of two prompts: of each, the second draw is right and has the greater reward. A control has no
    best of two."""
    measures = {"clip_image": 0.0, "clip_direction": 0.0, "preserved": 1.0}
    wrong = measures | {"seed": 0, "followed": 0.0, "reward": 0.0}
    right = measures | {"seed": 1, "followed": 1.0, "reward": 1.0}
    scales = {"guidance_scale": 7.5, "image_guidance_scale": 1.5}
    pictures = {"source_image": picture(0), "edited_image": picture(1)}
    rows = []
    for prompt in ("p0", "p1"):
        prompt_of = {"prompt_id": prompt, "instruction": "make it red"} | scales | pictures
        best = best_of_name(name, 2)
        all_draws = [wrong, right] if draws else []
        rows.append(prompt_of | wrong | {"evaluation_id": prompt, "editor": name, "draws": all_draws})
        if name not in CONTROLS:
            rows.append(prompt_of | right | {"evaluation_id": f"{prompt}, best", "editor": best, "draws": []})
    of_schema = [{column: row[column] for column in schema.names} for row in rows]
    write_rows(run.path(f"evaluation/{name}"), schema, of_schema, {"editor": name})


@pytest.fixture
def drawn(tmp_path):
    """A run with the best of two of sft, and a control."""
    storage.write_text(str(tmp_path / "reward" / "card.json"), json.dumps({"warning": ""}))
    made = replace(run(editors=("sft", "control"), judge="shapes", best_of=2), root=str(tmp_path))
    write_evaluation(made, "sft")
    write_evaluation(made, "control")
    return made


OLD = EVALUATION.remove(EVALUATION.get_field_index("draws"))
"""What tables of one edit a prompt had, before draws were kept."""


def test_all_draws_of_an_editor_tell_what_the_reward_knows(drawn, capsys):
    draws = judged_draws(drawn)
    assert list(draws) == ["sft"]
    assert (draws["sft"].first.value, draws["sft"].ceiling.value) == (0, 1)
    assert draws["sft"].measures["reward"].clear.value == 1
    assert gather_report(drawn, metrics_of(drawn), TIE_WITHIN, draws=draws).draws == draws
    told = json.loads(json.dumps(asdict(draws["sft"])))  # as the summary has it
    summary = summarise(drawn) | {"reward_on_draws": {"sft": told, "finetuned": {}}}
    print_summary(drawn, summary)
    assert (
        "sft, 2 edits of each of 2 prompts: AUC of the reward 1.000 [1.000, 1.000]; it orders 1.000 [1.000, 1.000] of "
        "2 clear preferences; right 0.000 first, 1.000 its choice, 1.000 at most\n"
    ) in capsys.readouterr().out


def test_every_figure_is_of_all_edits_and_says_of_how_many(drawn, capsys):
    """Of sft and of the control one edit of two is right, while the first is wrong; the best of sft's always is."""
    summary = summarise(drawn) | {"reward_on_draws": {}}
    counts = {one["editor"]: (one["num_edits"], one["num_prompts"]) for one in summary["editors"]}
    assert counts == {"sft": (4, 2), "sft, best of 2": (2, 2), "control": (4, 2)}
    means = {one["editor"]: one["metrics"]["right"]["value"] for one in summary["editors"]}
    assert means == {"sft": 0.5, "sft, best of 2": 1, "control": 0.5}
    assert summary["differences"]["sft, best of 2"]["right"]["value"] == 0.5
    assert summary["win_rates"] == {
        "sft": {"win": 0, "tie": 1, "loss": 0, "num_prompts": 2, "num_pairs": 4},
        "sft, best of 2": {"win": 0.5, "tie": 0.5, "loss": 0, "num_prompts": 2, "num_pairs": 4},
    }
    report = report_of(drawn)
    assert [(one.editor, one.num_edits, one.num_prompts) for one in report.findings] == [
        ("sft", 4, 2), ("sft, best of 2", 2, 2),
    ]  # fmt: skip
    assert report.rewards == {"sft": [0, 1, 0, 1], "sft, best of 2": [1, 1], "control": [0, 1, 0, 1]}
    print_summary(drawn, summary)
    said = capsys.readouterr().out
    assert re.search(r"^sft +4 of 2 +0\.500", said, re.MULTILINE)
    assert "win 50.0%, tie 50.0%, loss 0.0% of 4 pairs of edits of 2 prompts" in said


def test_of_each_prompt_the_first_edit_is_shown(drawn):
    example = report_of(drawn).edits[0]
    assert [shown.right for shown in example.pictures] == [None, False, True, False]


def test_what_is_measured_is_read_without_pictures(drawn):
    columns = {*without_pictures(drawn, "sft")[0]}
    assert {*EVALUATION.names} - columns == {"source_image", "edited_image"}


def test_what_no_edit_could_tell_is_said_to_be_unknown(drawn):
    told = asdict(judged_draws(drawn)["sft"])
    told["measures"]["reward"] |= {"auc": None, "clear": None}
    assert "AUC of the reward not known; it orders not known of" in in_words("sft", told)


@pytest.mark.parametrize("changed", [{"judge": "none"}, {"best_of": 1}, {"editors": ("control",)}])
def test_without_a_judge_or_several_draws_nothing_is_told_of_them(drawn, changed, capsys):
    other = replace(drawn, config=drawn.config.changed({"evaluation": changed}))
    assert judged_draws(other) == {}
    print_summary(other, summarise(other) | {"reward_on_draws": {}})
    assert "edits of each" not in capsys.readouterr().out


def test_an_editor_whose_table_has_no_draws_is_left_out(drawn):
    storage.remove_tree(drawn.path("evaluation/sft"))
    write_evaluation(drawn, "sft", draws=False)
    assert judged_draws(drawn) == {}


def test_tables_of_one_edit_a_prompt_are_read_as_they_were_made_before_draws_were_kept(drawn):
    old = replace(drawn, config=drawn.config.changed({"evaluation": {"best_of": 1}}))
    storage.remove_tree(drawn.path("evaluation/sft"))
    write_evaluation(old, "sft", OLD)
    assert {one["editor"] for one in summarise(old)["editors"]} >= {"sft", "control"}
    assert "draws" not in without_pictures(old, "sft")[0]
    assert gather_report(old, metrics_of(old), TIE_WITHIN).draws == {}


@pytest.fixture
def made_before(monkeypatch, tmp_path):
    """Makes a table of so many edits of sft as an earlier version did, and measures it again."""
    monkeypatch.setattr(jobs.run, "model_digest", lambda path: "clip")
    measured = replace(run(), root=str(tmp_path))
    write_rows(measured.path("prompts"), PROMPTS, [], {}, may_be_empty=True)
    storage.write_text(measured.path("editors/sft/card.json"), "{}")

    def again(num_draws: int, **mark: str) -> None:
        stage = evaluate_editor.measuring_stage("sft", "evaluation/sft", (1.5,), 2, num_draws)
        made_from = stage.fingerprint(measured)
        made_from.pop("evaluation.draws", None)
        write_rows(measured.path("evaluation/sft"), OLD, [], made_from | mark, may_be_empty=True)
        assert is_measured(measured.path("evaluation/sft"), num_draws) == (num_draws == 1)
        stage.make(measured)

    return again


def test_one_edit_a_prompt_is_kept_as_it_was_made_before_draws_were_kept(made_before, capsys):
    made_before(1)
    assert "evaluation: kept" in capsys.readouterr().out


@pytest.mark.parametrize(("mark", "was"), [({}, "absent"), ({"evaluation.draws": "kept"}, "kept")])
def test_several_edits_whose_draws_were_not_kept_or_lie_in_another_row_are_refused_by_name(made_before, mark, was):
    with pytest.raises(FileExistsError, match=rf"evaluation\.draws was {was}, is in the row of the first edit"):
        made_before(2, **mark)


@pytest.mark.parametrize(
    ("made_from", "num_draws"),
    [
        ({}, 1),
        ({"evaluation.best_of": 2, "evaluation.draws": "in the row of the first edit"}, 2),
        ({"evaluation.best_of": 4, "evaluation.draws": "in the row of the first edit"}, 4),
    ],
)
def test_a_table_is_measured_for_its_own_number_of_edits_alone(tmp_path, made_from, num_draws):
    table = str(tmp_path / "table")
    assert not is_measured(table, num_draws)
    write_rows(table, EVALUATION, [], made_from, may_be_empty=True)
    assert [number for number in (1, 2, 4) if is_measured(table, number)] == [num_draws]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with a tiny editor, CLIP and reward model."""
    folder = tmp_path_factory.mktemp("models")
    tiny_editor(folder, "epsilon")
    tiny_clip(folder / "clip")
    RewardModel.from_scratch(tiny_tokenizer(), resolution=16, max_tokens=12).save(folder / "reward", {"warning": ""})
    return folder


TEXTS = {"instruction": "make it red", "source_caption": "a cat", "edited_caption": "a red cat"}
PROMPTS_OF_TWO = [{"prompt_id": f"p{number}", "source_image": picture(number, 64)} | TEXTS for number in range(2)]


def actor_of(models, reward: str, judge: str = "none", **options) -> EditEvaluator:
    """The actor that measures the tiny editor."""
    settings = Evaluation(clip=str(models / "clip"), num_inference_steps=2, judge=judge, precision="fp32")
    return EditEvaluator(str(models / "editor"), "sft", reward, (1.5,), settings, **options)


def test_the_actor_measures_every_draw_once_and_gives_the_first_row_all_of_them(models, monkeypatch):
    judged = []

    def by_content(source, edit, source_caption, edited_caption):
        judged.append(source)
        return Judgement(crc32(edit) % 1000 / 1000, 1.0)

    monkeypatch.setattr(evaluating, "judge", by_content)
    actor = actor_of(models, str(models / "reward"), "shapes", num_draws=3, with_best=True)
    prompts, texts = PROMPTS_OF_TWO, TEXTS
    rows = actor(prompts)
    assert judged == [picture(0, 64)] * 3 + [picture(1, 64)] * 3
    to_table(rows, EVALUATION)
    measures = ("seed", "clip_image", "clip_direction", "reward", "followed", "preserved")
    for prompt, (first, best) in zip(prompts, (rows[:2], rows[2:]), strict=True):
        assert (first["editor"], best["editor"]) == ("sft", "sft, best of 3")
        assert best["draws"] == []
        assert len({draw["seed"] for draw in first["draws"]}) == 3
        assert {name: first[name] for name in measures} == first["draws"][0]
        assert {name: best[name] for name in measures} == max(first["draws"], key=lambda draw: draw["reward"])
        for row in (first, best):
            assert row["prompt_id"] == prompt["prompt_id"]
            assert row["followed"] == crc32(row["edited_image"]) % 1000 / 1000
            columns = ("source_image", "edited_image", *texts)
            [source], [edit], [instruction], *captions = ([row.get(name, texts.get(name))] for name in columns)
            assert row["reward"] == pytest.approx(actor.reward.score([source], [edit], [instruction])[0], abs=1e-5)
            clip = actor.similarity.measure([source], [edit], *captions)
            assert row["clip_image"] == pytest.approx(clip["clip_image"].item(), abs=1e-5)
            assert row["clip_direction"] == pytest.approx(clip["clip_direction"].item(), abs=1e-5)
    alone = [row["evaluation_id"] for prompt in prompts for row in actor([prompt])]
    assert alone == [row["evaluation_id"] for row in rows]  # whatever the size of a batch


@pytest.mark.parametrize("has_reward", [True, False])
def test_a_control_and_an_editor_without_a_reward_model_have_all_draws_and_no_best(models, has_reward):
    reward = str(models / "reward") if has_reward else ""
    rows = actor_of(models, reward, num_draws=2, with_best=not has_reward)(PROMPTS_OF_TWO)
    to_table(rows, EVALUATION)
    assert [(row["editor"], len(row["draws"])) for row in rows] == [("sft", 2), ("sft", 2)]
    rewards = [draw["reward"] for row in rows for draw in row["draws"]]
    assert [isfinite(reward) for reward in rewards] == [has_reward] * 4


def test_one_edit_of_a_prompt_is_its_row(models):
    [row] = actor_of(models, str(models / "reward"), with_best=True)(PROMPTS_OF_TWO[:1])
    assert (row["editor"], row["draws"]) == ("sft", [])


def test_every_editor_has_its_edits_measured_and_its_curve():
    several = run(editors=("sft", "shuffled"), best_of=4, curve_prompts=2)
    stages = evaluate_editor.stages(several)
    assert [stage.name for stage in stages] == [
        "evaluation/sft", "curves/sft", "evaluation/shuffled", "curves/shuffled",
    ]  # fmt: skip
    assert stages[2].reads == ("prompts", "editors/shuffled")
    names = [stage.name for stage in evaluate_editor.stages(run(editors=("sft", "shuffled"), curve_prompts=0))]
    assert names == ["evaluation/sft", "evaluation/shuffled"]


def test_the_edits_are_as_many_as_asked_for_and_of_the_curve_one_and_controls_have_no_best(monkeypatch):
    asked = {}
    monkeypatch.setattr(
        evaluate_editor, "map_table",
        lambda *inputs, name, num_draws, with_best, scales, **options: asked.update({
            (name, len(scales) > 1): (num_draws, with_best)
        }),
    )  # fmt: skip
    several = run(editors=("sft", "control"), best_of=4, curve_prompts=2)
    for stage in evaluate_editor.stages(several):
        stage.plan(several)
    assert asked == {
        ("sft", False): (4, True), ("sft", True): (1, True),
        ("control", False): (4, False), ("control", True): (1, False),
    }  # fmt: skip
