"""A database of each kind, and candidates to rank."""

import itertools
import shutil
import tempfile
from pathlib import Path

import postgresql
import pytest

from hive_ray.annotation.database import Database

_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgres():
    """A PostgreSQL server in a folder that another user may reach and whose name fits a socket's address."""
    folder = Path(tempfile.mkdtemp(prefix="hive"))
    try:
        with postgresql.running(folder) as server:
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """The address of an empty database; the same specification holds on both engines."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'annotation.sqlite'}"
    return request.getfixturevalue("postgres").make(f"test{next(_numbers)}")


@pytest.fixture
def database(url):
    """A database with the tables of this version."""
    database = Database(url)
    database.migrate()
    yield database
    database.close()
