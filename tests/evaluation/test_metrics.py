import numpy as np
import pytest

from hive_ray.evaluation.metrics import (
    WinRate,
    compare_with_baseline,
    draws_by_prompt,
    outcomes_by_prompt,
    paired_difference,
    rows_at_scales,
    summarise_editors,
    trade_off_curve,
    values_by_prompt,
    win_rate,
    win_rates,
)
from hive_ray.statistics.intervals import Interval, hierarchical_interval, interval, ratio, ratio_gap


def edit(prompt, editor, *, scale=1.4, followed=1.0, preserved=1.0, reward=0.0, image=0.9, direction=0.2):
    return {
        "prompt_id": prompt, "editor": editor, "guidance_scale": 3.0,
        "image_guidance_scale": float(np.float32(scale)), "followed": followed, "preserved": preserved,
        "reward": reward, "clip_image": image, "clip_direction": direction,
    }  # fmt: skip


def with_draws(row, *rewards):
    """A row that stands for edits with these rewards; its own measures are those of the first."""
    own = {name: row[name] for name in ("followed", "preserved", "clip_image", "clip_direction")}
    draws = [own | {"seed": seed, "reward": reward} for seed, reward in enumerate(rewards)]
    return row | draws[0] | {"draws": draws}


def values(**of_prompts):
    """The values of each prompt's edits."""
    return {prompt: np.array(numbers, dtype=float) for prompt, numbers in of_prompts.items()}


def test_wins_ties_and_losses_are_counted_over_shared_prompts():
    ours = values(a=[1.0], b=[0.5], c=[0.0], d=[0.9], x=[9.0])
    baseline = values(a=[0.0], b=[0.55], c=[1.0], d=[0.0])
    assert win_rate(ours, baseline, tie_within=0.1) == WinRate(0.5, 0.25, 0.25, 4, 4)


def test_edits_are_held_against_each_other_draw_by_draw_and_each_prompt_counts_alike():
    """Of a, one pair of four is won, two are tied, one is lost; by means a would be won. Of b, both are won."""
    ours = values(a=[1.0, 0.5, 0.5, 0.0], b=[1.0, 1.0])
    baseline = values(a=[0.0, 0.5, 0.45, 0.1], b=[0.0, 0.5])
    found = outcomes_by_prompt(ours, baseline, tie_within=0.05 + 1e-9)
    assert {prompt: list(pairs) for prompt, pairs in found.items()} == {"a": [1, 0, 0, -1], "b": [1, 1]}
    assert win_rate(ours, baseline, tie_within=0.05 + 1e-9) == WinRate(0.625, 0.25, 0.125, 2, 6)


def test_a_single_edit_is_held_against_each_of_the_others():
    several, best = values(a=[0.0, 0.5, 1.0, 1.0]), values(a=[0.5])
    assert win_rate(best, several) == WinRate(0.25, 0.25, 0.5, 1, 4)
    assert win_rate(several, best) == WinRate(0.5, 0.25, 0.25, 1, 4)


def test_the_expected_shares_are_those_of_one_edit_and_the_noise_is_less():
    rng = np.random.default_rng(0)
    ours, baseline = rng.normal(0.5, 1, (4000, 4)), rng.normal(0, 1, (4000, 4))

    def wins(num_draws):
        of_prompts = [(one[:num_draws], other[:num_draws]) for one, other in zip(ours, baseline, strict=True)]
        pairs = [win_rate({"p": one}, {"p": other}, tie_within=0.5) for one, other in of_prompts]
        return np.array([(rate.win, rate.tie, rate.loss) for rate in pairs])

    one, four = wins(1), wins(4)
    # The gap is normal with mean 0.5 and variance 2: P(gap > 0.5) = 0.5, P(gap < -0.5) = 0.2398.
    for found in (one, four):
        assert found.mean(0) == pytest.approx([0.5, 0.2602, 0.2398], abs=0.025)
    assert four.std(0) == pytest.approx(one.std(0) / 2, rel=0.05)


def test_editors_without_a_common_prompt_cannot_be_compared():
    with pytest.raises(ValueError, match="same prompts"):
        win_rate(values(a=[1.0]), values(b=[1.0]))


