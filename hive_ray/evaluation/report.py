"""The report of a run: one HTML page that stands alone, with pictures as data addresses and charts as inline
SVG.

    what the run measured -> Report -> html

Every part is optional; a part that is absent leaves no section. Nothing is loaded from anywhere else.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from hive_ray.evaluation.metrics import CurvePoint, Interval, Summary, WinRate

METRIC_WORDS = {
    "followed": "instruction followed",
    "preserved": "rest preserved",
    "right": "right edits",
    "clip_image": "CLIP image",
    "clip_direction": "CLIP direction",
    "reward": "reward",
}
SHARES = ("followed", "preserved", "right")  # shown in per cent


@dataclass(frozen=True)
class Finding:
    """The comparison that the report leads with: `editor` against `baseline` by one metric."""

    editor: str
    baseline: str
    metric: str
    difference: Interval
    num_prompts: int


@dataclass(frozen=True)
class Shown:
    """One picture with the words under it."""

    image: bytes
    words: str
    right: bool | None = None
    """Marks the edit as right or wrong; None where nobody judged it."""


@dataclass(frozen=True)
class Example:
    """Pictures in one row under one instruction: a source and its edits, or the two sides of a pair."""

    instruction: str
    shown: tuple[Shown, ...]


@dataclass(frozen=True)
class Line:
    """One line of a chart."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a run measured. Empty parts are left out of the page."""

    title: str = "hive_ray: evaluation"
    finding: Finding | None = None
    summaries: Sequence[Summary] = ()
    differences: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)
    """Editor -> metric -> paired difference from the baseline."""
    baseline: str = ""
    win_rates: Mapping[str, Mapping[str, WinRate]] = field(default_factory=dict)
    """Metric -> editor -> win rate against the baseline."""
    curve: Sequence[CurvePoint] = ()
    edits: Sequence[Example] = ()
    pairs: Sequence[Example] = ()
    rankings: Sequence[Example] = ()
    reward_accuracy: Mapping[str, float] = field(default_factory=dict)
    """Which rankings -> share of preferences that the reward model gets right; chance is 0.5."""
    rewards: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Group (an editor, the pairs, ...) -> rewards, for the distribution chart."""
    losses: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    """Training -> (images seen, loss)."""
    stages: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """Stage -> `rows_in`, `rows_out`, `dropped` (reason -> count), as the manifests have them."""
    settings: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


def write_report(report: Report) -> str:
    """The whole page as a string of HTML."""
    sections = [
        ("Editors", _table_of_editors(report)),
        ("Against the baseline", _win_rates(report)),
        ("Image kept against instruction followed", _curve(report.curve)),
        ("Edits", _examples(report.edits)),
        ("Training pairs", _examples(report.pairs)),
        ("Rankings", _examples(report.rankings)),
        ("Reward model", _reward(report)),
        ("Training", _losses(report.losses)),
        ("What was dropped, and why", _stages(report.stages)),
        ("Settings and versions", _settings(report)),
    ]
    body = "".join(f"<section><h2>{title}</h2>{content}</section>" for title, content in sections if content)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.title)}</title><style>{_STYLE}</style></head><body><main>"
        f"<h1>{escape(report.title)}</h1>{_headline(report.finding)}{body}</main></body></html>"
    )


# ------------------------------------------------------------ words and tables


def headline(finding: Finding) -> str:
    """The finding in one sentence; a difference is claimed only where the interval excludes zero."""
    gap, word = finding.difference, METRIC_WORDS[finding.metric]
    measured = (
        f"{_signed(gap.value, finding.metric)} on {word} "
        f"(95 % interval {_signed(gap.low, finding.metric)} to {_signed(gap.high, finding.metric)}, "
        f"{finding.num_prompts} prompts)"
    )
    if not gap.excludes_zero:
        return f"No difference was shown between {finding.editor} and {finding.baseline}: {measured}."
    return f"{finding.editor} is {'better' if gap.value > 0 else 'worse'} than {finding.baseline}: {measured}."


def _headline(finding: Finding | None) -> str:
    return f'<p class="finding">{escape(headline(finding))}</p>' if finding else ""


def _signed(value: float, metric: str) -> str:
    if metric in SHARES:
        return f"{100 * value:+.1f} points".replace("-", "\u2212")
    return f"{value:+.3f}".replace("-", "\u2212")


def _number(value: float, metric: str) -> str:
    text = f"{100 * value:.1f} %" if metric in SHARES else f"{value:.3f}"
    return text.replace("-", "\u2212")


def _bounds(bounds: Interval, metric: str) -> str:
    scale, digits = (100, 1) if metric in SHARES else (1, 3)
    return f"{bounds.low * scale:.{digits}f} to {bounds.high * scale:.{digits}f}".replace("-", "\u2212")


def _table(head: Iterable[str], rows: Iterable[Iterable[str]], kind: str = "numbers") -> str:
    """A table of cells that are already HTML; the first cell of a row names it. `kind`: "numbers", or
    "words" where the last cell is text."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    lines = []
    for name, *cells in rows:
        lines.append(f'<tr><th scope="row">{name}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    body = "".join(lines)
    table = f'<table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="scroll">{table}</div>'


def _table_of_editors(report: Report) -> str:
    if not report.summaries:
        return ""
    metrics = list(report.summaries[0].metrics)
    rows = []
    for summary in report.summaries:
        cells = [escape(summary.editor) + (" <small>baseline</small>" if summary.editor == report.baseline else "")]
        cells.append(str(summary.num_prompts))
        gaps = report.differences.get(summary.editor, {})
        for metric in metrics:
            seen = summary.metrics[metric]
            cell = f"{_number(seen.value, metric)}<small>{_bounds(seen, metric)}</small>"
            if metric in gaps:
                sure = gaps[metric].excludes_zero
                gap = _signed(gaps[metric].value, metric)
                cell += f'<small class="sure">{gap}*</small>' if sure else f"<small>{gap}</small>"
            cells.append(cell)
        rows.append(cells)
    note = "Means over prompts, with 95 % bootstrap intervals by prompt beneath."
    if report.differences:
        note += f" Last line: paired difference from {escape(report.baseline)}; * its interval excludes zero."
    return _table(["editor", "prompts", *(METRIC_WORDS[m] for m in metrics)], rows) + f'<p class="note">{note}</p>'


def _win_rates(report: Report) -> str:
    parts = []
    for metric, editors in report.win_rates.items():
        for editor, rate in editors.items():
            shares = (("win", rate.win), ("tie", rate.tie), ("loss", rate.loss))
            said = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares)
            bars = "".join(
                f'<span class="{name}" style="width:{100 * share:.2f}%">'
                + (f"{100 * share:.0f}" if share >= 0.08 else "")  # narrower has no room for the number
                + "</span>"
                for name, share in shares
            )
            parts.append(
                f'<p class="bars-name">{escape(editor)} against {escape(report.baseline)}, '
                f"{METRIC_WORDS[metric]} "
                f"<small>{rate.num_prompts} prompts: {said}</small></p>"
                f'<div class="bars" role="img" aria-label="{said}">{bars}</div>'
            )
    return "".join(parts)


