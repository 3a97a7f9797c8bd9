"""Exports of answers: rankings as JSON lines for `jobs/collect_rankings`, and all answers as CSV.

An export is a snapshot of the database, even while people work. The JSON lines leave out some answers:

    gold tasks, repeats     the overview page; the CSV, in the columns `known` and `attempt`
    skipped tasks           the CSV, with the reason in `skipped`

An answer with "none acceptable" is in both exports, with its ranks.
"""

import csv
import io
import json
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from hive_ray.annotation.answers import QUESTIONS, Verdict, agrees_with_gold
from hive_ray.annotation.database import Database
from hive_ray.annotation.models import Answer, Assignment, Person, Task
from hive_ray.files.text_files import replace_surrogates
from hive_ray.schemas import AnnotationRecord

CSV_COLUMNS = (
    "kind", "prompt_id", "instruction", "annotator", "attempt", "edit_ids", "editors", "shown", "ranks",
    "none_acceptable", *QUESTIONS, "skipped", "known", "seconds", "at",
)  # fmt: skip


@dataclass(frozen=True)
class AnswerRecord:
    """The current answer of an assignment, with its task and its annotator."""

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
    """Whether the task is part of the current run; tasks of earlier rounds are not."""

    @property
    def agrees_with_gold(self) -> bool | None:
        """Whether it agrees with the known answer of a gold task; None for other tasks and skipped ones."""
        return agrees_with_gold(self.gold, self.edit_ids, self.verdict) if self.gold else None

    @property
    def is_regular(self) -> bool:
        """Whether it is the first answer to a task without a known answer, and not a skip."""
        return not self.gold and not self.attempt and "skipped" not in self.verdict


def read_answers(database: Database, kind: str | None = None) -> list[AnswerRecord]:
    """The last answer of each assignment, in the order of tasks and then of time."""
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

    def read(session: Session) -> list[AnswerRecord]:
        return [
            AnswerRecord(
                task.kind, task.prompt_id, task.instruction, tuple(task.edit_ids), tuple(task.editors), task.gold, name,
                assignment.attempt, tuple(assignment.shown), answer.verdict, answer.seconds, answer.at, task.id,
                answer.id, task.present,
            )
            for answer, assignment, task, name in session.execute(query)
        ]  # fmt: skip

    return database.read(read)


def regular_answers(answers: list[AnswerRecord], excluded: Collection[str] = ()) -> list[AnswerRecord]:
    """The regular answers (`AnswerRecord.is_regular`) of annotators who are not in `excluded`."""
    return [answer for answer in answers if answer.is_regular and answer.annotator not in excluded]


def ranking_lines(answers: list[AnswerRecord], excluded: Collection[str] = ()) -> Iterator[str]:
    """Yield JSON lines that `rankings.annotations` reads: ranks aligned with edit_ids, 1 is best, ties share a rank."""
    for answer in regular_answers(answers, excluded):
        if "ranks" in answer.verdict:
            record = AnnotationRecord(
                prompt_id=answer.prompt_id,
                annotator=answer.annotator,
                ranks=answer.verdict["ranks"],
                edit_ids=list(answer.edit_ids),
                none_acceptable=answer.verdict["none_acceptable"],
                seconds=round(answer.seconds, 2),
            )
            yield json.dumps(asdict(record), ensure_ascii=False) + "\n"


def csv_lines(answers: list[AnswerRecord], excluded: Collection[str] = ()) -> Iterator[str]:
    """Yield CSV lines: a header, and a row for every answer.

    Items of lists are separated by spaces. Texts that a spreadsheet would read as a formula get a leading apostrophe.
    """
    yield _csv(CSV_COLUMNS)
    for answer in answers:
        if answer.annotator not in excluded:
            verdict = answer.verdict
            sides = [_side(answer, verdict[name]) if name in verdict else "" for name in QUESTIONS]
            known = "" if answer.agrees_with_gold is None else str(answer.agrees_with_gold).lower()
            none_acceptable = str(verdict["none_acceptable"]).lower() if "ranks" in verdict else ""
            yield _csv(
                (
                    answer.kind, answer.prompt_id, _harmless(answer.instruction), _harmless(answer.annotator),
                    answer.attempt,
                    " ".join(answer.edit_ids), " ".join(answer.editors), " ".join(map(str, answer.shown)),
                    " ".join(map(str, verdict.get("ranks", ()))), none_acceptable, *sides,
                    _harmless(verdict.get("skipped", "")), known, round(answer.seconds, 2), round(answer.at, 3),
                )
            )  # fmt: skip


def _side(answer: AnswerRecord, place: int | None) -> str:
    return "same" if place is None else answer.editors[place]


def _harmless(words: str) -> str:
    words = replace_surrogates(words)
    return f"'{words}" if words[:1] in ("=", "+", "-", "@", "\t", "\r") else words


def _csv(cells) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue()
