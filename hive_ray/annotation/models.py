"""The tables of the database. Times are seconds since 1970 (UTC); migrations/ makes and changes them."""

from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

ACTIVE, PAUSED = "active", "paused"
ANNOTATOR, ADMINISTRATOR = "annotator", "administrator"
RANK, STUDY = "rank", "study"
LEASED = "leased"
ANSWERED = "answered"
SKIPPED = "skipped"
EXPIRED = "expired"

_Key = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows by itself in INTEGER columns alone


class Base(DeclarativeBase):
    """Names of constraints are fixed, so that a migration can find them on any engine."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar = {
        str: String,
        float: Double,
        dict[str, Any]: JSON,
        list[str]: JSON,
        list[int]: JSON,
    }


class Project(Base):
    """One row: what this database belongs to."""

    __tablename__ = "project"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    """Random: tells a Label Studio file of this project from any other."""
    created: Mapped[float]
    secret: Mapped[str | None]
    """Signs the addresses of pictures that Label Studio shows; made when first asked for."""


class Person(Base):
    """Who ranks, or who watches."""

    __tablename__ = "people"

    id: Mapped[int] = mapped_column(_Key, primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    role: Mapped[str]
    state: Mapped[str]
    link_hash: Mapped[str | None] = mapped_column(unique=True)
    """SHA-256 of the token in the personal link; None for people of another program, who never sign in."""
    handed: Mapped[int] = mapped_column(default=0)
    """Tasks handed out so far: decides where gold and repeated tasks come."""
    last_position: Mapped[int] = mapped_column(BigInteger, default=-1)
    """Position of the last new task: where looking for the next one begins."""
    created: Mapped[float]


class Session(Base):
    """A browser that is signed in."""

    __tablename__ = "sessions"

    cookie_hash: Mapped[str] = mapped_column(primary_key=True)
    person_id: Mapped[int] = mapped_column(ForeignKey("people.id"), index=True)
    expires: Mapped[float]


class Task(Base):
    """Something to rank or to compare: a prompt and its edits."""

    __tablename__ = "tasks"

    id: Mapped[int] = mapped_column(_Key, primary_key=True)
    key: Mapped[str] = mapped_column(unique=True)
    """Made of the content: the same candidates are the same task."""
    kind: Mapped[str]
    prompt_id: Mapped[str] = mapped_column(index=True)
    instruction: Mapped[str]
    edit_ids: Mapped[list[str]]
    editors: Mapped[list[str]]
    """Aligned with `edit_ids`."""
    gold: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """{"better": [edit ids], "worse": [edit ids]} where the answer is known; None for work."""
    position: Mapped[int] = mapped_column(BigInteger)
    """Tasks are handed out in this order."""
    wanted: Mapped[int]
    """Different people who shall do it."""
    taken: Mapped[int] = mapped_column(default=0)
    """People who did it or hold a lease."""
    present: Mapped[bool] = mapped_column(Boolean, default=True)
    """Whether the run folder has its candidates now."""
    broken: Mapped[str | None]
    """Why nobody can do it, such as a picture that cannot be read."""

    __table_args__ = (
        Index(
            "ix_tasks_gold",
            "kind",
            "position",
            sqlite_where=text("gold IS NOT NULL"),
            postgresql_where=text("gold IS NOT NULL"),
        ),
        Index(
            "ix_tasks_open",
            "kind",
            "position",
            sqlite_where=text("taken < wanted AND present = 1 AND broken IS NULL AND gold IS NULL"),
            postgresql_where=text("taken < wanted AND present AND broken IS NULL AND gold IS NULL"),
        ),
    )


class Assignment(Base):
    """A task in one person's hands: leased, answered, skipped, or given up."""

    __tablename__ = "assignments"

    id: Mapped[int] = mapped_column(_Key, primary_key=True)
    task_id: Mapped[int] = mapped_column(ForeignKey("tasks.id"))
    person_id: Mapped[int] = mapped_column(ForeignKey("people.id"), index=True)
    attempt: Mapped[int] = mapped_column(default=0)
    """0, or 1 where the person gets the task again on purpose."""
    shown: Mapped[list[int]]
    """Places in `Task.edit_ids` in the order in which this person sees the edits."""
    state: Mapped[str]
    handed: Mapped[float]
    expires: Mapped[float]
    """When the lease ends, unless it is answered or renewed."""

    __table_args__ = (
        UniqueConstraint("task_id", "person_id", "attempt"),
        Index(
            "ix_assignments_leases",
            "expires",
            sqlite_where=text("state = 'leased'"),
            postgresql_where=text("state = 'leased'"),
        ),
    )


class Answer(Base):
    """What a person said of a task. Rows are only ever added: the last of an assignment counts."""

    __tablename__ = "answers"

    id: Mapped[int] = mapped_column(_Key, primary_key=True)
    assignment_id: Mapped[int] = mapped_column(ForeignKey("assignments.id"), index=True)
    key: Mapped[str] = mapped_column(unique=True)
    """Chosen by the page for each showing: what is sent twice is stored once."""
    verdict: Mapped[dict[str, Any]]
    """As `answers.py` describes it, aligned with `Task.edit_ids`."""
    seconds: Mapped[float]
    """Time in which the task was on the screen."""
    at: Mapped[float]
    previous_id: Mapped[int | None] = mapped_column(ForeignKey("answers.id"), unique=True)
    """The answer that this one corrects."""


class Feedback(Base):
    """A thumb up or down for one edit of a served editor."""

    __tablename__ = "feedback"

    id: Mapped[int] = mapped_column(_Key, primary_key=True)
    key: Mapped[str] = mapped_column(unique=True)
    at: Mapped[float]
    editor: Mapped[str] = mapped_column(index=True)
    """The digest of the editor's weights."""
    instruction: Mapped[str]
    liked: Mapped[bool]
    settings: Mapped[dict[str, Any]]
    """Seed, scales and steps."""
    source_image: Mapped[bytes] = mapped_column(LargeBinary)
    edited_image: Mapped[bytes] = mapped_column(LargeBinary)
