"""Simulated people: ties and agreement as the model has them in closed form, and the published ranges."""

import json
from collections import Counter
from math import erf, sqrt
from pathlib import Path

import numpy as np
import pytest

from hive_ray.shapes import annotator
from hive_ray.shapes.annotator import (
    JUST_NOTICEABLE,
    NOISE,
    SimulatedAnnotator,
    draw_annotators,
    rank_candidates,
    ranks_from_percepts,
    utility,
)
from hive_ray.shapes.judge import Judgement
from hive_ray.statistics.agreement import PreferenceAgreement, preference_agreement

NUM_PROMPTS = 4000


def below(z: float) -> float:
    """P(N(0, 1) < z)."""
    return 0.5 + 0.5 * erf(z / sqrt(2))


@pytest.fixture
def verdicts(monkeypatch):
    """Edits whose picture is their verdict, so that no picture has to be drawn."""
    monkeypatch.setattr(annotator, "judge", lambda source, edited, *captions: edited)


def candidates(*verdicts: Judgement, number: int = 0, name: str = "") -> dict:
    edits = [
        {"edit_id": f"{name}{number}-{place}", "image": verdict, "seed": 1000 * number + place}
        for place, verdict in enumerate(verdicts)
    ]
    return {"prompt_id": f"p{number}", "source_image": b"", "source_caption": "", "edited_caption": "", "edits": edits}


def signs(person: SimulatedAnnotator, verdicts: list[Judgement], attempt: int = 0) -> np.ndarray:
    """Of many prompts with two edits of these verdicts: -1 for the first, 1 for the second preferred, 0 for a tie."""
    rows = [candidates(*verdicts, number=number) for number in range(NUM_PROMPTS)]
    ranks = np.array([person(row, attempt) for row in rows])
    return np.sign(ranks[:, 0] - ranks[:, 1])


def test_equal_edits_tie_as_often_as_two_percepts_lie_within_the_threshold(verdicts):
    """The difference of two percepts is N(0, 2 noise^2): P(tie) = erf(d / (2 noise))."""
    said = signs(SimulatedAnnotator(noise=0.2, just_noticeable=0.1), [Judgement(1, 1)] * 2)
    assert np.mean(said == 0) == pytest.approx(erf(0.25), abs=0.025)  # 3 standard errors; erf(0.25) = 0.276
    assert np.mean(said == 1) == pytest.approx(0.5 - erf(0.25) / 2, abs=0.025)


def test_a_difference_is_seen_as_often_as_thurstone_says(verdicts):
    """Utilities 1 and 0.7: P(first) = P(N(0.3, 2 noise^2) >= d), P(second) = P(N(0.3, 2 noise^2) <= -d)."""
    person = SimulatedAnnotator(noise=0.2, just_noticeable=0.1)
    said = signs(person, [Judgement(1, 1), Judgement(0.7, 0.7)])
    assert np.mean(said == -1) == pytest.approx(below(0.2 / (0.2 * sqrt(2))), abs=0.025)
    assert np.mean(said == 1) == pytest.approx(below(-0.4 / (0.2 * sqrt(2))), abs=0.025)


def test_two_people_agree_as_often_as_two_independent_answers(verdicts):
    first, second = (
        signs(SimulatedAnnotator(seat, noise=0.2, just_noticeable=0.1), [Judgement(1, 1), Judgement(0.7, 0.7)])
        for seat in (0, 1)
    )
    better, worse = below(0.2 / (0.2 * sqrt(2))), below(-0.4 / (0.2 * sqrt(2)))
    tie = 1 - better - worse
    assert np.mean(first == second) == pytest.approx(better**2 + worse**2 + tie**2, abs=0.025)


def test_a_second_look_has_other_noise_and_the_same_taste(verdicts):
    """Utilities of (1, 0.4) and (0.4, 1) differ by taste alone: 0.5 (2 w - 1) 0.6 + 0.5 (0.4^(1-w) - 0.4^w)."""
    person = SimulatedAnnotator(3)
    verdicts = [Judgement(1, 0.4), Judgement(0.4, 1)]
    first, again = (signs(person, verdicts, attempt) for attempt in (0, 1))
    assert np.mean(first != again) > 0.3
    weight = person.followed_weight
    difference = 0.5 * (2 * weight - 1) * 0.6 + 0.5 * (0.4 ** (1 - weight) - 0.4**weight)
    assert abs(difference) > 0.05
    for said in (first, again):
        expected = below((difference - JUST_NOTICEABLE) / (NOISE * sqrt(2)))
        assert np.mean(said == -1) == pytest.approx(expected, abs=0.025)


def test_taste_is_drawn_from_seed_and_name_evenly_around_a_half():
    weights = [SimulatedAnnotator(seat, seed=5, taste=0.2).followed_weight for seat in range(500)]
    assert min(weights) >= 0.3
    assert max(weights) <= 0.7
    assert np.mean(weights) == pytest.approx(0.5, abs=0.02)  # 4 standard errors
    assert np.std(weights) == pytest.approx(0.4 / sqrt(12), abs=0.01)
    assert SimulatedAnnotator(0, seed=5, taste=0.2).followed_weight == weights[0]
    assert SimulatedAnnotator(0, seed=6, taste=0.2).followed_weight != weights[0]
    assert SimulatedAnnotator(0, taste=0.0).followed_weight == 0.5


