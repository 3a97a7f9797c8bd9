"""Workers of Ray that start warm: forks of a process that has imported what they need.

Imports are most of what the tests with Ray would compute: 3 to 7 seconds of a core for each of several hundred workers.
A fork is a process of its own in everything else.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import warm_python

from hive_ray.distributed.cluster import ALLOCATOR, QUIET

TO_DRIVERS = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""How Ray hands the runtime environment of a submitted job to the drivers in it; here, to all."""


@contextmanager
def warm_workers() -> Iterator[dict[str, str]]:
    """As long as it lasts, workers of the drivers that find this environment are forked."""
    with tempfile.TemporaryDirectory(prefix="warm") as folder:
        address, early = f"{folder}/s", QUIET | ALLOCATOR | {"DS_ACCELERATOR": "cpu"}
        command = [sys.executable, warm_python.__file__, "serve", address]
        server = subprocess.Popen(command, stdin=subprocess.PIPE, env=early | os.environ)
        try:
            executable = f"{sys.executable} -I -S {warm_python.__file__} ask {address}"
            yield {TO_DRIVERS: json.dumps({"runtime_env": {"py_executable": executable}})}
        finally:
            server.communicate()  # it ends with its input
