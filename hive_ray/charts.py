"""Charts as SVG and pictures side by side as PNG, drawn by matplotlib: the same bytes for the same numbers."""

import io
from collections.abc import Mapping, Sequence
from html import escape

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 7.2, 3.4  # inches
_BINS = 24
_STYLE = {
    "axes.grid": True,
    "axes.prop_cycle": matplotlib.cycler(color=["#0b6e77", "#c8641b", "#6a4fb3", "#2f7d32", "#b02a6b", "#6b6b6b"]),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 10,
    "grid.color": "#dfe2e0",
    "svg.fonttype": "none",
    "svg.hashsalt": "hive_ray",
}


def line_chart(lines: Mapping[str, Points], across: str, upwards: str, *, dots: bool = False) -> str:
    """A line for each name through its (x, y) points; the words name the axes; a legend where there are several."""

    def draw(axes: Axes) -> None:
        for name, points in lines.items():
            axes.plot(*zip(*points, strict=True), label=name, marker="o" if dots else None)

    return _chart(draw, lines, across, upwards)


def histogram(groups: Mapping[str, Sequence[float]], across: str, upwards: str) -> str:
    """The outline of each group's distribution over the same bins, as shares that add up to 1."""
    edges = np.histogram_bin_edges(np.concatenate([np.asarray(values) for values in groups.values()]), _BINS)

    def draw(axes: Axes) -> None:
        for name, values in groups.items():
            axes.stairs(np.histogram(values, edges)[0] / len(values), edges, label=name, linewidth=1.5)

    return _chart(draw, groups, across, upwards)


def picture_grid(examples: Sequence[tuple[str, Sequence[tuple[np.ndarray, str]]]], across: int = 3) -> bytes:
    """A PNG of examples, `across` in a row: words, and under them pictures (H, W, 3) with words of their own."""
    down, most = -(-len(examples) // across), max(len(pictures) for _, pictures in examples)
    figure = Figure(figsize=(1.15 * most * across, 1.75 * down), layout="constrained")
    parts = figure.subfigures(down, across, squeeze=False).ravel()
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


def _chart(draw, names: Mapping[str, object], across: str, upwards: str) -> str:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.set(xlabel=across, ylabel=upwards)
        if len(names) > 1:
            axes.legend()
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    drawn = file.getvalue()
    said = escape(f"{upwards} by {across}: {', '.join(names)}", quote=True)
    return drawn[drawn.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{said}"', 1)