def test_utility_weighs_both_scores_by_taste():
    assert utility(Judgement(0.64, 0.25)) == pytest.approx(0.5 * 0.4 + 0.5 * 0.445)
    assert utility(Judgement(0.5, 0), 0.7) == pytest.approx(0.5 * 0.7 * 0.5)
    assert utility(Judgement(0.5, 0.5), 0.7) == pytest.approx(0.5)
    assert utility(Judgement(1, 0.25), 0.75) == pytest.approx(0.5 * 0.25**0.25 + 0.5 * (0.75 + 0.0625))


def test_percepts_depend_on_seed_person_prompt_the_edit_s_seed_and_the_attempt_alone(verdicts):
    row = candidates(Judgement(1, 1), number=7)
    other_names = candidates(Judgement(1, 1), number=7, name="other ") | {"editor": "other"}
    person = SimulatedAnnotator(0, seed=1)
    percept = person.percept(row, row["edits"][0])
    assert SimulatedAnnotator(0, seed=1).percept(other_names, other_names["edits"][0]) == percept
    other_edit = row["edits"][0] | {"seed": 1}
    others = [
        person.percept(row, other_edit),
        person.percept(row | {"prompt_id": "p8"}, row["edits"][0]),
        person.percept(row, row["edits"][0], attempt=1),
        SimulatedAnnotator(1, seed=1).percept(row, row["edits"][0]),
        SimulatedAnnotator(0, seed=2).percept(row, row["edits"][0]),
    ]
    assert len({percept, *others}) == 6


def test_edits_within_the_threshold_of_the_best_of_their_group_share_its_rank():
    """0.70 is within 0.16 of 0.85, whose group is led by 0.90: it is 0.20 below that, and begins a group."""
    assert ranks_from_percepts([0.70, 0.90, 0.85, 0.55, 0.53], 0.16) == [2, 1, 1, 2, 3]
    assert ranks_from_percepts([0.75, 0.5, 0.25], 0.25) == [1, 2, 3]  # a difference of exactly the threshold is seen


def test_ranks_never_contradict_percepts():
    rng = np.random.default_rng(0)
    for _ in range(200):
        percepts = rng.uniform(0, 1, 5).tolist()
        ranks = ranks_from_percepts(percepts, JUST_NOTICEABLE)
        assert sorted(set(ranks)) == list(range(1, max(ranks) + 1))
        for one, its_rank in zip(percepts, ranks, strict=True):
            for two, rank in zip(percepts, ranks, strict=True):
                assert (its_rank < rank) <= (one > two)
                assert (its_rank == rank) <= (abs(one - two) < JUST_NOTICEABLE)


def shown(first: int, last: int) -> list[dict]:
    """Prompts of tests/data/verdicts.jsonl: each line has the verdicts (followed, preserved) of four edits of a random
    prompt by the shipped editor at guidance 2.0 and image guidance 1.4. The prompts whose edits differ most in latents
    come first."""
    lines = (Path(__file__).parents[1] / "data" / "verdicts.jsonl").read_text().splitlines()
    return [
        candidates(*(Judgement(*verdict) for verdict in json.loads(line)), number=number)
        for number, line in enumerate(lines[first:last])
    ]


def agreement(rows: list[dict]) -> tuple[PreferenceAgreement, PreferenceAgreement]:
    """Of different people, and of one person with themselves."""
    people = [SimulatedAnnotator(seat) for seat in range(24)]
    looks = [[row | {"ranks": person(row, attempt)} for row in rows] for person in people for attempt in (0, 1)]
    alone = [
        row | {"prompt_id": f"{row['prompt_id']} {place // 2}"} for place, look in enumerate(looks) for row in look
    ]
    return preference_agreement(row for look in looks[::2] for row in look), preference_agreement(alone)


def test_people_agree_on_random_prompts_as_published(verdicts):
    between, _ = agreement(shown(0, 300))
    assert 0.653 <= between.in_order <= 0.781  # HPS v2: ImageReward's test set, HPD v2's
    assert between.ties_half == pytest.approx(0.68, abs=0.03)  # Pick-a-Pic


def test_a_third_of_pairs_tie_where_edits_differ_most_and_a_person_agrees_best_with_themselves(verdicts):
    between, alone = agreement(shown(0, 100))
    assert 0.25 <= between.ties <= 0.35
    assert 0.75 <= between.in_order <= 0.85
    assert 0.60 <= between.ties_half <= 0.75
    assert between.in_order < alone.in_order <= 0.87
    assert between.ties_half < alone.ties_half <= 0.77


def test_each_prompt_has_its_own_people_and_all_take_part_alike():
    people = [SimulatedAnnotator(seat, seed=3) for seat in range(4)]
    drawn = [draw_annotators(people, f"prompt {number}", 2) for number in range(600)]
    assert drawn == [draw_annotators(people[::-1], f"prompt {number}", 2)[::-1] for number in range(600)]
    assert all(len({one.name for one in two}) == 2 for two in drawn)
    share = Counter(one.name for two in drawn for one in two)
    assert all(abs(count - 300) < 4 * (600 * 0.5 * 0.5) ** 0.5 for count in share.values())


def test_a_prompt_is_ranked_by_everybody_or_by_those_who_were_drawn(verdicts):
    people = [SimulatedAnnotator(seat) for seat in range(3)]
    row = candidates(Judgement(1.0, 1.0), Judgement(0.0, 0.0)) | {"editor": "sft"}
    assert [one["annotator"] for one in rank_candidates([row], people)] == [one.name for one in people]
    assert [one["annotator"] for one in rank_candidates([row], people, 2)] == [
        one.name for one in draw_annotators(people, row["prompt_id"], 2)
    ]
