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
    """The project of this database: one row."""

    __tablename__ = "project"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    """Random; identifies Label Studio files of this project."""
    created: Mapped[float]
    secret: Mapped[str | None]
    """Signs the URLs of pictures for Label Studio; created on first use."""


class Person(Base):
    """An annotator or an administrator."""

    __tablename__ = "people"

    id: Mapped[int] = mapped_column(_Key, primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    role: Mapped[str]
    state: Mapped[str]
    link_hash: Mapped[str | None] = mapped_column(unique=True)
    """SHA-256 of the token in the personal link; None for people imported from Label Studio, who never sign in."""
    handed: Mapped[int] = mapped_column(default=0)
    """Number of tasks assigned so far; seeds the draw of gold and repeated tasks."""
    last_position: Mapped[int] = mapped_column(BigInteger, default=-1)
    """Position of the last new task; the search for the next one starts after it."""
    created: Mapped[float]


class Session(Base):
    """A signed-in browser."""

    __tablename__ = "sessions"

    cookie_hash: Mapped[str] = mapped_column(primary_key=True)
    person_id: Mapped[int] = mapped_column(ForeignKey("people.id"), index=True)
    expires: Mapped[float]


class Task(Base):
    """A prompt and its edits, to rank or to compare."""

    __tablename__ = "tasks"

    id: Mapped[int] = mapped_column(_Key, primary_key=True)
    key: Mapped[str] = mapped_column(unique=True)
    """Content id: the same candidates give the same task."""
    kind: Mapped[str]
    prompt_id: Mapped[str] = mapped_column(index=True)
    instruction: Mapped[str]
    edit_ids: Mapped[list[str]]
    editors: Mapped[list[str]]
    """Aligned with `edit_ids`."""
    gold: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """The known answer of a gold task, {"better": [edit ids], "worse": [edit ids]}; None for regular tasks."""
    position: Mapped[int] = mapped_column(BigInteger)
    """Tasks are assigned in ascending order of position."""
    wanted: Mapped[int]
    """How many different people should answer it."""
    taken: Mapped[int] = mapped_column(default=0)
    """How many people have answered it or hold a lease."""
    present: Mapped[bool] = mapped_column(Boolean, default=True)
    """Whether the run folder still has its candidates."""
    broken: Mapped[str | None]
    """Why it cannot be shown, such as an unreadable picture; None if it can."""

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
    """The assignment of a task to a person: leased, answered, skipped or expired."""

    __tablename__ = "assignments"

    id: Mapped[int] = mapped_column(_Key, primary_key=True)
    task_id: Mapped[int] = mapped_column(ForeignKey("tasks.id"))
    person_id: Mapped[int] = mapped_column(ForeignKey("people.id"), index=True)
    attempt: Mapped[int] = mapped_column(default=0)
    """0, or 1 for a deliberate repeat of the task."""
    shown: Mapped[list[int]]
    """Indices into `Task.edit_ids` in the order in which this person sees the edits."""
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
    """An answer to an assignment. Rows are only added; the last one of an assignment is the current answer."""

    __tablename__ = "answers"

    id: Mapped[int] = mapped_column(_Key, primary_key=True)
    assignment_id: Mapped[int] = mapped_column(ForeignKey("assignments.id"), index=True)
    key: Mapped[str] = mapped_column(unique=True)
    """Chosen by the page for each shown task, so that a request sent twice is stored once."""
    verdict: Mapped[dict[str, Any]]
    """The format of `answers.py`, aligned with `Task.edit_ids`."""
    seconds: Mapped[float]
    """How long the task was on the screen."""
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
    """Sampling settings: seed, guidance scales and steps."""
    source_image: Mapped[bytes] = mapped_column(LargeBinary)
    edited_image: Mapped[bytes] = mapped_column(LargeBinary)
