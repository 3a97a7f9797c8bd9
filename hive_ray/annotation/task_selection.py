"""Which task a person gets next: work, one whose answer is known, or one of their own again.

All of it in one transaction that has locked the person's row, on rows of tasks that it locks.
"""

from dataclasses import dataclass

import numpy as np
from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session, aliased

from hive_ray.annotation.models import ANSWERED, EXPIRED, LEASED, Assignment, Person, Task
from hive_ray.seeds import seed_for, uniform_for


@dataclass(frozen=True)
class AssignmentPolicy:
    """How tasks are handed out."""

    kind: str
    lease_s: float
    gold_rate: float = 0.0
    repeat_rate: float = 0.0
    repeat_after: int = 20
    """New tasks that lie between a task and its repeat."""


def is_available(kind: str) -> tuple[ColumnElement[bool] | InstrumentedAttribute[bool], ...]:
    """What is true of tasks of a kind that can be shown."""
    return Task.kind == kind, Task.present, Task.broken.is_(None)


def assign_task(
    session: Session, person: Person, policy: AssignmentPolicy, now: float, wait: bool
) -> Assignment | None:
    """A new assignment for a person, leased to them; None if nothing is left for them.

    Unless `wait`, tasks that others are handing out at this moment are passed over.
    """
    draw = uniform_for("handed", person.id, person.handed)
    task = None
    attempt = 0
    if draw < policy.gold_rate:
        task = _gold(session, person, policy, wait)
    elif draw < policy.gold_rate + policy.repeat_rate:
        task = _repeat(session, person, policy)
        attempt = int(task is not None)
    task = task or _work(session, person, policy, wait)
    if task is None:
        return None
    assignment = _lease(session, person, task, attempt, now, policy.lease_s)
    person.handed += 1
    session.flush()
    return assignment


def _work(session: Session, person: Person, policy: AssignmentPolicy, wait: bool) -> Task | None:
    """The next open task that this person has not had, looking on from their last one."""
    had = _had(person)
    open_tasks = _tasks(policy, wait).where(Task.taken < Task.wanted, Task.gold.is_(None))
    task = session.scalars(open_tasks.where(Task.position > person.last_position, ~had.exists())).first()
    if task is not None:
        person.last_position = task.position
        return task
    kept = had.where(Assignment.state != EXPIRED)
    return session.scalars(open_tasks.where(~kept.exists())).first()


def _gold(session: Session, person: Person, policy: AssignmentPolicy, wait: bool) -> Task | None:
    """A task whose answer is known and that this person has not had."""
    return session.scalars(_tasks(policy, wait).where(Task.gold.is_not(None), ~_had(person).exists())).first()


def _repeat(session: Session, person: Person, policy: AssignmentPolicy) -> Task | None:
    """The task that this person answered longest ago, with enough others since, and was not asked for again."""
    again = aliased(Assignment)
    repeated = select(again.id).where(
        again.task_id == Assignment.task_id, again.person_id == person.id, again.attempt == 1
    )
    done = (
        select(Assignment)
        .join(Task, Task.id == Assignment.task_id)
        .where(Assignment.person_id == person.id, Assignment.state == ANSWERED, Assignment.attempt == 0)
        .where(*is_available(policy.kind), Task.gold.is_(None), ~repeated.exists())
        .order_by(Assignment.id)
    )
    first = session.scalars(done.limit(1)).first()
    if first is None:
        return None
    since = select(func.count()).where(Assignment.person_id == person.id, Assignment.id > first.id)
    return session.get_one(Task, first.task_id) if (session.scalar(since) or 0) >= policy.repeat_after else None


def _tasks(policy: AssignmentPolicy, wait: bool) -> Select:
    """The first task that can be done, locked."""
    first = select(Task).where(*is_available(policy.kind)).order_by(Task.position).limit(1)
    return first.with_for_update(skip_locked=not wait, of=Task)


def _had(person: Person) -> Select:
    """This person's assignments of the task of the query around it."""
    return select(Assignment.id).where(Assignment.task_id == Task.id, Assignment.person_id == person.id)


def _lease(session: Session, person: Person, task: Task, attempt: int, now: float, lease_s: float) -> Assignment:
    """A place of a task that this transaction has locked; an assignment that had ended begins again."""
    same = (Assignment.task_id == task.id, Assignment.person_id == person.id, Assignment.attempt == attempt)
    assignment = session.scalars(select(Assignment).where(*same)).first()
    if assignment is None:
        seed = seed_for("shown", task.key, person.id, attempt)
        order = np.random.default_rng(seed).permutation(len(task.edit_ids)).tolist()
        assignment = Assignment(task_id=task.id, person_id=person.id, attempt=attempt, shown=order)
        session.add(assignment)
    assignment.state = LEASED
    assignment.handed = now
    assignment.expires = now + lease_s
    if attempt == 0:
        task.taken += 1
    return assignment
