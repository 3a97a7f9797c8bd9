"""How good the edits are, in numbers with their uncertainty.

    rows of `evaluation` -> summaries of editors, win rates against a baseline, the trade-off curve

Prompts are the unit of chance: intervals resample prompts, never single edits, because edits of one prompt
are alike.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hive_ray.intervals import Interval, interval
from hive_ray.schemas import Row, Rows

METRICS = ("followed", "preserved", "right", "clip_image", "clip_direction", "reward")
"""What is measured of every edit; `right` is derived from `followed` and `preserved`."""

RIGHT = 0.5
"""An edit is right when both `followed` and `preserved` reach this."""


@dataclass(frozen=True)
class WinRate:
    """Shares of prompts won, tied and lost against the baseline; they add up to 1."""

    win: float
    tie: float
    loss: float
    num_prompts: int


@dataclass(frozen=True)
class Summary:
    """One editor's means over prompts, by metric, each with its interval."""

    editor: str
    num_prompts: int
    num_edits: int
    metrics: dict[str, Interval]


@dataclass(frozen=True)
class CurvePoint:
    """One editor at one image guidance scale: the means of the CLIP trade-off."""

    editor: str
    image_guidance_scale: float
    clip_direction: float
    clip_image: float
    num_edits: int


def measured(row: Row, metric: str) -> float:
    """The value of one metric of one edit; `right` is 1 or 0, `overall` the geometric mean of what it derives from."""
    if metric == "right":
        return float(row["followed"] >= RIGHT and row["preserved"] >= RIGHT)
    if metric == "overall":
        return float(row["followed"] * row["preserved"]) ** 0.5
    return float(row[metric])


def values_by_prompt(rows: Rows, metric: str) -> dict[str, float]:
    """Each prompt's mean over its edits (one editor, one setting of the scales)."""
    gathered: dict[str, list[float]] = {}
    for row in rows:
        gathered.setdefault(row["prompt_id"], []).append(measured(row, metric))
    return {prompt: float(np.mean(values)) for prompt, values in gathered.items()}


def difference(
    ours: Mapping[str, float],
    baseline: Mapping[str, float],
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """The mean of ours - baseline over the prompts that both have, paired by prompt, with its interval."""
    paired = {prompt: ours[prompt] - baseline[prompt] for prompt in _shared(ours, baseline)}
    return interval(paired, resamples=resamples, seed=seed, level=level)


def win_rate(ours: Mapping[str, float], baseline: Mapping[str, float], tie_within: float = 0.0) -> WinRate:
    """Prompts where ours is above, within `tie_within` of, or below the baseline."""
    shared = _shared(ours, baseline)
    gaps = np.array([ours[prompt] - baseline[prompt] for prompt in shared])
    win, loss = float((gaps > tie_within).mean()), float((gaps < -tie_within).mean())
    ties = int((np.abs(gaps) <= tie_within).sum())
    return WinRate(win, ties / len(shared), loss, len(shared))


def _shared(ours: Mapping[str, float], baseline: Mapping[str, float]) -> list[str]:
    shared = sorted(ours.keys() & baseline.keys())
    if not shared:
        raise ValueError(
            f"{len(ours)} and {len(baseline)} prompts have none in common; evaluate both editors on the same prompts"
        )
    return shared


def baseline_of(editors: tuple[str, ...]) -> str:
    """What the others are compared with: the control if there is one, which was trained as long."""
    return "control" if "control" in editors else editors[0]


def by_editor(rows: Rows) -> dict[str, Rows]:
    """Rows of each editor, in the order in which editors first appear."""
    groups: dict[str, Rows] = {}
    for row in rows:
        groups.setdefault(row["editor"], []).append(row)
    return groups


def at_scales(rows: Rows, guidance_scale: float, image_guidance_scale: float) -> Rows:
    """The rows made at these scales; columns are float32, hence the tolerance."""
    return [
        row
        for row in rows
        if abs(row["guidance_scale"] - guidance_scale) < 1e-4
        and abs(row["image_guidance_scale"] - image_guidance_scale) < 1e-4
    ]


def summarize(rows: Rows, metrics: tuple[str, ...] = METRICS, *, resamples: int = 1000, seed: int = 0) -> list[Summary]:
    """A summary of each editor; rows at one setting of the scales."""
    return [
        Summary(
            editor,
            len({row["prompt_id"] for row in group}),
            len(group),
            {metric: interval(values_by_prompt(group, metric), resamples=resamples, seed=seed) for metric in metrics},
        )
        for editor, group in by_editor(rows).items()
    ]


def compare(
    rows: Rows, baseline: str, metrics: tuple[str, ...] = METRICS, *, resamples: int = 1000, seed: int = 0
) -> dict[str, dict[str, Interval]]:
    """Of each editor but the baseline, the paired difference from it by metric."""
    groups = by_editor(rows)
    if baseline not in groups:
        raise ValueError(f"no edits by the baseline {baseline!r}; the rows have {sorted(groups)}")
    return {
        editor: {
            metric: difference(
                values_by_prompt(group, metric),
                values_by_prompt(groups[baseline], metric),
                resamples=resamples,
                seed=seed,
            )
            for metric in metrics
        }
        for editor, group in groups.items()
        if editor != baseline
    }


def win_rates(rows: Rows, baseline: str, metric: str, tie_within: float = 0.0) -> dict[str, WinRate]:
    """Of each editor but the baseline, its win rate by one metric."""
    groups = by_editor(rows)
    if baseline not in groups:
        raise ValueError(f"no edits by the baseline {baseline!r}; the rows have {sorted(groups)}")
    reference = values_by_prompt(groups[baseline], metric)
    return {
        editor: win_rate(values_by_prompt(group, metric), reference, tie_within)
        for editor, group in groups.items()
        if editor != baseline
    }


def trade_off_curve(rows: Rows) -> list[CurvePoint]:
    """Mean clip_direction (x) and clip_image (y) of each editor at each image guidance scale, scales
    ascending."""
    points = []
    for editor, group in by_editor(rows).items():
        scales = sorted({round(float(row["image_guidance_scale"]), 4) for row in group})
        for scale in scales:
            here = [row for row in group if abs(row["image_guidance_scale"] - scale) < 1e-4]
            x, y = (float(np.mean([row[name] for row in here])) for name in ("clip_direction", "clip_image"))
            points.append(CurvePoint(editor, scale, x, y, len(here)))
    return points
