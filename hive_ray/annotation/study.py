"""What a user study found: how often people prefer one of two editors, by question.

Wins are the second editor's. Answers of one prompt are alike, and so are those of one person: intervals are given for
both, resampling prompts (each the mean of its answers) or people.
"""

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from statistics import fmean

from hive_ray.annotation.answers import QUESTIONS
from hive_ray.annotation.exports import Answered, work
from hive_ray.statistics.intervals import Interval, interval

OUTCOMES = ("win", "tie", "loss")


@dataclass(frozen=True)
class Comparison:
    """One question's answers."""

    question: str
    editor: str
    """Whose wins are counted."""
    baseline: str
    by_prompt: dict[str, Interval]
    """win, tie, loss (shares, which add up to 1) and net (win - loss), over prompts."""
    by_annotator: dict[str, Interval]
    """The same over people."""
    people: dict[str, dict[str, float]]
    """Each person's shares."""
    num_prompts: int
    num_answers: int


def results(
    answers: list[Answered], without: Collection[str] = (), *, resamples: int = 1000, seed: int = 0
) -> list[Comparison]:
    """A comparison for each question, of the answers that count as work; none where there are no answers."""
    counted = [one for one in work(answers, without) if "ranks" not in one.verdict]
    if not counted:
        return []
    return [_compared(question, counted, resamples, seed) for question in QUESTIONS]


def _compared(question: str, answers: list[Answered], resamples: int, seed: int) -> Comparison:
    prompts, people = (_shares(question, answers, name) for name in ("prompt_id", "annotator"))
    baseline, editor = answers[0].editors
    return Comparison(
        question, editor, baseline, _intervals(prompts, resamples, seed), _intervals(people, resamples, seed),
        people, len(prompts), len(answers),
    )  # fmt: skip


def _shares(question: str, answers: list[Answered], unit: str) -> dict[str, dict[str, float]]:
    """Of each prompt, or person: the shares of wins, ties and losses."""
    said: dict[str, list[str]] = defaultdict(list)
    for one in answers:
        outcome = {1: "win", None: "tie", 0: "loss"}[one.verdict[question]]
        said[getattr(one, unit)].append(outcome)
    return {name: {one: fmean(said == one for said in outcomes) for one in OUTCOMES} for name, outcomes in said.items()}


def _intervals(shares: dict[str, dict[str, float]], resamples: int, seed: int) -> dict[str, Interval]:
    values = {outcome: {unit: one[outcome] for unit, one in shares.items()} for outcome in OUTCOMES}
    values["net"] = {unit: one["win"] - one["loss"] for unit, one in shares.items()}
    return {name: interval(of, resamples=resamples, seed=seed) for name, of in values.items()}
