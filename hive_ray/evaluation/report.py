"""The report of a run: one self-contained HTML page.

    results of a run -> Report -> html

Every part is optional. An empty part has no section.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from hive_ray.evaluation.draws import CLEAR_GAP, DrawsSummary, MeasureScore
from hive_ray.evaluation.metrics import CurvePoint, Summary, WinRate
from hive_ray.images import decode
from hive_ray.pages.charts import histogram, line_chart, picture_grid
from hive_ray.pages.html import VERDICT_MARKS, Example, chart, contact_sheet, note, page, table
from hive_ray.statistics.intervals import Interval

METRIC_LABELS = {
    "followed": "instruction followed",
    "preserved": "rest preserved",
    "right": "right edits",
    "overall": "both together",
    "clip_image": "CLIP image",
    "clip_direction": "CLIP direction",
    "reward": "reward",
    "sum": "sum of these, standardised",
}
PERCENT_METRICS = ("followed", "preserved", "right", "overall", "accuracy")  # shown in per cent
INTERVAL_NOTE = "The 95 % bootstrap interval by prompt is below each share."


@dataclass(frozen=True)
class Finding:
    """A main result: `editor` against `baseline` by one metric."""

    editor: str
    baseline: str
    metric: str
    difference: Interval
    num_prompts: int
    num_edits: int
    """Edits by `editor` for all these prompts."""
    win_rate: WinRate | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """The results of a run. Empty parts are left out of the page."""

    title: str = "hive_ray: evaluation"
    findings: Sequence[Finding] = ()
    """The main results, the most important one first."""
    summaries: Sequence[Summary] = ()
    differences: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)
    """Editor -> metric -> paired difference from the baseline."""
    warnings: Sequence[str] = ()
    """What readers must know to interpret the metrics."""
    baseline: str = ""
    win_rates: Mapping[str, Mapping[str, WinRate]] = field(default_factory=dict)
    """Metric -> editor -> win rate against the baseline."""
    curve: Sequence[CurvePoint] = ()
    edits: Sequence[Example] = ()
    pairs: Sequence[Example] = ()
    rankings: Sequence[Example] = ()
    reward_accuracy: Mapping[str, tuple[Interval | float, Interval | float]] = field(default_factory=dict)
    """Predictor and rankings -> share of right preferences (chance is 0.5), and share of right rankings."""
    reward_minus: Mapping[str, Interval] = field(default_factory=dict)
    """Predictor and rankings -> the reward model's share of right preferences minus this one, paired by prompt."""
    reward_noticed: Mapping[str, Interval | float] = field(default_factory=dict)
    """Probe of an edit that people like -> how often the edit itself has the greater reward; chance is 0.5."""
    reward_calibration: Sequence[tuple[float, float]] = ()
    """(predicted, observed) share of right preferences."""
    reward_remarks: Sequence[str] = ()
    """Why the reward model should not be trusted, in words."""
    reward_charts: Sequence[tuple[str, str]] = ()
    """Charts by other jobs, as SVG, and a note for each."""
    rewards: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Group (an editor, the pairs, ...) -> rewards, for the distribution chart."""
    draws: Mapping[str, DrawsSummary] = field(default_factory=dict)
    """Editor -> how well the reward and CLIP separate good edits from bad ones."""
    losses: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    """Training -> (images seen, loss)."""
    stages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Stage -> `rows_in`, `rows_out`, `dropped` (reason -> count), as the manifests have them."""
    settings: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


def write_report(report: Report) -> str:
    """The page as HTML."""
    sections = [
        ("Editors", _table_of_editors(report)),
        ("Against the baseline", _win_rates(report)),
        ("Image kept against instruction followed", _curve(report.curve)),
        ("Edits", contact_sheet(report.edits)),
        ("Training pairs", contact_sheet(report.pairs)),
        ("Rankings", contact_sheet(report.rankings)),
        ("Reward model", _reward(report)),
        ("Reward model on edits that no choice has seen", _draws(report.draws)),
        ("Training", _losses(report.losses)),
        ("What was dropped, and why", _stages(report.stages)),
        ("Settings and versions", _settings(report)),
    ]
    headlines = [headline(finding) for finding in report.findings]
    return page(report.title, "".join(headlines[:1]), sections, headlines[1:])


def write_contact_sheet(examples: Sequence[Example], max_examples: int = 12) -> bytes:
    """The first examples as one PNG."""
    grid = []
    for example in examples[:max_examples]:
        pictures = []
        for picture in example.pictures:
            name = picture.caption.partition(":")[0]
            pictures.append((decode(picture.image), f"{name} {VERDICT_MARKS[picture.right]}".strip()))
        grid.append((example.instruction, pictures))
    return picture_grid(grid)


# ------------------------------------------------------------ words and tables


