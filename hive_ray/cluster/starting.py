"""Start Ray on this machine, or join the cluster that RAY_ADDRESS names (as inside `ray job submit`)."""

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
"""Set to 1 where the cluster can add nodes and `ray up` did not make it (KubeRay)."""
FILE_CHECK_TIMEOUT_S = 60.0
"""How long nodes have to say whether they see a file, which may need a worker that starts."""
SHARED_FOLDER_DELAY_S = 5.0
"""How long a shared folder may take to show a new file."""
GLIBC_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "1073741824",
}
"""What the allocator is told in workers, unless it is set. They compute in threads of their own; glibc's arenas of such
threads give the memory of each step back to the system, and take it again page by page in the next. With one arena for
all they keep it."""


def allocator_environment() -> dict[str, str]:
    """The environment of workers' memory in the cluster that this process starts or joins."""
    if not takes_special_path("allocator"):
        return GLIBC_ENVIRONMENT
    from hive_ray.cluster.one_machine.tuning import jemalloc_environment

    return jemalloc_environment() or GLIBC_ENVIRONMENT


def start_ray(
    *, num_cpus: int | None = None, num_gpus: int | None = None, workers_import: tuple[str, ...] = ()
) -> None:
    """Connect this process to Ray, once. Workers import hive_ray and jobs from this checkout.

    A cluster that is started here listens on the loopback address alone and keeps a token. It has as many CPUs and GPUs
    as the machine, or as many as it is told that it has. On Linux without a GPU its workers are forks of a process that
    has imported `workers_import`, which pays where many stages follow each other (`forks.py`). None of these may import
    Ray. Workers of a cluster that is joined have this process's settings of services (`environment.py`).

    HIVE_RAY_ONE_MACHINE=0 starts it by public means alone (`switch.py`). Then Ray listens on the loopback address only
    where it was told so before it was imported (`addresses.start_on_loopback`); its token it has nevertheless.

    Raises Stopped where no cluster can be started, or the one that RAY_ADDRESS names cannot be joined.
    """
    if ray.is_initialized():
        return
    quiet_libraries(starts_cluster=not os.environ.get("RAY_ADDRESS"))
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {name: os.environ[name] for name in QUIET_ENVIRONMENT} | {"PYTHONPATH": os.pathsep.join(paths)}
    variables |= {name: os.environ.get(name, value) for name, value in allocator_environment().items()}
    variables["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "1"  # DeepSpeed takes the GPUs that it sees, told of none or not
    if os.environ.get("RAY_ADDRESS"):
        _join(variables)
    else:
        _start(variables, workers_import, num_cpus, num_gpus)


def _start(
    variables: dict[str, str], workers_import: tuple[str, ...], num_cpus: int | None, num_gpus: int | None
) -> None:
    """Start a cluster on this machine, whose workers have these variables."""
    variables["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"  # nobody drains this cluster's only node
    variables["RAY_API_SERVER_ADDRESS"] = NO_DASHBOARD
    environment: dict[str, Any] = {"env_vars": variables}
    dashboard = has_dashboard()
    choose_ray_folder()
    use_private_token()
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
    """Join the cluster that RAY_ADDRESS names; Stopped, in words, where that cannot be."""
    address = os.environ["RAY_ADDRESS"]
    variables |= public_variables(service_variables())
    variables["RAY_ADDRESS"] = address  # workers would else look for a cluster, and may find another
    os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")  # what `ray job submit` was told, too, is told again
    try:
        with ExitStack() as stack:
            if takes_special_path("loopback") and listens_only_on_loopback(address):
                from hive_ray.cluster.one_machine.loopback import on_loopback

                stack.enter_context(on_loopback())
            ray.init(logging_level=logging.ERROR, runtime_env={"env_vars": variables})
    except Exception as error:
        raise Stopped(
            f"the cluster at RAY_ADDRESS={address} cannot be joined: {first_line(error)}. Start it, or name another; "
            "without RAY_ADDRESS the job starts a cluster on this machine. A cluster with a token wants "
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH here, too"
        ) from error


def nodes_missing_file(path: str) -> list[str]:
    """The addresses of the cluster's nodes that do not see this file. A node that does not say so in FILE_CHECK_TIMEOUT_S is not
    among them."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    look = ray.remote(num_cpus=0, max_retries=0)(_sees)
    asked = {
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(path): node
        for node in alive
    }
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=FILE_CHECK_TIMEOUT_S)
    blind = []
    for answer in answered:
        with suppress(RayError):  # the node has gone
            if not ray.get(answer):
                blind.append(asked[answer]["NodeManagerAddress"])
    return sorted(blind)


def _sees(path: str) -> bool:
    """Whether a file is there; a shared folder may take a moment to show what another machine has just written."""
    until = time.monotonic() + SHARED_FOLDER_DELAY_S
    while not os.path.exists(path):
        if time.monotonic() > until:
            return False
        time.sleep(0.5)
        with suppress(OSError):
            os.listdir(os.path.dirname(path))  # has a network file system look again
    return True


def num_nodes() -> int:
    """Nodes of the cluster that are alive."""
    return sum(node["Alive"] for node in ray.nodes())


def end_data_helpers() -> None:
    """End what Ray Data has left behind in a cluster that was started here, before a training that uses all cores. A
    dashboard would lose what it shows of past stages, so beside one they stay."""
    if takes_special_path("controller") and not has_dashboard():
        from hive_ray.cluster.one_machine import tuning

        tuning.end_data_helpers()


def can_fork() -> bool:
    """Whether workers here may be forks: not on a machine with a GPU, whose state they could not share."""
    return takes_special_path("forks") and sys.platform == "linux" and not torch.cuda.is_available()


@cache
def _forks(modules: tuple[str, ...], variables: tuple[tuple[str, str], ...]) -> "ForkServer":
    """One for as long as this process lives."""
    from hive_ray.cluster.one_machine.forks import ForkServer

    return ForkServer(modules, dict(variables))


def require_resources(stage: str, resources: Resources) -> None:
    """Raise if the cluster can never hold the stage's actors at once: they would wait for ever, in silence."""
    if os.environ.get(AUTOSCALING_VARIABLE) == "1" or Path("~/ray_bootstrap_config.yaml").expanduser().exists():
        return
    has, actors = ray.cluster_resources(), resources.least_actors or resources.num_actors
    for kind, each in {"CPU": resources.num_cpus, "GPU": resources.num_gpus}.items():
        wanted = actors * each
        if wanted > has.get(kind, 0):
            raise ValueError(
                f"{stage} asks for {actors} actors with {each:g} {kind} each, {wanted:g} in all, "
                f"but the cluster has {has.get(kind, 0):g} {kind}: lower the stage's resources, add nodes, "
                f"or set {AUTOSCALING_VARIABLE}=1 if the cluster adds them by itself"
            )


@dataclass
class ResourceWait:
    """What was seen of a training's workers: whether the cluster had no room for them."""

    interval_s: float
    waited_at: float = -math.inf
    """When that was last seen, by time.monotonic()."""

    @property
    def is_waiting(self) -> bool:
        """Whether it was so at one of the last two looks: Ray Train asks for resources anew after each try."""
        return time.monotonic() - self.waited_at < 2 * self.interval_s


@contextmanager
def reporting_missing_resources(stage: str, workers: Resources, every_s: float = 20.0) -> Iterator[ResourceWait]:
    """Print, as long as it lasts, that the cluster has no room for a training's workers yet, and what it has."""
    wait = ResourceWait(every_s)

    def look() -> None:
        if _waits(workers):
            wait.waited_at = time.monotonic()
            warn(f"waiting for {describe_workers(workers)}; {describe_cluster()}", stage=stage)

    with polling(look, every_s):
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
    """Whether a group of such workers is asked for and has no place."""
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
    has = ray.cluster_resources()
    return f"the cluster has {has.get('CPU', 0):g} CPU and {has.get('GPU', 0):g} GPU"
