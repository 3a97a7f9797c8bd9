"""Workers of Ray that start warm: forks of a process that has imported what they need.

Imports are most of what the tests with Ray would compute: 3 to 7 seconds of a core for each of several hundred workers.
A fork is a process of its own in everything else. `ray start` has workers as users do, and so have clusters of other
processes, unless these call `use_warm_workers`.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import warm_python
import warm_worker
from ray._private import ray_constants

from hive_ray.cluster.noise import QUIET_ENVIRONMENT
from hive_ray.cluster.starting import allocator_environment

ADDRESS = "HIVE_RAY_WARM_WORKERS"
"""The variable that says where forks are asked for."""


@contextmanager
def warm_workers() -> Iterator[None]:
    """As long as it lasts, the workers of clusters that this process starts are forked."""
    with tempfile.TemporaryDirectory(prefix="warm") as folder, pytest.MonkeyPatch.context() as patch:
        address, early = f"{folder}/s", QUIET_ENVIRONMENT | allocator_environment() | {"DS_ACCELERATOR": "cpu"}
        command = [sys.executable, warm_python.__file__, address]
        server = subprocess.Popen(command, stdin=subprocess.PIPE, env=early | os.environ)
        patch.setenv(ADDRESS, address)
        patch.setattr(ray_constants, "SETUP_WORKER_FILENAME", warm_worker.__file__)  # it is joined to Ray's folder
        try:
            yield
        finally:
            server.communicate()  # it ends with its input


def use_warm_workers() -> None:
    """In a process that a test starts: its clusters, too, have the forks of `warm_workers`, if the test has them."""
    if ADDRESS in os.environ:
        ray_constants.SETUP_WORKER_FILENAME = warm_worker.__file__
