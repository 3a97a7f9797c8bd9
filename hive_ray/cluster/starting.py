"""Start Ray on this machine, or join the cluster that RAY_ADDRESS names (as inside `ray job submit`)."""

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any

import ray
import torch
from ray._private.services import JEMALLOC_SO
from ray._private.state import state
from ray.core.generated.gcs_pb2 import PlacementGroupTableData
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hive_ray.cluster.auth_token import keep_token
from hive_ray.cluster.environment import carried, public
from hive_ray.cluster.looking import looking
from hive_ray.cluster.noise import QUIET, hush_libraries
from hive_ray.cluster.one_machine.forks import Forks
from hive_ray.cluster.one_machine.loopback import (
    choose_ray_folder,
    first_line,
    listens_on_loopback_alone,
    on_loopback,
    private_start,
)
from hive_ray.config import Resources
from hive_ray.console import warn
from hive_ray.schemas import Stopped

ROOT = Path(__file__).resolve().parents[2]
AUTOSCALES = "HIVE_RAY_AUTOSCALES"
"""Set to 1 where the cluster can add nodes and `ray up` did not make it (KubeRay)."""
DASHBOARD = "HIVE_RAY_DASHBOARD"
"""Set to 1, a cluster that is started here has Ray's dashboard: its ten processes take seconds to start, and wake often
enough to slow a training that uses all cores."""
SIGHT_S = 60.0
"""How long nodes have to say whether they see a file, which may need a worker that starts."""
SHOWN_S = 5.0
"""How long a shared folder may take to show a new file."""
FORKS = "HIVE_RAY_FORKS"
"""Set to 0, every worker of a cluster that is started here is a new interpreter with imports of its own."""
NOWHERE = "http://127.0.0.1:9"
"""Where workers of a cluster that is started here look for its dashboard, and what such a cluster is known by. Ray
would have them ask whatever cluster runs on this machine."""
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
DATA_HELPERS = {
    "ActorLocationTracker": "ActorLocationTracker",
    "AutoscalingCoordinator": "AutoscalingCoordinator",
    "datasets_stats_actor": "_dataset_stats_actor",
}
"""Names, and their namespaces, of the actors that Ray Data makes for its first execution and leaves behind. Each later
one takes those that are there, or makes them again."""
LAST_CALLS_S = 10.0
"""How long such an actor may take for the calls that nobody waits for; Ray would complain of those that it loses."""
GLIBC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "1073741824"}
JEMALLOC = {"LD_PRELOAD": JEMALLOC_SO, "MALLOC_CONF": "dirty_decay_ms:-1,muzzy_decay_ms:-1"}
"""What the allocator is told in workers, unless it is set. They compute in threads of their own; glibc's arenas of such
threads give the memory of each step back to the system, and take it again page by page in the next. With one arena for
all they keep it, but wait for each other at its lock, 400 times a second. The allocator that Ray brings has neither
fault; where it lies is known on this machine."""


def allocator(here: bool) -> dict[str, str]:
    """The environment of workers' memory; `here`: they are all on this machine."""
    pages = os.sysconf("SC_PAGE_SIZE") == 4096  # of which jemalloc is built for one size, and ends where it is another
    return JEMALLOC if here and pages and os.path.exists(JEMALLOC_SO) else GLIBC


