"""Reports the loss of a cluster in one sentence: a node, the head, a raylet, the GCS or an object store is gone.

Ray itself ends a driver whose cluster is gone with a stack trace after up to a minute, or not at all.
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
"""Processes that a cluster on this machine needs."""
CHECK_S = 0.2
"""Seconds between checks of these processes. Ray silently ends the driver within a second or two of a raylet's end."""
HEAD_CHECK_S = 2.0
"""Seconds between checks of a joined cluster's head."""
HEAD_TIMEOUT_S = 45.0
"""Seconds without an answer after which the head counts as lost. Ray itself ends the driver after 60 s."""
START_GRACE_S = 3.0
"""A process that ended this many seconds ago, while Ray starts, was not ended by Ray: Ray would have said so."""
RESUME_HINT = "What is finished stays: the same command goes on from there"
"""The last sentence of these messages."""


@contextmanager
def exiting_when_cluster_is_lost() -> Iterator[None]:
    """While this context lasts, a lost cluster ends this process with status 1 and one sentence. For the command line.

    Exit handlers are skipped, since they would wait for the cluster.
    """
    here = started_here()
    what_is_lost = _parts_of_this_machine() if here else _head_at(ray.get_runtime_context().gcs_address)

    def check() -> None:
        if lost := what_is_lost():
            _end(lost)

    with polling(check, CHECK_S if here else HEAD_CHECK_S):
        yield


@contextmanager
def exiting_when_start_fails() -> Iterator[None]:
    """While Ray starts a cluster on this machine: if one of its processes ends, this process ends with one sentence.

    Ray would keep waiting for that process, as long as a busy machine may need.
    """
    if os.environ.get("RAY_ADDRESS") or ray.is_initialized():
        yield
        return
    known: dict[int, psutil.Process] = {}
    since: float | None = None

    def check() -> None:
        nonlocal since
        known.update({part.pid: part for part in child_processes(*CLUSTER_PROCESSES)})
        ended = [part.name() for part in known.values() if not is_alive(part)]
        since = (since or time.monotonic()) if ended else None
        if since and time.monotonic() - since > START_GRACE_S:
            _end(f"Ray's {' and '.join(ended)} ended as it started; memory or disk may be full")

    with polling(check, CHECK_S):
        yield


def explain_ray_error(error: Exception) -> str | None:
    """One sentence that explains an error of Ray, or None for a bug, whose traceback should be shown.

    For a failed task the sentence is the error of the task. For all others it says that the same command continues.
    """
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
    """Whether Ray itself failed, not the code that it ran."""
    is_from_code = isinstance(error, RayTaskError) or (isinstance(error, RayActorError) and error.actor_init_failed)
    return isinstance(error, RayError) and not is_from_code


def _end(lost: str) -> None:
    remove_private_folder()
    words = f"Stopped: the cluster was lost: {lost}. {RESUME_HINT}"
    console.fail(words)
    exit_with(words, 1)


def _parts_of_this_machine() -> Callable[[], str]:
    """A function that returns which process of this machine's cluster has ended, or an empty string."""
    parts = child_processes(*CLUSTER_PROCESSES)
    names = {part.pid: part.name() for part in parts}

    def lost() -> str:
        ended = [names[part.pid] for part in parts if not is_alive(part)]
        return f"Ray's {' and '.join(ended)} ended; memory or disk may be full" if ended else ""

    return lost


def _head_at(address: str) -> Callable[[], str]:
    """A function that returns a message if a joined cluster's head has not answered for HEAD_TIMEOUT_S."""
    host, port = address.rsplit(":", 1)
    answered_at = time.monotonic()

    def lost() -> str:
        nonlocal answered_at
        try:
            socket.create_connection((host.strip("[]"), int(port)), HEAD_CHECK_S).close()
            answered_at = time.monotonic()
        except OSError:
            if time.monotonic() - answered_at > HEAD_TIMEOUT_S:
                return f"its head at {address} has not answered for {HEAD_TIMEOUT_S:g} s"
        return ""

    return lost
