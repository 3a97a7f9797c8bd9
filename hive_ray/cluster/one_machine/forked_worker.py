"""What Ray starts for a worker where forks.py serves: has a fork made that becomes the worker.

python forked_worker.py <socket> <script> <argument> ...

Imports next to nothing, since each worker waits for it; lives as long as the worker does.
"""

import json
import os
import signal
import socket
import sys


def run_in_fork(address: str, command: list[str]) -> None:
    """Have the process that listens at `address` fork, and the fork run this script and its arguments; live until its
    end. Run it in a new interpreter where nobody listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        try:
            server.connect(address)
            asked = {"command": command, "environment": dict(os.environ), "folder": os.getcwd()}
            socket.send_fds(server, [json.dumps(asked).encode()], [0, 1, 2])
            worker = int.from_bytes(server.recv(4), "big")
        except OSError:  # nobody is there to fork
            worker = 0
        if not worker:
            os.execv(sys.executable, [sys.executable, *command])
        signal.signal(signal.SIGTERM, lambda *_: os.kill(worker, signal.SIGTERM))
        server.recv(1)  # until its end


if __name__ == "__main__":
    run_in_fork(sys.argv[1], sys.argv[2:])
