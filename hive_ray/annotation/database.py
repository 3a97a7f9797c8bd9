"""Transactions on a SQLite or PostgreSQL database, with clear errors when it is unavailable.

    sqlite:////path/annotation.sqlite        postgresql+psycopg://user:password@host/name

SQLite uses a write-ahead log. A writing transaction takes the write lock when it begins, and a commit is on disk before
it returns. PostgreSQL locks rows by `FOR UPDATE`. A transaction that it aborts for a conflict is run again.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from hive_ray import storage
from hive_ray.config import Annotation

TIMEOUT_S = 4.0
"""How long a request waits for a connection or a lock."""
TCP_TIMEOUT_S = 10.0
"""A connection to PostgreSQL ends after this time without a TCP acknowledgement: the server's machine is gone.

The operating system's defaults are 15 minutes while sending and 2 hours while receiving. A server that is slow or waits
for a lock still acknowledges."""
KEEPALIVE_S = 2.0
"""Interval of TCP keepalive probes on an idle connection."""
POOL_SIZE = 16
"""Connections that a process keeps open; SQLAlchemy opens a few more while all are in use."""
MAX_ATTEMPTS = 4
"""How often a transaction is run when PostgreSQL aborts it for a conflict."""
CONFLICT_CODES = {"40001", "40P01"}  # serialization_failure, deadlock_detected
MIGRATIONS = Path(__file__).parent / "migrations"
T = TypeVar("T")


class DatabaseUnavailableError(RuntimeError):
    """The database is locked, read-only or gone. Nothing was stored, so the same request may be sent again."""

    @property
    def summary(self) -> str:
        """The problem in one line, without the address of the database, for messages to users."""
        message = str(self).lower()
        busy = any(word in message for word in ("locked", "lock timeout", "busy", "no free connection"))
        state = "busy" if busy else "out of reach"
        if "readonly" in message or "read-only" in message:
            state = "read-only"
        return f"the database is {state}; nothing was lost"


class DatabaseError(ValueError):
    """A database that this version cannot work with."""


class Database:
    """Transactions on one database, for many threads."""

    def __init__(self, url: str) -> None:
        try:
            parsed = make_url(url)
        except ArgumentError as error:
            raise DatabaseError(
                f"{url!r} is no database address; give sqlite:///path or postgresql+psycopg://user:password@host/name"
            ) from error
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        if parsed.drivername not in ("sqlite", "postgresql+psycopg"):
            raise DatabaseError(f"{parsed.drivername!r} databases are unknown here; give sqlite:// or postgresql://")
        self.url = parsed
        self.file = Path(parsed.database or "") if parsed.drivername == "sqlite" else None
        self._writer = threading.Lock()
        self._identity: tuple[int, int] | None = None
        self.engine = _sqlite(self.file) if self.file is not None else _postgresql(parsed)

    @property
    def connection_url(self) -> str:
        """The URL that opens this database from any folder, password included."""
        if self.file is not None:
            return f"sqlite:///{self.file.absolute()}"
        return self.url.render_as_string(hide_password=False)

    def migrate(self, revision: str = "head") -> None:
        """Create the tables, or upgrade those of an older version."""
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.touch()
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        with self._said(), self._begun(writes=True) as connection:
            if self.file is None:
                connection.execute(text("SELECT pg_advisory_xact_lock(81231)"))  # one process at a time
            config.attributes["connection"] = connection
            try:
                command.upgrade(config, revision)
            except CommandError as error:
                raise DatabaseError(f"{self} cannot be opened: {error}; use the newer version that made it") from error

    def read(self, act: Callable[[Session], T]) -> T:
        """Run `act` in a read transaction that sees one snapshot of the database."""
        return self._transaction(act, writes=False)

    def write(self, act: Callable[[Session], T]) -> T:
        """Run `act` in a transaction that is committed before this returns. `act` may be called more than once."""
        for _ in range(MAX_ATTEMPTS - 1):
            try:
                return self._transaction(act, writes=True)
            except TransactionConflictError:
                continue
        return self._transaction(act, writes=True)

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    def __str__(self) -> str:
        return self.url.render_as_string(hide_password=True)

    def _transaction(self, act: Callable[[Session], T], *, writes: bool) -> T:
        with self._said(), self._begun(writes=writes) as connection:
            with Session(bind=connection, expire_on_commit=False) as session:
                result = act(session)
                session.flush()
            return result

    @contextmanager
    def _begun(self, *, writes: bool) -> Iterator[Connection]:
        """Begin a transaction, and commit it at the end."""
        if self.file is None:
            options: dict[str, Any] = {} if writes else {"isolation_level": "REPEATABLE READ"}
            with self.engine.connect().execution_options(**options) as connection, connection.begin():
                yield connection
            return
        self._same_file(self.file)
        if writes and not self._writer.acquire(timeout=TIMEOUT_S):
            raise DatabaseUnavailableError(f"{self} has been busy for {TIMEOUT_S:g} s; try again")
        try:
            with self.engine.connect().execution_options(writes=writes) as connection, connection.begin():
                yield connection
        finally:
            if writes:
                self._writer.release()

    def _same_file(self, file: Path) -> None:
        """Reconnect if the file was replaced, and fail if it was removed, so that no write goes to a deleted file."""
        try:
            status = os.stat(file)
        except OSError as error:
            raise DatabaseUnavailableError(f"{self} is gone ({error.strerror}); put it back") from error
        if self._identity is None:
            self._identity = status.st_dev, status.st_ino
        elif self._identity != (status.st_dev, status.st_ino):
            self._identity = status.st_dev, status.st_ino
            self.engine.dispose()

    @contextmanager
    def _said(self) -> Iterator[None]:
        """Raise connection and lock errors as DatabaseUnavailableError; errors about the stored data pass through."""
        try:
            yield
        except (IntegrityError, DataError, ProgrammingError):
            raise
        except PoolTimeout as error:
            raise DatabaseUnavailableError(f"{self}: no free connection for {TIMEOUT_S:g} s; try again") from error
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) in CONFLICT_CODES:
                raise TransactionConflictError(str(error.orig)) from error
            raise DatabaseUnavailableError(
                f"{self} cannot be used now: {str(error.orig).strip().splitlines()[0]}"
            ) from error


class TransactionConflictError(DatabaseUnavailableError):
    """PostgreSQL aborted this transaction because of a conflict with another one."""


def _sqlite(file: Path) -> Engine:
    engine = create_engine(
        f"sqlite:///file:{quote(str(file.absolute()))}?mode=rw&uri=true",  # never make an empty one where it is missing
        connect_args={"timeout": TIMEOUT_S, "check_same_thread": False},
        pool_size=POOL_SIZE, pool_timeout=TIMEOUT_S,
    )  # fmt: skip

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions begin where `begin` says
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes", True)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _postgresql(url: Any) -> Engine:
    return create_engine(
        url, pool_size=POOL_SIZE, pool_timeout=TIMEOUT_S, pool_pre_ping=True,
        connect_args={
            "connect_timeout": int(TIMEOUT_S), "options": f"-c lock_timeout={int(TIMEOUT_S * 1000)}",
            "keepalives": 1, "keepalives_idle": int(KEEPALIVE_S), "keepalives_interval": int(KEEPALIVE_S),
            "keepalives_count": int(TCP_TIMEOUT_S / KEEPALIVE_S), "tcp_user_timeout": int(TCP_TIMEOUT_S * 1000),
        },
    )  # fmt: skip


def open_database(run: str, settings: Annotation) -> Database:
    """The database of a run."""
    if settings.database:
        return Database(settings.database)
    if run.startswith(storage.S3):
        raise DatabaseError(
            f"{run} is no folder of this machine: say where the database is, --database sqlite:///path or postgresql://..."
        )
    return Database(f"sqlite:///{storage.absolute(run)}/annotation.sqlite")
