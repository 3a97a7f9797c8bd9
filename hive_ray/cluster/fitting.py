"""fit: trains any Objective with Ray Train and DeepSpeed.

    a finished table, an Objective -> <run>/<name>/ (a portable model folder), and what training/watching.py writes

What a worker does is in hive_ray/training/loop.py, which does not use Ray.
"""

import itertools
import json
import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
import ray.train
import torch
from ray.exceptions import RayActorError
from ray.train import ControllerError, FailureConfig, LoggingConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer

from hive_ray import storage
from hive_ray.artifacts.manifest import Fingerprint, OnMismatch, fingerprint_of
from hive_ray.artifacts.model_store import Metrics, build_model, store_model
from hive_ray.artifacts.selection import Selection
from hive_ray.cluster.environment import apply_service_variables, service_variables
from hive_ray.cluster.starting import (
    describe_cluster,
    describe_workers,
    end_data_helpers,
    placement_groups,
    remove_placement_groups,
    reporting_missing_resources,
    require_resources,
)
from hive_ray.cluster.switch import started_here, takes_special_path
from hive_ray.cluster.this_machine import first_line, node_is_on_loopback
from hive_ray.config import Training
from hive_ray.console import tell_end, tell_result, wait_for_end, warn
from hive_ray.errors import Stopped
from hive_ray.seeds import id_for
from hive_ray.training import loop
from hive_ray.training.checkpoints import Checkpoints
from hive_ray.training.job import Preemption, TrainingJob, Worker
from hive_ray.training.objectives import Objective
from hive_ray.training.trackers import require_tracker

COLLECTIVE_TIMEOUT_S = "1800"
"""Seconds until a collective of Ray Train times out, if not set."""
START_ATTEMPT_S = 60.0
"""Seconds of each attempt of Ray Train to start the workers."""
RESOURCE_CHECK_S = 20.0
"""Seconds between checks whether the workers wait for resources, at most a third of recovery.wait_minutes."""


def fit(
    objective: Callable[..., Objective],
    *,
    name: str,
    run: str,
    rows: Callable[[], Selection],
    columns: list[str],
    settings: Training,
    fingerprint: Fingerprint,
    held_out: Callable[[], Selection] | None = None,
    preview_columns: Sequence[str] = (),
    on_mismatch: OnMismatch = "refuse",
    **kwargs: Any,
) -> Metrics:
    """Train `objective(**kwargs)` on selected rows and write the model folder <run>/<name>. Returns the last measures.

    `held_out` rows are disjoint from `rows` and used for validation. `preview_columns` are further columns that their
    pictures need. `settings` are added to the fingerprint. The same call resumes a killed run, or keeps a finished one.
    Raises ValueError if there are no rows or the cluster is too small, Stopped if the training cannot succeed.
    """
    fingerprint = fingerprint | fingerprint_of(settings)
    run, out = storage.absolute(run), storage.join(storage.absolute(run), name)
    checkpoints = checkpoint_folder(run, name, fingerprint)

    def make() -> None:
        require_resources(name, settings.workers)
        require_tracker(settings.watching.tracker, run)
        selection = rows()
        validation_rows = held_out() if held_out else None
        if not len(selection):
            raise ValueError(f"{name}: {selection.path} has no rows to train on; see its manifest for dropped rows")
        _run_workers(
            TrainingJob(
                objective=objective,
                kwargs=kwargs,
                selection=selection,
                columns=columns,
                held_out=validation_rows or None,
                preview_columns=preview_columns,
                settings=settings,
                run=run,
                name=name,
                out=out,
                fingerprint=fingerprint,
                checkpoints=checkpoints,
            )
        )

    metrics = build_model(name, out, fingerprint, make, on_mismatch=on_mismatch)
    # The model is finished, perhaps by a run that was killed just before this line.
    storage.remove_tree(checkpoints)
    storage.remove_unfinished(checkpoints)  # interrupted uploads
    return metrics


def export(
    objective: Callable[..., Objective],
    *,
    name: str,
    run: str,
    settings: Training,
    fingerprint: Fingerprint,
    folder: Callable[[int], str],
    **kwargs: Any,
) -> str:
    """Write the model of the newest checkpoint of a `fit` that is running or was killed to folder(images seen).

    It has the averaged weights, or the last ones if no average is kept. The training is not disturbed. Raises
    ValueError if there is no checkpoint with these settings.
    """
    run = storage.absolute(run)
    fingerprint = fingerprint | fingerprint_of(settings)
    checkpoints = Checkpoints(checkpoint_folder(run, name, fingerprint))
    training_state = checkpoints.newest()
    if training_state is None:
        finished = storage.join(run, name)
        hint = f"it is finished: {finished}" if storage.exists(finished) else "start it, or wait for its first one"
        raise ValueError(f"{name} has no checkpoint with these settings: {hint}")
    started = time.monotonic()
    built = objective(**kwargs)
    checkpoint = checkpoints.open(training_state.images, training_state.world)
    shapes = {key: weight.shape for key, weight in built.model.named_parameters() if weight.requires_grad}
    state = built.model.state_dict() | checkpoint.weights(shapes)
    checkpoint.remove_local_files()
    out = folder(training_state.images)
    metrics = training_state.last | {"images": training_state.images}
    exported_fingerprint = fingerprint | {"images": training_state.images}
    store_model(out, lambda to: built.save(to, state), exported_fingerprint, metrics, time.monotonic() - started)
    tell_result(f"its weights after {training_state.images} images are in {out}", stage=name)
    return out


