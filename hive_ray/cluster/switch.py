"""The switch between the public path and the special paths, which are faster or more private on one machine.

    HIVE_RAY_ONE_MACHINE unset or 1         all of SPECIAL_PATHS
    HIVE_RAY_ONE_MACHINE=0                  none: only Ray's public API, with workers and trainings as Ray starts them
    HIVE_RAY_ONE_MACHINE=forks,controller   these, and `loopback`

A cluster that a job joins takes the public path, whatever the switch says. The exception is `loopback`, which keeps
others out: it applies to every cluster that listens only on the loopback address, whoever started it.

The special paths are in `one_machine/`, the only folder that uses Ray's internals. Its modules are imported only when
their path is taken, so the public path keeps working if a release of Ray changes its internals.
"""

import os
from typing import Any, cast

import ray

SWITCH_VARIABLE = "HIVE_RAY_ONE_MACHINE"
SPECIAL_PATHS = {
    "loopback": "Ray, the workers' rendezvous and replicas of Ray Serve listen only on the loopback address",
    "forks": "workers are forks of a process that has already imported their modules",
    "controller": "the driver controls its trainings itself, and first ends idle actors of Ray",
    "allocator": "workers use the memory allocator that Ray ships",
}
"""The special paths and what each does."""
DASHBOARD_VARIABLE = "HIVE_RAY_DASHBOARD"
"""If set to 1, a cluster that is started here has Ray's dashboard. Its ten processes take seconds to start, and wake
often enough to slow down a training that uses all cores."""
NO_DASHBOARD = "http://127.0.0.1:9"
"""The dashboard address given to workers of a cluster that is started here. It also identifies such a cluster. Without
it, Ray would query any cluster that runs on this machine."""


def takes_special_path(path: str) -> bool:
    """Whether the cluster that this process started, or is about to start, takes this one of SPECIAL_PATHS.

    Raises ValueError if the switch has an invalid value.
    """
    if path not in enabled_paths():
        return False
    if path == "loopback":
        return True
    return started_here() if ray.is_initialized() else not os.environ.get("RAY_ADDRESS")


def enabled_paths() -> frozenset[str]:
    """The paths that HIVE_RAY_ONE_MACHINE enables. Raises ValueError if it has an invalid value."""
    value = os.environ.get(SWITCH_VARIABLE, "1").strip()
    if value in ("", "1"):
        return frozenset(SPECIAL_PATHS)
    if value == "0":
        return frozenset()
    named = frozenset(name.strip() for name in value.split(","))
    if unknown := sorted(named - set(SPECIAL_PATHS)):
        raise ValueError(
            f"{SWITCH_VARIABLE}={value}: {', '.join(unknown)} is none of {', '.join(SPECIAL_PATHS)}; or set "
            "it to 0 or 1"
        )
    return named | {"loopback"}


def started_here() -> bool:
    """Whether this process is connected to a cluster that `start_ray` started. It is then its only driver."""
    runtime_env = cast(dict[str, Any], ray.get_runtime_context().runtime_env or {})
    return runtime_env.get("env_vars", {}).get("RAY_API_SERVER_ADDRESS") == NO_DASHBOARD


def has_dashboard() -> bool:
    """Whether a cluster that is started here has a dashboard."""
    return os.environ.get(DASHBOARD_VARIABLE) == "1"
