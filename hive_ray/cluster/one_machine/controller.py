"""Ray Train's trainer, without actors that have nothing to do.

Ray Train runs its controller as an actor, beside one through which workers would speak to each other and one that
speaks to autoscalers. Such an actor, idle, wakes 150 times a second, and where all cores compute one step together,
all wait for each. In a cluster that was started here there are none: the driver's own process is the controller.
"""

import asyncio
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.train import Result
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.callbacks.preemption_callback import PreemptionCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import Worker, WorkerGroup

from hive_ray.cluster.switch import has_dashboard

IDLE_CALLBACKS = (DatasetsCallback, PlacementGroupCleanerCallback)
"""Workers read rows of their own, and the cluster, which ends with this driver, gives back a place that is kept."""


class DriverTrainer(TorchTrainer):
    """Ray Train's, for workers of a cluster that was started here, which keep their checkpoints themselves, report
    nothing, and read rows of their own."""

    def _create_default_callbacks(self) -> list[Any]:
        return [
            callback for callback in super()._create_default_callbacks() if not isinstance(callback, IDLE_CALLBACKS)
        ]

    def _initialize_and_run_controller(self, **arguments: Any) -> Result:
        if has_dashboard() or _in_event_loop():  # which shows what actors do, or runs already
            return super()._initialize_and_run_controller(**arguments)
        controller = _Controller(**arguments | {"scaling_policy": _AsksNobody(self.scaling_config)})
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

    def after_controller_start(self, train_run_context: Any) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass


class _Workers(WorkerGroup):
    """Workers that never speak to each other, or to the controller, through actors of Ray Train."""

    def _start(self) -> None:
        try:
            super()._start()
        except Exception:
            # Ray Train keeps workers and their place where one died in the moment in which it was handed its work.
            if self.has_started():
                self.abort()
            raise

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

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        callbacks = self._worker_group_callbacks_to_propagate
        self._worker_group_callbacks_to_propagate = [  # nobody drains this cluster's only node
            callback for callback in callbacks if not isinstance(callback, PreemptionCallback)
        ]