def checkpoint_folder(run: str, name: str, fingerprint: Fingerprint) -> str:
    """The folder of a training's checkpoints. It depends on the settings, so that others never resume from it."""
    key = id_for(json.dumps(fingerprint, sort_keys=True))
    return storage.join(run, "checkpoints", f"{name.replace('/', '-')}-{key}")


def _run_workers(job: TrainingJob) -> None:
    settings = job.settings
    workers, recovery = settings.workers, settings.recovery
    os.environ.setdefault("RAY_TRAIN_COLLECTIVE_TIMEOUT_S", COLLECTIVE_TIMEOUT_S)
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(min(START_ATTEMPT_S, recovery.wait_minutes * 60))
    end_data_helpers()
    groups_before = placement_groups()
    interval_s = min(RESOURCE_CHECK_S, recovery.wait_minutes * 60 / 3)
    for failures in itertools.count(1):
        try:
            with reporting_missing_resources(job.name, workers, interval_s) as wait, _own_interrupt():
                failed = _trainer(job).fit().return_value
            break
        except ControllerError as error:
            cause = error.controller_failure
            died = isinstance(cause, RayActorError)
            if wait.is_waiting and not died:
                raise Stopped(
                    f"{job.name}: its {describe_workers(workers)} did not all start within recovery.wait_minutes = "
                    f"{recovery.wait_minutes:g}: {describe_cluster()}. Add nodes or lower workers.num_actors, and give "
                    f"the same command: it continues from the last checkpoint. Ray said: {first_line(cause)}"
                ) from error
            # Ray Train does not retry if a worker dies while it receives its work.
            remove_placement_groups(keep=groups_before)
            if not died or failures > recovery.max_failures:
                raise Stopped(
                    f"{job.name}: its {describe_workers(workers)} could not be started (recovery.max_failures = "
                    f"{recovery.max_failures}): {cause}. The same command continues from the last checkpoint"
                ) from error
            warn("a worker died as it started; all start again", stage=job.name)
        except WorkerGroupError as error:
            out_of_memory = [
                str(why) for why in error.worker_failures.values() if isinstance(why, torch.OutOfMemoryError)
            ]
            if not out_of_memory:
                raise
            raise Stopped(
                f"{job.name}: a step needs more memory than a GPU has: lower micro_batch_size (it is "
                f"{settings.micro_batch_size}; the batch stays as it is), set gradient_checkpointing, raise zero_stage "
                f"(it is {settings.zero_stage}), or train with lora_rank. {out_of_memory[0]}"
            ) from error
    wait_for_end(job.checkpoints)
    if failed:
        raise Stopped(failed)


@contextmanager
def _own_interrupt() -> Iterator[None]:
    """Turn Ray Train's answer to Ctrl-C into a KeyboardInterrupt, and remove its signal handler afterwards.

    Ray Train aborts the training and ends the process with status 0.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        raise KeyboardInterrupt from error
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


def _trainer(job: TrainingJob) -> TorchTrainer:
    workers, recovery = job.settings.workers, job.settings.recovery
    tries = max(1, round(recovery.wait_minutes * 60 / START_ATTEMPT_S))
    files, inside = storage.filesystem(storage.join(job.checkpoints, "ray"))
    environment = service_variables()
    preemptible = not started_here()
    return _trainer_class()(
        # As a config, the job would also be read by the controller, which would import all that it refers to.
        lambda: _train(job, environment, preemptible),
        torch_config=_torch_config_class()(backend="nccl" if workers.num_gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers.num_actors,
            use_gpu=workers.num_gpus > 0,
            resources_per_worker={"CPU": workers.num_cpus, "GPU": workers.num_gpus},
        ),
        run_config=RunConfig(
            name=uuid.uuid4().hex,  # training resumes from `job.checkpoints`
            storage_path=inside,
            storage_filesystem=files,
            failure_config=FailureConfig(max_failures=recovery.max_failures, controller_failure_limit=tries - 1),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )


def _trainer_class() -> type[TorchTrainer]:
    """Ray Train's trainer, or the one whose controller runs in this process."""
    if not takes_special_path("controller"):
        return TorchTrainer
    from hive_ray.cluster.one_machine.controller import DriverTrainer

    return DriverTrainer


def _torch_config_class() -> type[TorchConfig]:
    """How workers find each other: through a port that PyTorch opens on all addresses, or through a file."""
    if not (takes_special_path("loopback") and node_is_on_loopback()):
        return TorchConfig
    from hive_ray.cluster.one_machine.rendezvous import FileRendezvous

    return FileRendezvous


def _train(job: TrainingJob, environment: dict[str, str], preemptible: bool) -> str:
    """The work of one training worker. Returns why the training cannot succeed, or an empty string."""
    apply_service_variables(environment)
    logging.getLogger().setLevel(logging.ERROR)  # Ray Train logs every report of every rank
    context = ray.train.get_context()
    worker = Worker(
        rank=context.get_world_rank(),
        world=context.get_world_size(),
        local_rank=context.get_local_rank(),
        local_world=context.get_local_world_size(),
        preemption=_preemption if preemptible else None,
    )
    failed = loop.train(job, worker)
    if worker.rank == 0:  # Ray holds back for seconds what several workers say alike
        tell_end(job.checkpoints)
    return failed


def _preemption() -> Preemption | None:
    """The nodes of this training that Ray knows will be taken away."""
    info = ray.train.get_preemption_info()
    if not info:
        return None
    deadline = info.deadline_ms / 1000 if info.deadline_ms else None
    return Preemption(frozenset(info.preempted_node_ids), deadline)
