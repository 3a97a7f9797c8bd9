"""Choose the next task of a person: a regular task, a gold task, or a repeat of one that they answered.

The caller's transaction has locked the row of the person. The functions lock the rows of tasks that they choose.
"""

from dataclasses import dataclass

import numpy as np
from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session, aliased

from hive_ray.annotation.models import ANSWERED, EXPIRED, LEASED, Assignment, Person, Task
from hive_ray.seeds import seed_for, uniform_for


@dataclass(frozen=True)
class AssignmentPolicy:
    """How tasks are assigned to people. Rates are probabilities in [0, 1]."""

    kind: str
    lease_s: float
    gold_rate: float = 0.0
    repeat_rate: float = 0.0
    repeat_after: int = 20
    """Number of tasks between a task and its repeat, at least."""


def is_available(kind: str) -> tuple[ColumnElement[bool] | InstrumentedAttribute[bool], ...]:
    """Conditions of a query for tasks of a kind that can be shown."""
    return Task.kind == kind, Task.present, Task.broken.is_(None)


def assign_task(
    session: Session, person: Person, policy: AssignmentPolicy, now: float, wait: bool
) -> Assignment | None:
    """Lease a task to a person; None if no task is left for them.

    With `wait`, it waits for tasks that other transactions have locked. Otherwise it skips them.
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
    """The next open task after the person's last one that they have not had."""
    had = _had(person)
    open_tasks = _tasks(policy, wait).where(Task.taken < Task.wanted, Task.gold.is_(None))
    task = session.scalars(open_tasks.where(Task.position > person.last_position, ~had.exists())).first()
    if task is not None:
        person.last_position = task.position
        return task
    kept = had.where(Assignment.state != EXPIRED)
    return session.scalars(open_tasks.where(~kept.exists())).first()


def _gold(session: Session, person: Person, policy: AssignmentPolicy, wait: bool) -> Task | None:
    """A gold task that this person has not had."""
    return session.scalars(_tasks(policy, wait).where(Task.gold.is_not(None), ~_had(person).exists())).first()


def _repeat(session: Session, person: Person, policy: AssignmentPolicy) -> Task | None:
    """The oldest task that this person answered, has not repeated, and has had `repeat_after` tasks since."""
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
    """A query for the first available task, which locks it."""
    first = select(Task).where(*is_available(policy.kind)).order_by(Task.position).limit(1)
    return first.with_for_update(skip_locked=not wait, of=Task)


def _had(person: Person) -> Select:
    """A subquery for this person's assignments of the outer query's task."""
    return select(Assignment.id).where(Assignment.task_id == Task.id, Assignment.person_id == person.id)


def _lease(session: Session, person: Person, task: Task, attempt: int, now: float, lease_s: float) -> Assignment:
    """Lease a locked task; an expired assignment of the same task and person is leased again."""
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
