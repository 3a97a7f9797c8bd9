"""Idle actors that Ray Data leaves behind, and the allocator of workers."""

import os
from contextlib import suppress

import ray
from ray._private.services import JEMALLOC_SO
from ray.exceptions import RayError

DATA_HELPERS = {
    "ActorLocationTracker": "ActorLocationTracker",
    "AutoscalingCoordinator": "AutoscalingCoordinator",
    "datasets_stats_actor": "_dataset_stats_actor",
}
"""Name -> namespace of the actors that Ray Data creates for its first execution and leaves running. Later executions
reuse or recreate them."""
PENDING_CALLS_S = 10.0
"""Seconds for such an actor to finish its pending calls. Ray would report calls that it loses."""
JEMALLOC_ENVIRONMENT = {"LD_PRELOAD": JEMALLOC_SO, "MALLOC_CONF": "dirty_decay_ms:-1,muzzy_decay_ms:-1"}
"""Variables that make workers on this machine use the allocator that Ray ships. glibc's with a single arena also keeps
the memory of each step (`starting.GLIBC_ENVIRONMENT`), but threads wait for its lock. Ray's has neither problem."""
PAGE_BYTES = 4096
"""Page size in bytes that Ray's allocator is built for. With another page size it crashes."""


def jemalloc_environment() -> dict[str, str]:
    """Variables that make workers use Ray's allocator; empty if it is missing or does not fit."""
    fits = os.sysconf("SC_PAGE_SIZE") == PAGE_BYTES
    return JEMALLOC_ENVIRONMENT if fits and JEMALLOC_SO and os.path.exists(JEMALLOC_SO) else {}


def end_data_helpers() -> None:
    """End the idle actors of Ray Data before a training that uses all cores.

    Each of them wakes often, and if all cores compute one step together, all of them wait for each wake-up.
    """
    for name, namespace in DATA_HELPERS.items():
        with suppress(ValueError, RayError):  # there is none, or it has ended
            helper = ray.get_actor(name, namespace)
            ray.get(helper.__ray_ready__.remote(), timeout=PENDING_CALLS_S)  # its pending calls are done
            ray.kill(helper)
