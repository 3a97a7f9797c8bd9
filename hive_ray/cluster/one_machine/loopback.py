"""What keeps a cluster that is started here to this machine and this user: the loopback address, a token, short paths.

Ray 2.60 listens on every interface unless its node's own address is the loopback one, which on Linux it refuses to be
told. It has a switch for systems whose firewalls would ask, with which it uses the loopback address alone.
"""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil
from ray._common.network_utils import build_address, get_localhost_ip, is_localhost
from ray._common.tls_utils import add_port_to_grpc_server
from ray._private import ray_constants, services
from ray.util import get_node_ip_address

from hive_ray.cluster.one_machine.forks import LONGEST_FOLDER, SHORT_FOLDER, holds_sockets
from hive_ray.console import say, warn
from hive_ray.schemas import Stopped

LOOPBACK = ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
"""The switch, as `serve run`, `ray start` and Ray's own processes read it in their environment."""
PATIENCE = {"RAY_agent_register_timeout_ms": "300000", "RAY_raylet_start_wait_time_s": "300"}
"""How long Ray's processes wait for each other as they start, where it is not set. Ray's own 15 and 30 s are not enough
on a machine that others use."""
START_S = 300.0
"""How long the node may take to come up; Ray's own 30 s cannot be set."""
SLOW_S = 20.0
"""After so many seconds of a start, a line says what is waited for."""


def choose_ray_folder() -> None:
    """Have Ray keep its sockets and logs in /tmp where TMPDIR is too long for sockets, or has letters that Ray cannot
    pass on; ValueError if RAY_TMPDIR is."""
    for name in ("RAY_TMPDIR", "TMPDIR"):
        folder = os.environ.get(name)
        if folder is None:
            continue
        if holds_sockets(folder):
            return
        why = f"{name}={folder} is too long for Ray's sockets (at most {LONGEST_FOLDER} characters)"
        if not folder.isascii():
            why = f"{name}={folder} has letters that Ray cannot pass on"
        if name == "RAY_TMPDIR":
            raise ValueError(f"{why}: set it to a folder such as {SHORT_FOLDER}")
        os.environ["RAY_TMPDIR"] = SHORT_FOLDER
        say(f"{why}: Ray keeps its sockets and logs in {SHORT_FOLDER}; set RAY_TMPDIR to choose")
        return


@contextmanager
def private_start() -> Iterator[None]:
    """As long as it lasts, Ray starts on the loopback address alone, and has START_S to come up. Says so once it takes
    long. What Ray raises becomes `Stopped`."""
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    slow = threading.Timer(SLOW_S, _say_that_it_takes_long)
    slow.daemon = True
    get_node = services.get_node
    until = time.monotonic() + START_S

    def get_node_patiently(*which: Any) -> Any:
        while True:
            try:
                return get_node(*which)
            except RuntimeError:  # it is not there yet
                if time.monotonic() > until or not any(map(lives, own_processes("raylet"))):
                    raise
                time.sleep(0.1)

    services.get_node = get_node_patiently
    slow.start()
    try:
        with on_loopback():
            yield
    except Exception as error:
        raise Stopped(
            f"Ray did not start on this machine: {first_line(error)}. If the machine is busy or its memory or disk is "
            "full, give the same command once it is not; Ray's logs are in "
            f"{os.environ.get('RAY_TMPDIR') or os.environ.get('TMPDIR') or SHORT_FOLDER}/ray/session_latest/logs"
        ) from error
    finally:
        slow.cancel()
        services.get_node = get_node


@contextmanager
def on_loopback() -> Iterator[None]:
    """As long as it lasts, Ray takes the loopback address for this machine's own, here and in processes it starts."""
    switch, before, usual = LOOPBACK[0], os.environ.get(LOOPBACK[0]), ray_constants.ENABLE_RAY_CLUSTER
    os.environ[switch] = LOOPBACK[1]
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = usual
        if before is None:
            del os.environ[switch]
        else:
            os.environ[switch] = before


def listens_on_loopback_alone(address: str) -> bool:
    """Whether a cluster's address is one that only this machine reaches, such as that of a cluster that another job
    started here. Ray would look for it at this machine's other address, and not find it."""
    host, _, port = address.rpartition(":")
    if not is_localhost(host) or not port.isdigit():
        return False
    try:
        socket.create_connection((get_node_ip_address(), int(port)), 5.0).close()
    except OSError:
        return True
    return False


def is_on_loopback() -> bool:
    """Whether this process's node, and so the cluster, is one that only this machine reaches."""
    return is_localhost(get_node_ip_address())


def loopback_interface() -> str:
    """The name of the interface that only this machine reaches: `lo`, or `lo0`."""
    found = psutil.net_if_addrs().items()
    return next((name for name, each in found if any(one.address == get_localhost_ip() for one in each)), "lo")


def keep_replica_here() -> None:
    """Have this replica of Ray Serve listen for other replicas on the loopback address alone where its node does; Serve
    has it listen on all addresses. To be called while its deployment is made, before it listens."""
    from ray.serve._private import replica  # nothing that trains or maps needs Serve

    usual = replica.add_port_to_grpc_server
    if is_on_loopback() and usual is add_port_to_grpc_server:
        replica.add_port_to_grpc_server = lambda server, _: usual(server, build_address(get_localhost_ip(), 0))


def first_line(error: BaseException) -> str:
    """The kind of an error and the first line of what it says, without its last full stop."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0].rstrip('. ')}" if said else type(error).__name__


def _say_that_it_takes_long() -> None:
    warn(f"Ray has been starting for {SLOW_S:g} s, as it does on a busy machine; it has {START_S:g} s in all")


def own_processes(*names: str) -> list[psutil.Process]:
    """The processes of these names that this process has started, ended ones too."""
    with suppress(psutil.NoSuchProcess):  # one that ended as they were listed
        return [child for child in psutil.Process().children() if child.name() in names]
    return []


def lives(process: psutil.Process) -> bool:
    """Whether a process runs, and is not one that has ended and waits for its parent to notice."""
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
