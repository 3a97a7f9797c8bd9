"""What Ray starts for each worker, in place of its setup_worker.py: has a warm process forked that becomes the worker.

Imports next to nothing, since each worker waits for it; lives as long as the worker does.
"""

import argparse
import json
import os
import signal
import socket
import sys


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--serialized-runtime-env-context", default="{}")
    parser.add_argument("--language")
    told, command = parser.parse_known_args()
    variables = json.loads(told.serialized_runtime_env_context).get("env_vars", {})
    os.environ.update({name: os.path.expandvars(value) for name, value in variables.items()})
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.connect(os.environ["HIVE_RAY_WARM_WORKERS"])
        asked = {"command": command, "environment": dict(os.environ), "folder": os.getcwd()}
        socket.send_fds(server, [json.dumps(asked).encode()], [0, 1, 2])
        worker = int.from_bytes(server.recv(4), "big")
        signal.signal(signal.SIGTERM, lambda *_: os.kill(worker, signal.SIGTERM))
        server.recv(1)  # until its end


if __name__ == "__main__":
    sys.exit(main())
