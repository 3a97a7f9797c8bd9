"""How good the editors are: every edit of the test split measured, compared, and shown.

prompts, editors, reward -> evaluation/<editor>, curves/<editor> -> summary.json, report.html, edits.png
"""

from jobs.command import run_job

if __name__ == "__main__":  # before what the work needs is imported, which takes seconds
    run_job("evaluate_editor")

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from hive_ray import storage
from hive_ray.artifacts.manifest import Fingerprint, Manifest, read_manifest, table_digest
from hive_ray.artifacts.model_store import is_finished_model, model_digest
from hive_ray.artifacts.selection import read_rows
from hive_ray.cluster.mapping import MapTable, map_table
from hive_ray.console import tell_result, warn
from hive_ray.evaluation.draws import DrawsSummary, evaluate_measures
from hive_ray.evaluation.metrics import choose_baseline, compare_with_baseline, summarise_editors, win_rates
from hive_ray.evaluation.report import write_contact_sheet, write_report
from hive_ray.evaluation.summary import to_json
from hive_ray.reward.judges import CLIP_MEASURES
from hive_ray.schemas import EVALUATION, PROMPTS, SCORED_CANDIDATES, Rows
from hive_ray.statistics.intervals import Interval
from jobs.actors.evaluating import EditEvaluator, best_of_name
from jobs.report import gather_report, scored_card, shown_columns, won_by
from jobs.run import Run, fingerprint
from jobs.stage import Stage, TableStage
from jobs.train_editor import ARMS, CONTROLS, arm_of, parts_of

METRICS = ("right", "followed", "preserved", "clip_image", "clip_direction", "reward")
MEASURES_OF = {"model": ("reward",)} | CLIP_MEASURES
"""By judges of `scoring.judges`: what the evaluation measures by the same judge."""
TIE_WITHIN = 0.05
"""Judge's points (0..1) within which two edits count as equal: about an annotator's noise."""
DRAWS_MARK, DRAWS_IN_FIRST_ROW = "evaluation.draws", "in the row of the first edit"
"""Part of the fingerprint of tables of several edits a prompt. In earlier ones the row of the best edit has `draws`."""


def build(run: Run) -> dict:
    for stage in stages(run):
        stage.make(run)
    draws = judged_draws(run)
    summary: dict[str, Any] = summarise(run) | {"reward_on_draws": {name: asdict(one) for name, one in draws.items()}}
    storage.write_text(run.path("summary.json"), json.dumps(to_json(summary), indent=2))
    report = gather_report(run, metrics_of(run), TIE_WITHIN, summary["warnings"], draws)
    storage.write_text(run.path("report.html"), write_report(report))
    storage.write_bytes(run.path("edits.png"), write_contact_sheet(report.edits))
    print_summary(run, summary)
    return summary


def measure(
    run: Run, name: str, table: str, scales: tuple[float, ...], limit: int, num_draws: int = 1, *,
    with_reward: bool = True,
) -> Manifest:  # fmt: skip
    """The table of `num_draws` edits by one editor of each of the first `limit` test prompts, at each of these image
    guidance scales. It has the best of several edits, too, unless the editor is a control or no reward is measured."""
    return measuring_stage(name, table, scales, limit, num_draws, with_reward=with_reward).make(run)


def stages(run: Run) -> list[Stage]:
    """The tables of every editor's edits."""
    settings = run.config.evaluation
    stages: list[Stage] = []
    for name in settings.editors:
        scales = (settings.image_guidance_scale,)
        stages.append(measuring_stage(name, f"evaluation/{name}", scales, settings.num_prompts, settings.best_of))
        if settings.curve_prompts:
            stages.append(measuring_stage(name, f"curves/{name}", settings.curve, settings.curve_prompts))
    return stages


def measuring_stage(
    name: str, table: str, scales: tuple[float, ...], limit: int, num_draws: int = 1, *, with_reward: bool = True
) -> TableStage:
    """What `measure` makes."""
    editor = f"editors/{name}"

    def compute_fingerprint(run: Run) -> Fingerprint:
        reward = reward_of(run) if with_reward else ""
        settings = run.config.evaluation.model_copy(
            update={"editors": (), "num_prompts": limit, "curve": scales, "curve_prompts": 0, "best_of": num_draws}
        )
        made_from = fingerprint(
            settings, "clip", prompts=table_digest(run.path("prompts")), editor=model_digest(run.path(editor)),
            reward=model_digest(reward) if reward else "none",
        )  # fmt: skip
        return made_from | ({DRAWS_MARK: DRAWS_IN_FIRST_ROW} if num_draws > 1 else {})

    def plan(run: Run) -> MapTable:
        settings = run.config.evaluation
        return map_table(
            run.path("prompts"), PROMPTS, EditEvaluator, produces=EVALUATION, resources=settings.resources,
            where={"split": "test"}, limit=limit, editor=run.path(editor), name=name,
            reward=reward_of(run) if with_reward else "", scales=scales, settings=settings, num_draws=num_draws,
            with_best=name not in CONTROLS,
        )  # fmt: skip

    return TableStage(
        name=table, schema=EVALUATION, reads=("prompts", editor), fingerprint=compute_fingerprint, plan=plan
    )


