"""What the study says of scores that are made by hand."""

import numpy as np
import pytest

from hive_ray.statistics.intervals import Interval
from studies.study_document import (
    against,
    best_arm,
    changed_settings,
    compare,
    curve_chart,
    findings,
    further_table,
    gain,
    gap_chart,
    in_words,
    more_rankings,
    points,
    second_round,
    shaped_arm,
    table,
)

SEEDS = (1, 2, 3)


def scored(num_right: int, num_preserved: int | None = None, of: int = 100) -> dict[str, dict[str, np.ndarray]]:
    """Of so many prompts with one edit each, the first are right (and win), and the first are preserved."""
    kept = num_right if num_preserved is None else num_preserved
    right, preserved = (
        {f"p{place}": np.array([float(place < count)]) for place in range(of)} for count in (num_right, kept)
    )
    return {"right": right, "preserved": preserved, "overall": right}


def of_seeds(*numbers: int, num_preserved: int | None = None):
    """An editor with so many of 100 prompts right, seed by seed."""
    return {seed: scored(number, num_preserved) for seed, number in zip(SEEDS, numbers, strict=False)}


def editors(**numbers: int):
    """Editors with so many of 100 prompts right with each of three seeds; `_` stands for a space."""
    return {name.replace("_", " "): of_seeds(number, number, number) for name, number in numbers.items()}


# --- Comparisons ------------------------------------------------------------------------------------------------------


def test_a_comparison_is_paired_by_prompt_and_a_mean_over_seeds():
    """40 and 50 right of 100 against 30: gaps of 10 and 20 points."""
    found = compare({"dpo": of_seeds(40, 50), "control": of_seeds(30, 30, 30)}, "dpo", "control")
    assert found.right.value == pytest.approx(0.45)
    assert found.right_gap.value == found.preserved_gap.value == found.decided_gap.value == pytest.approx(0.15)
    assert (found.win, found.tie, found.loss) == pytest.approx((0.15, 0.85, 0))
    assert found.num_seeds == 2


def test_intervals_are_over_seeds_and_prompts():
    """Every prompt of one seed gains and none of the other's: over prompts alone the interval would be narrow."""
    scores = {"dpo": {1: scored(100), 2: scored(0)}, "control": {1: scored(0), 2: scored(0)}}
    assert compare(scores, "dpo", "control").right_gap == Interval(0.5, 0, 1)


def test_only_prompts_that_both_edited_are_compared():
    few = {name: {"p0": values["p0"]} for name, values in scored(1).items()}
    assert compare({"a": {1: few}, "b": {1: scored(0)}}, "a", "b").right_gap.value == 1


def test_editors_without_a_common_seed_are_not_compared():
    assert compare({"a": {1: scored(1)}, "b": {2: scored(1)}}, "a", "b") is None
    assert compare({"a": {1: scored(1)}}, "a", "b") is None


def test_a_small_difference_is_a_tie():
    ours, theirs = (scored(0, of=5) for _ in range(2))
    ours["overall"] = {f"p{place}": np.array([gap]) for place, gap in enumerate((0.2, 0.04, 0.0, -0.04, -0.2))}
    found = compare({"a": {1: ours}, "b": {1: theirs}}, "a", "b")
    assert (found.win, found.tie, found.loss) == pytest.approx((0.2, 0.6, 0.2))


def test_all_edits_of_a_prompt_count_and_wins_are_counted_draw_by_draw():
    """a wins one pair of p and ties three, loses two pairs of q and ties two: 1/8, 5/8 and 2/8."""
    ours, theirs = {"p": np.array([1.0, 0, 0, 0]), "q": np.zeros(4)}, {"p": np.zeros(4), "q": np.array([0, 1.0, 1, 0])}
    scores = {
        name: {1: dict.fromkeys(("right", "preserved", "overall"), of)} for name, of in (("a", ours), ("b", theirs))
    }
    found = compare(scores, "a", "b")
    assert (found.win, found.tie, found.loss) == (0.125, 0.625, 0.25)
    assert found.right.value == 0.125
    assert found.right_gap == found.decided_gap == Interval(-0.125, -0.5, 0.25)  # the interval is of the two prompts


def test_the_best_of_several_is_held_against_each_edit_of_the_baseline():
    best, several = {"p": np.array([1.0])}, {"p": np.array([1.0, 0.0, 0.0, 0.0])}
    scores = {"best": {1: dict.fromkeys(("right", "preserved", "overall"), best)}}
    scores["sft"] = {1: dict.fromkeys(("right", "preserved", "overall"), several)}
    found = compare(scores, "best", "sft")
    assert (found.win, found.tie, found.loss, found.right_gap.value) == (0.75, 0.25, 0, 0.75)


