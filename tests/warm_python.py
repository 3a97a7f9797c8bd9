"""A Python that has imported heavy packages already, for the workers of Ray in tests (see warm_workers.py).

python warm_python.py serve <address>                     import once, then fork for whoever asks
python -I -S warm_python.py ask <address> <script> ...    have a fork run the script, and live as long as it does
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

IMPORTED = ("torch", "deepspeed", "pandas", "pyarrow.dataset", "scipy.sparse.linalg", "matplotlib.figure", "boto3",
            "hive_ray.pairs.generation", "hive_ray.editor.objective", "hive_ray.editor.latents",
            "hive_ray.editor.preview", "hive_ray.editor.lora", "hive_ray.reward.judges", "hive_ray.reward.worth",
            "hive_ray.evaluation.report", "hive_ray.shapes.actors", "hive_ray.shapes.annotator")  # fmt: skip
"""Not Ray itself: it reads its environment when it is imported, and each worker has its own."""


def ask(address: str, command: list[str]) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        try:
            server.connect(address)
        except OSError:
            os.execv(sys.executable, [sys.executable, *command])
        told = json.dumps({"command": command, "environment": dict(os.environ), "folder": os.getcwd()}).encode()
        socket.send_fds(server, [len(told).to_bytes(4, "big")], [0, 1, 2])
        server.sendall(told)
        asked = int.from_bytes(server.recv(4), "big")
        signal.signal(signal.SIGTERM, lambda *_: os.kill(asked, signal.SIGTERM))
        server.recv(1)  # until its end


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
        told = json.loads(stream.read(int.from_bytes(size, "big")))
    client.sendall(os.getpid().to_bytes(4, "big"))
    client.detach()  # stays open to this process's end
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(told["environment"])
    os.chdir(told["folder"])
    sys.modules["numpy"].random.seed()  # Python's own random numbers begin anew in a fork by themselves
    return told["command"]


def run(command: list[str], installed: list[str]) -> None:
    """Run a script as an interpreter does that was started for it."""
    sys.argv = command
    own = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:] = [os.path.dirname(command[0]), *own, *installed]
    runpy.run_path(command[0], run_name="__main__")


if __name__ == "__main__":
    verb, address, *command = sys.argv[1:]
    if verb == "ask":
        ask(address, command)
    else:
        ours = [os.path.dirname(__file__), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        installed = [folder for folder in sys.path if folder not in ours]
        if command := serve(address):
            run(command, installed)
