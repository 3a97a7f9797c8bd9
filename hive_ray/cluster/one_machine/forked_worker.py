"""What Ray starts as a worker if forks.py serves: requests a fork, which becomes the worker.

python forked_worker.py <socket> <script> <argument> ...

It imports as little as possible, since each worker waits for it. It lives as long as the worker.
"""

import json
import os
import signal
import socket
import sys


def run_in_fork(address: str, command: list[str]) -> None:
    """Request a fork from the process that listens at `address` to run this script and its arguments. Wait for its end.

    If no process listens, run the script in a new interpreter.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        try:
            server.connect(address)
            request = {"command": command, "environment": dict(os.environ), "folder": os.getcwd()}
            socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
            worker = int.from_bytes(server.recv(4), "big")
        except OSError:  # the fork server is gone
            worker = 0
        if not worker:
            os.execv(sys.executable, [sys.executable, *command])
        signal.signal(signal.SIGTERM, lambda *_: os.kill(worker, signal.SIGTERM))
        server.recv(1)  # returns when the worker ends


if __name__ == "__main__":
    run_in_fork(sys.argv[1], sys.argv[2:])
