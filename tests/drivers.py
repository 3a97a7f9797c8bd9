"""Drivers to be killed: forked from a server that has imported the jobs already."""

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fork_server import server

TESTS = Path(__file__).parent
LONGEST_S = 240.0
"""How long a driver may take until it is to be killed."""


def start(
    act: Callable[..., Any], *arguments: Any, cluster: str = "", log: Path | None = None
) -> multiprocessing.Process:
    """Call `act(*arguments)`, of a module, in a process of its own with this environment: a driver on the `cluster` of
    this address, if there is one, whose workers can import that module. What it prints goes to `log`."""
    here = Path(sys.modules[act.__module__].__file__).parent
    paths = os.pathsep.join(map(str, (here, TESTS, TESTS.parent)))
    environment = os.environ | {"PYTHONPATH": paths, "RAY_ADDRESS": cluster}
    process = server.Process(target=_drive, args=(act, arguments, environment, log), daemon=True)
    process.start()
    return process


def kill_when(condition: Callable[[], Any], driver: multiprocessing.Process, *, after_s: float = 0.0) -> None:
    """SIGKILL for a driver, so long after the condition is first true, or at its own end."""
    until = time.monotonic() + LONGEST_S
    while not condition() and driver.is_alive() and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(after_s)
    driver.kill()
    driver.join()


def _drive(act: Callable[..., Any], arguments: tuple, environment: dict[str, str], log: Path | None) -> None:
    from ray._raylet import Config

    from hive_ray.cluster.starting import start_ray

    os.environ.clear()  # the server's is that of whoever asked it first
    os.environ.update(environment)
    Config.initialize("")  # Ray read the server's as it was imported there, perhaps before there was a token
    if log:
        with log.open("w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
    if environment["RAY_ADDRESS"]:
        start_ray()
    act(*arguments)
