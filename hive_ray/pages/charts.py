"""Charts as SVG and grids of pictures as PNG, drawn by matplotlib: the same bytes for the same numbers.

A chart without values is drawn empty.
"""

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

    markers: mark each point. bands: name of a line -> (low, high) at each of its points, shaded. horizontal_lines: name
    -> the height of a dashed line across the chart. With these the legend is outside the axes, so that it hides none.
    """

    def draw(axes: Axes) -> None:
        for name, points in lines.items():
            xs = [x for x, _ in points]
            ys = [y for _, y in points]
            (line,) = axes.plot(xs, ys, label=name, marker="o" if markers else None)
            if bands and name in bands:
                lows = [low for low, _ in bands[name]]
                highs = [high for _, high in bands[name]]
                axes.fill_between(xs, lows, highs, color=line.get_color(), alpha=0.18, linewidth=0)
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
    """The outline of each group's distribution, all over the same bins. Values that are not finite are left out.

    total: what the counts are divided by; by default each group's own number of values. vertical_lines: name -> the
    places of dashed lines. half_width: narrower, for two charts side by side.
    """
    finite: dict[str, np.ndarray] = {}
    for name, values in groups.items():
        numbers = np.asarray(values)
        finite[name] = numbers[np.isfinite(numbers)]
    edges = _bin_edges(list(finite.values()))

    def draw(axes: Axes) -> None:
        for name, values in finite.items():
            counts, _ = np.histogram(values, edges)
            axes.stairs(counts / (total or max(1, len(values))), edges, label=name, linewidth=1.5)
        for name, places in (vertical_lines or {}).items():
            for number, place in enumerate(places):
                label = None if number else name
                axes.axvline(place, color="#6b6b6b", linestyle="--", linewidth=1.2, label=label)

    return _chart(draw, groups, x_label, y_label, width=_WIDTH * (0.65 if half_width else 1))


def _bin_edges(groups: Sequence[np.ndarray]) -> np.ndarray:
    """The edges of `_BINS` equal bins over all finite values; a range that is too narrow for so many is widened."""
    values = np.concatenate([np.empty(0, np.float32), *groups])
    if not len(values):
        return np.linspace(0.0, 1.0, _BINS + 1)
    low, high = values.min(), values.max()
    narrowest = 2 * _BINS * float(np.spacing(max(abs(low), abs(high))))
    if float(high) - float(low) > narrowest:
        return np.histogram_bin_edges(values, _BINS)
    margin = max(0.5, narrowest)
    return np.linspace(float(low) - margin, float(high) + margin, _BINS + 1)


def bar_chart(bars: Mapping[str, int], x_label: str, highlighted: str) -> str:
    """A horizontal bar for each name, the first on top, with its count and share; `highlighted` has its own colour."""
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
    """A dot for each name at its value with a line from low to high, the first on top; a dashed line marks zero.

    intervals: name -> (value, low, high).
    """
    places = range(len(intervals))
    values = [value for value, _, _ in intervals.values()]
    lows = [low for _, low, _ in intervals.values()]
    highs = [high for _, _, high in intervals.values()]

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
    """A PNG of examples, `columns` in a row: a title, and below it captioned pictures (H, W, 3).

    picture_width: in inches. Without examples the picture is blank.
    """
    rows = max(1, -(-len(examples) // columns))
    most = max([1, *(len(pictures) for _, pictures in examples)])
    figure = Figure(figsize=(picture_width * most * columns, (picture_width + 0.6) * rows), layout="constrained")
    parts = figure.subfigures(rows, columns, squeeze=False).ravel()
    for part, (title, pictures) in zip(parts, examples, strict=False):
        part.suptitle(title, fontsize=9)
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
    axis_names = f"{y_label} by {x_label}" if y_label else x_label
    description = escape(f"{axis_names}: {', '.join(labels)}", quote=True)
    return drawn[drawn.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{description}"', 1)
