"""Results of a user study: how often people prefer one of two editors, by question.

A win is a win of the second editor. Answers to one prompt are correlated, and so are answers of one person. Therefore
there are two bootstrap intervals: one resamples prompts (each with the mean of its answers), the other people.
"""

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass

from hive_ray.annotation.answers import QUESTIONS
from hive_ray.annotation.exports import AnswerRecord, regular_answers
from hive_ray.statistics.intervals import Interval, interval

OUTCOMES = ("win", "tie", "loss")


@dataclass(frozen=True)
class EditorComparison:
    """Results for one question."""

    question: str
    editor: str
    """The editor whose wins are counted."""
    baseline: str
    by_prompt: dict[str, Interval]
    """win, tie, loss (shares, which add up to 1) and net (win - loss), over prompts."""
    by_annotator: dict[str, Interval]
    """The same over people."""
    people: dict[str, dict[str, float]]
    """Each person's shares."""
    num_prompts: int
    num_answers: int


def compare_editors(
    answers: list[AnswerRecord], excluded: Collection[str] = (), *, resamples: int = 1000, seed: int = 0
) -> list[EditorComparison]:
    """Compare the editors on each question over the regular answers; an empty list if there are none."""
    counted = [answer for answer in regular_answers(answers, excluded) if "ranks" not in answer.verdict]
    if not counted:
        return []
    return [_compared(question, counted, resamples, seed) for question in QUESTIONS]


def _compared(question: str, answers: list[AnswerRecord], resamples: int, seed: int) -> EditorComparison:
    prompts = _shares(question, answers, "prompt_id")
    people = _shares(question, answers, "annotator")
    baseline, editor = answers[0].editors
    return EditorComparison(
        question, editor, baseline, _intervals(prompts, resamples, seed), _intervals(people, resamples, seed),
        people, len(prompts), len(answers),
    )  # fmt: skip


def _shares(question: str, answers: list[AnswerRecord], unit: str) -> dict[str, dict[str, float]]:
    """The shares of wins, ties and losses of each prompt or person."""
    outcomes_of: dict[str, list[str]] = defaultdict(list)
    for answer in answers:
        outcome = {1: "win", None: "tie", 0: "loss"}[answer.verdict[question]]
        outcomes_of[getattr(answer, unit)].append(outcome)
    shares: dict[str, dict[str, float]] = {}
    for name, outcomes in outcomes_of.items():
        shares[name] = {outcome: outcomes.count(outcome) / len(outcomes) for outcome in OUTCOMES}
    return shares


def _intervals(shares: dict[str, dict[str, float]], resamples: int, seed: int) -> dict[str, Interval]:
    values: dict[str, dict[str, float]] = {}
    for outcome in OUTCOMES:
        values[outcome] = {unit: share[outcome] for unit, share in shares.items()}
    values["net"] = {unit: share["win"] - share["loss"] for unit, share in shares.items()}
    return {name: interval(of, resamples=resamples, seed=seed) for name, of in values.items()}
