import numpy as np
import pytest
from pydantic import ValidationError

from hive_ray.config import Scoring
from hive_ray.reward.shaping import (
    SHAPINGS,
    WORD_RIDGE,
    WordBaseline,
    equal_width_edges,
    fit_shaping,
    instruction_suffix,
    quality_level,
    quality_phrase,
    quantile_edges,
    reward_weight,
)

ASKED = ["make it red"]
PHRASE = ", image quality is {level} out of five"


def test_weights_are_the_exponential_of_reward_over_beta():
    reward = np.log([1.0, 4.0, 9.0])
    np.testing.assert_allclose(reward_weight(reward, beta=2.0, normalize="none"), [1, 2, 3])


def test_mean1_keeps_the_proportions_and_has_mean_one():
    reward = np.log([1.0, 4.0, 9.0])
    np.testing.assert_allclose(reward_weight(reward, beta=2.0, normalize="mean1"), [0.5, 1, 1.5])


def test_mean1_does_not_change_when_all_rewards_shift_and_does_not_overflow():
    reward = np.array([0.0, 1.0, 2.0])
    np.testing.assert_allclose(reward_weight(reward, 1.0), reward_weight(reward + 5000, 1.0))


def test_clipped_weights_have_mean_one_and_none_above_five():
    # exp(reward) is 1 nine times and 91 once: mean 1 gives 9.1 to the last, so it is clipped to 5 and the
    # others share 10 - 5 = 5.
    reward = np.log([1.0] * 9 + [91.0])
    np.testing.assert_allclose(reward_weight(reward, 1.0, "clip"), [5 / 9] * 9 + [5])


def test_clipping_goes_on_where_the_first_clip_lifts_others_above_five():
    reward = np.log([1.0] * 20 + [30.0, 1000.0, 1000.0])  # 23 rows: 20 ones share 23 - 15
    np.testing.assert_allclose(reward_weight(reward, 1.0, "clip"), [8 / 20] * 20 + [5, 5, 5])


def test_weights_that_reach_five_without_passing_it_stay():
    reward = np.array([300.0, 300.0, *[0.0] * 8])
    np.testing.assert_allclose(reward_weight(reward, 1.0, "clip"), [5, 5] + [0] * 8, atol=1e-6)


def test_clipping_changes_nothing_where_no_weight_is_great():
    reward = np.array([0.0, 0.5, 1.0])
    np.testing.assert_allclose(reward_weight(reward, 1.0, "clip"), reward_weight(reward, 1.0, "mean1"))


def test_equal_rewards_weigh_one():
    assert reward_weight(np.full(7, -3.0), 1.0).tolist() == pytest.approx([1] * 7)


def test_raw_weights_that_overflow_are_refused_with_what_to_do():
    with pytest.raises(ValueError, match=r"raise scoring\.beta"):
        reward_weight(np.array([0.0, 1000.0]), 1.0, "none")


def test_rewards_that_are_not_numbers_are_refused():
    with pytest.raises(ValueError, match="1 of them not finite"):
        quantile_edges(np.array([0.0, np.nan]))


def test_quantile_edges_make_five_levels_of_equally_many():
    reward = np.random.default_rng(0).normal(size=1000)
    edges = quantile_edges(reward)
    levels = [quality_level(value, edges) for value in reward]
    assert [levels.count(level) for level in (1, 2, 3, 4, 5)] == [200] * 5


def test_equal_width_edges_cut_the_span_into_five():
    assert equal_width_edges(np.array([0.0, 0.1, 10.0])) == pytest.approx((2, 4, 6, 8))


def test_levels_rise_with_the_reward_and_an_edge_belongs_to_the_level_above():
    edges = (2.0, 4.0, 6.0, 8.0)
    assert [quality_level(reward, edges) for reward in (-1, 2, 3.9, 5, 6, 99)] == [1, 2, 2, 3, 4, 5]


def test_phrases_say_the_level_in_words():
    words = [quality_phrase(level, "{level}") for level in (1, 2, 3, 4, 5)]
    assert words == ["one", "two", "three", "four", "five"]


def test_what_is_asked_for_is_the_phrase_of_the_best_level():
    assert quality_phrase(2, PHRASE) == ", image quality is two out of five"
    assert instruction_suffix(PHRASE) == ", image quality is five out of five"


def test_a_level_outside_one_to_five_and_a_phrase_without_a_level_are_refused():
    with pytest.raises(ValueError, match="quality level is 6"):
        quality_phrase(6, PHRASE)
    with pytest.raises(ValueError, match=r"has no \{level\}"):
        quality_phrase(1, ", very good")


def test_weighted_shaping_fills_only_the_weight():
    reward = np.log([1.0, 4.0, 9.0])
    shape = fit_shaping(ASKED * len(reward), reward, Scoring(beta=2.0))
    row = {"instruction": "make it red", "weight": 1.0, "reward": float(reward[2]), "quality_level": 5}
    shaped = SHAPINGS["weighted"](row, shape)
    assert shaped.pop("weight") == pytest.approx(1.5)
    assert shaped == {name: value for name, value in row.items() if name != "weight"}


