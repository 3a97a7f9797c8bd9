import re
from dataclasses import replace

import numpy as np
import pytest

from hive_ray.images import encode
from hive_ray.pairs.inspection import SIMILARITIES, InspectedPairs, headline, write_page
from hive_ray.presets import sd15

COLOURED = {
    name: encode(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    for seed, name in enumerate(("source_image", "edited_image"))
}
PAIR = COLOURED | {
    "instruction": 'add a <b>"hat"</b>', "source_caption": "a <i>cat</i>", "edited_caption": "a cat & a hat",
    "clip_image": 0.81234, "clip_direction": 0.1, "clip_source_text": 0.25, "clip_edited_text": 0.24,
}  # fmt: skip
SEEN = InspectedPairs(
    settings=sd15().pairs,
    num_kept=60,
    num_twins=50,
    dropped={"near_duplicate": 10, "clip_direction_below_0.2": 120, "unsafe": 10},
    failed={"error: ValueError: <x>": 2},
    kept_values={name: np.array([0.5, 0.9], dtype=np.float32) for name in SIMILARITIES},
    dropped_values={name: np.array([0.1, np.nan], dtype=np.float32) for name in SIMILARITIES},
    kept=[PAIR | {"clip_direction": 0.3}],
    examples={"clip_direction_below_0.2": [PAIR], "unsafe": [PAIR]},
)


def section(html: str, title: str) -> str:
    return html.partition(f"<h2>{title}</h2>")[2].partition("</section>")[0]


def test_the_headline_says_what_was_kept_and_why_most_was_dropped():
    assert headline(SEEN) == (
        "60 of 200 drawn pairs are kept (30.0 %); most often dropped for clip_direction_below_0.2 (60.0 %)."
    )
    assert headline(replace(SEEN, dropped={})) == "60 of 60 drawn pairs are kept (100.0 %)."


def test_every_reason_has_its_bar_with_count_and_share_and_its_section_the_greatest_first():
    html = write_page(SEEN)
    bars = section(html, "What became of the pairs")
    for words in ("60 (30.0 %)", "120 (60.0 %)", "10 (5.0 %)", "50 kept pairs backwards"):
        assert words in bars
    titles = re.findall(r"<h2>Dropped: (\w+[\w.]*)</h2>", html)
    assert titles == ["clip_direction_below_0.2", "near_duplicate", "unsafe"]


def test_a_pair_shows_both_pictures_with_captions_and_values_and_the_limit_that_it_missed():
    dropped = section(write_page(SEEN), "Dropped: clip_direction_below_0.2")
    assert dropped.count("<img ") == 2
    assert "image 0.812 " in dropped
    assert "direction 0.100 &lt; 0.2" in dropped
    assert re.search(r"contrast \d+\.\d", dropped)
    assert re.search(r"difference \d+", dropped)
    assert "0.300 &lt;" not in section(write_page(SEEN), "Kept")


def test_what_may_be_unsafe_is_counted_and_not_shown():
    assert "<img" not in section(write_page(SEEN), "Dropped: unsafe")


def test_texts_are_escaped_and_nothing_is_loaded():
    html = write_page(SEEN)
    assert not re.search(r"<b>|<i>|<x>|<script|<link|@import|src=\"(?!data:)|href=\"(?!#)", html)
    assert "a cat &amp; a hat" in html


@pytest.mark.parametrize("empty", [{}, {"clip_direction_below_0.2": 4}])
def test_a_table_that_kept_nothing_and_has_no_examples_has_a_page(empty):
    nothing = {name: np.array([], dtype=np.float32) for name in SIMILARITIES}
    bare = replace(
        SEEN, num_kept=0, num_twins=0, dropped=empty, kept_values=nothing, dropped_values=nothing, kept=[], examples={}
    )
    html = write_page(bare)
    assert f"0 of {sum(empty.values())} drawn pairs are kept" in html
    assert ("No example of it was kept" in html) == bool(empty)


def test_each_similarity_is_drawn_with_its_limit():
    drawn = section(write_page(SEEN), "CLIP similarities and their limits")
    assert drawn.count("<svg") == 4
    assert "limit 0.7" in drawn
    assert drawn.count("limit 0.2") == 3
