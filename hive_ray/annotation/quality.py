"""Quality of answers: gold tasks, repeats, time, and agreement between people."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean, median

from sqlalchemy import select

from hive_ray.annotation.answers import QUESTIONS
from hive_ray.annotation.database import Database
from hive_ray.annotation.exports import AnswerRecord, read_answers, regular_answers
from hive_ray.annotation.models import ANNOTATOR, Person
from hive_ray.config import Annotation
from hive_ray.statistics.agreement import kendall_tau, krippendorff_alpha, mean_kendall_tau


@dataclass(frozen=True)
class AnnotatorStats:
    """One person's statistics; None where there is nothing to count yet."""

    id: int
    name: str
    role: str
    state: str
    answers: int
    skipped: int
    median_seconds: float | None
    known_right: int
    known_answers: int
    with_others: float | None
    """Mean Kendall's tau-b with other people's ranks of the same edits; in the study, the share of equal answers."""
    with_self: float | None
    """The same with their own earlier answers to repeated tasks."""
    last_at: float | None
    flag: str
    """Why their answers are unreliable; "" if they are not."""


@dataclass(frozen=True)
class AgreementStats:
    """Agreement over tasks with answers from several people; None if there are no such tasks."""

    tau: float | None
    """Kendall's tau-b, mean over pairs of people and then over tasks; in the user study, the share of equal answers."""
    alpha: float | None
    """Ordinal Krippendorff's alpha. A unit is an edit (in the study a question); its values are people's ranks."""
    tasks: int


def answer_similarity(first: AnswerRecord, second: AnswerRecord) -> float:
    """The similarity of two answers to a task: Kendall's tau-b, or the share of questions with the same answer."""
    if "ranks" in first.verdict:
        return kendall_tau(first.verdict["ranks"], second.verdict["ranks"])
    return fmean(first.verdict[question] == second.verdict[question] for question in QUESTIONS)


def agreement(answers: Iterable[AnswerRecord]) -> AgreementStats:
    """Agreement between people on tasks of one kind, without gold tasks, repeats and skips."""
    by_task = _by_task(regular_answers(list(answers)))
    shared = [group for group in by_task.values() if len(group) > 1]
    if shared and "ranks" not in shared[0][0].verdict:
        tau = fmean(_mean_over_pairs(group) for group in shared)
    else:
        tau = mean_kendall_tau(_orders(group) for group in shared)
    units = [unit for group in shared for unit in _units(group)]
    return AgreementStats(tau, krippendorff_alpha(units), len(shared))


def _orders(group: list[AnswerRecord]) -> list[list[int]]:
    return [answer.verdict["ranks"] for answer in group]


def _mean_over_pairs(group: list[AnswerRecord]) -> float:
    return fmean(answer_similarity(first, second) for first, second in combinations(group, 2))


def _units(group: list[AnswerRecord]) -> list[list[int]]:
    """Values by edit, or by question: 0 the first editor better, 1 about the same, 2 the second better."""
    if "ranks" in group[0].verdict:
        return [list(ranks) for ranks in zip(*_orders(group), strict=True)]
    value = {0: 0, None: 1, 1: 2}
    units = []
    for question in QUESTIONS:
        units.append([value[answer.verdict[question]] for answer in group])
    return units


def _by_task(answers: Iterable[AnswerRecord]) -> dict[int, list[AnswerRecord]]:
    groups: dict[int, list[AnswerRecord]] = defaultdict(list)
    for answer in answers:
        groups[answer.task_id].append(answer)
    return groups


def annotator_stats(database: Database, settings: Annotation) -> list[AnnotatorStats]:
    """Statistics of all people in the current mode, sorted by name."""
    answers = read_answers(database, settings.mode)
    own: dict[str, list[AnswerRecord]] = defaultdict(list)
    for answer in answers:
        own[answer.annotator].append(answer)
    by_task = _by_task(regular_answers(answers))
    people = database.read(lambda session: list(session.scalars(select(Person).order_by(Person.name))))
    return [_annotator_stats(person, own[person.name], by_task, settings) for person in people]


def _annotator_stats(
    person: Person, own: list[AnswerRecord], by_task: dict[int, list[AnswerRecord]], settings: Annotation
) -> AnnotatorStats:
    judged = [answer for answer in own if "skipped" not in answer.verdict]
    known = [answer.agrees_with_gold for answer in judged if answer.agrees_with_gold is not None]
    first = {answer.task_id: answer for answer in judged if not answer.attempt}
    again = [
        answer_similarity(answer, first[answer.task_id])
        for answer in judged
        if answer.attempt and answer.task_id in first
    ]
    others = [
        answer_similarity(answer, other)
        for answer in regular_answers(own)
        for other in by_task[answer.task_id]
        if other.annotator != person.name
    ]
    return AnnotatorStats(
        id=person.id, name=person.name, role=person.role, state=person.state, answers=len(regular_answers(own)),
        skipped=len(own) - len(judged), median_seconds=median(answer.seconds for answer in judged) if judged else None,
        known_right=sum(known), known_answers=len(known), with_others=fmean(others) if others else None,
        with_self=fmean(again) if again else None, last_at=max((answer.at for answer in own), default=None),
        flag=_flag(person.role, known, settings),
    )  # fmt: skip


def _flag(role: str, known: list[bool], settings: Annotation) -> str:
    if role != ANNOTATOR or len(known) < settings.least_golds or fmean(known) >= settings.least_known:
        return ""
    return f"{sum(known)} of {len(known)} known tasks right, below {settings.least_known:.0%}"


def flagged_names(people: Iterable[AnnotatorStats]) -> set[str]:
    """Names of people whose answers are unreliable."""
    return {person.name for person in people if person.flag}