def test_wins_and_losses_are_counted_both_ways():
    """p0..p29 are won, p30..p39 are lost."""
    ours, theirs = scored(30), scored(0)
    theirs["overall"] = {name: np.array([float(30 <= int(name[1:]) < 40)]) for name in theirs["overall"]}
    found = compare({"a": {1: ours}, "b": {1: theirs}}, "a", "b")
    assert (found.win, found.tie, found.loss) == pytest.approx((0.3, 0.6, 0.1))
    assert found.decided_gap.value == pytest.approx(0.2)


# --- Words ------------------------------------------------------------------------------------------------------------


def test_the_best_arm_is_the_one_that_gains_most_and_no_control_or_later_round():
    words = best_arm(editors(control=30, dpo=50, weighted=40, shuffled=90, second_round=90))
    assert words.startswith("Best of dpo and weighted: dpo makes +20.0 [")
    assert "wins 20.0 % of the pairs of edits and loses 0.0 %" in words
    assert words.endswith("**shown**.")
    assert best_arm(editors(dpo=50)) == "The best arm over the control: not measured."


def test_a_gain_below_four_points_is_not_shown():
    scores = {"dpo": {1: scored(339, of=10_000)}, "control": {1: scored(0, of=10_000)}}
    assert best_arm(scores).endswith("**not shown**, since the gain is less than 4 points.")
    exactly = {"dpo": {1: scored(400, of=10_000)}, "control": {1: scored(0, of=10_000)}}
    assert best_arm(exactly).endswith("**shown**.")


def test_a_gain_that_one_seed_alone_has_is_not_shown():
    scores = {"dpo": of_seeds(80, 30, 30), "control": of_seeds(30, 30, 30)}
    assert best_arm(scores).endswith("**not shown**, since the interval is not above 0.")


def test_a_gain_with_too_many_losses_is_not_shown():
    """Right gains 30 of 100, while by `overall` 30 are won and 16 are lost; with 15 it is twice as many."""
    ours, theirs = scored(30), scored(0)
    for losses, ending in (
        (16, "**not shown**, since it wins less than 2 times as often as it loses."),
        (15, "**shown**."),
    ):
        theirs["overall"] = {name: np.array([float(30 <= int(name[1:]) < 30 + losses)]) for name in theirs["overall"]}
        assert best_arm({"dpo": {1: ours}, "control": {1: theirs}}).endswith(ending)


def test_an_editor_like_the_control_lacks_all_three():
    words = gain(editors(control=30, second_round=30), "second round")
    assert words.startswith("second round makes +0.0 [0.0, 0.0] points")
    assert words.endswith(
        "since the gain is less than 4 points, the interval is not above 0 and it wins less than 2 times as often as "
        "it loses."
    )
    assert gain(editors(control=30), "second round") == "second round over the control: not measured."


def test_a_second_round_is_shown_to_add_by_its_interval():
    first, more, less = {"dpo+rejection": of_seeds(30, 30, 30)}, editors(second_round=40), editors(second_round=20)
    assert second_round(first | more).endswith("That it adds: **shown**.")
    assert second_round(first | less).endswith("That it adds: **not shown**, since the interval is not above 0.")
    assert "not measured" in second_round(first)


def test_an_arm_on_scored_pairs_may_be_above_its_control_in_either():
    control = of_seeds(30, 30, 30)
    kept = {"weighted": of_seeds(30, 30, 30, num_preserved=60), "control": control}
    assert shaped_arm(kept, "weighted").endswith("**shown** in preserved.")
    both = {"weighted": of_seeds(60, 60, 60), "control": control}
    assert shaped_arm(both, "weighted").endswith("**shown** in right and preserved.")
    worse = {"weighted": of_seeds(10, 10, 10), "control": control}
    assert shaped_arm(worse, "weighted").endswith("**not shown**, since neither interval is above 0.")
    by_chance = {"weighted": of_seeds(60, 30, 10), "control": control}
    assert shaped_arm(by_chance, "weighted").endswith("**not shown**, since neither interval is above 0.")
    assert "not measured" in shaped_arm(both, "level")
    from_the_beginning = {"conditional_sft": of_seeds(60, 60, 60), "sft": control, "control": of_seeds(70, 70, 70)}
    assert "differs from sft by +30.0" in shaped_arm(from_the_beginning, "conditional_sft")


