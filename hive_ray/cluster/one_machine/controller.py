"""Ray Train's trainer, without actors that have nothing to do.

Ray Train runs its controller as an actor, beside one through which workers would speak to each other and one that
speaks to autoscalers. Such an actor, idle, wakes 150 times a second, and where all cores compute one step together,
all wait for each. In a cluster that was started here there are none: the driver's own process is the controller.

Its workers find each other by a file there: PyTorch's server for that listens on all addresses and asks nobody who they
are.
"""

import asyncio
import os
import uuid
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
import torch
from ray.actor import ActorHandle
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.callbacks.preemption_callback import PreemptionCallback
from ray.train.v2._internal.execution.callback import RayTrainCallback
from ray.train.v2._internal.execution.context import TrainRunContext
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import Worker, WorkerGroup
from ray.train.v2.api.result import Result

from hive_ray.cluster.auth_token import private_folder
from hive_ray.cluster.one_machine.loopback import is_on_loopback, loopback_interface
from hive_ray.cluster.starting import is_ours_alone, started_here

INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""Where the libraries are told by which interface workers reach each other."""


def torch_config(backend: str) -> TorchConfig:
    """How workers speak to each other, by `nccl` or `gloo`."""
    return _ByFile(backend=backend) if is_on_loopback() else TorchConfig(backend=backend)


@dataclass
class _ByFile(TorchConfig):
    """Workers of this machine, who find each other by a file in a folder that no other user can read."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _FileBackend


class _FileBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        store = private_folder() / f"workers-{uuid.uuid4().hex}"
        worker_group.execute(_set_torch_distributed_env_vars)
        world = len(worker_group)
        ray.get([
            worker_group.execute_single_async(rank, _meet, str(store), rank, world, backend_config)
            for rank in range(world)
        ])  # fmt: skip


def _meet(store: str, rank: int, world: int, told: TorchConfig) -> None:
    """Join the group of workers."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # DeepSpeed wants them to be there
    for name in INTERFACES:
        os.environ.setdefault(name, loopback_interface())
    torch.distributed.init_process_group(
        told.backend,
        init_method=f"file://{store}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=told.timeout_s),
    )


class Trainer(TorchTrainer):
    """Ray Train's, for workers that keep their checkpoints themselves, report nothing, and read rows of their own."""

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        idle = (DatasetsCallback,)
        if started_here():  # its cluster ends with this driver, which gives back a place that is kept
            idle += (PlacementGroupCleanerCallback,)
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, idle)]

    def _initialize_and_run_controller(self, **told: Any) -> Result:
        if not is_ours_alone() or _in_event_loop():
            return super()._initialize_and_run_controller(**told)
        controller = _Controller(**told | {"scaling_policy": _AsksNobody(self.scaling_config)})
        try:
            asyncio.run(controller.run())
        finally:
            if workers := controller.get_worker_group():  # it was interrupted
                workers.abort()
        return controller.get_result()


def _in_event_loop() -> bool:
    """Whether this thread runs one, as a notebook's does, which no other can run within."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class _AsksNobody(FixedScalingPolicy):
    """No autoscaler adds nodes to this machine."""

    def after_controller_start(self, train_run_context: TrainRunContext) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass


class _Workers(WorkerGroup):
    """Workers that never speak to each other, or to the controller, through actors of Ray Train."""

    def _init_train_context_on_workers(
        self, workers: list[Worker], sync_actor: ActorHandle, train_context_args: dict[str, list[Any]]
    ) -> None:
        ray.get(
            [
                worker.actor.init_train_context.remote(
                    train_run_context=self._train_run_context,
                    distributed_context=worker.distributed_context,
                    synchronization_actor=sync_actor,
                    storage_context=self._storage_context,
                    worker_callbacks=self._worker_callbacks_to_propagate,
                    controller_actor=None,
                    **{name: values[place] for name, values in train_context_args.items()},
                )
                for place, worker in enumerate(workers)
            ]
        )
        self._decorate_worker_log_file_paths(workers)
        ray.kill(sync_actor)


class _Controller(TrainController):
    """Ray Train's, in a process that is no actor."""

    worker_group_cls = _Workers

    def __init__(self, **told: Any) -> None:
        super().__init__(**told)
        callbacks = self._worker_group_callbacks_to_propagate
        self._worker_group_callbacks_to_propagate = [  # nobody drains this cluster's only node
            callback for callback in callbacks if not isinstance(callback, PreemptionCallback)
        ]