def test_conditional_shaping_rewrites_only_the_instruction():
    shape = fit_shaping(ASKED * 3, np.array([0.0, 1.0, 2.0]), Scoring())
    row = {"instruction": "make it red", "weight": 1.0, "reward": 0.3, "quality_level": 1}
    wanted = row | {"instruction": "make it red, image quality is one out of five"}
    assert SHAPINGS["conditional"](row, shape) == wanted


def test_a_level_that_an_embedding_is_told_changes_nothing_of_a_row():
    shape = fit_shaping(ASKED * 3, np.array([0.0, 1.0, 2.0]), Scoring())
    row = {"instruction": "make it red", "weight": 1.0, "reward": 0.3, "quality_level": 1}
    assert SHAPINGS["level"](row, shape) == row


def test_the_phrase_finds_room_as_the_text_encoder_wants():
    shape = fit_shaping(
        ASKED * 3, np.array([0.0, 1.0, 2.0]), Scoring(), lambda instruction, phrase: instruction[:7] + phrase
    )
    row = {"instruction": "make it red", "quality_level": 1}
    assert SHAPINGS["conditional"](row, shape)["instruction"] == "make it, image quality is one out of five"


@pytest.mark.parametrize("normalize", ["none", "mean1", "clip"])
def test_a_row_shaped_alone_weighs_as_in_its_table(normalize):
    reward = np.log([1.0] * 9 + [91.0])
    shape = fit_shaping(ASKED * len(reward), reward, Scoring(normalize=normalize))
    alone = [shape.weight(*ASKED, value) for value in reward]
    np.testing.assert_allclose(alone, reward_weight(reward, 1.0, normalize))


def test_feedback_takes_the_edges_that_the_settings_name():
    reward = np.array([0.0, 0.1, 10.0])
    assert fit_shaping(ASKED * len(reward), reward, Scoring(levels="equal_width")).edges == pytest.approx((2, 4, 6, 8))
    assert fit_shaping(ASKED * len(reward), reward, Scoring()).edges == quantile_edges(reward)


def test_given_edges_are_taken_as_they_are_and_a_reward_on_one_belongs_above_it():
    shape = fit_shaping(ASKED * 2, np.array([0.0, 9.0]), Scoring(levels="given", edges=(-1, 0, 0.5, 2)))
    assert [shape.level(*ASKED, reward) for reward in (-2, -1, 0, 0.7, 2)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"levels": "given"}, r"levels is 'given' and scoring\.edges None: give four edges"),
        ({"edges": (0, 1, 2, 3)}, "levels is 'quantile'"),
        ({"levels": "given", "edges": (0, 2, 2, 3)}, r"edges is \(0\.0, 2\.0, 2\.0, 3\.0\): give four ascending"),
        ({"levels": "given", "edges": (0, 1, float("nan"), 3)}, "four ascending"),
        ({"levels": "given", "edges": (0, 1, 2)}, "edges"),
    ],
)
def test_edges_that_cut_nothing_are_refused(settings, words):
    with pytest.raises(ValidationError, match=words):
        Scoring(**settings)


def test_the_baseline_is_the_ridge_regression_on_words():
    instructions = ["make it red", "make it blue", "remove it", "make it red"]
    reward = np.array([3.0, 1.0, -2.0, 4.0])
    words = ["make", "it", "red", "blue", "remove"]
    said = np.array([[word in instruction.split() for word in words] for instruction in instructions], dtype=float)
    weights = np.linalg.solve(said.T @ said + WORD_RIDGE * np.eye(5), said.T @ (reward - reward.mean()))
    baseline = WordBaseline.fit(instructions, reward)
    assert [baseline.words[word] for word in words] == pytest.approx(weights.tolist(), abs=1e-6)
    assert baseline("Remove it, remove it!") == pytest.approx(1.5 + weights[1] + weights[4], abs=1e-6)
    assert baseline("never seen") == pytest.approx(1.5)


def test_with_a_baseline_the_best_of_hard_edits_is_a_five_and_the_worst_of_easy_ones_is_not():
    rng = np.random.default_rng(0)
    instructions = ["change the background"] * 100 + ["swap the two"] * 100
    reward = rng.normal([4.0] * 100 + [-4.0] * 100)
    plain = fit_shaping(instructions, reward, Scoring())
    fair = fit_shaping(instructions, reward, Scoring(baseline="words"))
    plain_levels, fair_levels = (
        [shape.level(*row) for row in zip(instructions, reward, strict=True)] for shape in (plain, fair)
    )
    assert plain_levels[100:].count(5) == 0
    assert 15 <= fair_levels[100:].count(5) <= 25
    assert fair_levels[:100].count(1) >= 10
    # Weights, too: the hard half's share of them.
    weights = [fair.weight(*row) for row in zip(instructions, reward, strict=True)]
    assert np.mean(weights) == pytest.approx(1)
    assert 0.35 < sum(weights[100:]) / sum(weights) < 0.65
