"""What the report shows of a run, gathered from its finished tables and models.

pairs, rankings, rewards, evaluation, metrics -> Report
"""

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import islice
from types import MappingProxyType
from typing import Any

import yaml

from hive_ray import storage
from hive_ray.artifacts.manifest import finished_manifest, git_commit, read_manifest, table_digest
from hive_ray.artifacts.selection import read_rows
from hive_ray.console import warn
from hive_ray.evaluation.draws import DrawsSummary
from hive_ray.evaluation.metrics import (
    CurvePoint,
    WinRate,
    choose_baseline,
    compare_with_baseline,
    group_by_editor,
    measured_edits,
    metric_value,
    summarise_editors,
    trade_off_curve,
    win_rates,
)
from hive_ray.evaluation.report import Finding, Report
from hive_ray.files.text_files import TextError, read_objects
from hive_ray.pages.html import CaptionedPicture, Example
from hive_ray.reward import distribution
from hive_ray.reward.accuracies import ACCURACY, RANKING_ACCURACY
from hive_ray.reward.card import RewardCard, read_reward_card
from hive_ray.reward.model_evaluation import COMPARISONS
from hive_ray.reward.probes import PROBES
from hive_ray.reward.shaping import SHAPINGS
from hive_ray.schemas import EVALUATION, PAIRS, RANKINGS, REWARDS, Rows
from hive_ray.statistics.intervals import Interval
from jobs import reward_curve, score_pairs
from jobs.run import Run
from jobs.score_pairs import rewards_name
from jobs.train_editor import parts_of

STAGES = (
    "captions", "instructions", "imported", "prompts", "pairs", "candidates", "spreads", "chosen", "rankings", "thumbs",
)  # fmt: skip
PACKAGES = ("ray", "torch", "diffusers", "transformers", "deepspeed")
NUM_SHOWN = 24


def gather_report(
    run: Run,
    metrics: tuple[str, ...],
    tie_within: float,
    warnings: Sequence[str] = (),
    draws: Mapping[str, DrawsSummary] = MappingProxyType({}),
) -> Report:
    """The report of everything that this run has finished; `draws` are by editor."""
    settings = run.config.evaluation
    judged = settings.judge != "none"
    tables = [run.path(f"evaluation/{name}") for name in settings.editors]
    columns = shown_columns(settings.best_of)
    flat = [row for table in tables for row in read_rows(table, EVALUATION, columns)]
    rows = group_by_editor(flat)
    baseline = choose_baseline(settings.editors)
    options = {"resamples": settings.bootstrap, "seed": settings.seed}
    summaries = {summary.editor: summary for summary in summarise_editors(flat, metrics, **options)}
    differences = compare_with_baseline(flat, baseline, metrics, **options)
    wins = {metric: win_rates(flat, baseline, metric, tie_within) for metric in won_by(metrics)}
    rewarded = "reward" in metrics
    return Report(
        findings=[
            Finding(
                editor=name,
                baseline=baseline,
                metric=metrics[0],
                difference=differences[name][metrics[0]],
                num_prompts=summaries[name].num_prompts,
                num_edits=summaries[name].num_edits,
                win_rate=_most_telling(wins, name),
            )
            for name in _leading(settings.editors, list(differences))
        ],
        summaries=list(summaries.values()),
        differences=differences,
        warnings=warnings,
        baseline=baseline if differences else "",
        win_rates=wins,
        curve=_curve(run),
        edits=_edits(rows, judged),
        pairs=_pairs(run),
        rankings=_rankings(run),
        **(_worth(read_reward_card(run.path("reward")) or RewardCard()) if rewarded else {}),
        rewards=_rewards(run) | (_rewards_of_edits(rows) if rewarded else {}),
        reward_charts=_reward_charts(run),
        draws=draws,
        losses={name: _losses(run, name) for name in (*_trained(run), "reward")},
        stages={name: _stage(run, name) for name in _tables(run) if read_manifest(run.path(name))},
        settings=yaml.safe_dump(json.loads(run.config.model_dump_json()), sort_keys=False),
        versions={name: version(name) for name in PACKAGES}
        | {"python": platform.python_version(), "commit": git_commit()},
    )