def headline(finding: Finding) -> str:
    """The finding as a sentence, which claims a difference only if the interval excludes zero."""
    gap, word = finding.difference, METRIC_LABELS[finding.metric]
    measured = (
        f"{_signed(gap.value, finding.metric)} on {word} "
        f"(95 % interval {_signed(gap.low, finding.metric)} to {_signed(gap.high, finding.metric)}, "
        f"{finding.num_edits} edits of {finding.num_prompts} prompts{_wins(finding.win_rate)})"
    )
    if not gap.excludes_zero:
        return f"No difference was shown between {finding.editor} and {finding.baseline}: {measured}."
    return f"{finding.editor} is {'better' if gap.value > 0 else 'worse'} than {finding.baseline}: {measured}."


def _wins(rate: WinRate | None) -> str:
    return f"; win {100 * rate.win:.0f} %, loss {100 * rate.loss:.0f} %" if rate else ""


def _signed(value: float, metric: str) -> str:
    if metric in PERCENT_METRICS:
        return f"{100 * value:+.1f} points".replace("-", "\u2212")
    return f"{value:+.3f}".replace("-", "\u2212")


def _number(value: float, metric: str) -> str:
    text = f"{100 * value:.1f} %" if metric in PERCENT_METRICS else f"{value:.3f}"
    return text.replace("-", "\u2212")


def _bounds(bounds: Interval, metric: str) -> str:
    scale, digits = (100, 1) if metric in PERCENT_METRICS else (1, 3)
    return f"{bounds.low * scale:.{digits}f} to {bounds.high * scale:.{digits}f}".replace("-", "\u2212")


def _cell(measure: Interval, metric: str) -> str:
    """A value with its interval below."""
    return f"{_number(measure.value, metric)}<small>{_bounds(measure, metric)}</small>"


def _gap(gap: Interval, metric: str) -> str:
    """A paired difference below a value, with a star if its interval excludes zero."""
    words = _signed(gap.value, metric)
    return f'<small class="sure">{words}*</small>' if gap.excludes_zero else f"<small>{words}</small>"


def _table_of_editors(report: Report) -> str:
    if not report.summaries:
        return ""
    metrics = list(report.summaries[0].metrics)
    rows = []
    for summary in report.summaries:
        cells = [escape(summary.editor) + (" <small>baseline</small>" if summary.editor == report.baseline else "")]
        cells += [str(summary.num_prompts), str(summary.num_edits)]
        gaps = report.differences.get(summary.editor, {})
        for metric in metrics:
            cell = _cell(summary.metrics[metric], metric)
            if metric in gaps:
                cell += _gap(gaps[metric], metric)
            cells.append(cell)
        rows.append(cells)
    words = (
        "Means over prompts, with 95 % bootstrap intervals by prompt below. The value of a prompt is the mean of its "
        "edits; the best of several counts as one edit."
    )
    if report.differences:
        words += f" Last line: paired difference from {report.baseline}; * its interval excludes zero."
    return table(["editor", "prompts", "edits", *(METRIC_LABELS[m] for m in metrics)], rows) + "".join(
        map(note, (words, *report.warnings))
    )


def _win_rates(report: Report) -> str:
    parts = []
    for metric, editors in report.win_rates.items():
        for editor, rate in editors.items():
            shares = (("win", rate.win), ("tie", rate.tie), ("loss", rate.loss))
            words = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares)
            bars = "".join(
                f'<span class="{name}" style="width:{100 * share:.2f}%">'
                + (f"{100 * share:.0f}" if share >= 0.08 else "")  # narrower has no room for the number
                + "</span>"
                for name, share in shares
            )
            parts.append(
                f'<p class="bars-name">{escape(editor)} against {escape(report.baseline)}, '
                f"{METRIC_LABELS[metric]} "
                f"<small>{rate.num_pairs} pairs of edits of {rate.num_prompts} prompts: {words}</small></p>"
                f'<div class="bars" role="img" aria-label="{words}">{bars}</div>'
            )
    return "".join(parts)