def _stages(stages: Mapping[str, Mapping[str, object]]) -> str:
    rows = []
    for stage, counts in stages.items():
        dropped = counts.get("dropped") or {}
        reasons = "<br>".join(f"{escape(str(why))}: {count}" for why, count in dict(dropped).items()) or "nothing"
        rows.append([escape(stage), str(counts.get("rows_in", "")), str(counts.get("rows_out", "")), reasons])
    return _table(["stage", "rows in", "rows out", "dropped"], rows, "words") if rows else ""


def _settings(report: Report) -> str:
    versions = _table(["package", "version"], [[escape(k), escape(v)] for k, v in report.versions.items()], "words")
    settings = f"<details><summary>Settings</summary><pre>{escape(report.settings)}</pre></details>"
    return (versions if report.versions else "") + (settings if report.settings else "")


# ------------------------------------------------------------ pictures


def _examples(examples: Sequence[Example]) -> str:
    parts = []
    for example in examples:
        figures = "".join(_figure(shown, example.instruction) for shown in example.shown)
        parts.append(f'<div class="example"><h3>\u201c{escape(example.instruction)}\u201d</h3>{figures}</div>')
    kind = "examples short" if all(len(example.shown) <= 2 for example in examples) else "examples"
    return f'<div class="{kind}">{"".join(parts)}</div>' if parts else ""


def _figure(shown: Shown, instruction: str) -> str:
    mark = {None: "", True: " right", False: " wrong"}[shown.right]
    words = {None: "", True: "\u2713 ", False: "\u2717 "}[shown.right] + shown.words
    kind = "jpeg" if shown.image[:2] == b"\xff\xd8" else "webp" if shown.image[8:12] == b"WEBP" else "png"
    address = f"data:image/{kind};base64,{base64.b64encode(shown.image).decode()}"
    alt = escape(f"{shown.words.splitlines()[0] if shown.words else 'picture'}: {instruction}", quote=True)
    caption = escape(words).replace("\n", "<br>")
    image = f'<img src="{address}" alt="{alt}">'
    return f'<figure class="shown{mark}">{image}<figcaption>{caption}</figcaption></figure>'


