"""Answers out: `rankings` as JSON lines for `jobs/collect_rankings`, and everything as CSV.

All of an export is one state of the database, also while people are at work. What is left out, and where it stays:

    gold tasks, repeats     the overview page; the CSV, in the columns `known` and `attempt`
    skipped tasks           the CSV, with the reason in `skipped`
    none acceptable         in both: ranks as given, and "none_acceptable": true

"""

import csv
import io
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from hive_ray.annotation.answers import QUESTIONS, Verdict, knows_better
from hive_ray.annotation.database import Database
from hive_ray.annotation.models import Answer, Assignment, Person, Task
from hive_ray.files.text_files import repaired

COLUMNS = (
    "kind", "prompt_id", "instruction", "annotator", "attempt", "edit_ids", "editors", "shown", "ranks",
    "none_acceptable", *QUESTIONS, "skipped", "known", "seconds", "at",
)  # fmt: skip


@dataclass(frozen=True)
class Answered:
    """One answer that counts, with its task and its person."""

    kind: str
    prompt_id: str
    instruction: str
    edit_ids: tuple[str, ...]
    editors: tuple[str, ...]
    gold: dict[str, list[str]] | None
    annotator: str
    attempt: int
    shown: tuple[int, ...]
    verdict: Verdict
    seconds: float
    at: float
    task_id: int
    answer_id: int
    present: bool = True
    """Whether its task is one of those that are handed out now: not of another round, for example."""

    @property
    def known(self) -> bool | None:
        """Whether it agrees with what is known of a gold task; None elsewhere, or where it was skipped."""
        return knows_better(self.gold, self.edit_ids, self.verdict) if self.gold else None


def answered(database: Database, kind: str | None = None) -> list[Answered]:
    """Every answer that counts (the last of each showing), in the order of tasks and then of time."""
    latest = select(func.max(Answer.id)).group_by(Answer.assignment_id)
    query = (
        select(Answer, Assignment, Task, Person.name)
        .join(Assignment, Assignment.id == Answer.assignment_id)
        .join(Task, Task.id == Assignment.task_id)
        .join(Person, Person.id == Assignment.person_id)
        .where(Answer.id.in_(latest))
        .order_by(Task.position, Task.id, Answer.id)
    )
    if kind is not None:
        query = query.where(Task.kind == kind)

    def read(session: Session) -> list[Answered]:
        return [
            Answered(
                task.kind, task.prompt_id, task.instruction, tuple(task.edit_ids), tuple(task.editors), task.gold, name,
                assignment.attempt, tuple(assignment.shown), answer.verdict, answer.seconds, answer.at, task.id,
                answer.id, task.present,
            )
            for answer, assignment, task, name in session.execute(query)
        ]  # fmt: skip

    return database.read(read)


def work(answers: list[Answered], without: Collection[str] = ()) -> list[Answered]:
    """Answers that count as work: first attempts at tasks of unknown answer that were not skipped, of people who are
    not in `without`."""
    return [
        one
        for one in answers
        if not one.gold and not one.attempt and "skipped" not in one.verdict and one.annotator not in without
    ]


def ranking_lines(answers: list[Answered], without: Collection[str] = ()) -> Iterator[str]:
    """JSON lines as `rankings.annotations` reads them: ranks aligned with edit_ids, 1 is best, ties share a rank."""
    for one in work(answers, without):
        if "ranks" in one.verdict:
            record = {
                "prompt_id": one.prompt_id, "annotator": one.annotator, "ranks": one.verdict["ranks"],
                "edit_ids": list(one.edit_ids), "none_acceptable": one.verdict["none_acceptable"],
                "seconds": round(one.seconds, 2),
            }  # fmt: skip
            yield json.dumps(record, ensure_ascii=False) + "\n"


def csv_lines(answers: list[Answered], without: Collection[str] = ()) -> Iterator[str]:
    """A header and a row for every answer; lists are separated by spaces; texts that a table program would take for a
    formula get an apostrophe in front."""
    yield _csv(COLUMNS)
    for one in answers:
        if one.annotator not in without:
            said = one.verdict
            sides = [_side(one, said[name]) if name in said else "" for name in QUESTIONS]
            known = "" if one.known is None else str(one.known).lower()
            none_acceptable = str(said["none_acceptable"]).lower() if "ranks" in said else ""
            yield _csv(
                (
                    one.kind, one.prompt_id, _harmless(one.instruction), _harmless(one.annotator), one.attempt,
                    " ".join(one.edit_ids), " ".join(one.editors), " ".join(map(str, one.shown)),
                    " ".join(map(str, said.get("ranks", ()))), none_acceptable, *sides,
                    _harmless(said.get("skipped", "")), known, round(one.seconds, 2), round(one.at, 3),
                )
            )  # fmt: skip


def _side(one: Answered, place: int | None) -> str:
    return "same" if place is None else one.editors[place]


def _harmless(words: str) -> str:
    words = repaired(words)
    return f"'{words}" if words[:1] in ("=", "+", "-", "@", "\t", "\r") else words


def _csv(cells) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue()
