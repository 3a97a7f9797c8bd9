"""One database, SQLite or PostgreSQL, behind transactions that say clearly when it is not there.

    sqlite:////path/annotation.sqlite        postgresql+psycopg://user:password@host/name

SQLite: a write-ahead log, and writers that take the lock when they begin, one after the other; a commit is on the disk
before it returns. PostgreSQL: rows are locked by `FOR UPDATE`, and a transaction that lost a deadlock is done again.
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
"""How long a request waits for the database before it is answered that it is not there."""
TCP_TIMEOUT_S = 10.0
"""A connection to PostgreSQL on which nothing is acknowledged for so long is given up: the server's machine is gone.
By itself the system sends again for a quarter of an hour, and listens for two hours. A server that is only slow, or
waits for a lock, does acknowledge."""
KEEPALIVE_S = 2.0
"""After so long without a word the other machine is asked whether it is there, and then as often again."""
POOL_SIZE = 16
"""Kept open by a process; a few more come and go where that many are in use."""
MAX_ATTEMPTS = 4
"""Times that a transaction is done, where PostgreSQL gave it up for another one."""
CONFLICT_CODES = {"40001", "40P01"}  # serialization_failure, deadlock_detected
MIGRATIONS = Path(__file__).parent / "migrations"
T = TypeVar("T")


class DatabaseUnavailableError(RuntimeError):
    """The database is locked, read-only or gone: nothing was stored; the same request may be sent again."""

    @property
    def summary(self) -> str:
        """What is wrong, without the address, for people who need not know it."""
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
        """What opens the same database from any folder; with its password."""
        if self.file is not None:
            return f"sqlite:///{self.file.absolute()}"
        return self.url.render_as_string(hide_password=False)

    def migrate(self, revision: str = "head") -> None:
        """Make the tables, or bring those of an older version up to this one."""
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
        """`act` in a transaction that sees one state of the database throughout."""
        return self._transaction(act, writes=False)

    def write(self, act: Callable[[Session], T]) -> T:
        """`act` in a transaction that is stored before this returns, or not at all; `act` may be called again."""
        for _ in range(MAX_ATTEMPTS - 1):
            try:
                return self._transaction(act, writes=True)
            except TransactionConflictError:
                continue
        return self._transaction(act, writes=True)

    def close(self) -> None:
        """Give all connections back."""
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
        """A connection in a transaction that is committed at the end."""
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
        """Never write into a file that was removed or put in another's place: nobody would find it again."""
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
        """Errors of the way to the database as DatabaseUnavailableError; those of what is stored as they are."""
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
    """PostgreSQL gave up this transaction for another one."""


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
