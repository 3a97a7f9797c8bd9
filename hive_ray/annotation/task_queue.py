"""The queue of tasks: leases, answers and corrections, for any number of people and processes.

A task has `wanted` places, and `taken` counts those that are answered or leased. A transaction takes a place while it
holds the lock on the task's row, so no place is taken twice. A person has each task once (the unique key of
`assignments`), except for deliberate repeats. Locks are taken in one order: person, assignment, task. The page chooses
a key for each shown task, and an answer is stored under that key. If the request is sent again, the stored answer is
found and confirmed.
"""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

from sqlalchemy import and_, func, select, update
from sqlalchemy.orm import Session

from hive_ray.annotation.answers import Verdict, to_answer, to_verdict
from hive_ray.annotation.database import Database
from hive_ray.annotation.models import ANSWERED, EXPIRED, LEASED, PAUSED, SKIPPED, Answer, Assignment, Person, Task
from hive_ray.annotation.task_selection import AssignmentPolicy, assign_task, is_available

MAX_LEASES = 3
"""Leases per person: the task on the screen, the next one, and one that was released late."""
SWEEP_BATCH = 50


class RequestRefusedError(ValueError):
    """A refused request; `reason` is a code for programs."""

    def __init__(self, reason: str, words: str) -> None:
        super().__init__(words)
        self.reason = reason


@dataclass(frozen=True)
class ShownTask:
    """A task as one person sees it."""

    assignment_id: int
    task: Task
    shown: list[int]
    lease_s: float
    answer: Verdict | None = None
    """The person's earlier answer, in the order `shown`."""
    answer_id: int | None = None


@dataclass(frozen=True)
class StoredAnswer:
    """A stored answer."""

    answer_id: int
    assignment_id: int
    already_stored: bool
    """Whether an earlier copy of the same request had stored it."""


