"""A cluster on this machine, with Ray's public API: folders, timeouts, processes, and whether others can reach it."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil
from ray.util import get_node_ip_address

from hive_ray.cluster.addresses import MAX_FOLDER_LENGTH, SHORT_FOLDER, fits_sockets, is_loopback
from hive_ray.cluster.switch import takes_special_path
from hive_ray.console import say, warn
from hive_ray.errors import Stopped

START_TIMEOUTS = {"RAY_agent_register_timeout_ms": "300000", "RAY_raylet_start_wait_time_s": "300"}
"""How long Ray's processes wait for each other when they start, if not set. Ray's own 15 and 30 s are too short on a
busy machine."""
SLOW_START_S = 20.0
"""Seconds of a start after which a line says that it takes long."""


def choose_ray_folder() -> None:
    """Make Ray keep its sockets and logs in /tmp if TMPDIR is too long for sockets or is not ASCII.

    Raises ValueError if RAY_TMPDIR is.
    """
    for name in ("RAY_TMPDIR", "TMPDIR"):
        folder = os.environ.get(name)
        if folder is None:
            continue
        if fits_sockets(folder):
            return
        why = f"{name}={folder} is too long for Ray's sockets (at most {MAX_FOLDER_LENGTH} characters)"
        if not folder.isascii():
            why = f"{name}={folder} has characters that are not ASCII, which Ray cannot handle"
        if name == "RAY_TMPDIR":
            raise ValueError(f"{why}: set it to a folder such as {SHORT_FOLDER}")
        os.environ["RAY_TMPDIR"] = SHORT_FOLDER
        say(f"{why}: Ray keeps its sockets and logs in {SHORT_FOLDER}; set RAY_TMPDIR to choose")
        return


@contextmanager
def patient_start() -> Iterator[None]:
    """While Ray starts: its processes wait longer, a line reports a slow start, and an error becomes Stopped."""
    for name, value in START_TIMEOUTS.items():
        os.environ.setdefault(name, value)
    slow = threading.Timer(SLOW_START_S, _say_that_it_takes_long)
    slow.daemon = True
    slow.start()
    try:
        yield
    except Exception as error:
        raise Stopped(
            f"Ray did not start on this machine: {first_line(error)}. If the machine is busy or its memory or disk is "
            "full, give the same command later; Ray's logs are in "
            f"{os.environ.get('RAY_TMPDIR') or os.environ.get('TMPDIR') or SHORT_FOLDER}/ray/session_latest/logs"
        ) from error
    finally:
        slow.cancel()


def _say_that_it_takes_long() -> None:
    warn(f"Ray has been starting for {SLOW_START_S:g} s, which is common on a busy machine")


def listens_only_on_loopback(address: str) -> bool:
    """Whether only this machine can reach the address of a cluster, as for a cluster that another job started here.

    Ray would look for it at this machine's other address and not find it.
    """
    host, _, port = address.rpartition(":")
    if not is_loopback(host.strip("[]")) or not port.isdigit():
        return False
    try:
        socket.create_connection((get_node_ip_address(), int(port)), 5.0).close()
    except OSError:
        return True
    return False


def node_is_on_loopback() -> bool:
    """Whether only this machine can reach the node of this process, and so the cluster."""
    return is_loopback(get_node_ip_address())


def loopback_interface() -> str:
    """The name of the loopback interface: `lo`, or `lo0`."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(is_loopback(address.address) for address in addresses):
            return name
    return "lo"


def bind_replica_to_loopback() -> None:
    """Make this replica of Ray Serve listen only on the loopback address, if its node does.

    Serve makes replicas listen on all addresses, and its public API cannot change that. Call it in the constructor of
    the deployment, before the replica listens.
    """
    if takes_special_path("loopback") and node_is_on_loopback():
        from hive_ray.cluster.one_machine.loopback import bind_replica_to

        bind_replica_to(get_node_ip_address())


def first_line(error: BaseException) -> str:
    """The class of an error and the first line of its message, without a final full stop."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('. ')}" if lines else type(error).__name__


def child_processes(*names: str) -> list[psutil.Process]:
    """The child processes with these names, including ended ones."""
    with suppress(psutil.NoSuchProcess):  # a process ended while they were listed
        return [child for child in psutil.Process().children() if child.name() in names]
    return []


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs and is not a zombie."""
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
