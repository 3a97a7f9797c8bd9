"""Ray Train's trainer without idle actors.

Ray Train runs its controller as an actor, with one more actor for communication between workers and one that contacts
autoscalers. An idle actor wakes often, and if all cores compute one step together, all of them wait for each wake-up.
In a cluster that was started here there are no such actors: the driver's own process is the controller.
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
"""Callbacks that start actors. Workers read their rows themselves, and a placement group ends with this cluster."""


class DriverTrainer(TorchTrainer):
    """Ray Train's trainer for a cluster that was started here.

    Its workers store their checkpoints, report nothing to Ray Train and read their rows themselves.
    """

    def _create_default_callbacks(self) -> list[Any]:
        return [
            callback for callback in super()._create_default_callbacks() if not isinstance(callback, IDLE_CALLBACKS)
        ]

    def _initialize_and_run_controller(self, **arguments: Any) -> Result:
        if has_dashboard() or _in_event_loop():  # a dashboard shows actors; a second event loop cannot run
            return super()._initialize_and_run_controller(**arguments)
        controller = _Controller(**arguments | {"scaling_policy": _FixedWorkers(self.scaling_config)})
        try:
            asyncio.run(controller.run())
        finally:
            if workers := controller.get_worker_group():  # after an interrupt
                workers.abort()
        return controller.get_result()


def _in_event_loop() -> bool:
    """Whether this thread already runs an event loop, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class _FixedWorkers(FixedScalingPolicy):
    """Requests no nodes, since no autoscaler adds any to this machine."""

    def after_controller_start(self, train_run_context: Any) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass


class _Workers(WorkerGroup):
    """Workers that do not communicate with each other or the controller through actors of Ray Train."""

    def _start(self) -> None:
        try:
            super()._start()
        except Exception:
            # Ray Train keeps the workers and their placement group if one dies while it receives its work.
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
    """Ray Train's controller, in a process that is not an actor."""

    worker_group_cls = _Workers

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        callbacks = self._worker_group_callbacks_to_propagate
        self._worker_group_callbacks_to_propagate = [  # the only node of this cluster is never drained
            callback for callback in callbacks if not isinstance(callback, PreemptionCallback)
        ]
