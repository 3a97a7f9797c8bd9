"""Metrics of edits with their uncertainty.

    rows of `evaluation` -> summaries of editors, win rates against a baseline, the trade-off curve

Intervals resample prompts, never single edits, because edits of one prompt are similar.

Several edits of each prompt make every figure less noisy without changing its expectation. The mean of N identically
distributed edits has the expectation of one of them. A win, tie or loss is counted for each pair of edits and then
averaged within the prompt, so its expectation is that of one pair. Means of N edits are never compared with each other,
since that would turn ties into wins and losses.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hive_ray.schemas import Row, Rows
from hive_ray.statistics.intervals import Interval, interval

METRICS = ("followed", "preserved", "right", "clip_image", "clip_direction", "reward")
"""The metrics of every edit; `right` is derived from `followed` and `preserved`."""

RIGHT_THRESHOLD = 0.5
"""An edit is right if `followed` and `preserved` are at least this."""


@dataclass(frozen=True)
class WinRate:
    """Shares of pairs of edits won, tied and lost against the baseline, means over prompts; they add up to 1."""

    win: float
    tie: float
    loss: float
    num_prompts: int
    num_pairs: int
    """Pairs of edits of all these prompts."""


@dataclass(frozen=True)
class Summary:
    """The means over prompts of one editor with intervals, by metric. A prompt's value is the mean of its edits."""

    editor: str
    num_prompts: int
    num_edits: int
    metrics: dict[str, Interval]


@dataclass(frozen=True)
class CurvePoint:
    """The mean CLIP similarities of one editor at one image guidance scale."""

    editor: str
    image_guidance_scale: float
    clip_direction: float
    clip_image: float
    num_edits: int


def metric_value(row: Row, metric: str) -> float:
    """The value of one metric of one edit. `right` is 1 or 0; `overall` is the geometric mean of `followed` and
    `preserved`."""
    if metric == "right":
        return float(row["followed"] >= RIGHT_THRESHOLD and row["preserved"] >= RIGHT_THRESHOLD)
    if metric == "overall":
        return float(row["followed"] * row["preserved"]) ** 0.5
    return float(row[metric])


def measured_edits(row: Row) -> Rows:
    """The measured edits of a row of `evaluation`: all its `draws`, or the row itself if it has none."""
    return row.get("draws") or [row]


def draws_by_prompt(rows: Rows, metric: str) -> dict[str, np.ndarray]:
    """The values (N,) of each prompt's edits, in the order of their draws (one editor, one setting of the scales)."""
    gathered: dict[str, list[float]] = {}
    for row in rows:
        gathered.setdefault(row["prompt_id"], []).extend(metric_value(edit, metric) for edit in measured_edits(row))
    return {prompt: np.array(values) for prompt, values in gathered.items()}


