import json
from dataclasses import replace

import pytest
from annotation_site import make_evaluation

from hive_ray import storage
from hive_ray.config import Config
from hive_ray.evaluation.report import Report, write_report
from hive_ray.presets import sd15
from jobs import evaluate_editor
from jobs.evaluate_editor import METRICS, TIE_WITHIN, chosen_by_reward, metrics_of, own_judges, summarise
from jobs.report import gather
from jobs.run import Run


def run(judges=("model",), editors=("sft", "finetuned"), **evaluation) -> Run:
    preset = sd15()
    sections = {
        "scoring": preset.scoring.model_copy(update={"judges": judges}),
        "evaluation": preset.evaluation.model_copy(update={"editors": editors} | evaluation),
    }
    return Run("nowhere", Config(**dict(preset) | sections))


def test_a_measure_by_the_judge_that_was_trained_against_is_warned_of():
    (words,) = own_judges(run(), METRICS[3:])
    assert words.startswith("finetuned: trained to please the judge behind reward.")
    assert words.endswith("look at clip_image, clip_direction, what people say.")
    (words,) = own_judges(run(("clip", "model"), ("sft", "weighted", "conditional"), judge="shapes"), METRICS)
    assert words.startswith(
        "weighted, conditional: trained to please the judge behind clip_direction and clip_image and"
    )
    assert words.endswith("look at right, followed, preserved, what people say.")


def test_that_the_best_of_several_was_chosen_by_its_reward_is_said():
    several = run(editors=("sft", "shuffled", "finetuned"), judge="shapes", best_of=4)
    (words,) = chosen_by_reward(several, METRICS)
    assert words.startswith("sft, best of 4; finetuned, best of 4: chosen by the reward.")
    assert words.endswith("look at right, followed, preserved, clip_image, clip_direction.")
    assert chosen_by_reward(several, METRICS[:-1]) == []
    assert chosen_by_reward(run(), METRICS) == []


def test_nothing_is_warned_of_where_the_measures_are_by_others():
    assert own_judges(run(editors=("sft", "control")), METRICS) == []  # no feedback at all
    assert own_judges(run(("openai",)), METRICS) == []
    assert own_judges(run(("clip",), clip="another/clip"), METRICS) == []


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
    assert [words.split("behind ")[1].split(".")[0] for words in own_judges(told, METRICS)] == measures


def test_editors_that_please_different_judges_are_warned_of_apart():
    pair, edits = own_judges(run(("clip",), ("sft", "weighted", "nft", "conditional")), METRICS)
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
    return gather(run, metrics_of(run), TIE_WITHIN)


def test_an_editor_that_was_trained_elsewhere_has_no_curve_of_its_training(measured):
    assert report_of(measured("sft", "released")).losses == {"editors/sft": [], "editors/released": [], "reward": []}


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


def test_of_the_controls_no_best_of_several_is_drawn(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        evaluate_editor, "measure", lambda run, name, table, scales, limit, n=1: asked.append((name, n))
    )
    monkeypatch.setattr(evaluate_editor, "summarise", lambda run: asked.append("summarised") or {"warnings": []})
    changed = {"editors": ("sft", "shuffled", "finetuned"), "best_of": 4, "curve_prompts": 0}
    with pytest.raises(FileNotFoundError):
        evaluate_editor.build(replace(run(**changed), root=str(tmp_path)))
    assert asked == [("sft", 4), ("shuffled", 1), ("finetuned", 4), "summarised"]
