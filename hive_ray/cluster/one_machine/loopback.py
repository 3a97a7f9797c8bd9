"""Ray listens on the loopback address alone, also where it has been imported already, and has time to start.

By public means that takes an environment variable before Ray is imported (`addresses.start_on_loopback`).
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
"""How long the node may take to come up; Ray's own 30 s cannot be set."""


@contextmanager
def on_loopback() -> Iterator[None]:
    """As long as it lasts, Ray takes the loopback address for this machine's own, here and in processes it starts."""
    variable, value = LOOPBACK_VARIABLE
    before = os.environ.get(variable)
    usual = ray_constants.ENABLE_RAY_CLUSTER
    os.environ[variable] = value
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = usual
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


@contextmanager
def waiting_for_node() -> Iterator[None]:
    """As long as it lasts, a node that starts has NODE_START_TIMEOUT_S to come up, as long as its raylet lives."""
    get_node = services.get_node
    until = time.monotonic() + NODE_START_TIMEOUT_S

    def get_node_patiently(*arguments: Any) -> Any:
        while True:
            try:
                return get_node(*arguments)
            except RuntimeError:  # it is not there yet
                if time.monotonic() > until or not any(map(is_alive, child_processes("raylet"))):
                    raise
                time.sleep(0.1)

    services.get_node = get_node_patiently
    try:
        yield
    finally:
        services.get_node = get_node


def bind_replica_to(host: str) -> None:
    """Have replicas of Ray Serve that this process makes listen on this address alone."""
    from ray.serve._private import replica  # nothing that trains or maps needs Serve

    listen = replica.add_port_to_grpc_server
    if getattr(listen, "listens_on", "") == host:
        return
    address = f"[{host}]:0" if ":" in host else f"{host}:0"

    def listen_here(server: Any, _: str) -> int:
        return listen(server, address)

    listen_here.listens_on = host
    replica.add_port_to_grpc_server = listen_here
