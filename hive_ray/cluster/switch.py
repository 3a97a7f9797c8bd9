"""The switch between the public path and what is quicker or more private on one machine.

    HIVE_RAY_ONE_MACHINE unset or 1         all of PATHS
    HIVE_RAY_ONE_MACHINE=0                  none: public API of Ray, workers and trainings as Ray starts them
    HIVE_RAY_ONE_MACHINE=forks,controller   these, and `loopback`

A cluster that a job joins has the public path, whatever the switch says. Only `loopback` is for every cluster that
listens on the loopback address alone, whoever started it: it keeps others out.

What a special path needs is in `one_machine/`, the only folder that touches internals of Ray. It is imported where the
path is taken, so that the public path works where a release of Ray has other internals.
"""

import os
from typing import Any, cast

import ray

SWITCH_VARIABLE = "HIVE_RAY_ONE_MACHINE"
SPECIAL_PATHS = {
    "loopback": "Ray, the workers' rendezvous and replicas of Ray Serve listen on the loopback address alone",
    "forks": "workers are forks of a process that has done their imports",
    "controller": "the driver controls its trainings itself, and ends idle actors of Ray's before them",
    "allocator": "workers take memory by the allocator that Ray brings",
}
"""The special paths, and what each does."""
DASHBOARD_VARIABLE = "HIVE_RAY_DASHBOARD"
"""Set to 1, a cluster that is started here has Ray's dashboard: its ten processes take seconds to start, and wake often
enough to slow a training that uses all cores."""
NO_DASHBOARD = "http://127.0.0.1:9"
"""Where workers of a cluster that is started here look for its dashboard, and what such a cluster is known by. Ray
would have them ask whatever cluster runs on this machine."""


def takes_special_path(path: str) -> bool:
    """Whether the cluster that this process started, or is about to start, takes this one of PATHS.

    Raises ValueError where the switch is none of the above.
    """
    if path not in enabled_paths():
        return False
    if path == "loopback":
        return True
    return started_here() if ray.is_initialized() else not os.environ.get("RAY_ADDRESS")


def enabled_paths() -> frozenset[str]:
    """The paths that HIVE_RAY_ONE_MACHINE asks for. ValueError where it cannot be understood."""
    value = os.environ.get(SWITCH_VARIABLE, "1").strip()
    if value in ("", "1"):
        return frozenset(SPECIAL_PATHS)
    if value == "0":
        return frozenset()
    named = frozenset(name.strip() for name in value.split(","))
    if unknown := sorted(named - set(SPECIAL_PATHS)):
        raise ValueError(
            f"{SWITCH_VARIABLE}={value}: {', '.join(unknown)} is none of {', '.join(SPECIAL_PATHS)}; or set it to 0 or 1"
        )
    return named | {"loopback"}


def started_here() -> bool:
    """Whether this process is connected to a cluster that `start_ray` started, whose only driver it then is."""
    runtime_env = cast(dict[str, Any], ray.get_runtime_context().runtime_env or {})
    return runtime_env.get("env_vars", {}).get("RAY_API_SERVER_ADDRESS") == NO_DASHBOARD


def has_dashboard() -> bool:
    """Whether a cluster that is started here has one."""
    return os.environ.get(DASHBOARD_VARIABLE) == "1"
