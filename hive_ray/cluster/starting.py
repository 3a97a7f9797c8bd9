"""Starts Ray on this machine, or joins the cluster that RAY_ADDRESS names (also inside `ray job submit`)."""

import logging
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import torch
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hive_ray.cluster.auth_token import use_private_token
from hive_ray.cluster.environment import public_variables, service_variables
from hive_ray.cluster.noise import QUIET_ENVIRONMENT, quiet_libraries
from hive_ray.cluster.polling import polling
from hive_ray.cluster.switch import NO_DASHBOARD, has_dashboard, takes_special_path
from hive_ray.cluster.this_machine import choose_ray_folder, first_line, listens_only_on_loopback, patient_start
from hive_ray.config import Resources
from hive_ray.console import warn
from hive_ray.errors import Stopped

if TYPE_CHECKING:
    from hive_ray.cluster.one_machine.forks import ForkServer

ROOT = Path(__file__).resolve().parents[2]
AUTOSCALING_VARIABLE = "HIVE_RAY_AUTOSCALES"
"""Set to 1 if the cluster can add nodes and was not started with `ray up` (KubeRay)."""
FILE_CHECK_TIMEOUT_S = 60.0
"""Seconds for nodes to report whether they see a file. A node may first have to start a worker."""
SHARED_FOLDER_DELAY_S = 5.0
"""Seconds that a shared folder may take to show a new file."""
GLIBC_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "1073741824",
}
"""Settings of the allocator in workers, if not set. Workers compute in threads of their own, and their arenas in glibc
return the memory of each step to the system and take it again page by page in the next. A single arena keeps it."""


def allocator_environment() -> dict[str, str]:
    """The variables of the memory allocator for workers of the cluster that this process starts or joins."""
    if not takes_special_path("allocator"):
        return GLIBC_ENVIRONMENT
    from hive_ray.cluster.one_machine.tuning import jemalloc_environment

    return jemalloc_environment() or GLIBC_ENVIRONMENT