def test_numbers_of_edits_that_cannot_be_paired_are_refused():
    with pytest.raises(ValueError, match=r"4 and 2 edits of the prompt a .* the same evaluation\.best_of"):
        win_rate(values(a=[1.0] * 4), values(a=[1.0] * 2))


def test_an_interval_of_equal_values_is_the_value():
    assert interval([0.25] * 10) == Interval(0.25, 0.25, 0.25)


def test_an_interval_of_a_mean_is_about_two_standard_errors_wide():
    values = np.random.default_rng(0).normal(3, 1, 400)
    found = interval(values, resamples=4000)
    error = values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.01)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.01)


def test_an_interval_repeats_and_does_not_depend_on_the_order_of_rows():
    forward = {str(i): float(i) for i in range(9)}
    backward = dict(reversed(forward.items()))
    assert interval(forward, seed=1) == interval(backward, seed=1)
    assert interval(forward, seed=1) != interval(forward, seed=2)


def test_another_statistic_may_be_asked_for():
    assert interval([1.0, 1.0, 100.0], np.median).value == 1.0


def test_a_ratio_is_of_sums_and_not_a_mean_of_ratios():
    counts = {"a": (9.0, 10.0), "b": (0.0, 1.0)}
    assert interval(counts, ratio).value == pytest.approx(9 / 11)
    assert interval(counts, ratio).low == 0  # one of four resamples has b alone
    assert interval(counts, ratio).high == pytest.approx(0.9)
    gaps = {prompt: (*pair, 1.0, 2.0) for prompt, pair in counts.items()}
    assert interval(gaps, ratio_gap).value == pytest.approx(9 / 11 - 1 / 2)


def test_an_interval_of_nothing_is_refused():
    with pytest.raises(ValueError, match="0 prompts"):
        interval([])


def test_groups_are_drawn_again_and_then_their_values():
    """Of two groups four draws are alike: (a, a), (a, b), (b, a), (b, b), whose means are 1, 2.5, 2.5 and 4."""
    groups = [[1.0, 1.0], [4.0, 4.0]]
    assert hierarchical_interval(groups) == Interval(2.5, 1, 4)
    assert hierarchical_interval(groups, level=0.6) == Interval(
        2.5, 1, 4
    )  # the middle 60 % leaves out less than a quarter
    assert hierarchical_interval(groups, level=0.4) == Interval(2.5, 2.5, 2.5)


def test_within_a_group_values_are_drawn_again():
    """Of the values 0 and 1, a draw of two has the mean 0 in a quarter of all cases, 0.5 in half, 1 in a quarter."""
    assert hierarchical_interval([[0.0, 1.0]]) == Interval(0.5, 0, 1)
    assert hierarchical_interval([[0.0, 1.0]], level=0.4) == Interval(0.5, 0.5, 0.5)


def test_groups_count_alike_whatever_their_sizes():
    assert hierarchical_interval([[0.0] * 9, [1.0]]).value == 0.5


def test_an_interval_over_groups_repeats_and_does_not_depend_on_the_order_of_prompts():
    forward = {str(number): float(number) for number in range(9)}
    backward = dict(reversed(forward.items()))
    assert hierarchical_interval([forward], seed=1) == hierarchical_interval([backward], seed=1)
    assert hierarchical_interval([forward], seed=1) != hierarchical_interval([forward], seed=2)


def test_an_interval_over_no_group_or_an_empty_one_is_refused():
    for groups in ([], [[1.0], []]):
        with pytest.raises(ValueError, match="wanted at least 1 in each"):
            hierarchical_interval(groups)


def test_a_paired_difference_ignores_what_prompts_have_in_common():
    baseline = {str(i): float(i) for i in range(50)}  # prompts differ a lot
    ours = {prompt: value + 1 for prompt, value in baseline.items()}  # and ours is 1 better on each
    found = paired_difference(ours, baseline)
    assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1))
    assert found.excludes_zero


def test_an_interval_that_contains_zero_shows_no_difference():
    assert not Interval(0.1, -0.1, 0.3).excludes_zero
    assert Interval(-0.2, -0.3, -0.1).excludes_zero


def test_values_are_means_over_the_edits_of_a_prompt():
    rows = [edit("a", "sft", reward=1.0), edit("a", "sft", reward=3.0), edit("b", "sft", reward=5.0)]
    assert values_by_prompt(rows, "reward") == {"a": 2.0, "b": 5.0}