def _trained(run: Run) -> list[str]:
    """The editors whose training is told of: those that are compared, and the parts of those that are added up."""
    parts = (f"editors/{part}" for name in run.config.evaluation.editors for part in parts_of(run, name))
    return list(dict.fromkeys(parts))


def shown_columns(num_draws: int) -> list[str]:
    """The columns of an evaluation table that the report reads. Tables of one edit a prompt may be of a version that
    has no `draws`."""
    return [name for name in EVALUATION.names if name != "draws" or num_draws > 1]


def _leading(editors: Sequence[str], compared: Sequence[str]) -> list[str]:
    """The editors that were compared with the baseline, in the order in which the report tells of them: the last that
    the settings name, which the run is about, then the best of several edits, then the others."""
    named = [name for name in compared if name in editors]
    best_of_several = [name for name in compared if name not in editors]
    return [*named[-1:], *best_of_several, *named[:-1]]


def _most_telling(wins: Mapping[str, Mapping[str, WinRate]], editor: str) -> WinRate | None:
    """An editor's win rate by the first metric that wins are counted by."""
    return next((rates[editor] for rates in wins.values()), None)


def won_by(metrics: Sequence[str]) -> tuple[str, ...]:
    """By what wins are counted, the most telling first, where these metrics are measured; CLIP alone says none."""
    if "right" in metrics:
        return ("overall", "followed", "preserved")
    return ("reward",) if "reward" in metrics else ()


def _worth(card: RewardCard) -> dict[str, Any]:
    """What the reward model's card says, as parts of a Report; nothing held out leaves little of it."""
    others = card.beside | {"held_out_before_training": card.held_out_before_training}
    measured = {
        "reward model, training rankings": card.train,
        "reward model, held-out rankings": card.held_out,
    } | {f"{words}, held-out rankings": others.get(name) for name, words in COMPARISONS.items()}
    measured["reward model, held-out preferences that people share"] = card.shared
    for kind, one in card.kinds.items():
        measured[f"reward model, held-out rankings, \u201c{kind} \u2026\u201d ({one['rankings']})"] = one
    minus = {f"{COMPARISONS[name]}, held-out rankings": gap[ACCURACY] for name, gap in card.minus.items() if gap}
    return {
        "reward_accuracy": {
            name: tuple(_bounded(one, key) for key in (ACCURACY, RANKING_ACCURACY))
            for name, one in measured.items()
            if one
        },
        "reward_minus": {name: Interval(**gap) for name, gap in minus.items()},
        "reward_noticed": {PROBES[name]: rate for name, rate in card.noticed.items()},
        "reward_calibration": [(part.predicted, part.observed) for part in card.calibration],
        "reward_remarks": [words for words in (card.warning, *card.remarks) if words],
    }


def _bounded(measured: dict[str, Any], key: str) -> Interval | float:
    """A measure with its interval; without one where there is no preference, or the card is of an earlier version."""
    bounds = measured.get("intervals", {}).get(key)
    return Interval(**bounds) if bounds else measured[key]


def _rewards(run: Run) -> dict[str, list[float]]:
    """The training pairs' rewards, if the reward model that measures the editors scored them."""
    table = run.path("rewards")
    found = [row["reward"] for row in read_rows(table, REWARDS)] if read_manifest(table) else []
    return {"training pairs": found} if found else {}


def _rewards_of_edits(rows: Mapping[str, Rows]) -> dict[str, list[float]]:
    """By editor, the rewards of all its edits."""
    return {editor: [edit["reward"] for row in group for edit in measured_edits(row)] for editor, group in rows.items()}


def scored_card(run: Run) -> tuple[str, dict[str, Any]] | None:
    """The name of the first table of scored pairs in the run, and what its rewards look like."""
    for name in ("scored_pairs", *(f"scored_pairs_{shaping}" for shaping in SHAPINGS)):
        address = run.path(f"{name}/{score_pairs.CARD}")
        if storage.exists(address):
            return name, json.loads(storage.read_text(address))
    return None


