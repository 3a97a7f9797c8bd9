"""Workers that start warm: forks of a process that has imported what they need.

    start() in a driver -> this process, with its imports done -> forked_worker.py, for Ray -> a fork, the worker

Imports are most of what a short stage computes: 4 to 8 seconds of a core for each worker, and here once. A fork is a
process of its own in everything else. Ray itself is imported in the fork: it reads its environment then, and draws
identifiers from a generator whose state forks must not share.
"""

import gc
import importlib
import json
import os
import runpy
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from hive_ray.cluster.addresses import socket_folder

CLIENT_SCRIPT = Path(__file__).with_name("forked_worker.py")
MAX_REQUEST_BYTES = 2**20
"""Bytes of a request: a command, its folder and environment."""


class ForkServer:
    """The process that is forked; it ends with the one that made this, however that ends."""

    def __init__(self, modules: tuple[str, ...], environment: Mapping[str, str]) -> None:
        """It imports these modules in this environment; who asks before that is done waits."""
        self.folder = tempfile.mkdtemp(prefix="hive-ray-", dir=socket_folder())
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
            listening.bind(f"{self.folder}/socket")
            listening.listen(64)
            self.process = subprocess.Popen(
                [sys.executable, "-m", __name__, self.folder, str(listening.fileno()), *modules],
                env=environment,
                stdin=subprocess.PIPE,
                pass_fds=[listening.fileno()],
                start_new_session=True,  # no Ctrl-C of the terminal's
            )

    @property
    def command(self) -> str:
        """What runs a script in a fork, as Ray's `py_executable`; without the process, in a new interpreter."""
        return shlex.join([sys.executable, "-IS", str(CLIENT_SCRIPT), f"{self.folder}/socket"])


def serve(listening: socket.socket) -> list[str] | None:
    """In a fork, the command that it is to run; in this process None, once its standard input has ended."""
    while sys.stdin not in select.select([listening, sys.stdin], [], [])[0]:
        client, _ = listening.accept()
        asked, streams, _, _ = socket.recv_fds(client, MAX_REQUEST_BYTES, 3)
        if asked and os.fork() == 0:  # nothing is asked by a client that was killed before it could
            listening.close()
            return become_worker(json.loads(asked), client.detach(), streams)
        client.close()
        for stream in streams:
            os.close(stream)
    return None


def import_modules(modules: Iterable[str]) -> None:
    """Import what forks will have, and be ready to fork."""
    for name in modules:
        importlib.import_module(name)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended forks leave no trace


def become_worker(asked: dict, client: int, streams: list[int]) -> list[str]:
    """Take over environment, folder, streams and command of a client, which lives until `client` is closed: that stays
    open to this process's end."""
    os.setpgid(0, 0)  # Ray ends a worker's whole group when the worker has died
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.write(client, os.getpid().to_bytes(4, "big"))
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    np.random.seed()  # Python's own random numbers begin anew in a fork by themselves
    return asked["command"]


def run_script(command: list[str], installed: list[str]) -> None:
    """Run a script as an interpreter does that was started for it."""
    sys.argv = command
    own = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:] = [os.path.dirname(command[0]), *own, *installed]
    runpy.run_path(command[0], run_name="__main__")


def main() -> None:
    folder, listening, *modules = sys.argv[1:]
    ours = [sys.path[0], *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    installed = [place for place in sys.path if place not in ours]
    own = os.getpid()
    try:
        import_modules(modules)
        if "ray" in sys.modules:
            raise ImportError(f"one of {', '.join(modules)} imports Ray, which has to be left to the forks")
        command = serve(socket.socket(fileno=int(listening)))
    finally:
        if os.getpid() == own:  # a fork, too, may fail here: when who asked for it has been killed
            shutil.rmtree(folder, ignore_errors=True)
    if command:
        run_script(command, installed)


if __name__ == "__main__":
    main()
