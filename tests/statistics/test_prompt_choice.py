import math
import random
from collections import Counter

import pytest

from hive_ray.config import Choosing
from hive_ray.statistics.prompt_choice import ChosenPrompt, MeasuredPrompt, best_prompts, choose_prompts, kinds_of

NOBODY = dict(held_out_rate=0.0, is_held_out=lambda prompt_id: False)


def measured(*spreads: float, kind: str = "add", start: int = 0) -> list[MeasuredPrompt]:
    """Prompts p0, p1, ... of one kind with these spreads."""
    return [MeasuredPrompt(f"p{start + number}", f"{kind} it", spread) for number, spread in enumerate(spreads)]


def ids(chosen: list[ChosenPrompt]) -> list[str]:
    return [one.prompt.prompt_id for one in chosen]


def by_score(**changed) -> Choosing:
    """All places by spread, with no regard to kinds."""
    return Choosing(**{"random_rate": 0.0, "least_kind_rate": 0.0} | changed)


# --- By score ---------------------------------------------------------------------------------------------


def test_the_prompts_whose_edits_differ_most_are_chosen_the_greatest_spread_first():
    chosen = choose_prompts(measured(0.1, 0.9, 0.5, 0.7), by_score(num_ranked=3), **NOBODY)
    assert ids(chosen) == ["p1", "p3", "p2"]
    assert {(one.chosen_by, one.probability) for one in chosen} == {("spread", 1.0)}


@pytest.mark.parametrize("num_ranked", [0, 4, 9])
def test_no_number_or_too_great_a_one_chooses_all_and_orders_them(num_ranked):
    chosen = choose_prompts(measured(0.1, 0.9, 0.5, 0.7), by_score(num_ranked=num_ranked), **NOBODY)
    assert ids(chosen) == ["p1", "p3", "p2", "p0"]


def test_disagreement_chooses_by_the_reward_models_doubt_alone():
    prompts = [MeasuredPrompt("a", "add", 9.0, 0.1), MeasuredPrompt("b", "add", 0.0, 0.8)]
    assert ids(choose_prompts(prompts, by_score(num_ranked=1, by="disagreement"), **NOBODY)) == ["b"]


def test_both_is_the_mean_of_two_ranks_in_which_ties_share_theirs():
    prompts = [
        MeasuredPrompt("a", "add", 0.1, 0.9),  # ranks 1 and 4: 2.5
        MeasuredPrompt("b", "add", 5.0, 0.2),  # ranks 2.5 and 1.5: 2
        MeasuredPrompt("c", "add", 5.0, 0.6),  # ranks 2.5 and 3: 2.75
        MeasuredPrompt("d", "add", 9.0, 0.2),  # ranks 4 and 1.5: 2.75, and a spread that counts by its rank alone
    ]
    order = ids(choose_prompts(prompts, by_score(by="both"), **NOBODY))
    assert set(order[:2]) == {"c", "d"}
    assert order[2:] == ["a", "b"]


def test_what_could_not_be_measured_comes_last():
    assert ids(choose_prompts(measured(math.nan, 0.1), by_score(), **NOBODY)) == ["p1", "p0"]


def test_equal_spreads_are_ordered_by_the_seed_and_not_by_the_table():
    prompts = measured(*[0.5] * 20)
    first = choose_prompts(prompts, by_score(num_ranked=10), **NOBODY)
    assert choose_prompts(prompts[::-1], by_score(num_ranked=10), **NOBODY) == first
    assert choose_prompts(prompts, by_score(num_ranked=10, seed=1), **NOBODY) != first


# --- Kinds ------------------------------------------------------------------------------------------------


def test_each_kind_has_at_least_its_part_of_the_places():
    # Of 8 places "swap" has 4 of 16 prompts: its proportional part is 2, half of that is 1.
    prompts = [*measured(*[0.9] * 12), *measured(0.1, 0.4, 0.2, 0.3, kind="Swap", start=12)]
    for rate, swaps in ((0.0, []), (0.5, ["p13"]), (1.0, ["p13", "p15"])):
        best = best_prompts(prompts, 8, by_score(least_kind_rate=rate))
        assert [one.prompt_id for one in best[8 - len(swaps) :]] == swaps
        assert len({one.prompt_id for one in best}) == 8


def test_a_kind_is_the_first_word_and_rare_ones_are_one_kind():
    instructions = ["Add a dog", "add a cat"] * 49 + ["swap it", ""]
    assert Counter(kinds_of(instructions)) == {"add": 98, "": 2}
    assert kinds_of([*instructions[:98], "swap it", "SWAP them"])[-2:] == ["swap", "swap"]  # 2 %


