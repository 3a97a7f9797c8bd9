"""A network in which a PostgreSQL server can be reached and then vanishes without a word, as when its machine dies.

    unshare -n python tests/vanishing.py <folder of the server's socket> <database>

prints how many seconds it took to say so, of a request that waited for its answer and of one that came afterwards.
Whatever is sent to the network's only interface is lost while that is down; nobody is told.
"""

import fcntl
import json
import os
import socket
import struct
import sys
import threading
import time

from sqlalchemy import text

from hive_ray.annotation import database
from hive_ray.annotation.database import Database, DatabaseUnavailableError

SILENCE_S, PROBE_S, PATIENCE_S = 2.0, 1.0, 2.0
SET_FLAGS, IS_UP = 0x8914, 1


def switch(on: bool) -> None:
    """Turn the network on or off."""
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, SET_FLAGS, struct.pack("16sh22x", b"lo", IS_UP * on))


def door(path: str) -> int:
    """The port of a way over the network to a Unix socket."""
    listening = socket.create_server(("127.0.0.1", 0))

    def pass_on(one: socket.socket, other: socket.socket) -> None:
        while data := one.recv(65536):
            other.sendall(data)

    def accept() -> None:
        while True:
            (outside, _), inside = listening.accept(), socket.socket(socket.AF_UNIX)
            inside.connect(path)
            for ends in ((outside, inside), (inside, outside)):
                threading.Thread(target=pass_on, args=ends, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listening.getsockname()[1]


def seconds_until_away(asked: Database, query: str) -> float:
    """How long a request takes to say that the database is away."""
    began = time.monotonic()
    try:
        asked.read(lambda session: session.execute(text(query)).all())
    except DatabaseUnavailableError:
        return time.monotonic() - began
    raise AssertionError(f"{query} was answered")


def main(folder: str, name: str) -> None:
    database.TCP_TIMEOUT_S, database.KEEPALIVE_S, database.TIMEOUT_S = SILENCE_S, PROBE_S, PATIENCE_S
    switch(on=True)
    asked = Database(f"postgresql://hive@127.0.0.1:{door(f'{folder}/.s.PGSQL.5432')}/{name}")
    threading.Timer(0.5, switch, [False]).start()
    waited = seconds_until_away(asked, "SELECT pg_sleep(100)")
    switch(on=True)
    asked.read(lambda session: session.execute(text("SELECT 1")).all())
    switch(on=False)
    print(json.dumps([waited, seconds_until_away(asked, "SELECT 1")]), flush=True)
    os._exit(0)  # connections to nowhere would be waited for


if __name__ == "__main__":
    main(*sys.argv[1:])
