import itertools

import pytest
from work import hired, prompts

from hive_ray.annotation.exports import AnswerRecord
from hive_ray.annotation.models import RANK, STUDY
from hive_ray.annotation.overview import overview
from hive_ray.annotation.productivity import count_ties, estimate_tie_rate, measure_productivity
from hive_ray.annotation.task_queue import AssignmentPolicy, TaskQueue
from hive_ray.annotation.tasks import load_tasks
from hive_ray.config import Annotation


def ranked(prompt_id: str, *ranks: int, annotator: str = "Ada", seconds: float = 36.0, **more) -> AnswerRecord:
    verdict = {"ranks": list(ranks), "none_acceptable": False}
    places = tuple(range(len(ranks)))
    return AnswerRecord(**{
        "kind": RANK, "prompt_id": prompt_id, "instruction": "add it", "edit_ids": tuple(map(str, places)),
        "editors": ("sft",) * len(ranks), "gold": None, "annotator": annotator, "attempt": 0, "shown": places,
        "verdict": verdict, "seconds": seconds, "at": 0.0, "task_id": 1, "answer_id": 0,
    } | more)  # fmt: skip


def test_ties_are_pairs_that_share_a_rank():
    assert count_ties([1, 2, 2, 3]) == (1, 6)
    assert count_ties([1, 1, 1]) == (3, 3)
    assert count_ties([1, 2]) == (0, 1)


def test_preferences_count_in_work_and_time_in_all_answers():
    answers = [
        ranked("a", 1, 2, 3),  # 3 preferences
        ranked("b", 1, 1, 2),  # 2 preferences, 1 tie
        ranked("b", 1, 2, 3, attempt=1),  # a repeat
        ranked("c", 1, 2, 3, gold={"better": ["0"], "worse": ["2"]}),
        ranked("d", verdict={"skipped": "odd"}),
        ranked("e", 1, 1, 1, annotator="Eve"),
    ]
    gave = measure_productivity(answers, excluded={"Eve"})
    assert (gave.preferences, gave.ties) == (5, 1)
    assert gave.hours == pytest.approx(5 * 36 / 3600)
    assert gave.per_hour == pytest.approx(100)
    assert gave.tie_rate == pytest.approx(1 / 6)
    assert str(gave) == "5 preferences in 0.05 hours: 100 an hour; 17% of pairs are ties"


def test_a_page_that_was_left_open_counts_two_minutes():
    assert measure_productivity([ranked("a", 1, 2, seconds=3000.0)]).hours == pytest.approx(120 / 3600)


def test_nothing_said_gives_nothing():
    gave = measure_productivity([])
    assert (gave.preferences, gave.per_hour, gave.tie_rate, gave.estimated_tie_rate) == (0, 0.0, 0.0, None)


def test_the_share_of_ties_over_all_prompts_weights_by_inclusion_probability():
    # a was chosen by score, b stands for four prompts: ties (0 / 1 + 2 / 0.25) of pairs (3 / 1 + 3 / 0.25).
    counts = {"a": [(0, 3)], "b": [(1, 3), (3, 3)], "unknown": [(3, 3)]}
    assert estimate_tie_rate(counts, {"a": 1.0, "b": 0.25}) == pytest.approx(8 / 15)
    assert estimate_tie_rate(counts, {}) is None


def test_the_estimate_is_said_beside_the_share_of_what_was_ranked():
    gave = measure_productivity([ranked("a", 1, 2), ranked("b", 1, 1)], {"a": 1.0, "b": 0.1})
    assert gave.tie_rate == 0.5
    assert gave.estimated_tie_rate == pytest.approx(10 / 11)
    assert str(gave).endswith("50% of pairs are ties, an estimated 91% over all prompts")


def rank_all(database, names=("Ada",)) -> None:
    """Everybody ranks the first edit best and the others the same, 36 seconds each."""
    clock = itertools.count(1000.0, 60.0)
    desk = TaskQueue(database, AssignmentPolicy(RANK, 600.0), lambda: next(clock))
    for name in names:
        person = hired(database, name)
        while (showing := desk.next(person)) is not None:
            ranks = [1 if place == 0 else 2 for place in showing.shown]
            desk.submit(person, showing.assignment_id, f"{name} {showing.assignment_id}", {"ranks": ranks}, 36.0)


def test_the_overview_says_what_an_hour_gave(database):
    load_tasks(database, RANK, prompts(10), people_per_task=1)
    rank_all(database)
    page = overview(database, Annotation())
    assert "30 preferences in 0.10 hours: 300 an hour; 50% of pairs are ties." in page
    page = overview(database, Annotation(), {"p0": 0.5})
    assert "50% of pairs are ties, an estimated 50% over all prompts." in page


def test_answers_of_another_round_are_not_counted_with_this_rounds(database):
    load_tasks(database, RANK, prompts(10), people_per_task=1)
    rank_all(database)
    load_tasks(database, RANK, prompts(12)[10:], people_per_task=1)
    rank_all(database, ["Bea"])
    assert "6 preferences in 0.02 hours" in overview(database, Annotation())


def test_a_study_has_no_preferences(database):
    load_tasks(database, STUDY, prompts(1, num_edits=2), people_per_task=1)
    desk, person = TaskQueue(database, AssignmentPolicy(STUDY, 600.0)), hired(database, "Ada")
    showing = desk.next(person)
    desk.submit(person, showing.assignment_id, "the key", {"follows": 0, "preserves": 1}, 5.0)
    assert "preferences in" not in overview(database, Annotation(mode="study"))
