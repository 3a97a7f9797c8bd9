"""Charts as SVG and pictures side by side as PNG, drawn by matplotlib: the same bytes for the same numbers."""

import io
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from matplotlib.typing import RcKeyType

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 7.2, 3.4  # inches
_BINS = 24
_TEAL, _ORANGE = "#0b6e77", "#c8641b"
_STYLE: dict[RcKeyType, Any] = {
    "axes.grid": True,
    "axes.prop_cycle": cycler(color=[_TEAL, _ORANGE, "#6a4fb3", "#2f7d32", "#b02a6b", "#6b6b6b"]),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 10,
    "grid.color": "#dfe2e0",
    "svg.fonttype": "none",
    "svg.hashsalt": "hive_ray",
}


def line_chart(
    lines: Mapping[str, Points],
    x_label: str,
    y_label: str,
    *,
    markers: bool = False,
    bands: Mapping[str, Points] | None = None,
    horizontal_lines: Mapping[str, float] | None = None,
) -> str:
    """A line for each name through its (x, y) points, with named axes; a legend if there are several lines.

    bands: name of a line -> (low, high) at each of its points, shaded. levels: name -> the height of a dashed line
    across the chart. With levels the legend stands beside the chart, so that it hides none of them.
    """

    def draw(axes: Axes) -> None:
        for name, points in lines.items():
            (line,) = axes.plot(*zip(*points, strict=True), label=name, marker="o" if markers else None)
            if bands and name in bands:
                places, (low, high) = [x for x, _ in points], zip(*bands[name], strict=True)
                axes.fill_between(places, low, high, color=line.get_color(), alpha=0.18, linewidth=0)
        for name, height in (horizontal_lines or {}).items():
            (line,) = axes.plot([], [])  # takes the next colour
            axes.axhline(height, color=line.get_color(), linestyle="--", linewidth=1.2, label=name)

    return _chart(
        draw,
        lines,
        x_label,
        y_label,
        width=_WIDTH * (1.3 if horizontal_lines else 1),
        legend_outside=bool(horizontal_lines),
    )


def histogram(
    groups: Mapping[str, Sequence[float] | np.ndarray],
    x_label: str,
    y_label: str,
    *,
    total: int | None = None,
    vertical_lines: Mapping[str, Sequence[float]] | None = None,
    half_width: bool = False,
) -> str:
    """The outline of each group's distribution over the same bins, as shares of the group, or of so many in all.

    marks: name -> places of dashed lines upwards. `half` as wide where two charts stand side by side."""
    edges = np.histogram_bin_edges(np.concatenate([np.asarray(values) for values in groups.values()]), _BINS)

    def draw(axes: Axes) -> None:
        for name, values in groups.items():
            axes.stairs(np.histogram(values, edges)[0] / (total or len(values)), edges, label=name, linewidth=1.5)
        for name, places in (vertical_lines or {}).items():
            for number, place in enumerate(places):
                label = None if number else name
                axes.axvline(place, color="#6b6b6b", linestyle="--", linewidth=1.2, label=label)

    return _chart(draw, groups, x_label, y_label, width=_WIDTH * (0.65 if half_width else 1))


def bar_chart(bars: Mapping[str, int], x_label: str, highlighted: str) -> str:
    """A horizontal bar for each name, the first on top, with its count and share; `apart` has another colour."""
    words = {name: f"{count:,} ({100 * count / max(1, sum(bars.values())):.1f} %)" for name, count in bars.items()}

    def draw(axes: Axes) -> None:
        drawn = axes.barh(
            list(bars),
            list(bars.values()),
            height=0.6,
            color=[_TEAL if name == highlighted else _ORANGE for name in bars],
        )
        axes.bar_label(drawn, list(words.values()), padding=4)
        axes.margins(x=0.25)
        axes.grid(visible=False)
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()

    labels = {f"{name} {count}": None for name, count in words.items()}
    return _chart(draw, labels, x_label, "", height=0.8 + 0.38 * len(bars), legend=False)


def interval_chart(intervals: Mapping[str, tuple[float, float, float]], x_label: str) -> str:
    """A dot for each name at its value with a line from low to high, the first on top; zero is dashed.

    intervals: name -> (value, low, high)."""
    places = range(len(intervals))
    values, lows, highs = zip(*intervals.values(), strict=True)

    def draw(axes: Axes) -> None:
        axes.hlines(places, lows, highs, color=_TEAL, linewidth=2)
        axes.plot(values, places, "o", color=_TEAL)
        axes.axvline(0, color="#6b6b6b", linestyle="--", linewidth=1.2)
        axes.set_yticks(places, list(intervals))
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()

    return _chart(draw, intervals, x_label, "", height=0.8 + 0.32 * len(intervals), legend=False)


def picture_grid(
    examples: Sequence[tuple[str, Sequence[tuple[np.ndarray, str]]]], columns: int = 3, picture_width: float = 1.15
) -> bytes:
    """A PNG of examples, `across` in a row: words, and under them pictures (H, W, 3), `side` inches wide, with words of
    their own."""
    down, most = -(-len(examples) // columns), max(len(pictures) for _, pictures in examples)
    figure = Figure(figsize=(picture_width * most * columns, (picture_width + 0.6) * down), layout="constrained")
    parts = figure.subfigures(down, columns, squeeze=False).ravel()
    for part, (words, pictures) in zip(parts, examples, strict=False):
        part.suptitle(words, fontsize=9)
        for axes, (pixels, name) in zip(part.subplots(1, most, squeeze=False)[0], pictures, strict=False):
            axes.imshow(pixels, interpolation="nearest")
            axes.set_title(name, fontsize=7)
        for axes in part.axes:
            axes.set_axis_off()
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
    return file.getvalue()


def _chart(
    draw: Callable[[Axes], None],
    labels: Mapping[str, object],
    x_label: str,
    y_label: str,
    *,
    width: float = _WIDTH,
    height: float = _HEIGHT,
    legend: bool = True,
    legend_outside: bool = False,
) -> str:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.set(xlabel=x_label, ylabel=y_label)
        if legend and len(axes.get_legend_handles_labels()[0]) > 1:
            figure.legend(loc="outside right upper") if legend_outside else axes.legend()
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    drawn = file.getvalue()
    axes_said = f"{y_label} by {x_label}" if y_label else x_label
    description = escape(f"{axes_said}: {', '.join(labels)}", quote=True)
    return drawn[drawn.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{description}"', 1)
