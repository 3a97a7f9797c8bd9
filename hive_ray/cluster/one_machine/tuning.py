"""Settings of Ray's own processes, actors that it leaves behind, and the allocator of workers."""

import os
from contextlib import suppress

import ray
from ray._private.services import JEMALLOC_SO
from ray.exceptions import RayError

CALMER = {
    "EVENT_AGENT_REPORT_INTERVAL_SECONDS": "5",
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "1",
    "RAY_enable_metrics_collection": "0",
    "RAY_event_stats": "0",
    "REPORTER_UPDATE_INTERVAL_MS": "60000",
}
"""What Ray's own processes are told, unless it is set, in a cluster that is started here without a dashboard. Ten times
a second its agent would look for what it would tell that, and its log monitor for files that no worker writes yet (now
twice a second); and all would keep times of each event for a file that nobody reads."""
WORKERS = {
    "RAY_worker_niceness": "0",  # at Ray's 15 whatever else runs here starves its workers
    "RAY_prestart_worker_first_driver": "0",  # workers without our environment, never used
}
"""What its raylet is told of workers, unless it is set."""
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


def calm_processes(dashboard: bool) -> None:
    """Set what Ray's processes read in the environment as they start. `dashboard`: they have one to report to."""
    for name, value in (WORKERS if dashboard else WORKERS | CALMER).items():
        os.environ.setdefault(name, value)


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