def _stages(stages: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for stage, counts in stages.items():
        dropped = counts.get("dropped") or {}
        reasons = "<br>".join(f"{escape(str(reason))}: {count}" for reason, count in dropped.items()) or "nothing"
        rows.append([escape(stage), str(counts.get("rows_in", "")), str(counts.get("rows_out", "")), reasons])
    return table(["stage", "rows in", "rows out", "dropped"], rows, "words") if rows else ""


def _settings(report: Report) -> str:
    versions = table(["package", "version"], [[escape(k), escape(v)] for k, v in report.versions.items()], "words")
    settings = f"<details><summary>Settings</summary><pre>{escape(report.settings)}</pre></details>"
    return (versions if report.versions else "") + (settings if report.settings else "")


# ------------------------------------------------------------ charts


def _curve(points: Sequence[CurvePoint]) -> str:
    lines: dict[str, list[tuple[float, float]]] = {}
    for point in points:
        lines.setdefault(point.editor, []).append((point.clip_direction, point.clip_image))
    if not lines:
        return ""
    scales = sorted({point.image_guidance_scale for point in points})
    words = (
        f"One point for each image guidance scale, {scales[0]:g} to {scales[-1]:g}; higher and further right is better."
    )
    return chart(line_chart(lines, x_label="CLIP direction", y_label="CLIP image", markers=True)) + note(words)


def _losses(losses: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    return "".join(
        f"<h3>{escape(name)}</h3>" + chart(line_chart({name: points}, "images seen", "loss"))
        for name, points in losses.items()
        if points
    )


def _reward(report: Report) -> str:
    """Remarks on the reward model, accuracies, probes, calibration, and the distribution of rewards."""
    parts = [note(words) for words in report.reward_remarks]
    if report.reward_accuracy:
        parts.append(_accuracies(report))
    if report.reward_noticed:
        rows = [[escape(name), _share(rate)] for name, rate in report.reward_noticed.items()]
        parts.append(table(["a good edit against", "the edit has the greater reward (chance 50 %)"], rows))
        parts.append(note(INTERVAL_NOTE))
    if report.reward_calibration:
        lines = {"reward model": report.reward_calibration, "calibrated": [(0.5, 0.5), (1.0, 1.0)]}
        parts.append(chart(line_chart(lines, "predicted share right", "observed share right", markers=True)))
    groups = {name: values for name, values in report.rewards.items() if len(values)}
    if groups:
        parts.append(chart(histogram(groups, x_label="reward", y_label="share of edits")))
    parts += [chart(svg) + note(words) for svg, words in report.reward_charts]
    return "".join(parts)


def _share(share: Interval | float) -> str:
    """A share in per cent, with its interval below if it has one."""
    if not isinstance(share, Interval):
        return _number(share, "accuracy")
    return _cell(share, "accuracy")


def _accuracies(report: Report) -> str:
    """The accuracies of all predictors, with intervals if known, and the reward model's differences from them."""
    rows = []
    for name, shares in report.reward_accuracy.items():
        cells = [_share(share) for share in shares]
        if name in report.reward_minus:
            cells[0] += _gap(report.reward_minus[name], "accuracy")
        rows.append([escape(name), *cells])
    words = INTERVAL_NOTE
    if report.reward_minus:
        words += " Last line: the reward model minus this, paired by prompt; * its interval excludes zero."
    return table(["predictor and rankings", "right preferences (chance 50 %)", "right rankings"], rows) + note(words)


def _draws(draws: Mapping[str, DrawsSummary]) -> str:
    return "".join(f"<h3>{escape(editor)}</h3>" + _draws_of(summary) for editor, summary in draws.items())


def _draws_of(summary: DrawsSummary) -> str:
    """How well each measure separates good edits of one editor from bad ones, and the ceiling."""
    rows = [
        ["the first edit", "", "", _cell(summary.first, "right")],
        ["a random edit", "", "", _cell(summary.mean, "right")],
    ]
    for name, score in summary.measures.items():
        rows.append([METRIC_LABELS[name], *_scores(score, summary.reward_minus.get(name))])
    rows.append(["the judge: the ceiling", "", "", _cell(summary.ceiling, "right")])
    head = [
        "chosen by",
        "AUC, right against wrong (chance 0.5)",
        "clear preferences in order (chance 50 %)",
        f"right edits, best of {summary.num_draws}",
    ]
    return table(head, rows) + "".join(map(note, _about_draws(summary)))


def _scores(score: MeasureScore, reward_minus: MeasureScore | None) -> list[str]:
    """The cells of one measure, with the reward's difference from it below; empty where nothing was measured."""
    cells = []
    for name, metric in (("auc", "auc"), ("clear", "accuracy"), ("right", "right")):
        measure: Interval | None = getattr(score, name)
        cell = _cell(measure, metric) if measure else ""
        if measure and reward_minus:
            cell += _gap(getattr(reward_minus, name), metric)
        cells.append(cell)
    return cells


def _about_draws(summary: DrawsSummary) -> list[str]:
    """Notes on the edits of the table, on its ceiling, and on how to read it."""
    return [
        f"{summary.num_draws} judged edits of each of {summary.num_prompts} prompts. A preference is clear if "
        f"the judge's scores of two edits of a prompt differ by more than {CLEAR_GAP:g}: {summary.num_clear} "
        f"preferences of {summary.num_clear_prompts} prompts.",
        f"The ceiling: {_number(summary.ceiling.value, 'right')} of the prompts have a right edit among the "
        f"{summary.num_draws}, and no choice can find more. The judge itself orders all clear preferences, and its AUC "
        "is 1. CLIP direction reads the captions of both pictures; the reward does not.",
        "The 95 % bootstrap interval by prompt is below each number. Last line: the reward minus this, paired by "
        "prompt; * its interval excludes zero.",
    ]