def test_a_row_with_draws_stands_for_all_of_them_in_their_order():
    rows = [with_draws(edit("a", "sft"), 3.0, 1.0, 8.0), edit("b", "sft", reward=5.0) | {"draws": []}]
    found = draws_by_prompt(rows, "reward")
    assert {prompt: list(numbers) for prompt, numbers in found.items()} == {"a": [3, 1, 8], "b": [5]}
    assert values_by_prompt(rows, "reward") == {"a": 4.0, "b": 5.0}


def test_an_edit_is_right_when_both_scores_reach_one_half():
    rows = [edit("a", "sft", followed=0.5, preserved=0.5), edit("b", "sft", followed=1, preserved=0.49)]
    assert values_by_prompt(rows, "right") == {"a": 1.0, "b": 0.0}


def test_overall_is_the_geometric_mean_so_that_one_score_cannot_make_up_for_the_other():
    rows = [edit("a", "sft", followed=1, preserved=0.25), edit("b", "sft", followed=1, preserved=0)]
    assert values_by_prompt(rows, "overall") == {"a": 0.5, "b": 0.0}


def test_a_summary_counts_prompts_and_edits_and_has_every_metric():
    rows = [edit("a", "sft"), edit("a", "sft"), edit("b", "sft", followed=0.0), edit("a", "finetuned")]
    first, second = summarise_editors(rows)
    assert (first.editor, first.num_prompts, first.num_edits) == ("sft", 2, 3)
    assert first.metrics["followed"].value == pytest.approx(0.5)
    assert first.metrics["right"].value == pytest.approx(0.5)
    assert second.editor == "finetuned"
    [several] = summarise_editors([with_draws(edit("a", "sft"), 1.0, 2.0), with_draws(edit("b", "sft"), 3.0, 6.0)])
    assert (several.num_prompts, several.num_edits, several.metrics["reward"].value) == (2, 4, 3.0)


def test_editors_are_compared_with_the_baseline_only():
    rows = [edit(p, e, reward=r) for p in "abc" for e, r in (("sft", 0.0), ("finetuned", 0.5))]
    found = compare_with_baseline(rows, "sft", ("reward",))
    assert list(found) == ["finetuned"]
    assert found["finetuned"]["reward"] == Interval(0.5, 0.5, 0.5)
    assert win_rates(rows, "sft", "reward") == {"finetuned": WinRate(1.0, 0.0, 0.0, 3, 3)}
    with pytest.raises(ValueError, match="'control'"):
        compare_with_baseline(rows, "control")


def test_all_edits_of_both_editors_and_the_best_of_several_are_compared():
    """Two edits of sft and of finetuned, and the better of finetuned's."""
    rows = [
        with_draws(edit("a", "sft"), 0.0, 1.0),
        with_draws(edit("a", "finetuned"), 1.0, 0.5),
        edit("a", "finetuned, best of 2", reward=1.0) | {"draws": []},
    ]
    gaps = {editor: found["reward"].value for editor, found in compare_with_baseline(rows, "sft", ("reward",)).items()}
    assert gaps == {"finetuned": 0.25, "finetuned, best of 2": 0.5}
    assert win_rates(rows, "sft", "reward") == {
        "finetuned": WinRate(0.5, 0.0, 0.5, 1, 2), "finetuned, best of 2": WinRate(0.5, 0.5, 0.0, 1, 2),
    }  # fmt: skip


def test_rows_are_found_at_their_float32_scales():
    rows = [edit("a", "sft", scale=1.4), edit("a", "sft", scale=1.8)]
    assert rows_at_scales(rows, 3.0, 1.4) == rows[:1]


def test_the_curve_has_a_point_of_means_for_each_editor_and_scale():
    rows = [
        edit("a", "sft", scale=1.8, image=0.9, direction=0.1),
        edit("a", "sft", scale=1.2, image=0.7, direction=0.3),
        edit("b", "sft", scale=1.2, image=0.8, direction=0.5),
    ]
    first, second = trade_off_curve(rows)
    assert (first.image_guidance_scale, first.num_edits) == (pytest.approx(1.2), 2)
    assert (first.clip_direction, first.clip_image) == pytest.approx((0.4, 0.75))
    assert (second.clip_direction, second.clip_image) == pytest.approx((0.1, 0.9))
