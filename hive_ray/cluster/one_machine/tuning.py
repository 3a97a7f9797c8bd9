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
"""Names, and their namespaces, of the actors that Ray Data makes for its first execution and leaves behind. Each later
one takes those that are there, or makes them again."""
PENDING_CALLS_S = 10.0
"""How long such an actor may take for the calls that nobody waits for; Ray would complain of those that it loses."""
JEMALLOC_ENVIRONMENT = {"LD_PRELOAD": JEMALLOC_SO, "MALLOC_CONF": "dirty_decay_ms:-1,muzzy_decay_ms:-1"}
"""What has workers of this machine use the allocator that Ray brings. With one arena for all threads glibc's keeps the
memory of each step (`starting.GLIBC`), but they wait for each other at its lock, 400 times a second. Ray's has neither
fault; where it lies is known on this machine."""
PAGE_BYTES = 4096
"""Bytes of the pages that Ray's allocator is built for; it ends where they have another size."""


def jemalloc_environment() -> dict[str, str]:
    """The environment that has workers use Ray's allocator; empty where it is not there, or does not fit."""
    fits = os.sysconf("SC_PAGE_SIZE") == PAGE_BYTES
    return JEMALLOC_ENVIRONMENT if fits and JEMALLOC_SO and os.path.exists(JEMALLOC_SO) else {}


def end_data_helpers() -> None:
    """End what Ray Data has left behind, before a training that uses all cores: each such actor wakes 150 times a
    second, and where all cores compute one step together, all wait for each."""
    for name, namespace in DATA_HELPERS.items():
        with suppress(ValueError, RayError):  # there is none, or it ends by itself
            helper = ray.get_actor(name, namespace)
            ray.get(helper.__ray_ready__.remote(), timeout=PENDING_CALLS_S)  # what it was last asked is done
            ray.kill(helper)
