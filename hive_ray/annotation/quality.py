"""How far answers are to be trusted: known tasks, repeats, time, and agreement between people."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean, median

from sqlalchemy import select

from hive_ray.annotation.answers import QUESTIONS
from hive_ray.annotation.database import Database
from hive_ray.annotation.exports import Answered, answered, work
from hive_ray.annotation.models import ANNOTATOR, Person
from hive_ray.config import Annotation
from hive_ray.statistics.agreement import kendall_tau, krippendorff_alpha, mean_tau


@dataclass(frozen=True)
class Standing:
    """One person's work in numbers; None where there is nothing to count yet."""

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
    """Kendall's tau-b with everybody else's order of the same edits, mean; for the study the share of same answers."""
    with_self: float | None
    """The same with their own earlier answer, over repeated tasks."""
    last_at: float | None
    flag: str
    """Why their answers are doubtful; "" if nothing says so."""


@dataclass(frozen=True)
class Agreement:
    """How far people agree, over tasks that several have done; None without such."""

    tau: float | None
    """Kendall's tau-b, mean over pairs of people and then over tasks; the share of same answers for the study."""
    alpha: float | None
    """Krippendorff's alpha, ordinal: a unit is one edit (for the study one question), its values people's ranks."""
    tasks: int


def same_order(one: Answered, other: Answered) -> float:
    """How alike two answers to one task are: Kendall's tau-b, or the share of questions answered alike."""
    if "ranks" in one.verdict:
        return kendall_tau(one.verdict["ranks"], other.verdict["ranks"])
    return fmean(one.verdict[question] == other.verdict[question] for question in QUESTIONS)


def agreement(answers: Iterable[Answered]) -> Agreement:
    """Agreement between people about tasks of one kind; known tasks, repeats and skips do not count."""
    by_task = _by_task(work(list(answers)))
    shared = [group for group in by_task.values() if len(group) > 1]
    if shared and "ranks" not in shared[0][0].verdict:
        tau = fmean(_mean_over_pairs(group) for group in shared)
    else:
        tau = mean_tau([one.verdict["ranks"] for one in group] for group in shared)
    return Agreement(tau, krippendorff_alpha(unit for group in shared for unit in _units(group)), len(shared))


def _mean_over_pairs(group: list[Answered]) -> float:
    return fmean(same_order(one, two) for place, one in enumerate(group) for two in group[place + 1 :])


def _units(group: list[Answered]) -> list[list[int]]:
    """Values by edit, or by question: 0 the first editor better, 1 about the same, 2 the second better."""
    if "ranks" in group[0].verdict:
        return [list(ranks) for ranks in zip(*(one.verdict["ranks"] for one in group), strict=True)]
    value = {0: 0, None: 1, 1: 2}
    return [[value[one.verdict[question]] for one in group] for question in QUESTIONS]


def _by_task(answers: Iterable[Answered]) -> dict[int, list[Answered]]:
    groups: dict[int, list[Answered]] = defaultdict(list)
    for one in answers:
        groups[one.task_id].append(one)
    return groups


def standings(database: Database, settings: Annotation) -> list[Standing]:
    """Everybody's standing in the current mode, by name."""
    answers = answered(database, settings.mode)
    own: dict[str, list[Answered]] = defaultdict(list)
    for one in answers:
        own[one.annotator].append(one)
    by_task = _by_task(work(answers))
    people = database.read(lambda session: list(session.scalars(select(Person).order_by(Person.name))))
    return [_standing(person, own[person.name], by_task, settings) for person in people]


def _standing(
    person: Person, own: list[Answered], by_task: dict[int, list[Answered]], settings: Annotation
) -> Standing:
    said = [one for one in own if "skipped" not in one.verdict]
    known = [one.known for one in said if one.known is not None]
    first = {one.task_id: one for one in said if not one.attempt}
    again = [same_order(one, first[one.task_id]) for one in said if one.attempt and one.task_id in first]
    others = [
        same_order(one, other) for one in work(own) for other in by_task[one.task_id] if other.annotator != person.name
    ]
    return Standing(
        id=person.id, name=person.name, role=person.role, state=person.state, answers=len(work(own)),
        skipped=len(own) - len(said), median_seconds=median(one.seconds for one in said) if said else None,
        known_right=sum(known), known_answers=len(known), with_others=fmean(others) if others else None,
        with_self=fmean(again) if again else None, last_at=max((one.at for one in own), default=None),
        flag=_flag(person.role, known, settings),
    )  # fmt: skip


def _flag(role: str, known: list[bool], settings: Annotation) -> str:
    if role != ANNOTATOR or len(known) < settings.least_golds or fmean(known) >= settings.least_known:
        return ""
    return f"{sum(known)} of {len(known)} known tasks right, below {settings.least_known:.0%}"


def flagged(found: Iterable[Standing]) -> set[str]:
    """Names of people whose answers are doubtful."""
    return {one.name for one in found if one.flag}
