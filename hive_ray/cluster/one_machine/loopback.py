"""Makes Ray listen only on the loopback address, even if Ray is already imported, and gives it time to start.

With public API an environment variable must be set before Ray is imported (`addresses.start_on_loopback`).
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray._private import ray_constants, services

from hive_ray.cluster.addresses import LOOPBACK_VARIABLE
from hive_ray.cluster.this_machine import child_processes, is_alive

NODE_START_TIMEOUT_S = 300.0
"""Seconds for a node to start. Ray's own 30 s cannot be changed."""


@contextmanager
def on_loopback() -> Iterator[None]:
    """Inside this context, Ray and its new processes take the loopback address for this machine's address."""
    variable, value = LOOPBACK_VARIABLE
    before = os.environ.get(variable)
    enabled = ray_constants.ENABLE_RAY_CLUSTER
    os.environ[variable] = value
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = enabled
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


@contextmanager
def waiting_for_node() -> Iterator[None]:
    """Inside this context, a node has NODE_START_TIMEOUT_S to start, if its raylet is alive."""
    get_node = services.get_node
    until = time.monotonic() + NODE_START_TIMEOUT_S

    def get_node_patiently(*arguments: Any) -> Any:
        while True:
            try:
                return get_node(*arguments)
            except RuntimeError:  # the node has not registered yet
                if time.monotonic() > until or not any(map(is_alive, child_processes("raylet"))):
                    raise
                time.sleep(0.1)

    services.get_node = get_node_patiently
    try:
        yield
    finally:
        services.get_node = get_node


def bind_replica_to(host: str) -> None:
    """Make replicas of Ray Serve in this process listen only on this address."""
    from ray.serve._private import replica  # only needed for serving

    listen = replica.add_port_to_grpc_server
    if getattr(listen, "listens_on", "") == host:
        return
    address = f"[{host}]:0" if ":" in host else f"{host}:0"

    def listen_here(server: Any, _: str) -> int:
        return listen(server, address)

    listen_here.listens_on = host
    replica.add_port_to_grpc_server = listen_here
