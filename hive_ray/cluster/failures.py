"""The end of a cluster while a job runs, in words: a node, the head, a raylet, the GCS or an object store is gone.

Ray ends a driver whose cluster is gone by a trace of its own, after up to a minute, or not at all.
"""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from hive_ray import console
from hive_ray.cluster.auth_token import remove_private_folder
from hive_ray.cluster.noise import exit_with
from hive_ray.cluster.polling import polling
from hive_ray.cluster.switch import started_here
from hive_ray.cluster.this_machine import child_processes, first_line, is_alive
from hive_ray.errors import Stopped

CLUSTER_PROCESSES = ("gcs_server", "raylet")
"""Processes without which a cluster of this machine is none."""
CHECK_S = 0.2
"""How often they are looked for: within a second or two of a raylet's death Ray ends its driver without a word."""
HEAD_CHECK_S = 2.0
HEAD_TIMEOUT_S = 45.0
"""How long the head of a joined cluster may be away; after 60 s Ray ends the driver by itself."""
START_GRACE_S = 3.0
"""A part that has ended for so long, as Ray starts, was not ended by Ray, which would have said why by now."""
RESUME_HINT = "What is finished stays: the same command goes on from there"


@contextmanager
def exiting_when_cluster_is_lost() -> Iterator[None]:
    """As long as it lasts, a lost cluster ends this process with 1 and one sentence. For the command line: no cleaning
    up is waited for, since it would wait for the cluster."""
    here = started_here()
    what_is_lost = _parts_of_this_machine() if here else _head_at(ray.get_runtime_context().gcs_address)

    def look() -> None:
        if lost := what_is_lost():
            _end(lost)

    with polling(look, CHECK_S if here else HEAD_CHECK_S):
        yield


@contextmanager
def exiting_when_start_fails() -> Iterator[None]:
    """As long as Ray starts a cluster on this machine: where a part of it ends, this process does, as `exiting_when_cluster_is_lost`
    has it. Ray would wait for that part as long as a busy machine may take."""
    if os.environ.get("RAY_ADDRESS") or ray.is_initialized():
        yield
        return
    seen: dict[int, psutil.Process] = {}
    since: float | None = None

    def look() -> None:
        nonlocal since
        seen.update({part.pid: part for part in child_processes(*CLUSTER_PROCESSES)})
        ended = [part.name() for part in seen.values() if not is_alive(part)]
        since = (since or time.monotonic()) if ended else None
        if since and time.monotonic() - since > START_GRACE_S:
            _end(f"Ray's {' and '.join(ended)} ended as it started; memory or disk may be full")

    with polling(look, CHECK_S):
        yield


def explain_ray_error(error: Exception) -> str | None:
    """What a person is told of an error of Ray's: of a task the error that it raised, of all others that the same
    command goes on; None where it is a bug, whose traceback is wanted."""
    from ray.train import ControllerError, WorkerGroupError  # not for jobs that train nothing

    if isinstance(error, RayTaskError):
        cause = error.cause
        return f"{type(cause).__name__}: {cause}" if isinstance(cause, ValueError | OSError | Stopped) else None
    if isinstance(error, WorkerGroupError):
        causes = list(error.worker_failures.values())
        if not causes or not all(_is_rays_own(cause) for cause in causes):
            return None
        return f"Stopped: training lost its workers: {first_line(causes[0])}. {RESUME_HINT}"
    if isinstance(error, ControllerError):
        return f"Stopped: training was lost: {first_line(error.controller_failure)}. {RESUME_HINT}"
    return f"Stopped: the cluster failed: {first_line(error)}. {RESUME_HINT}" if _is_rays_own(error) else None


def _is_rays_own(error: Exception) -> bool:
    """Whether Ray failed, and no code that it ran."""
    ran = isinstance(error, RayTaskError) or (isinstance(error, RayActorError) and error.actor_init_failed)
    return isinstance(error, RayError) and not ran


def _end(lost: str) -> None:
    remove_private_folder()
    words = f"Stopped: the cluster was lost: {lost}. {RESUME_HINT}"
    console.fail(words)
    exit_with(words, 1)


def _parts_of_this_machine() -> Callable[[], str]:
    """What tells which process of this machine's cluster has ended."""
    parts = child_processes(*CLUSTER_PROCESSES)
    names = {part.pid: part.name() for part in parts}

    def lost() -> str:
        ended = [names[part.pid] for part in parts if not is_alive(part)]
        return f"Ray's {' and '.join(ended)} ended; memory or disk may be full" if ended else ""

    return lost


def _head_at(address: str) -> Callable[[], str]:
    """What tells that the head of a joined cluster has not been there for HEAD_TIMEOUT_S."""
    host, port = address.rsplit(":", 1)
    seen = time.monotonic()

    def lost() -> str:
        nonlocal seen
        try:
            socket.create_connection((host.strip("[]"), int(port)), HEAD_CHECK_S).close()
            seen = time.monotonic()
        except OSError:
            if time.monotonic() - seen > HEAD_TIMEOUT_S:
                return f"its head at {address} has not answered for {HEAD_TIMEOUT_S:g} s"
        return ""

    return lost