def test_more_rankings_are_the_last_against_the_first():
    curve = {"sft": of_seeds(30), "100 rankings": of_seeds(20), "300 rankings": of_seeds(90), "all": of_seeds(50)}
    words = more_rankings(curve)
    assert words.startswith("dpo on all makes +30.0 [")
    assert "than on 100 rankings" in words
    assert words.endswith("**shown**.")
    assert "not measured" in more_rankings({"sft": of_seeds(30), "100 rankings": of_seeds(20)})


def test_only_settings_that_change_something_are_named():
    scores = {"dpo": of_seeds(50), "any gap": of_seeds(20), "beta 1000": of_seeds(50)}
    words = changed_settings(scores)
    assert words.startswith(
        "Of 2 changed settings of dpo, these are shown to change the share of right edits: any gap -30.0 ["
    )
    assert "beta" not in words
    assert "none is shown" in changed_settings({"dpo": of_seeds(50), "any gap": of_seeds(50)})
    assert "not measured" in changed_settings({"dpo": of_seeds(50)})


def test_the_first_paragraph_has_a_sentence_for_each_question():
    feedback = editors(sft=30, control=30, dpo=50, second_round=60) | {"dpo, best of 4": of_seeds(70, 70, 70)}
    feedback |= {"dpo+rejection": of_seeds(40, 40, 40)}
    words = findings(feedback, editors(control=30, weighted=50), {}, {}).splitlines()
    assert [line[2:].partition(" makes")[0] for line in words[:4]] == [
        "Best of dpo and dpo+rejection: dpo", "second round", "dpo, best of 4", "The second round",
    ]  # fmt: skip
    assert len(words) == 10
    assert "conditional over control: not measured" in words[4]
    assert "conditional_sft over sft: not measured" in words[7]
    assert words[5].endswith("**shown** in right and preserved.")


def test_an_arm_of_some_seeds_alone_is_not_the_best_and_its_rows_say_so():
    scores = {"control": of_seeds(30, 30, 30), "dpo": of_seeds(38, 38, 38), "nft": of_seeds(60)}
    assert best_arm(scores).startswith("Best of dpo: dpo makes +8.0")
    [row] = [line for line in table(scores, "control").splitlines() if "nft" in line]
    assert row.startswith("| nft (1 of the seeds) |")
    assert "| dpo minus nft (1 of the seeds) |" in further_table(scores, [("dpo", "nft")])
    assert "| dpo minus control |" in further_table(scores, [("dpo", "control")])


def test_names_are_joined_as_people_do():
    assert [in_words(names) for names in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]


# --- Tables and charts ------------------------------------------------------------------------------------------------


def test_a_table_has_a_row_for_each_editor_the_baseline_first_and_what_excludes_zero_bold():
    lines = table(editors(sft=30, control=30, dpo=100), "control").splitlines()
    assert lines[0] == "| editor | right | minus control | preserved, minus control | win / tie / loss | win - loss |"
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| control", "| sft", "| dpo"]
    assert "| 100.0 % [100.0, 100.0] | **+70.0 [" in lines[4]
    assert "| 70.0 / 30.0 / 0.0 |" in lines[4]
    assert lines[3].endswith("| +0.0 [0.0, 0.0] | +0.0 [0.0, 0.0] | 0.0 / 100.0 / 0.0 | +0.0 [0.0, 0.0] |")
    assert table(editors(dpo=30), "control") == ""


def test_an_editor_that_lacks_a_seed_says_so():
    lines = table({"control": of_seeds(30, 30, 30), "dpo": of_seeds(40, 40)}, "control").splitlines()
    assert lines[3].startswith("| dpo (2 of the seeds) |")


def test_further_differences_are_those_that_are_measured():
    scores = editors(sft=30, dpo=40)
    lines = further_table(scores, [("dpo", "sft"), ("second round", "dpo")]).splitlines()
    assert len(lines) == 3
    assert lines[2].startswith("| dpo minus sft | **+10.0 [")
    assert further_table(scores, [("second round", "dpo")]) == ""


def test_points_are_hundredths():
    assert points(Interval(0.012, -0.003, 0.027)) == "+1.2 [-0.3, 2.7]"


def test_charts_show_all_that_is_compared():
    scores = editors(sft=30, control=30, dpo=50)
    assert [one.editor for one in against(scores, "control")] == ["sft", "dpo"]
    assert 'aria-label="right minus control, points: sft, dpo"' in gap_chart(scores, "control")
    drawn = curve_chart({"sft": of_seeds(30), "100": of_seeds(40), "300": of_seeds(50)}, {"100": 100, "300": 300})
    assert 'aria-label="minus sft, points by rankings: right, preserved, win - loss"' in drawn
    assert drawn.count("fill-opacity: 0.18") == 3