# --- At random --------------------------------------------------------------------------------------------


def test_a_random_share_is_drawn_from_what_the_scores_left_with_its_probability():
    prompts = measured(*(number / 100 for number in range(100)))
    chosen = choose_prompts(prompts, by_score(num_ranked=20, random_rate=0.25), **NOBODY)
    scored = [one for one in chosen if one.chosen_by == "spread"]
    drawn = [one for one in chosen if one.chosen_by == "random"]
    assert ids(scored) == [f"p{number}" for number in range(99, 84, -1)]
    assert len(drawn) == 5
    assert {one.probability for one in drawn} == {5 / 85}
    assert sum(1 / one.probability for one in chosen) == pytest.approx(100)


def test_over_seeds_the_weighted_sum_is_the_sum_over_all_prompts():
    prompts = measured(*(number / 40 for number in range(40)))
    held_out = {f"p{number}" for number in range(0, 40, 4)}
    told = dict(held_out_rate=0.2, is_held_out=held_out.__contains__)
    sums = []
    for seed in range(400):
        chosen = choose_prompts(prompts, by_score(num_ranked=20, random_rate=0.2, seed=seed), **told)
        sums.append(sum(one.prompt.spread / one.probability for one in chosen))
    assert sum(sums) / len(sums) == pytest.approx(sum(one.spread for one in prompts), rel=0.02)


def test_at_random_no_score_counts():
    prompts = measured(*(number / 100 for number in range(100)))
    chosen = choose_prompts(prompts, Choosing(num_ranked=20, by="random"), **NOBODY)
    assert {(one.chosen_by, one.probability) for one in chosen} == {("random", 0.2)}
    shuffled = random.Random(0).sample(prompts, 100)
    assert choose_prompts(shuffled, Choosing(num_ranked=20, by="random"), **NOBODY) == chosen


# --- Held-out prompts -------------------------------------------------------------------------------------


def test_held_out_prompts_are_random_whatever_their_spread():
    # 100 prompts, 40 held out, 20 places: 5 of them (a quarter) are for held-out prompts.
    prompts = measured(*(number / 100 for number in range(100)))
    held_out = {f"p{number}" for number in range(60, 100)}
    told = dict(held_out_rate=0.25, is_held_out=held_out.__contains__)
    chosen = choose_prompts(prompts, by_score(num_ranked=20), **told)
    measuring = [one for one in chosen if one.prompt.prompt_id in held_out]
    assert {(one.chosen_by, one.probability) for one in measuring} == {("random", 5 / 40)}
    assert len(measuring) == 5
    assert set(ids(chosen)) - held_out == {f"p{number}" for number in range(45, 60)}
    other_spreads = [MeasuredPrompt(one.prompt_id, one.instruction, 1 - one.spread) for one in prompts]
    again = choose_prompts(other_spreads, by_score(num_ranked=20), **told)
    assert [name for name in ids(again) if name in held_out] == ids(measuring)


def test_places_that_one_side_cannot_fill_are_the_other_sides():
    prompts = measured(0.1, 0.2, 0.3, 0.4)
    told = dict(held_out_rate=0.5, is_held_out="p0".__eq__)
    assert sorted(ids(choose_prompts(prompts, by_score(num_ranked=4), **told))) == ["p0", "p1", "p2", "p3"]
    told = dict(held_out_rate=0.0, is_held_out={"p0", "p1", "p2"}.__contains__)
    assert len(choose_prompts(prompts, by_score(num_ranked=3), **told)) == 3


def test_the_first_places_have_their_share_of_random_prompts():
    prompts = measured(*(number / 100 for number in range(100)))
    held_out = {f"p{number}" for number in range(50)}
    told = dict(held_out_rate=0.2, is_held_out=held_out.__contains__)
    chosen = choose_prompts(prompts, by_score(num_ranked=20, random_rate=0.2), **told)
    for start in range(0, 20, 5):  # of every five: one held out, one drawn, three by spread
        part = chosen[start : start + 5]
        assert sum(one.prompt.prompt_id in held_out for one in part) == 1
        assert sum(one.chosen_by == "spread" for one in part) == 3
    assert chosen[0].prompt.prompt_id == "p99"


def test_no_prompts_are_no_choice():
    assert choose_prompts([], Choosing(), **NOBODY) == []
