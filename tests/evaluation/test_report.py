import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from hive_ray.evaluation.draws import DrawsSummary, MeasureScore
from hive_ray.evaluation.metrics import CurvePoint, Summary, WinRate
from hive_ray.evaluation.report import (
    Finding,
    Report,
    headline,
    write_contact_sheet,
    write_report,
)
from hive_ray.images import decode, encode
from hive_ray.pages.html import CaptionedPicture, Example
from hive_ray.statistics.intervals import Interval

PICTURE = encode(np.zeros((4, 4, 3), dtype=np.uint8))
VOID = {"meta", "img", "br"}


class Balance(HTMLParser):
    """Follows opening and closing tags, and gathers attributes that could load something."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.images = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset")]
        if tag == "img":
            self.images.append(dict(attrs))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        pass


def full_report():
    metrics = {"right": Interval(0.5, 0.4, 0.6), "reward": Interval(-0.1, -0.2, 0.1)}
    example = Example(
        'make it <b>"red"</b>',
        (CaptionedPicture(PICTURE, "source"), CaptionedPicture(PICTURE, "sft\nfollowed 0.10", False)),
    )
    return Report(
        findings=[Finding("finetuned", "sft", "right", Interval(0.1, 0.05, 0.15), 80, 320)],
        summaries=[Summary("sft", 80, 320, metrics), Summary("finetuned", 80, 320, metrics)],
        differences={"finetuned": {"right": Interval(0.1, 0.05, 0.15), "reward": Interval(0.1, -0.1, 0.2)}},
        baseline="sft", warnings=["finetuned: trained to please <it>"],
        win_rates={"reward": {"finetuned": WinRate(0.5, 0.2, 0.3, 80, 320)}},
        curve=[CurvePoint("sft", 1.0, 0.2, 0.9, 80), CurvePoint("sft", 1.4, 0.15, 0.93, 80)],
        edits=[example], pairs=[example], rankings=[example],
        reward_accuracy={"held out": (0.75, 0.31), "clip": (Interval(0.6, 0.5, 0.7), Interval(0.2, 0.1, 0.25))},
        reward_minus={"clip": Interval(0.15, 0.05, 0.2)},
        reward_noticed={"nothing <done>": Interval(0.875, 0.81, 0.93), "swapped, in an earlier card": 0.625},
        reward_calibration=[(0.6, 0.55), (0.9, 0.8)], reward_remarks=["it sees <nothing>"],
        rewards={"sft": [0.0, 1.0, 1.0], "finetuned": [1.0]},
        draws={"sft": drawn()},
        losses={"sft": [(0, 1.0), (64, 0.5)]},
        stages={"pairs": {"rows_in": 10, "rows_out": 7, "dropped": {"clip_direction_below_0.2": 3}}},
        settings="resolution: 64", versions={"torch": "2.13"},
    )  # fmt: skip


def drawn():
    """No preference of it is clear."""
    reward = MeasureScore(Interval(0.8123, 0.7, 0.9), None, Interval(0.75, 0.7, 0.8))
    clip = MeasureScore(Interval(0.7, 0.6, 0.8), None, Interval(0.7, 0.6, 0.8))
    gap = MeasureScore(Interval(0.1123, 0.02, 0.2), None, Interval(0.05, -0.1, 0.1))
    right = {"first": Interval(0.6, 0.5, 0.7), "mean": Interval(0.61, 0.5, 0.7), "ceiling": Interval(0.828, 0.8, 0.85)}
    measures = {"reward": reward, "clip_image": clip}
    return DrawsSummary(4, 80, 0, 0, **right, measures=measures, reward_minus={"clip_image": gap})


def parsed(html):
    page = Balance()
    page.feed(html)
    assert page.open == []
    return page


def test_an_empty_report_is_a_page_without_sections():
    html = write_report(Report())
    parsed(html)
    assert "<section>" not in html


def test_a_full_report_loads_nothing_from_anywhere():
    html = write_report(full_report())
    page = parsed(html)
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert not re.search(r"@import|url\((?!#)|<script|<link|href=\"(?!#)", html)


def test_a_warning_stands_beneath_the_measures():
    html = write_report(full_report())
    assert "trained to please &lt;it&gt;" in html.partition("Against the baseline")[0]


def test_how_many_edits_of_how_many_prompts_a_figure_is_of_is_said():
    html = write_report(full_report())
    editors = html.partition("Editors</h2>")[2].partition("</section>")[0]
    cells = re.sub(r"<[^>]+>", " ", editors).split()
    assert cells[:3] == ["editor", "prompts", "edits"]
    assert cells[cells.index("sft") :][:4] == ["sft", "baseline", "80", "320"]
    assert "320 pairs of edits of 80 prompts: win 50 %" in html


def test_what_the_reward_model_is_worth_is_said_in_words_and_numbers():
    section = write_report(full_report()).partition("Reward model</h2>")[2].partition("</section>")[0]
    for said in (
        "it sees &lt;nothing&gt;",
        "75.0 %",
        "31.0 %",
        "50.0 to 70.0",
        "+15.0 points*",
        "nothing &lt;done&gt;",
        "87.5 %",
        "81.0 to 93.0",
        "62.5 %",
        "observed share right",
    ):
        assert said in section, said


def test_what_the_reward_is_worth_on_edits_that_no_choice_has_seen_stands_beside_the_ceiling():
    section = write_report(full_report()).partition("no choice has seen</h2>")[2].partition("</section>")[0]
    _, *lines = section.split("<tr>")[1:]
    said = [" ".join(re.sub(r"<[^>]+>", " ", line.partition("</tr>")[0]).split()) for line in lines]
    assert said == [
        "the first edit 60.0 % 50.0 to 70.0",
        "a random edit 61.0 % 50.0 to 70.0",
        "reward 0.812 0.700 to 0.900 75.0 % 70.0 to 80.0",
        "CLIP image 0.700 0.600 to 0.800 +0.112* 70.0 % 60.0 to 80.0 +5.0 points",
        "the judge: the ceiling 82.8 % 80.0 to 85.0",
    ]
    assert "right edits, best of 4" in section
    assert "82.8 % of the prompts have a right edit among the 4, and no choice can find more" in section
    assert "0 preferences of 0 prompts" in section


def test_every_picture_has_words_for_those_who_do_not_see_it():
    page = parsed(write_report(full_report()))
    assert len(page.images) == 6
    assert all(image["alt"] for image in page.images)


def test_instructions_are_escaped():
    html = write_report(full_report())
    assert "<b>" not in html
    assert "make it &lt;b&gt;" in html


def test_every_part_that_is_given_has_its_section():
    html = write_report(full_report())
    for words in ("Editors", "Against the baseline", "Training pairs", "Rankings", "Reward model", "dropped"):
        assert words in html
    assert "clip_direction_below_0.2: 3" in html
    assert "resolution: 64" in html


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        (Interval(0.1, 0.05, 0.15), "finetuned is better than sft: +10.0 points on right edits"),
        (Interval(-0.1, -0.15, -0.05), "finetuned is worse than sft: \u221210.0 points on right edits"),
        (Interval(0.1, -0.05, 0.25), "No difference was shown between finetuned and sft: +10.0 points"),
    ],
)
def test_the_headline_claims_a_difference_only_where_the_interval_excludes_zero(bounds, words):
    assert headline(Finding("finetuned", "sft", "right", bounds, 80, 80)).startswith(words)


def test_the_headline_says_how_many_prompts_were_won_and_lost_and_other_findings_follow():
    gap = Interval(0.031, 0.017, 0.044)
    findings = [
        Finding("finetuned", "sft", "right", gap, 1200, 4800, WinRate(0.154, 0.772, 0.074, 1200, 4800)),
        Finding("shuffled", "sft", "right", Interval(-0.01, -0.03, 0.01), 1200, 4800),
    ]
    html = write_report(replace(full_report(), findings=findings))
    first = (
        '<p class="finding">finetuned is better than sft: +3.1 points on right edits (95 % interval +1.7 points to '
        "+4.4 points, 4800 edits of 1200 prompts; win 15 %, loss 7 %).</p>"
    )
    assert first + '<p class="further">No difference was shown between shuffled and sft:' in html


def test_a_difference_whose_interval_contains_zero_has_no_star():
    html = write_report(full_report())
    assert "+10.0 points*" in html
    assert "+0.100*" not in html


def test_the_sheet_is_one_picture_of_the_first_examples():
    example = full_report().edits[0]
    small, large = (decode(write_contact_sheet([example] * count, max_examples=6)) for count in (3, 20))
    assert large.shape[0] == pytest.approx(2 * small.shape[0], abs=4)  # two rows of three
    assert large.shape[1] == small.shape[1]