def start_ray(
    *, num_cpus: int | None = None, num_gpus: int | None = None, workers_import: tuple[str, ...] = ()
) -> None:
    """Connect this process to Ray, if it is not connected. Workers import hive_ray and jobs from this checkout.

    A cluster that is started here listens only on the loopback address and uses a token. It has `num_cpus` and
    `num_gpus`, or as many as the machine. On Linux without a GPU its workers are forks of a process that has imported
    `workers_import` (`forks.py`), which is faster if many stages follow each other. These modules must not import Ray.
    In a cluster that is joined, workers receive the driver's settings of services (`environment.py`).

    HIVE_RAY_ONE_MACHINE=0 uses only public API (`switch.py`). Then Ray listens only on the loopback address if
    `addresses.start_on_loopback` was called before Ray was imported. It uses a token in any case.

    Raises Stopped if no cluster can be started, or if the one that RAY_ADDRESS names cannot be joined.
    """
    if ray.is_initialized():
        return
    quiet_libraries(starts_cluster=not os.environ.get("RAY_ADDRESS"))
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {name: os.environ[name] for name in QUIET_ENVIRONMENT} | {"PYTHONPATH": os.pathsep.join(paths)}
    variables |= {name: os.environ.get(name, value) for name, value in allocator_environment().items()}
    # Workers without a GPU must not see any, since DeepSpeed uses what it sees.
    variables["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "1"
    if os.environ.get("RAY_ADDRESS"):
        _join(variables)
    else:
        _start(variables, workers_import, num_cpus, num_gpus)


def _start(
    variables: dict[str, str], workers_import: tuple[str, ...], num_cpus: int | None, num_gpus: int | None
) -> None:
    """Start a cluster on this machine. Its workers have these environment variables."""
    variables["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"  # the only node of this cluster is never drained
    variables["RAY_API_SERVER_ADDRESS"] = NO_DASHBOARD
    environment: dict[str, Any] = {"env_vars": variables}
    dashboard = has_dashboard()
    choose_ray_folder()
    use_private_token()
    os.environ.setdefault("RAY_worker_niceness", "0")  # at Ray's 15 any other program starves the workers
    if workers_import and can_fork():
        forked = os.environ | variables | {"OMP_NUM_THREADS": "1"}
        environment["py_executable"] = _forks(workers_import, tuple(forked.items())).command
    with ExitStack() as stack:
        stack.enter_context(patient_start())
        if takes_special_path("loopback"):
            from hive_ray.cluster.one_machine.loopback import on_loopback, waiting_for_node

            stack.enter_context(on_loopback())
            stack.enter_context(waiting_for_node())
        ray.init(
            address="local",
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            include_dashboard=dashboard,
            logging_level=logging.ERROR,
            runtime_env=environment,
        )


def _join(variables: dict[str, str]) -> None:
    """Join the cluster that RAY_ADDRESS names. Raises Stopped if that fails."""
    address = os.environ["RAY_ADDRESS"]
    variables |= public_variables(service_variables())
    variables["RAY_ADDRESS"] = address  # otherwise workers search for a cluster and may find another
    os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")  # also replaces what `ray job submit` has set
    try:
        with ExitStack() as stack:
            if takes_special_path("loopback") and listens_only_on_loopback(address):
                from hive_ray.cluster.one_machine.loopback import on_loopback

                stack.enter_context(on_loopback())
            ray.init(logging_level=logging.ERROR, runtime_env={"env_vars": variables})
    except Exception as error:
        raise Stopped(
            f"the cluster at RAY_ADDRESS={address} cannot be joined: {first_line(error)}. Start it, or name another. "
            "Without RAY_ADDRESS the job starts a cluster on this machine. A cluster with a token needs "
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH here, too"
        ) from error


def nodes_missing_file(path: str) -> list[str]:
    """Addresses of the cluster's nodes that do not see this file, except nodes that do not answer in time."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    sees = ray.remote(num_cpus=0, max_retries=0)(_sees)
    node_of = {
        sees.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(path): node
        for node in alive
    }
    answered, _ = ray.wait(list(node_of), num_returns=len(node_of), timeout=FILE_CHECK_TIMEOUT_S)
    missing = []
    for answer in answered:
        with suppress(RayError):  # the node is gone
            if not ray.get(answer):
                missing.append(node_of[answer]["NodeManagerAddress"])
    return sorted(missing)


def _sees(path: str) -> bool:
    """Whether a file exists. Waits a moment, since a shared folder may show new files of other machines late."""
    until = time.monotonic() + SHARED_FOLDER_DELAY_S
    while not os.path.exists(path):
        if time.monotonic() > until:
            return False
        time.sleep(0.5)
        with suppress(OSError):
            os.listdir(os.path.dirname(path))  # makes a network file system refresh the folder
    return True


def num_nodes() -> int:
    """Number of nodes of the cluster that are alive."""
    return sum(node["Alive"] for node in ray.nodes())


def end_data_helpers() -> None:
    """End idle actors of Ray Data in a cluster that was started here, before a training that uses all cores.

    With a dashboard they are kept, since it would lose what it shows of past stages.
    """
    if takes_special_path("controller") and not has_dashboard():
        from hive_ray.cluster.one_machine import tuning

        tuning.end_data_helpers()


def can_fork() -> bool:
    """Whether workers on this machine can be forks: not with a GPU, since forks cannot share its state."""
    return takes_special_path("forks") and sys.platform == "linux" and not torch.cuda.is_available()


@cache
def _forks(modules: tuple[str, ...], variables: tuple[tuple[str, str], ...]) -> "ForkServer":
    """The fork server of this process. It lives as long as the process."""
    from hive_ray.cluster.one_machine.forks import ForkServer

    return ForkServer(modules, dict(variables))


def require_resources(stage: str, resources: Resources) -> None:
    """Raise ValueError if the cluster cannot hold the stage's actors at once: they would silently wait for ever."""
    if os.environ.get(AUTOSCALING_VARIABLE) == "1" or Path("~/ray_bootstrap_config.yaml").expanduser().exists():
        return
    available = ray.cluster_resources()
    actors = resources.least_actors or resources.num_actors
    for kind, each in {"CPU": resources.num_cpus, "GPU": resources.num_gpus}.items():
        required = actors * each
        if required > available.get(kind, 0):
            raise ValueError(
                f"{stage} asks for {actors} actors with {each:g} {kind} each, {required:g} in all, "
                f"but the cluster has {available.get(kind, 0):g} {kind}: lower the stage's resources, add nodes, "
                f"or set {AUTOSCALING_VARIABLE}=1 if the cluster adds them by itself"
            )


@dataclass
class ResourceWait:
    """Whether a training's workers currently wait for free resources."""

    interval_s: float
    """Seconds between checks."""
    waited_at: float = -math.inf
    """When they were last seen waiting, by time.monotonic()."""

    @property
    def is_waiting(self) -> bool:
        """Whether they waited at one of the last two checks. Ray Train requests resources again after each attempt."""
        return time.monotonic() - self.waited_at < 2 * self.interval_s


@contextmanager
def reporting_missing_resources(stage: str, workers: Resources, every_s: float = 20.0) -> Iterator[ResourceWait]:
    """Inside this context, report while the cluster has no free resources for a training's workers."""
    wait = ResourceWait(every_s)

    def check() -> None:
        if _waits(workers):
            wait.waited_at = time.monotonic()
            warn(f"waiting for {describe_workers(workers)}; {describe_cluster()}", stage=stage)

    with polling(check, every_s):
        yield wait


def placement_groups() -> set[str]:
    """The ids, as hex, of the placement groups that this driver holds or waits for.

    The id of a placement group ends with the id of the job that created it (Ray's id specification).
    """
    job = ray.get_runtime_context().get_job_id()
    groups = placement_group_table().items()
    return {name for name, group in groups if group["state"] != "REMOVED" and name.endswith(job)}


def remove_placement_groups(keep: set[str]) -> None:
    """Remove this driver's placement groups, except those with an id in `keep`.

    Ray Train keeps the group of a training until the driver ends if a worker dies while it receives its work.
    """
    for name in placement_groups() - keep:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(name)))


def _waits(workers: Resources) -> bool:
    """Whether a placement group for such workers is requested and not yet placed."""
    groups = placement_group_table().values()
    return any(
        group["state"] in ("PENDING", "RESCHEDULING") and len(group["bundles"]) == workers.num_actors
        for group in groups
    )


def describe_workers(workers: Resources) -> str:
    """`2 workers with 4 CPU and 1 GPU each`."""
    return f"{workers.num_actors} workers with {workers.num_cpus:g} CPU and {workers.num_gpus:g} GPU each"


def describe_cluster() -> str:
    """`the cluster has 8 CPU and 1 GPU`."""
    available = ray.cluster_resources()
    return f"the cluster has {available.get('CPU', 0):g} CPU and {available.get('GPU', 0):g} GPU"
