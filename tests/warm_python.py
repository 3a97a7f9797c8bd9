"""A process that has imported what Ray's workers need, and is forked for each: `python warm_python.py <address>`.

See warm_workers.py.
"""

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys

import numpy as np

IMPORTED = ("torch", "deepspeed", "pandas", "pyarrow.dataset", "scipy.sparse.linalg", "matplotlib.figure", "boto3",
            "pydantic", "jsonschema", "tensorboardX", "google.protobuf.message",
            "hive_ray.pairs.generation", "hive_ray.editor.objective", "hive_ray.editor.latents",
            "hive_ray.editor.preview", "hive_ray.editor.lora", "hive_ray.reward.judges", "hive_ray.reward.worth",
            "hive_ray.evaluation.report", "hive_ray.shapes.actors", "hive_ray.shapes.annotator")  # fmt: skip
"""Not Ray itself: it reads its environment when it is imported, and each worker has its own."""


def serve(address: str) -> list[str] | None:
    """In the forks, the command to run; in the server None, once its input has ended."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen(64)  # who asks before all is imported waits
    for name in IMPORTED:
        importlib.import_module(name)
    assert "ray" not in sys.modules
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended forks leave no trace
    while sys.stdin not in select.select([listening, sys.stdin], [], [])[0]:
        client, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            return become_what_was_asked(client)
        client.close()
    return None


def become_what_was_asked(client: socket.socket) -> list[str]:
    """Take over the environment, folder, streams and command of a client, which lives until `client` is closed."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, streams, _, _ = socket.recv_fds(client, 4, 3)
    with client.makefile("rb") as stream:
        asked = json.loads(stream.read(int.from_bytes(size, "big")))
    client.sendall(os.getpid().to_bytes(4, "big"))
    client.detach()  # stays open to this process's end
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    np.random.seed()  # Python's own random numbers begin anew in a fork by themselves
    return asked["command"]


def run(command: list[str], installed: list[str]) -> None:
    """Run a script as an interpreter does that was started for it."""
    sys.argv = command
    own = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:] = [os.path.dirname(command[0]), *own, *installed]
    runpy.run_path(command[0], run_name="__main__")


if __name__ == "__main__":
    ours = [os.path.dirname(__file__), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    installed = [folder for folder in sys.path if folder not in ours]
    if command := serve(sys.argv[1]):
        run(command, installed)
