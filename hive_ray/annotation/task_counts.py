"""Counts of tasks and answers."""

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from hive_ray.annotation.database import Database
from hive_ray.annotation.models import ANSWERED, LEASED, Assignment, Task


@dataclass(frozen=True)
class TaskCounts:
    """Counts of the tasks of one kind, without gold tasks."""

    tasks: int
    finished: int
    """Tasks with as many answers as wanted."""
    answers: int
    wanted: int
    leased: int
    broken: list[str]
    """Why tasks cannot be shown."""


def num_answered(database: Database, person_id: int) -> int:
    """Number of tasks that a person has answered."""
    count = select(func.count()).where(Assignment.person_id == person_id, Assignment.state == ANSWERED)
    return database.read(lambda session: session.scalar(count)) or 0


def count_tasks(database: Database, kind: str) -> TaskCounts:
    """Count the tasks and answers of one kind in a snapshot of the database."""

    def count(session: Session) -> TaskCounts:
        tasks = select(Task.id).where(Task.kind == kind, Task.gold.is_(None), Task.present)
        by_state = dict(
            session.execute(
                select(Assignment.state, func.count())
                .where(Assignment.task_id.in_(tasks), Assignment.attempt == 0)
                .group_by(Assignment.state)
            ).all()
        )
        answered = (
            select(func.count())
            .where(Assignment.task_id == Task.id, Assignment.state == ANSWERED, Assignment.attempt == 0)
            .scalar_subquery()
        )
        can_be_done = select(func.count(), func.coalesce(func.sum(Task.wanted), 0)).where(Task.id.in_(tasks))
        total, wanted = session.execute(can_be_done).one()
        finished = session.scalar(select(func.count()).where(Task.id.in_(tasks), answered >= Task.wanted))
        broken = session.scalars(select(Task.broken).where(Task.kind == kind, Task.broken.is_not(None)).limit(100))
        return TaskCounts(
            total,
            finished or 0,
            by_state.get(ANSWERED, 0),
            int(wanted),
            by_state.get(LEASED, 0),
            list(filter(None, broken)),
        )

    return database.read(count)