class TaskQueue:
    """Assigns tasks to people and stores their answers."""

    def __init__(self, database: Database, policy: AssignmentPolicy, now: Callable[[], float] = time.time) -> None:
        self.database = database
        self.policy = policy
        self.now = now

    # --- Assigning ---

    def next(
        self, person_id: int, on_screen: Collection[int] = (), skipped_over: Collection[int] = ()
    ) -> ShownTask | None:
        """Lease the next task to a person; None if no task is left for them.

        Tasks that the person has leased but does not have on the screen (`on_screen`) come first, so that a reopened
        browser gets its tasks back. Leases in `skipped_over` are not shown again and do not count towards MAX_LEASES.
        `release` ends them.
        """
        handed = partial(
            self._next, person_id=person_id, on_screen={*on_screen, *skipped_over}, most=MAX_LEASES + len(skipped_over)
        )
        for wait in (False, True):  # wait for locked tasks only when no other is left
            self.end_expired_leases(wait=wait)
            showing = self.database.write(partial(handed, wait=wait))
            if showing is not None:
                return showing
        return None

    def _next(self, session: Session, person_id: int, on_screen: set[int], most: int, wait: bool) -> ShownTask | None:
        person = self._person(session, person_id)
        held = session.scalars(
            select(Assignment)
            .join(Task, Task.id == Assignment.task_id)
            .where(Assignment.person_id == person_id, Assignment.state == LEASED, *is_available(self.policy.kind))
            .order_by(Assignment.id)
            .with_for_update(of=Assignment, skip_locked=True)
        ).all()
        for assignment in held:
            if assignment.id not in on_screen:
                assignment.expires = self.now() + self.policy.lease_s
                return self._shown_task(session, assignment)
        if len(held) >= most:
            return None
        assignment = assign_task(session, person, self.policy, self.now(), wait)
        return self._shown_task(session, assignment) if assignment is not None else None

    def end_expired_leases(self, *, wait: bool = False) -> int:
        """End leases that expired without an answer, and return how many.

        With `wait`, it waits for leases that other transactions have locked. Otherwise it skips them.
        """
        overdue = and_(Assignment.state == LEASED, Assignment.expires < self.now())
        if not self.database.read(lambda session: session.scalar(select(Assignment.id).where(overdue).limit(1))):
            return 0

        def take_back(session: Session) -> int:
            overdue_leases = session.scalars(
                select(Assignment)
                .where(overdue)
                .order_by(Assignment.id)
                .limit(SWEEP_BATCH)
                .with_for_update(skip_locked=not wait)
            ).all()
            self._end(session, overdue_leases)
            return len(overdue_leases)

        return self.database.write(take_back)

    def release(self, person_id: int, assignment_ids: Collection[int]) -> None:
        """End leases of a person without an answer.

        Other people can have these tasks at once, and the same person when no other task is left.
        """
        self.database.write(lambda session: self._end(session, self._leased(session, person_id, assignment_ids)))

    def _end(self, session: Session, leases: Sequence[Assignment]) -> None:
        """End leases that this transaction has locked."""
        for assignment in leases:
            assignment.state = EXPIRED
        session.flush()
        for assignment in sorted(leases, key=lambda lease: lease.task_id):
            self._free_place(session, assignment)

    # --- Answers ---

    def submit(
        self, person_id: int, assignment_id: int, key: str, answer: object, seconds: float, corrects: int | None = None
    ) -> StoredAnswer:
        """Store an answer, or confirm the answer that is already stored under this key.

        `corrects` is the id of the answer that the person saw and changed.

        Raises RequestRefusedError with one of these reasons: not_yours, answered (the task has an answer under another
        key), lease_gone (the place went to somebody else), stale (the answer was corrected meanwhile).
        """
        return self.database.write(
            lambda session: self._submit(session, person_id, assignment_id, key, answer, seconds, corrects)
        )

    def _submit(
        self, session: Session, person_id: int, assignment_id: int, key: str, answer: object, seconds: float,
        corrects: int | None,
    ) -> StoredAnswer:  # fmt: skip
        self._person(session, person_id)
        assignment = self._own(session, person_id, assignment_id)
        known = session.scalars(select(Answer).where(Answer.key == key)).first()
        if known is not None:
            if known.assignment_id != assignment.id:
                raise RequestRefusedError(
                    "not_yours", f"the key {key[:40]!r} belongs to another answer; take a new one"
                )
            return StoredAnswer(known.id, assignment.id, already_stored=True)
        task = session.get_one(Task, assignment.task_id)
        verdict = to_verdict(task.kind, answer, assignment.shown)
        last = self._last(session, assignment)
        if (last.id if last else None) != corrects:
            if corrects is None:
                raise RequestRefusedError("answered", "you have answered this task already; undo shows your answer")
            raise RequestRefusedError("stale", "this answer was corrected meanwhile; undo shows what counts now")
        was, now = assignment.state, "skipped" in verdict
        if was in (EXPIRED, SKIPPED) and not now and assignment.attempt == 0:  # the place was given back
            self._retake(session, task)
        elif was in (LEASED, ANSWERED) and now:
            self._free_place(session, assignment)
        assignment.state = SKIPPED if now else ANSWERED
        at = self.now()
        stored = Answer(
            assignment_id=assignment.id, key=key, verdict=verdict, at=at, previous_id=corrects,
            seconds=max(0.0, min(seconds, at - assignment.handed) if corrects is None else seconds),
        )  # fmt: skip
        session.add(stored)
        session.flush()
        return StoredAnswer(stored.id, assignment.id, already_stored=False)

    def _retake(self, session: Session, task: Task) -> None:
        """Take a place again after the lease expired; refused if all places are taken."""
        session.refresh(task, with_for_update=True)
        if task.taken >= task.wanted:
            raise RequestRefusedError(
                "lease_gone", "this task was given to somebody else, since no answer came in time; it is not needed now"
            )
        task.taken += 1

    def _free_place(self, session: Session, assignment: Assignment) -> None:
        if assignment.attempt == 0:
            session.execute(update(Task).where(Task.id == assignment.task_id).values(taken=Task.taken - 1))

    def renew_leases(self, person_id: int, assignment_ids: Collection[int]) -> list[int]:
        """Extend leases, and return the ids of those that were extended."""

        def renewed(session: Session) -> list[int]:
            mine = self._leased(session, person_id, assignment_ids)
            for assignment in mine:
                assignment.expires = self.now() + self.policy.lease_s
            return [assignment.id for assignment in mine]

        return self.database.write(renewed)

    def last_answered(self, person_id: int, before: int | None = None) -> ShownTask | None:
        """The task that a person answered last, with the answer, for correction; None if there is none.

        With `before`, an assignment that the person is correcting, the task that was answered before that one.
        """

        def last(session: Session) -> ShownTask | None:
            newest = (
                select(Answer.assignment_id, func.min(Answer.id).label("first"))
                .join(Assignment, Assignment.id == Answer.assignment_id)
                .where(Assignment.person_id == person_id)
                .group_by(Answer.assignment_id)
                .subquery()
            )
            query = select(newest.c.assignment_id).order_by(newest.c.first.desc()).limit(1)
            if before is not None:
                edge = select(newest.c.first).where(newest.c.assignment_id == before).scalar_subquery()
                query = query.where(newest.c.first < edge)
            assignment_id = session.scalar(query)
            if assignment_id is None:
                return None
            return self._shown_task(session, session.get_one(Assignment, assignment_id))

        return self.database.read(last)

    def shown_task(self, person_id: int, assignment_id: int) -> ShownTask:
        """A task that was assigned to this person; RequestRefusedError if it was not."""
        return self.database.read(
            lambda session: self._shown_task(session, self._own(session, person_id, assignment_id, lock=False))
        )

    def mark_broken(self, task_id: int, reason: str) -> None:
        """Stop assigning a task, and store why."""
        self.database.write(
            lambda session: session.execute(update(Task).where(Task.id == task_id).values(broken=reason[:500]))
        )

    # --- Rows ---

    def _person(self, session: Session, person_id: int) -> Person:
        """Lock the person's row, so that requests of one person run one at a time."""
        person = session.scalars(select(Person).where(Person.id == person_id).with_for_update()).one()
        if person.state == PAUSED:
            raise RequestRefusedError("paused", "your work is paused; the administrator can say why")
        return person

    def _own(self, session: Session, person_id: int, assignment_id: int, *, lock: bool = True) -> Assignment:
        query = select(Assignment).where(Assignment.id == assignment_id, Assignment.person_id == person_id)
        assignment = session.scalars(query.with_for_update() if lock else query).first()
        if assignment is None:
            raise RequestRefusedError("not_yours", f"task {assignment_id} was not given to you")
        return assignment

    def _leased(self, session: Session, person_id: int, assignment_ids: Collection[int]) -> Sequence[Assignment]:
        """Lock and return those of the assignments that are leased to this person."""
        return session.scalars(
            select(Assignment)
            .where(Assignment.id.in_(assignment_ids), Assignment.person_id == person_id, Assignment.state == LEASED)
            .order_by(Assignment.id)
            .with_for_update()
        ).all()

    def _last(self, session: Session, assignment: Assignment) -> Answer | None:
        return session.scalars(
            select(Answer).where(Answer.assignment_id == assignment.id).order_by(Answer.id.desc()).limit(1)
        ).first()

    def _shown_task(self, session: Session, assignment: Assignment) -> ShownTask:
        last, task = self._last(session, assignment), session.get_one(Task, assignment.task_id)
        verdict = to_answer(last.verdict, assignment.shown) if last else None
        return ShownTask(assignment.id, task, assignment.shown, self.policy.lease_s, verdict, last.id if last else None)
