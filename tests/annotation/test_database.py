import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import psycopg
import pytest
import vanishing
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import event, inspect, select, text

from hive_ray.annotation.database import Database, DatabaseError, DatabaseUnavailableError
from hive_ray.annotation.models import ACTIVE, ANNOTATOR, Base, Person


def person(name: str) -> Person:
    return Person(name=name, role=ANNOTATOR, state=ACTIVE, handed=0, last_position=-1, created=0.0)


def names(database: Database) -> list[str]:
    return database.read(lambda session: list(session.scalars(select(Person.name).order_by(Person.name))))


def test_the_migrations_make_exactly_the_tables_of_the_models(database):
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": False})
        assert compare_metadata(context, Base.metadata) == []
        found = inspect(connection)
        indexes = {one["name"] for table in found.get_table_names() for one in found.get_indexes(table)}
    assert {"ix_tasks_open", "ix_assignments_leases"} <= indexes


def test_a_database_of_the_first_version_opens_with_all_that_it_holds(url):
    database = Database(url)
    database.migrate("0001")
    database.write(lambda session: session.add(person("Ada")))
    database.migrate()
    database.migrate()  # nothing more to do
    assert names(database) == ["Ada"]
    database.close()


def test_a_database_of_a_newer_version_is_refused(database):
    database.write(lambda session: session.execute(text("UPDATE alembic_version SET version_num = '9999'")))
    with pytest.raises(DatabaseError, match=r"9999.*use the newer version"):
        database.migrate()


@pytest.mark.parametrize("url", ["nonsense", "mysql://host/name"])
def test_addresses_of_no_known_database_are_refused(url):
    with pytest.raises(DatabaseError, match="sqlite"):
        Database(url)


def test_a_transaction_that_fails_stores_nothing(database):
    def fail(session):
        session.add(person("Ada"))
        session.flush()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        database.write(fail)
    assert names(database) == []


def test_a_read_sees_one_state_while_others_write(database):
    def look(session):
        before = session.scalars(select(Person.name)).all()
        writer = threading.Thread(target=lambda: database.write(lambda other: other.add(person("Ada"))))
        writer.start()
        writer.join()
        return before, session.scalars(select(Person.name)).all()

    assert database.read(look) == ([], [])
    assert names(database) == ["Ada"]


def test_two_writers_that_read_before_they_write_lose_no_count(database):
    database.write(lambda session: session.add(person("Ada")))

    def count(session):
        ada = session.scalars(select(Person).with_for_update()).one()
        time.sleep(0.01)
        ada.handed += 1

    threads = [threading.Thread(target=lambda: [database.write(count) for _ in range(5)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert database.read(lambda session: session.scalars(select(Person.handed)).one()) == 20


def test_a_password_is_not_shown():
    assert "secret" not in str(Database("postgresql://ada:secret@nowhere/db"))


@pytest.mark.parametrize(
    ("words", "plainly"),
    [
        ("sqlite:////secret: database is locked", "busy"),
        ("attempt to write a readonly database", "read-only"),
        ("connection to server on socket /secret failed", "out of reach"),
    ],
)
def test_people_are_told_what_is_wrong_but_not_where(words, plainly):
    assert DatabaseUnavailableError(words).summary == f"the database is {plainly}; nothing was lost"


# --- A database that is not there -------------------------------------------------------------------------


@pytest.fixture
def sqlite(tmp_path, monkeypatch):
    monkeypatch.setattr("hive_ray.annotation.database.TIMEOUT_S", 0.3)
    database = Database(f"sqlite:///{tmp_path / 'annotation.sqlite'}")
    database.migrate()
    database.write(lambda session: session.add(person("Ada")))
    yield database
    database.close()


def test_a_locked_sqlite_says_so_in_time_and_is_used_again(sqlite):
    other = sqlite3.connect(sqlite.file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    with pytest.raises(DatabaseUnavailableError, match="locked"):
        sqlite.write(lambda session: session.add(person("Bea")))
    assert time.monotonic() - began < 2
    assert names(sqlite) == ["Ada"]  # reading goes on
    other.execute("ROLLBACK")
    other.close()
    sqlite.write(lambda session: session.add(person("Bea")))
    assert names(sqlite) == ["Ada", "Bea"]


def test_a_read_only_sqlite_says_so(sqlite):
    sqlite.close()
    readable = Database(str(sqlite.url))
    with readable.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA query_only=ON")
    with pytest.raises(DatabaseUnavailableError, match="readonly"):
        readable.write(lambda session: session.add(person("Bea")))
    readable.close()


def test_a_sqlite_file_that_is_gone_is_never_made_anew_and_is_found_when_it_is_back(sqlite, tmp_path):
    aside = tmp_path / "aside"
    sqlite.file.rename(aside)
    for act in (lambda: sqlite.write(lambda session: session.add(person("Bea"))), lambda: names(sqlite)):
        with pytest.raises(DatabaseUnavailableError, match="gone"):
            act()
    assert not sqlite.file.exists()
    aside.rename(sqlite.file)
    sqlite.write(lambda session: session.add(person("Bea")))
    assert names(sqlite) == ["Ada", "Bea"]


def test_a_postgresql_that_was_killed_says_so_and_is_used_again(postgres):
    database = Database(postgres.make("killed"))
    database.migrate()
    database.write(lambda session: session.add(person("Ada")))
    postgres.stop()
    try:
        with pytest.raises(DatabaseUnavailableError):
            database.write(lambda session: session.add(person("Bea")))
    finally:
        postgres.start()
    database.write(lambda session: session.add(person("Bea")))
    assert names(database) == ["Ada", "Bea"]
    database.close()


def test_a_postgresql_is_connected_to_with_times_after_which_it_is_given_up():
    given, database = {}, Database("postgresql://ada@nowhere/db")

    @event.listens_for(database.engine, "do_connect")
    def look(dialect, record, arguments, named):
        given.update(named)
        raise psycopg.OperationalError("not today")

    with pytest.raises(DatabaseUnavailableError, match="not today"):
        names(database)
    assert {name: given[name] for name in given if name.startswith(("keep", "tcp", "connect"))} == {
        "connect_timeout": 4, "tcp_user_timeout": 10_000,
        "keepalives": 1, "keepalives_idle": 2, "keepalives_interval": 2, "keepalives_count": 5,
    }  # fmt: skip


def test_a_postgresql_that_vanishes_without_a_word_is_given_up_in_time(postgres):
    """In a network of its own, which only some machines allow to make."""
    alone = ["unshare", "-n"] if os.getuid() == 0 else ["unshare", "-rn"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("no network of its own can be had here (unshare)")
    postgres.make("vanishing")
    command = [*alone, sys.executable, vanishing.__file__, str(postgres.folder), "vanishing"]
    root = str(Path(__file__).parents[2])
    said = subprocess.check_output(command, cwd=root, env=os.environ | {"PYTHONPATH": root}, timeout=60)
    waiting, afterwards = json.loads(said)
    assert 1 < waiting < vanishing.SILENCE_S + 5
    assert 1 < afterwards < vanishing.SILENCE_S + vanishing.PATIENCE_S + 5


def test_a_read_only_postgresql_says_so(postgres):
    database = Database(postgres.make("readonly"))
    database.migrate()
    database.write(
        lambda session: session.execute(text("ALTER DATABASE readonly SET default_transaction_read_only = on"))
    )
    database.close()
    with pytest.raises(DatabaseUnavailableError, match="read-only"):
        database.write(lambda session: session.add(person("Bea")))
    database.close()
