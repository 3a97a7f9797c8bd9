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

from hive_ray.annotation.answers import Verdict, as_shown, checked
from hive_ray.annotation.database import Database
from hive_ray.annotation.models import ANSWERED, EXPIRED, LEASED, PAUSED, SKIPPED, Answer, Assignment, Person, Task
from hive_ray.annotation.task_selection import Plan, can_be_done, choose

MAX_HELD = 3
"""Leases that one person may hold: the task on the screen, the next one, and one that was given back late."""
SWEPT_AT_ONCE = 50


class Refused(ValueError):
    """A request that cannot be granted, and a word for programs that says why."""

    def __init__(self, reason: str, words: str) -> None:
        super().__init__(words)
        self.reason = reason


@dataclass(frozen=True)
class Showing:
    """A task as one person sees it."""

    assignment_id: int
    task: Task
    shown: list[int]
    lease_s: float
    answer: Verdict | None = None
    """What the person said of it before, in the order `shown`."""
    answer_id: int | None = None


@dataclass(frozen=True)
class Stored:
    """An answer that is in the database."""

    answer_id: int
    assignment_id: int
    repeated: bool
    """Whether it was there already: the same request had come before."""


class Desk:
    """Where tasks are handed out and answers handed in."""

    def __init__(self, database: Database, plan: Plan, now: Callable[[], float] = time.time) -> None:
        self.database = database
        self.plan = plan
        self.now = now

    # --- Handing out ---

    def next(self, person_id: int, holding: Collection[int] = (), passed: Collection[int] = ()) -> Showing | None:
        """The next task for a person, leased to them; None if there is none left for them.

        First comes what they hold a lease on already but do not have on the screen (`holding`): a browser that was
        closed gets its tasks back. Leases that were `passed` over are neither shown again nor too many; `give_back`
        ends them.
        """
        handed = partial(self._next, person_id=person_id, holding={*holding, *passed}, most=MAX_HELD + len(passed))
        for waits in (False, True):  # before "nothing is left" is said, what others hold just now is waited for
            self.sweep(waits=waits)
            showing = self.database.write(partial(handed, waits=waits))
            if showing is not None:
                return showing
        return None

    def _next(self, session: Session, person_id: int, holding: set[int], most: int, waits: bool) -> Showing | None:
        person = self._person(session, person_id)
        held = session.scalars(
            select(Assignment)
            .join(Task, Task.id == Assignment.task_id)
            .where(Assignment.person_id == person_id, Assignment.state == LEASED, *can_be_done(self.plan.kind))
            .order_by(Assignment.id)
            .with_for_update(of=Assignment, skip_locked=True)
        ).all()
        for assignment in held:
            if assignment.id not in holding:
                assignment.expires = self.now() + self.plan.lease_s
                return self._showing(session, assignment)
        if len(held) >= most:
            return None
        assignment = choose(session, person, self.plan, self.now(), waits)
        return self._showing(session, assignment) if assignment is not None else None

    def sweep(self, *, waits: bool = False) -> int:
        """Take back leases that ended without an answer; how many. Those that others take back are passed over, unless
        it `waits` for them."""
        overdue = and_(Assignment.state == LEASED, Assignment.expires < self.now())
        if not self.database.read(lambda session: session.scalar(select(Assignment.id).where(overdue).limit(1))):
            return 0

        def take_back(session: Session) -> int:
            overdue_leases = session.scalars(
                select(Assignment)
                .where(overdue)
                .order_by(Assignment.id)
                .limit(SWEPT_AT_ONCE)
                .with_for_update(skip_locked=not waits)
            ).all()
            self._end(session, overdue_leases)
            return len(overdue_leases)

        return self.database.write(take_back)

    def give_back(self, person_id: int, assignment_ids: Collection[int]) -> None:
        """End leases of this person's without an answer: their places are free for others at once, and for this person
        when nothing else is left."""
        self.database.write(lambda session: self._end(session, self._leased(session, person_id, assignment_ids)))

    def _end(self, session: Session, leases: Sequence[Assignment]) -> None:
        """End leases that this transaction has locked."""
        for assignment in leases:
            assignment.state = EXPIRED
        session.flush()
        for assignment in sorted(leases, key=lambda lease: lease.task_id):
            self._release(session, assignment)

    # --- Handing in ---

    def submit(
        self, person_id: int, assignment_id: int, key: str, answer: object, seconds: float, corrects: int | None = None
    ) -> Stored:
        """Store an answer, or confirm the one that is stored under this key.

        `corrects` is the id of the answer that the person saw and changed. Refused, with the reason: not_yours,
        answered (by another showing), lease_gone (the place went to somebody else), stale (corrected meanwhile).
        """
        return self.database.write(
            lambda session: self._submit(session, person_id, assignment_id, key, answer, seconds, corrects)
        )

    def _submit(
        self, session: Session, person_id: int, assignment_id: int, key: str, answer: object, seconds: float,
        corrects: int | None,
    ) -> Stored:  # fmt: skip
        self._person(session, person_id)
        assignment = self._own(session, person_id, assignment_id)
        known = session.scalars(select(Answer).where(Answer.key == key)).first()
        if known is not None:
            if known.assignment_id != assignment.id:
                raise Refused("not_yours", f"the key {key[:40]!r} belongs to another answer; take a new one")
            return Stored(known.id, assignment.id, repeated=True)
        task = session.get_one(Task, assignment.task_id)
        verdict = checked(task.kind, answer, assignment.shown)
        last = self._last(session, assignment)
        if (last.id if last else None) != corrects:
            if corrects is None:
                raise Refused("answered", "you have answered this task already; undo shows your answer")
            raise Refused("stale", "this answer was corrected meanwhile; undo shows what counts now")
        was, now = assignment.state, "skipped" in verdict
        if was in (EXPIRED, SKIPPED) and not now and assignment.attempt == 0:  # the place was given back
            self._retake(session, task)
        elif was in (LEASED, ANSWERED) and now:
            self._release(session, assignment)
        assignment.state = SKIPPED if now else ANSWERED
        at = self.now()
        stored = Answer(
            assignment_id=assignment.id, key=key, verdict=verdict, at=at, previous_id=corrects,
            seconds=max(0.0, min(seconds, at - assignment.handed) if corrects is None else seconds),
        )  # fmt: skip
        session.add(stored)
        session.flush()
        return Stored(stored.id, assignment.id, repeated=False)

    def _retake(self, session: Session, task: Task) -> None:
        """Take a place again that was given back: possible while nobody else has the last one."""
        session.refresh(task, with_for_update=True)
        if task.taken >= task.wanted:
            raise Refused(
                "lease_gone", "this task was given to somebody else, since no answer came in time; it is not needed now"
            )
        task.taken += 1

    def _release(self, session: Session, assignment: Assignment) -> None:
        if assignment.attempt == 0:
            session.execute(update(Task).where(Task.id == assignment.task_id).values(taken=Task.taken - 1))

    def renew(self, person_id: int, assignment_ids: Collection[int]) -> list[int]:
        """Hold on to leases for a while longer; those that could be."""

        def renewed(session: Session) -> list[int]:
            mine = self._leased(session, person_id, assignment_ids)
            for assignment in mine:
                assignment.expires = self.now() + self.plan.lease_s
            return [assignment.id for assignment in mine]

        return self.database.write(renewed)

    def undo(self, person_id: int, before: int | None = None) -> Showing | None:
        """The last answer of a person as a task with that answer, to be corrected; None if there is none.

        `before` is the assignment on the screen, if it is a corrected one: then the answer before that one.
        """

        def last(session: Session) -> Showing | None:
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
            return self._showing(session, session.get_one(Assignment, assignment_id))

        return self.database.read(last)

    def showing(self, person_id: int, assignment_id: int) -> Showing:
        """A task of this person's own; Refused if it is anybody else's."""
        return self.database.read(
            lambda session: self._showing(session, self._own(session, person_id, assignment_id, lock=False))
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
            raise Refused("paused", "your work is paused; the administrator can say why")
        return person

    def _own(self, session: Session, person_id: int, assignment_id: int, *, lock: bool = True) -> Assignment:
        query = select(Assignment).where(Assignment.id == assignment_id, Assignment.person_id == person_id)
        assignment = session.scalars(query.with_for_update() if lock else query).first()
        if assignment is None:
            raise Refused("not_yours", f"task {assignment_id} was not given to you")
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

    def _showing(self, session: Session, assignment: Assignment) -> Showing:
        last, task = self._last(session, assignment), session.get_one(Task, assignment.task_id)
        verdict = as_shown(last.verdict, assignment.shown) if last else None
        return Showing(assignment.id, task, assignment.shown, self.plan.lease_s, verdict, last.id if last else None)
