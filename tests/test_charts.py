import re

from hive_ray.charts import histogram, line_chart

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