# ------------------------------------------------------------ charts

_WIDTH, _HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 14, 46


def _curve(points: Sequence[CurvePoint]) -> str:
    lines: dict[str, list[tuple[float, float]]] = {}
    for point in points:
        lines.setdefault(point.editor, []).append((point.clip_direction, point.clip_image))
    if not lines:
        return ""
    scales = sorted({point.image_guidance_scale for point in points})
    note = f"One point an image guidance scale, {scales[0]:g} to {scales[-1]:g}; further up and right is better."
    chart = line_chart(
        [Line(name, tuple(line)) for name, line in lines.items()],
        across="CLIP direction", upwards="CLIP image", dots=True,
    )  # fmt: skip
    return f'{chart}<p class="note">{note}</p>'


def _losses(losses: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    lines = [Line(name, tuple(points)) for name, points in losses.items() if points]
    return "".join(f"<h3>{escape(line.name)}</h3>" + line_chart([line], "images seen", "loss") for line in lines)


def _reward(report: Report) -> str:
    rows = [[escape(name), f"{100 * share:.1f} %"] for name, share in report.reward_accuracy.items()]
    accuracy = _table(["preferences", "ranked right (chance 50 %)"], rows) if rows else ""
    lines = [
        Line(name, histogram(values, _edges(report.rewards))) for name, values in report.rewards.items() if len(values)
    ]
    return accuracy + (line_chart(lines, across="reward", upwards="share of edits") if lines else "")


def _edges(groups: Mapping[str, Sequence[float]], bins: int = 24) -> list[float]:
    """Edges that all groups share: from the least to the greatest value."""
    values = [value for group in groups.values() for value in group]
    low, high = min(values), max(values)
    step = (high - low) / bins or 1.0
    return [low + index * step for index in range(bins + 1)]


def histogram(values: Sequence[float], edges: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """Share of the values in each bin, as an outline: (edge, share) points that a line joins into steps."""
    counts, width = [0] * (len(edges) - 1), edges[1] - edges[0]
    for value in values:
        counts[min(len(counts) - 1, max(0, int((value - edges[0]) / width)))] += 1
    steps = [(edge, count / len(values)) for i, count in enumerate(counts) for edge in (edges[i], edges[i + 1])]
    return ((edges[0], 0.0), *steps, (edges[-1], 0.0))


def line_chart(lines: Sequence[Line], across: str, upwards: str, dots: bool = False) -> str:
    """Lines over shared axes as an inline SVG, colours by order, a legend where there are several."""
    xs, ys = zip(*(point for line in lines for point in line.points), strict=True)
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))

    def spot(x: float, y: float) -> tuple[float, float]:
        u = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        v = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return _LEFT + u * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - v * (_HEIGHT - _TOP - _BOTTOM)

    drawn = [_axes(x_ticks, y_ticks, across, upwards, spot)]
    for index, line in enumerate(lines):
        spots = [spot(x, y) for x, y in line.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        drawn.append(f'<polyline class="line line{index % 6}" points="{path}"/>')
        if dots:
            drawn += [f'<circle class="dot dot{index % 6}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>' for x, y in spots]
    names = ", ".join(line.name for line in lines)
    said = escape(f"{upwards} by {across}: {names}", quote=True)
    legend = "".join(f'<span><i class="key{i % 6}"></i>{escape(line.name)}</span>' for i, line in enumerate(lines))
    return (
        f'<figure class="chart"><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{said}">'
        f"<title>{said}</title>{''.join(drawn)}</svg>"
        + (f'<figcaption class="legend">{legend}</figcaption>' if len(lines) > 1 else "")
        + "</figure>"
    )


def _axes(x_ticks: list[float], y_ticks: list[float], across: str, upwards: str, spot) -> str:
    parts = []
    for y in y_ticks:
        (x1, v), (x2, _) = spot(x_ticks[0], y), spot(x_ticks[-1], y)
        parts.append(f'<line class="grid" x1="{x1:.1f}" x2="{x2:.1f}" y1="{v:.1f}" y2="{v:.1f}"/>')
        parts.append(f'<text x="{x1 - 8:.1f}" y="{v + 4:.1f}" text-anchor="end">{_tick(y, y_ticks)}</text>')
    for x in x_ticks:
        u, v = spot(x, y_ticks[0])
        parts.append(f'<text x="{u:.1f}" y="{v + 18:.1f}" text-anchor="middle">{_tick(x, x_ticks)}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text class="axis" x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(across)}</text>')
    up = (_TOP + _HEIGHT - _BOTTOM) / 2
    turned = f'transform="rotate(-90 14 {up})"'
    parts.append(f'<text class="axis" x="14" y="{up}" text-anchor="middle" {turned}>{escape(upwards)}</text>')
    return "".join(parts)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that enclose low..high."""
    if high <= low:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / about
    power = 10.0
    while power > rough:
        power /= 10
    while power * 10 <= rough:
        power *= 10
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if step >= rough)
    first, last = int(low // step), int(-(-high // step))
    return [round(index * step, 12) for index in range(first, last + 1)]


def _tick(value: float, all_ticks: list[float]) -> str:
    step = all_ticks[1] - all_ticks[0]
    digits = 0
    while digits < 6 and abs(round(step, digits) - step) > step * 1e-6:
        digits += 1
    return f"{value:,.{digits}f}".replace(",", "\u2009").replace("-", "\u2212")


_STYLE = """
:root{--ink:#1d2327;--soft:#5c666d;--paper:#fcfcfa;--card:#fff;--rule:#dfe2e0;--accent:#0b6e77;
--good:#1d7f4b;--bad:#b3392f;--tie:#c9cdca;--c0:#0b6e77;--c1:#c8641b;--c2:#6a4fb3;--c3:#2f7d32;--c4:#b02a6b;--c5:#6b6b6b}
@media(prefers-color-scheme:dark){:root{--ink:#e7e9e8;--soft:#9ba5a9;--paper:#15181a;--card:#1d2124;--rule:#343a3d;
--accent:#58c4cd;--good:#57c084;--bad:#f0857b;--tie:#555d60;--c0:#58c4cd;--c1:#f2a261;--c2:#b29df0;--c3:#83cc86;
--c4:#f08bbd;--c5:#b5b5b5}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:60rem;margin:0 auto;padding:2.5rem 1.25rem 4rem}
h1{font-size:1.15rem;font-weight:600;color:var(--soft);margin:0 0 .75rem}
h2{font-size:1.3rem;line-height:1.3;margin:3rem 0 1rem;padding-top:1rem;border-top:1px solid var(--rule)}
h3{font-size:1rem;font-weight:600;margin:0 0 .6rem}
.finding{font-size:clamp(1.3rem,4vw,1.75rem);line-height:1.35;font-weight:600;margin:0;text-wrap:pretty}
.note,small{color:var(--soft);font-size:.85rem}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:.5rem .6rem;border-bottom:1px solid var(--rule);vertical-align:top;
white-space:nowrap}
th:first-child,.words :is(th,td):last-child{text-align:left}
thead th{font-size:.85rem;font-weight:600;color:var(--soft);white-space:normal;vertical-align:bottom}
td small{display:block;line-height:1.4}
small.sure{color:var(--accent);font-weight:600}
.bars-name{margin:1rem 0 .3rem}.bars-name small{margin-left:.4rem}
.bars{display:flex;height:1.6rem;border-radius:4px;overflow:hidden;font-size:.8rem;line-height:1.6rem;text-align:center}
.win{background:var(--good);color:var(--paper)}.tie{background:var(--tie)}.loss{background:var(--bad);color:var(--paper)}
.examples{display:grid;gap:1rem}.short{grid-template-columns:repeat(auto-fill,minmax(min(19rem,100%),1fr))}
.example{background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:1rem;
display:grid;grid-template-columns:repeat(auto-fill,minmax(8.5rem,1fr));gap:.8rem}
.example h3{grid-column:1/-1;margin:0}
figure{margin:0}
.shown img{display:block;width:100%;height:auto;image-rendering:pixelated;
border-radius:4px;background:var(--rule)}
.shown figcaption{font-size:.85rem;line-height:1.4;margin-top:.35rem;color:var(--soft)}
.right img{outline:3px solid var(--good)}.wrong img{outline:3px solid var(--bad)}
.chart svg{width:100%;height:auto;display:block;font-size:12px}
.chart text{fill:var(--soft)}.chart .axis{fill:var(--ink)}.grid{stroke:var(--rule)}
.line{fill:none;stroke-width:2.2;stroke-linejoin:round}
.legend{display:flex;flex-wrap:wrap;gap:.3rem 1.2rem;font-size:.9rem}
.legend i{display:inline-block;width:.8rem;height:.8rem;border-radius:2px;margin-right:.4rem}
pre{overflow-x:auto;font-size:.8rem;line-height:1.45;background:var(--card);
border:1px solid var(--rule);border-radius:8px;padding:1rem}
@media(max-width:36rem){.chart svg{font-size:19px}.line{stroke-width:3.5}}
summary{cursor:pointer;margin:1rem 0 .5rem}
""" + "".join(
    f".line{i}{{stroke:var(--c{i})}}.dot{i}{{fill:var(--c{i})}}.key{i}{{background:var(--c{i})}}" for i in range(6)
)
