"""A PostgreSQL server of the tests' own: a new cluster in a temporary folder, on a Unix socket alone."""

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest


def programs() -> Path | None:
    """The folder with initdb and pg_ctl; None where no server is installed."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "pg_ctl").exists()), None)


class Server:
    """One server; `url` names a database of it."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder, self.programs, self.data = folder, programs, folder / "data"
        self.user = _unprivileged()
        if self.user:
            shutil.chown(folder, self.user)
        self._run("initdb", "--auth=trust", "--username=hive", "--no-sync", "--encoding=UTF8", "-D", str(self.data))
        self.start()

    def start(self) -> None:
        options = f"-k {self.folder} -c listen_addresses='' -c max_connections=200 -c fsync=off"
        self._run("pg_ctl", "-D", str(self.data), "-w", "-o", options, "-l", str(self.folder / "log"), "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", str(self.data), "-w", "-m", "immediate", "stop")

    def make(self, name: str) -> str:
        """A new empty database; its URL."""
        address = f"host={self.folder} user=hive dbname=postgres"
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql://hive@/{name}?host={self.folder}"

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(self.programs / program), *arguments], check=True, user=self.user, cwd=self.folder,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=os.environ | {"LC_ALL": "C.UTF-8"},
        )  # fmt: skip


def _unprivileged() -> str | None:
    """PostgreSQL refuses to run as root: somebody else, if this is root."""
    if os.getuid() != 0:
        return None
    names = {one.pw_name for one in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in names), None)


@contextmanager
def running(folder: Path) -> Iterator[Server]:
    """A server for as long as the block lasts; the test is skipped where none is installed."""
    found = programs()
    if found is None:
        pytest.skip("no PostgreSQL server is installed (apt-get install postgresql)")
    server = Server(folder, found)
    try:
        yield server
    finally:
        server.stop()