def start_ray(
    *, num_cpus: int | None = None, num_gpus: int | None = None, workers_import: tuple[str, ...] = ()
) -> None:
    """Connect this process to Ray, once. Workers import hive_ray and jobs from this checkout.

    A cluster that is started here listens on the loopback address alone and keeps a token (`one_machine.py`). It has as
    many CPUs and GPUs as the machine, or as many as it is told that it has. On Linux without a GPU its workers are
    forks of a process that has imported `workers_import`, which pays where many stages follow each other (`forks.py`).
    None of these may import Ray. Workers of a cluster that is joined have this process's settings of services
    (`environment.py`).

    Raises Stopped where no cluster can be started, or the one that RAY_ADDRESS names cannot be joined.
    """
    if ray.is_initialized():
        return
    hush_libraries(starts_cluster=not os.environ.get("RAY_ADDRESS"))
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    told = {name: os.environ[name] for name in QUIET} | {"PYTHONPATH": os.pathsep.join(paths)}
    here = not os.environ.get("RAY_ADDRESS")
    told |= {name: os.environ.get(name, value) for name, value in allocator(here).items()}
    told["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "1"  # DeepSpeed takes the GPUs that it sees, told of none or not
    environment: dict[str, Any] = {"env_vars": told}
    settings = {"logging_level": logging.ERROR, "runtime_env": environment}
    if not here:
        told |= public(carried())
        told["RAY_ADDRESS"] = os.environ["RAY_ADDRESS"]  # workers would else look for a cluster, and may find another
        os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")  # what `ray job submit` was told, too, is told again
        _join(settings)
    else:
        os.environ.setdefault("RAY_worker_niceness", "0")  # at Ray's 15 whatever else runs here starves its workers
        os.environ.setdefault("RAY_prestart_worker_first_driver", "0")  # workers without our environment, never used
        told["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"  # nobody drains this cluster's only node
        told["RAY_API_SERVER_ADDRESS"] = NOWHERE
        if not _has_dashboard():
            for name, value in CALMER.items():
                os.environ.setdefault(name, value)
        choose_ray_folder()
        keep_token()
        if workers_import and can_fork():
            variables = os.environ | told | {"OMP_NUM_THREADS": "1"}
            environment["py_executable"] = _forks(workers_import, tuple(variables.items())).command
        with private_start():
            ray.init(
                address="local",
                num_cpus=num_cpus,
                num_gpus=num_gpus,
                include_dashboard=_has_dashboard(),
                **settings,
            )


def _join(settings: dict[str, Any]) -> None:
    """Join the cluster that RAY_ADDRESS names; Stopped, in words, where that cannot be."""
    here = listens_on_loopback_alone(os.environ["RAY_ADDRESS"])
    try:
        with on_loopback() if here else nullcontext():
            ray.init(**settings)
    except Exception as error:
        raise Stopped(
            f"the cluster at RAY_ADDRESS={os.environ['RAY_ADDRESS']} cannot be joined: {first_line(error)}. Start it, "
            "or name another; without RAY_ADDRESS the job starts a cluster on this machine. A cluster with a token "
            "wants RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH here, too"
        ) from error


def nodes_without(path: str) -> list[str]:
    """The addresses of the cluster's nodes that do not see this file. A node that does not say so in SIGHT_S is not
    among them."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    look = ray.remote(num_cpus=0, max_retries=0)(_sees)
    asked = {
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(path): node
        for node in alive
    }
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=SIGHT_S)
    blind = []
    for answer in answered:
        with suppress(ray.exceptions.RayError):  # the node has gone
            if not ray.get(answer):
                blind.append(asked[answer]["NodeManagerAddress"])
    return sorted(blind)


def _sees(path: str) -> bool:
    """Whether a file is there; a shared folder may take a moment to show what another machine has just written."""
    until = time.monotonic() + SHOWN_S
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


def started_here() -> bool:
    """Whether this process is connected to a cluster that `start_ray` started, whose only driver it then is."""
    told = ray.get_runtime_context().runtime_env.get("env_vars", {})
    return told.get("RAY_API_SERVER_ADDRESS") == NOWHERE


def _has_dashboard() -> bool:
    """Whether a cluster that is started here has one."""
    return os.environ.get(DASHBOARD) == "1"


def is_ours_alone() -> bool:
    """Whether `start_ray` started the cluster, and without a dashboard that would show what goes on."""
    return started_here() and not _has_dashboard()


def end_data_helpers() -> None:
    """End what Ray Data has left behind in a cluster that was started here, before a training that uses all cores:
    each such actor wakes 150 times a second, and where all cores compute one step together, all wait for each. A
    dashboard would lose what it shows of past stages, so beside one they stay."""
    if not is_ours_alone():
        return
    for name, namespace in DATA_HELPERS.items():
        with suppress(ValueError, ray.exceptions.RayError):  # there is none, or it ends by itself
            helper = ray.get_actor(name, namespace)
            ray.get(helper.__ray_ready__.remote(), timeout=LAST_CALLS_S)  # what it was last asked is done
            ray.kill(helper)


def can_fork() -> bool:
    """Whether workers here may be forks: not on a machine with a GPU, whose state they could not share."""
    return sys.platform == "linux" and os.environ.get(FORKS) != "0" and not torch.cuda.is_available()


@cache
def _forks(modules: tuple[str, ...], variables: tuple[tuple[str, str], ...]) -> Forks:
    """One for as long as this process lives."""
    return Forks(modules, dict(variables))


def require(stage: str, resources: Resources) -> None:
    """Raise if the cluster can never hold the stage's actors at once: they would wait for ever, in silence."""
    if os.environ.get(AUTOSCALES) == "1" or Path("~/ray_bootstrap_config.yaml").expanduser().exists():
        return
    has, actors = ray.cluster_resources(), resources.least_actors or resources.num_actors
    for kind, each in {"CPU": resources.num_cpus, "GPU": resources.num_gpus}.items():
        wanted = actors * each
        if wanted > has.get(kind, 0):
            raise ValueError(
                f"{stage} asks for {actors} actors with {each:g} {kind} each, {wanted:g} in all, "
                f"but the cluster has {has.get(kind, 0):g} {kind}: lower the stage's resources, add nodes, "
                f"or set {AUTOSCALES}=1 if the cluster adds them by itself"
            )


@contextmanager
def saying_what_is_missing(stage: str, workers: Resources, every_s: float = 20.0) -> Iterator[None]:
    """Print, as long as it lasts, that the cluster has no room for a training's workers yet, and what it has."""

    def look() -> None:
        if _waits(workers):
            warn(f"waiting for {of_workers(workers)}; {cluster_in_words()}", stage=stage)

    with looking(look, every_s):
        yield


def free_placement_groups() -> None:
    """Give back the place of this driver's trainings: Ray Train keeps it, to the driver's end, where a worker died in
    the moment in which it was handed its work."""
    job = ray.get_runtime_context().get_job_id()
    for raw in state._connect_and_get_accessor().get_placement_group_table():  # the public table has no jobs
        group = PlacementGroupTableData.FromString(raw)
        if group.creator_job_id.hex() == job and group.state != PlacementGroupTableData.REMOVED:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))


def _waits(workers: Resources) -> bool:
    """Whether a group of such workers is asked for and has no place."""
    groups = placement_group_table().values()
    return any(
        group["state"] in ("PENDING", "RESCHEDULING") and len(group["bundles"]) == workers.num_actors
        for group in groups
    )


def of_workers(workers: Resources) -> str:
    """`2 workers with 4 CPU and 1 GPU each`."""
    return f"{workers.num_actors} workers with {workers.num_cpus:g} CPU and {workers.num_gpus:g} GPU each"


def cluster_in_words() -> str:
    """`the cluster has 8 CPU and 1 GPU`."""
    has = ray.cluster_resources()
    return f"the cluster has {has.get('CPU', 0):g} CPU and {has.get('GPU', 0):g} GPU"