def prompt_means(draws: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The mean over the edits of each prompt."""
    return {prompt: float(values.mean()) for prompt, values in draws.items()}


def values_by_prompt(rows: Rows, metric: str) -> dict[str, float]:
    """The mean over the edits of each prompt (one editor, one setting of the scales)."""
    return prompt_means(draws_by_prompt(rows, metric))


def differences_by_prompt(ours: Mapping[str, float], baseline: Mapping[str, float]) -> dict[str, float]:
    """Ours - baseline of each prompt that both have. ValueError if they share no prompt."""
    return {prompt: ours[prompt] - baseline[prompt] for prompt in _shared(ours, baseline)}


def paired_difference(
    ours: Mapping[str, float],
    baseline: Mapping[str, float],
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """The mean of ours - baseline over the prompts that both have, paired by prompt, with its interval."""
    return interval(differences_by_prompt(ours, baseline), resamples=resamples, seed=seed, level=level)


def outcomes_by_prompt(
    ours: Mapping[str, np.ndarray], baseline: Mapping[str, np.ndarray], tie_within: float = 0.0
) -> dict[str, np.ndarray]:
    """For each prompt that both have, one outcome for each pair of edits: 1 (win), 0 (tie) or -1 (loss).

    Edits are paired draw by draw, since draws at the same place have the same seed. A single edit of a prompt, such as
    the best of several, is compared with each edit of the other side. Values that differ by `tie_within` or less are a
    tie.

    ValueError if the two share no prompt, or have numbers of edits that cannot be paired.
    """
    return {prompt: _outcomes(prompt, ours[prompt], baseline[prompt], tie_within) for prompt in _shared(ours, baseline)}


def _outcomes(prompt: str, ours: np.ndarray, baseline: np.ndarray, tie_within: float) -> np.ndarray:
    if len(ours) != len(baseline) and 1 not in (len(ours), len(baseline)):
        raise ValueError(
            f"{len(ours)} and {len(baseline)} edits of the prompt {prompt} cannot be paired; both editors need equally "
            "many, or one of them a single edit: evaluate both with the same evaluation.best_of"
        )
    gaps = ours - baseline
    return np.where(np.abs(gaps) > tie_within, np.sign(gaps), 0.0)


def win_rate(ours: Mapping[str, np.ndarray], baseline: Mapping[str, np.ndarray], tie_within: float = 0.0) -> WinRate:
    """Shares of the pairs of `outcomes_by_prompt` that win, tie and lose. Each prompt has the same weight."""
    outcomes = list(outcomes_by_prompt(ours, baseline, tie_within).values())

    def share(sign: int) -> float:
        return float(np.mean([(pairs == sign).mean() for pairs in outcomes]))

    return WinRate(share(1), share(0), share(-1), len(outcomes), sum(map(len, outcomes)))


def _shared(ours: Mapping[str, object], baseline: Mapping[str, object]) -> list[str]:
    shared = sorted(ours.keys() & baseline.keys())
    if not shared:
        raise ValueError(
            f"{len(ours)} and {len(baseline)} prompts have none in common; evaluate both editors on the same prompts"
        )
    return shared


def choose_baseline(editors: tuple[str, ...]) -> str:
    """The editor that the others are compared with: the control, which was trained as long, else the first."""
    return "control" if "control" in editors else editors[0]


def group_by_editor(rows: Rows) -> dict[str, Rows]:
    """Rows of each editor, in the order in which editors first appear."""
    groups: dict[str, Rows] = {}
    for row in rows:
        groups.setdefault(row["editor"], []).append(row)
    return groups


def rows_at_scales(rows: Rows, guidance_scale: float, image_guidance_scale: float) -> Rows:
    """The rows made at these scales, with a tolerance because the columns are float32."""
    return [
        row
        for row in rows
        if abs(row["guidance_scale"] - guidance_scale) < 1e-4
        and abs(row["image_guidance_scale"] - image_guidance_scale) < 1e-4
    ]


def summarise_editors(
    rows: Rows, metrics: tuple[str, ...] = METRICS, *, resamples: int = 1000, seed: int = 0
) -> list[Summary]:
    """A summary of each editor. The rows are of one setting of the scales."""
    summaries = []
    for editor, group in group_by_editor(rows).items():
        num_prompts = len({row["prompt_id"] for row in group})
        num_edits = sum(len(measured_edits(row)) for row in group)
        means = {
            metric: interval(values_by_prompt(group, metric), resamples=resamples, seed=seed) for metric in metrics
        }
        summaries.append(Summary(editor, num_prompts, num_edits, means))
    return summaries


def compare_with_baseline(
    rows: Rows, baseline: str, metrics: tuple[str, ...] = METRICS, *, resamples: int = 1000, seed: int = 0
) -> dict[str, dict[str, Interval]]:
    """The paired difference of each other editor from the baseline, by metric. ValueError without the baseline."""
    groups = group_by_editor(rows)
    if baseline not in groups:
        raise ValueError(f"no edits by the baseline {baseline!r}; the rows have {sorted(groups)}")
    reference = {metric: values_by_prompt(groups[baseline], metric) for metric in metrics}
    differences: dict[str, dict[str, Interval]] = {}
    for editor, group in groups.items():
        if editor == baseline:
            continue
        differences[editor] = {}
        for metric in metrics:
            values = values_by_prompt(group, metric)
            gap = paired_difference(values, reference[metric], resamples=resamples, seed=seed)
            differences[editor][metric] = gap
    return differences


def win_rates(rows: Rows, baseline: str, metric: str, tie_within: float = 0.0) -> dict[str, WinRate]:
    """The win rate of each other editor against the baseline, by one metric. ValueError without the baseline."""
    groups = group_by_editor(rows)
    if baseline not in groups:
        raise ValueError(f"no edits by the baseline {baseline!r}; the rows have {sorted(groups)}")
    reference = draws_by_prompt(groups[baseline], metric)
    return {
        editor: win_rate(draws_by_prompt(group, metric), reference, tie_within)
        for editor, group in groups.items()
        if editor != baseline
    }


def trade_off_curve(rows: Rows) -> list[CurvePoint]:
    """Mean clip_direction (x) and clip_image (y) of each editor at each image guidance scale, in ascending order."""
    points = []
    for editor, group in group_by_editor(rows).items():
        scales = sorted({round(float(row["image_guidance_scale"]), 4) for row in group})
        for scale in scales:
            here = [row for row in group if abs(row["image_guidance_scale"] - scale) < 1e-4]
            direction = float(np.mean([row["clip_direction"] for row in here]))
            image = float(np.mean([row["clip_image"] for row in here]))
            points.append(CurvePoint(editor, scale, direction, image, len(here)))
    return points