def is_measured(table: str, num_draws: int) -> bool:
    """Whether a table is finished and has so many edits of each prompt where they are looked for."""
    manifest = read_manifest(table)
    if manifest is None:
        return False
    made_from = manifest.fingerprint
    mark = DRAWS_IN_FIRST_ROW if num_draws > 1 else None
    return made_from.get("evaluation.best_of", 1) == num_draws and made_from.get(DRAWS_MARK) == mark


def summarise(run: Run) -> dict[str, Any]:
    """Warnings, means with bootstrap intervals by editor, and win rates against the baseline, as plain numbers."""
    settings = run.config.evaluation
    metrics = metrics_of(run)
    rows = [row for name in settings.editors for row in without_pictures(run, name)]
    baseline = choose_baseline(settings.editors)
    options = {"resamples": settings.bootstrap, "seed": settings.seed}
    scored = scored_card(run)
    return {
        "warnings": judge_warnings(run, metrics) + selection_warnings(run, metrics) + unmeasured_warnings(run),
        "baseline": baseline,
        "editors": [asdict(one) for one in summarise_editors(rows, metrics, **options)],
        "differences": {
            name: {metric: asdict(gap) for metric, gap in gaps.items()}
            for name, gaps in compare_with_baseline(rows, baseline, metrics, **options).items()
        },
        "win_rates": {
            name: asdict(rate)
            for better in won_by(metrics)[:1]
            for name, rate in win_rates(rows, baseline, better, TIE_WITHIN).items()
        },
        "rewards": scored[1] if scored else {},
    }


def judged_draws(run: Run) -> dict[str, DrawsSummary]:
    """How well the reward and CLIP tell good edits from bad ones, by editor that has a best of several edits; empty
    without a judge or a reward model."""
    settings = run.config.evaluation
    if settings.judge == "none" or settings.best_of == 1:
        return {}
    options = {"resamples": settings.bootstrap, "seed": settings.seed}
    found = {}
    for name in settings.editors:
        if name not in CONTROLS:
            rows = list(read_rows(run.path(f"evaluation/{name}"), EVALUATION, ["prompt_id", "draws"]))
            found[name] = evaluate_measures(rows, **options)
    return {name: summary for name, summary in found.items() if summary}


def metrics_of(run: Run) -> tuple[str, ...]:
    """What is measured of each edit; without a judge who knows the right answer, or a reward model, less."""
    metrics = METRICS if run.config.evaluation.judge != "none" else METRICS[3:]
    return metrics if reward_of(run) else metrics[:-1]


def reward_of(run: Run) -> str:
    """The address of the run's reward model, or "" where none is finished."""
    address = run.path("reward")
    return address if is_finished_model(address) else ""


def unmeasured_warnings(run: Run) -> list[str]:
    """In words, what could not be measured."""
    return [] if reward_of(run) else [f"{run.path('reward')} is no finished reward model: nothing is measured by one."]


def judge_warnings(run: Run, metrics: Sequence[str]) -> list[str]:
    """In words, which of these measures come from a judge that one of the editors was trained to please."""
    pleased: dict[tuple[str, ...], list[str]] = {}
    for name in run.config.evaluation.editors:
        pleased.setdefault(training_judges(run, name), []).append(name)
    warnings = []
    for judges, names in pleased.items():
        same_clip = model_digest(run.config.scoring.clip) == model_digest(run.config.evaluation.clip)
        seen = [judge for judge in judges if judge not in CLIP_MEASURES or same_clip]
        measures = {measure for judge in seen for measure in measures_of(run, judge)} & set(metrics)
        if measures:
            others = [name for name in metrics if name not in measures]
            warnings.append(
                f"{', '.join(names)}: trained to please the judge behind {' and '.join(sorted(measures))}. A gain "
                "there shows that training did what it was asked, not that edits are better: look at "
                f"{', '.join([*others, 'what people say'])}."
            )
    return warnings


