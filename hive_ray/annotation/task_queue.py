"""Handing out tasks: leases, answers, corrections. Right under any number of people and processes.

A task has `wanted` places, and `taken` counts those that are answered or leased. A place is taken on the locked row of
its task, so it is never taken twice; a person has each task once (the unique key of `assignments`), save for repeats on
purpose. Rows are locked in one order: the person, the assignment, the task. An answer is stored under the key
that the page chose for its showing: sent again, it is found and confirmed, not stored twice.
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
"""Leases that one person may hold: the task on the screen, the next one, and one that was given back late."""
SWEEP_BATCH = 50


class RequestRefusedError(ValueError):
    """A request that cannot be granted, and a word for programs that says why."""

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
    """What the person said of it before, in the order `shown`."""
    answer_id: int | None = None


@dataclass(frozen=True)
class StoredAnswer:
    """An answer that is in the database."""

    answer_id: int
    assignment_id: int
    already_stored: bool
    """Whether it was there already: the same request had come before."""


class TaskQueue:
    """Where tasks are handed out and answers handed in."""

    def __init__(self, database: Database, policy: AssignmentPolicy, now: Callable[[], float] = time.time) -> None:
        self.database = database
        self.policy = policy
        self.now = now

    # --- Handing out ---

    def next(
        self, person_id: int, on_screen: Collection[int] = (), skipped_over: Collection[int] = ()
    ) -> ShownTask | None:
        """The next task for a person, leased to them; None if there is none left for them.

        First comes what they hold a lease on already but do not have on the screen (`on_screen`): a browser that was
        closed gets its tasks back. Leases that were `skipped_over` are neither shown again nor too many; `release`
        ends them.
        """
        handed = partial(
            self._next, person_id=person_id, on_screen={*on_screen, *skipped_over}, most=MAX_LEASES + len(skipped_over)
        )
        for wait in (False, True):  # before "nothing is left" is said, what others hold just now is waited for
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
        """Take back leases that ended without an answer; how many. Those that others take back are passed over, unless
        `wait`."""
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
        """End leases of this person's without an answer: their places are free for others at once, and for this person
        when nothing else is left."""
        self.database.write(lambda session: self._end(session, self._leased(session, person_id, assignment_ids)))

    def _end(self, session: Session, leases: Sequence[Assignment]) -> None:
        """End leases that this transaction has locked."""
        for assignment in leases:
            assignment.state = EXPIRED
        session.flush()
        for assignment in sorted(leases, key=lambda lease: lease.task_id):
            self._free_place(session, assignment)

    # --- Handing in ---

    def submit(
        self, person_id: int, assignment_id: int, key: str, answer: object, seconds: float, corrects: int | None = None
    ) -> StoredAnswer:
        """Store an answer, or confirm the one that is stored under this key.

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
        """Take a place again that was given back: possible while nobody else has the last one."""
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
        """Hold on to leases for a while longer; those that could be."""

        def renewed(session: Session) -> list[int]:
            mine = self._leased(session, person_id, assignment_ids)
            for assignment in mine:
                assignment.expires = self.now() + self.policy.lease_s
            return [assignment.id for assignment in mine]

        return self.database.write(renewed)

    def last_answered(self, person_id: int, before: int | None = None) -> ShownTask | None:
        """The last answer of a person as a task with that answer, to be corrected; None if there is none.

        `before` is the assignment on the screen, if it is a corrected one: then the answer before that one.
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
        """A task of this person's own; RequestRefusedError if it is anybody else's."""
        return self.database.read(
            lambda session: self._shown_task(session, self._own(session, person_id, assignment_id, lock=False))
        )

    def mark_broken(self, task_id: int, reason: str) -> None:
        """Hand this task out no more."""
        self.database.write(
            lambda session: session.execute(update(Task).where(Task.id == task_id).values(broken=reason[:500]))
        )

    # --- Rows ---

    def _person(self, session: Session, person_id: int) -> Person:
        """The person, locked: one request of a person at a time."""
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
        """Those of these assignments that are leased to this person, locked."""
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