def _reward_charts(run: Run) -> list[tuple[str, str]]:
    """The learning curve, if it is of these rankings, and the distribution of the training pairs' rewards."""
    found, address, scored = [], run.path(reward_curve.CURVE), scored_card(run)
    if storage.exists(address):
        curve = json.loads(storage.read_text(address))
        if curve["rankings"] == table_digest(*run.ranking_tables()):
            found.append((reward_curve.draw(curve), f"{reward_curve.BAND} Found: {curve['finding']}."))
    if scored:
        name, card = scored
        chart = storage.read_text(run.path(f"{name}/{score_pairs.CHART}"))
        found.append((chart, f"Rewards of the training pairs: {distribution.summary_sentence(card)}."))
    return found


def _curve(run: Run) -> list[CurvePoint]:
    tables = [run.path(f"curves/{name}") for name in run.config.evaluation.editors]
    columns = ["editor", "image_guidance_scale", "clip_direction", "clip_image"]
    return trade_off_curve(
        [row for table in tables if read_manifest(table) for row in read_rows(table, EVALUATION, columns)]
    )


def _edits(rows: dict[str, Rows], judged: bool) -> list[Example]:
    """The first prompts, each editor's edit beside the source: neither picked nor sorted."""
    found = []
    for group in islice(zip(*rows.values(), strict=True), NUM_SHOWN):
        shown = [CaptionedPicture(group[0]["source_image"], "source")]
        for row in group:
            words = f"{row['editor']}: followed {row['followed']:.2f}, preserved {row['preserved']:.2f}"
            right = metric_value(row, "right") == 1 if judged else None
            shown.append(CaptionedPicture(row["edited_image"], words if judged else row["editor"], right))
        found.append(Example(group[0]["instruction"], tuple(shown)))
    return found


def _pairs(run: Run) -> list[Example]:
    if not read_manifest(run.path("pairs")):
        return []
    return [
        Example(
            row["instruction"],
            (
                CaptionedPicture(row["source_image"], "source"),
                CaptionedPicture(row["edited_image"], f"edited, {row['origin']}"),
            ),
        )
        for row in islice(read_rows(run.path("pairs"), PAIRS), NUM_SHOWN)
    ]


def _rankings(run: Run) -> list[Example]:
    if not read_manifest(run.path("rankings")):
        return []
    found = []
    for row in islice(read_rows(run.path("rankings"), RANKINGS), NUM_SHOWN // 3):
        order = sorted(zip(row["ranks"], row["edits"], strict=True), key=lambda one: one[0])
        edits = tuple(CaptionedPicture(edit["image"], f"rank {rank}") for rank, edit in order)
        found.append(Example(row["instruction"], (CaptionedPicture(row["source_image"], "source"), *edits)))
    return found


def _losses(run: Run, name: str) -> list[tuple[float, float]]:
    """(images, loss), a mean over each fortieth of the training; none of a model that was trained elsewhere, or of a
    log that cannot be read, which is said."""
    address = run.path(f"metrics/{name}.jsonl")
    if not storage.exists(address):
        return []
    try:
        found = [line.value for line in read_objects(address, "images")]
    except TextError as error:
        warn(f"no curve of {name}: {error}", stage="report")
        return []
    lines = [line for line in found if isinstance(line.get("train/loss"), int | float)]
    size = max(1, len(lines) // 40)
    groups = [lines[start : start + size] for start in range(0, len(lines), size)]
    return [(group[-1]["images"], sum(one["train/loss"] for one in group) / len(group)) for group in groups]


def _tables(run: Run) -> list[str]:
    """The names of what may be in the run, in the order in which it is made."""
    judges = run.config.scoring.judges
    scored = [rewards_name((judge,)) for judge in judges] + [rewards_name(judges)]
    of_arms = ["candidates_unguided", "scored_candidates", "best_candidates"]
    return list(dict.fromkeys([*STAGES, *scored, "scored_pairs", *of_arms]))


def _stage(run: Run, name: str) -> dict[str, object]:
    manifest = finished_manifest(run.path(name))
    return {"rows_in": manifest.rows_in, "rows_out": manifest.rows_out, "dropped": manifest.dropped}
