"""Drivers of whole runs, to be killed: forked from a server that has imported the jobs already."""

import multiprocessing
import os
from pathlib import Path

from tests.fork_server import server


def start(settings: Path, run: str, log: Path, environment: dict[str, str]) -> multiprocessing.Process:
    """Run the pipeline with a settings file, in a process whose output goes to `log`."""
    process = server.Process(target=_drive, args=(settings, run, log, environment), daemon=True)
    process.start()
    return process


def _drive(settings: Path, run: str, log: Path, environment: dict[str, str]) -> None:
    from hive_ray.distributed.cluster import start_ray
    from jobs import pipeline
    from jobs.run import read_command

    os.environ.update(environment)
    with log.open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    start_ray()
    pipeline.build(read_command(["--config", str(settings), "--run", run]))
