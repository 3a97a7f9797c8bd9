"""Workers that start fast: forks of a process that has already imported what they need.

    ForkServer in a driver -> this process, which imports -> forked_worker.py, for Ray -> a fork, the worker

Imports are most of the work of a short stage. Here they are done once instead of in each worker. Otherwise a fork is an
independent process. Ray itself is imported in the fork: it reads its environment then, and it draws ids from a
generator whose state forks must not share.
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
"""The script that requests a fork."""
MAX_REQUEST_BYTES = 2**20
"""Greatest size in bytes of a request: a command, its folder and its environment."""


class ForkServer:
    """Starts the process that is forked. That process ends when this one ends, in whatever way."""

    def __init__(self, modules: tuple[str, ...], environment: Mapping[str, str]) -> None:
        """The process imports `modules` in `environment`. Requests before that wait."""
        self.folder = tempfile.mkdtemp(prefix="hive-ray-", dir=socket_folder())
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
            listening.bind(f"{self.folder}/socket")
            listening.listen(64)
            self.process = subprocess.Popen(
                [sys.executable, "-m", __name__, self.folder, str(listening.fileno()), *modules],
                env=environment,
                stdin=subprocess.PIPE,
                pass_fds=[listening.fileno()],
                start_new_session=True,  # it must not receive Ctrl-C
            )

    @property
    def command(self) -> str:
        """The command that runs a script in a fork, for Ray's `py_executable`.

        If the process is gone, the script runs in a new interpreter.
        """
        return shlex.join([sys.executable, "-IS", str(CLIENT_SCRIPT), f"{self.folder}/socket"])


def serve(listening: socket.socket) -> list[str] | None:
    """Fork for each request. Returns the requested command in a fork, and None in this process when stdin ends."""
    while sys.stdin not in select.select([listening, sys.stdin], [], [])[0]:
        client, _ = listening.accept()
        request, streams, _, _ = socket.recv_fds(client, MAX_REQUEST_BYTES, 3)
        if request and os.fork() == 0:  # a client that was killed sends an empty request
            listening.close()
            return become_worker(json.loads(request), client.detach(), streams)
        client.close()
        for stream in streams:
            os.close(stream)
    return None


def import_modules(modules: Iterable[str]) -> None:
    """Import the modules and prepare to fork."""
    for name in modules:
        importlib.import_module(name)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended forks do not become zombies


def become_worker(request: dict, client: int, streams: list[int]) -> list[str]:
    """Turn a fork into the requested worker: set its environment, folder and streams. Returns its command.

    The client lives until the socket `client` is closed, which stays open until this process ends.
    """
    os.setpgid(0, 0)  # Ray kills the process group of a dead worker
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.write(client, os.getpid().to_bytes(4, "big"))
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    np.random.seed()  # Python reseeds its own generator in a fork
    return request["command"]


def run_script(command: list[str], installed: list[str]) -> None:
    """Run a script as a new interpreter would."""
    sys.argv = command
    own = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:] = [os.path.dirname(command[0]), *own, *installed]
    runpy.run_path(command[0], run_name="__main__")


def main() -> None:
    folder, listening, *modules = sys.argv[1:]
    own_paths = [sys.path[0], *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    installed = [place for place in sys.path if place not in own_paths]
    own = os.getpid()
    try:
        import_modules(modules)
        if "ray" in sys.modules:
            raise ImportError(f"one of {', '.join(modules)} imports Ray, which only the forks may import")
        command = serve(socket.socket(fileno=int(listening)))
    finally:
        if os.getpid() == own:  # a fork also gets here if its client was killed
            shutil.rmtree(folder, ignore_errors=True)
    if command:
        run_script(command, installed)


if __name__ == "__main__":
    main()
