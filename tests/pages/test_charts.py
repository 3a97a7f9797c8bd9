import math
import re

import numpy as np
import pytest

from hive_ray.images import decode
from hive_ray.pages.charts import bar_chart, histogram, interval_chart, line_chart, picture_grid

RISING = {"sft": [(0, 1), (1, 2)]}


def test_a_chart_says_its_words_and_has_a_legend_only_for_several_lines():
    alone, both = (
        line_chart(RISING, "images", "loss"),
        line_chart(RISING | {"later": [(0, 1), (1, 3)]}, "images", "loss"),
    )
    assert "images" in alone
    assert "loss" in alone
    assert "legend" not in alone
    assert "legend" in both
    assert ">later<" in both


def test_the_same_numbers_give_the_same_bytes():
    assert line_chart(RISING, "x", "y") == line_chart(RISING, "x", "y")


def test_names_are_text_and_never_markup():
    assert "<b>" not in line_chart({"<b>": [(0, 1), (1, 2)], "c": [(0, 1), (1, 2)]}, "x", "y")


def test_groups_of_a_histogram_share_their_bins_and_one_value_alone_is_drawn():
    outlines = re.findall(r'<g id="patch_\d+">', histogram({"a": [0.0, 1.0], "b": [0.5] * 10}, "reward", "share"))
    assert len(outlines) >= 2
    assert "<svg" in histogram({"a": [0.3]}, "reward", "share")


@pytest.mark.parametrize(
    "values",
    [
        [0.5, 0.5 + 1e-17], [0.5, math.nextafter(0.5, 1)], [0.5, 0.5 + 3e-16], [0.3] * 5, [0.3], [1e17, 1e17 + 16],
        [0.0, 5e-324], np.array([0.5, np.nextafter(np.float32(0.5), np.float32(1))], np.float32),
    ],
)  # fmt: skip
def test_values_that_nearly_coincide_are_drawn_in_one_bin(values):
    drawn = histogram({"a": values}, "x", "y")
    heights = {float(y) for y in re.findall(r"[ML] [\d.]+ ([\d.]+)", outline(drawn))}
    assert len(heights) == 2  # the axis, and the one bin that holds all values


def test_values_that_are_not_finite_are_left_out_of_a_histogram():
    holes = [math.nan, 0.25, math.inf, 0.75, -math.inf]
    assert histogram({"a": holes}, "x", "y") == histogram({"a": [0.25, 0.75]}, "x", "y")
    assert histogram({"a": [math.nan], "b": [0.25, 0.75]}, "x", "y") == histogram(
        {"a": [], "b": [0.25, 0.75]}, "x", "y"
    )


def test_charts_without_values_are_drawn_empty():
    for drawn in (
        histogram({"a": []}, "x", "y"), histogram({"a": [math.nan]}, "x", "y"), histogram({}, "x", "y"),
        line_chart({"a": []}, "x", "y", bands={"a": []}), line_chart({}, "x", "y"),
        bar_chart({}, "x", highlighted="a"), interval_chart({}, "x"),
    ):  # fmt: skip
        assert drawn.startswith("<svg")
    assert decode(picture_grid([])).min() == 255
    assert decode(picture_grid([("title", [])])).min() < 255


def outline(svg: str) -> str:
    """The path of a histogram's first group."""
    paths = re.findall(r'<path d="([^"]+)"[^>]*style="fill: none; stroke: #0b6e77', svg)
    return paths[0]


def test_bars_have_their_counts_and_shares_and_say_them():
    drawn = bar_chart({"kept": 1234, "flat": 2}, "pairs", highlighted="kept")
    assert re.search(r'aria-label="pairs: kept 1,234 \(99.8 %\), flat 2 \(0.2 %\)"', drawn)
    assert ">1,234 (99.8 %)<" in drawn
    assert "legend" not in drawn
    assert "<svg" in bar_chart({"kept": 0}, "pairs", highlighted="kept")


def test_intervals_lie_below_each_other_at_their_values():
    one, two = (
        interval_chart({"dpo": (1, 0.5, 2)}, "points"),
        interval_chart({"dpo": (1, 0.5, 2), "nft": (0, -1, 1)}, "points"),
    )
    assert 'aria-label="points: dpo, nft"' in two
    assert two.index(">dpo<") < two.index(">nft<")
    assert "legend" not in two
    assert [drawn.count("stroke: #0b6e77; stroke-width: 2") for drawn in (one, two)] == [1, 2]  # from low to high
    assert two.count("stroke-dasharray") == 1  # zero


def test_several_marks_of_a_name_are_lines_with_one_word_in_the_legend():
    one, four = (
        histogram({"a": [0.0, 1.0]}, "x", "y", vertical_lines={"edges": places})
        for places in ([0.5], [0.1, 0.2, 0.5, 0.9])
    )
    assert four.count(">edges<") == 1
    assert four.count("stroke-dasharray") == one.count("stroke-dasharray") + 3


def test_a_band_lies_about_its_line_and_a_level_has_a_colour_and_a_name_of_its_own():
    rising = {"model": [(0, 0.5), (1, 0.75)]}
    plain = line_chart(rising, "rankings", "right")
    drawn = line_chart(
        rising, "rankings", "right", bands={"model": [(0.4, 0.6), (0.7, 0.8)]}, horizontal_lines={"CLIP": 0.625}
    )
    assert "fill-opacity: 0.18" not in plain
    assert drawn.count("fill-opacity: 0.18") == 1
    assert ">CLIP<" in drawn
    assert drawn.count("stroke: #c8641b") >= 1  # the second colour is the level's


def test_shares_may_be_of_all_and_a_limit_is_a_line_with_its_number():
    drawn = histogram({"a": [0.0, 1.0]}, "x", "y", vertical_lines={"limit 0.25": [0.25]})
    assert ">limit 0.25<" in drawn
    assert histogram({"a": [0.0, 1.0]}, "x", "y") != histogram({"a": [0.0, 1.0]}, "x", "y", total=4)