def measures_of(run: Run, judge: str) -> tuple[str, ...]:
    """The measures that a judge decides, or is made of."""
    reward = run.config.reward
    sees_clip = judge == "model" and reward.features != "blip" and reward.denoising_error.clip_image
    return (*MEASURES_OF.get(judge, ()), *(("clip_image",) if sees_clip else ()))


def selection_warnings(run: Run, metrics: Sequence[str]) -> list[str]:
    """In words, that the best of several edits has a great reward because it was chosen by it."""
    settings = run.config.evaluation
    names = [best_of_name(name, settings.best_of) for name in settings.editors if name not in CONTROLS]
    if settings.best_of == 1 or "reward" not in metrics or not names:
        return []
    others = [name for name in metrics if name not in measures_of(run, "model")]
    return [
        f"{'; '.join(names)}: chosen by the reward. A gain there is the choice itself: look at {', '.join(others)}."
    ]


def training_judges(run: Run, name: str) -> tuple[str, ...]:
    """The judges by whose rewards an editor of this run was trained; none of one that learned from people directly."""
    if name == "current" and run.before:
        name = "finetuned"
    parts = parts_of(run, name)
    if parts != [name]:
        return tuple(dict.fromkeys(judge for part in parts for judge in training_judges(run, part)))
    if name not in ARMS:
        return ()
    arm = arm_of(run, name)
    if arm.shaping:
        return run.config.scoring.judges
    if arm.ranked:
        learns_from_model = run.config.candidate_scoring.ranked_rate and name not in CONTROLS
        return ("model",) if learns_from_model else ()
    by_people = arm.negative_aware and run.config.candidate_scoring.judge == "people"
    return ("model",) if arm.schema is SCORED_CANDIDATES and not by_people else ()


def without_pictures(run: Run, name: str) -> Rows:
    """What was measured of every edit of an editor, and of the best of several."""
    columns = [
        column
        for column in shown_columns(run.config.evaluation.best_of)
        if column not in ("source_image", "edited_image")
    ]
    return list(read_rows(run.path(f"evaluation/{name}"), EVALUATION, columns))


def in_words(editor: str, draws: Mapping[str, Any]) -> str:
    """One line of what `judged_draws` found of an editor, as `summary.json` has it."""
    reward = draws["measures"]["reward"]

    def number(measured: Mapping[str, float] | None) -> str:
        return f"{Interval(**measured):.3f}" if measured else "not known"

    return (
        f"{editor}, {draws['num_draws']} edits of each of {draws['num_prompts']} prompts: AUC of the reward "
        f"{number(reward['auc'])}; it orders {number(reward['clear'])} of {draws['num_clear']} clear preferences; "
        f"right {draws['first']['value']:.3f} first, {reward['right']['value']:.3f} its choice, "
        f"{draws['ceiling']['value']:.3f} at most"
    )


def print_summary(run: Run, summary: dict) -> None:
    """Say the warnings, and then the table of what was found, where the report is, and how to serve the editor."""
    metrics = list(summary["editors"][0]["metrics"])
    width = 2 + max(len("editor"), *(len(editor["editor"]) for editor in summary["editors"]))
    for warning in summary["warnings"]:
        warn(f"warning: {warning}")
    lines = ["", f"{'editor':<{width}}{'edits of prompts':>16}" + "".join(f"{metric:>22}" for metric in metrics)]
    for editor in summary["editors"]:
        cells = [f"{Interval(**measured):.3f}" for measured in editor["metrics"].values()]
        counts = f"{editor['num_edits']} of {editor['num_prompts']}"
        lines.append(f"{editor['editor']:<{width}}{counts:>16}" + "".join(f"{cell:>22}" for cell in cells))
    for name, rate in summary["win_rates"].items():
        gap = Interval(**summary["differences"][name][metrics[0]])
        shares = (
            f"win {rate['win']:.1%}, tie {rate['tie']:.1%}, loss {rate['loss']:.1%} of {rate['num_pairs']} pairs of "
            f"edits of {rate['num_prompts']} prompts"
        )
        lines.append(f"{name} against {summary['baseline']}: {metrics[0]} {gap:+.3f}; {shares}")
    for name, draws in list(summary["reward_on_draws"].items())[:1]:
        lines.append(in_words(name, draws))
    last = run.config.evaluation.editors[-1]
    serve = f"serve:  make serve EDITOR_FOLDER={run.path(f'editors/{last}')}"
    tell_result("\n".join([*lines, "", f"report: {run.path('report.html')}", serve]))
