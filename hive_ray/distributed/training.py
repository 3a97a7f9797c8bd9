"""fit: Ray Train and DeepSpeed, one loop for any Objective.

    a finished table, an Objective -> <run>/<name>/ (a portable model folder), <run>/metrics/<name>.jsonl

All that a step depends on is the weights and the number of images seen: the rows, the learning rate and the random
numbers follow from it, so that a run that was killed goes on as if nothing had happened.
"""

import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import deepspeed
import ray.train
import torch
import torch.distributed
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from torch import Tensor, nn

from hive_ray import storage
from hive_ray.config import Training
from hive_ray.distributed.cluster import require
from hive_ray.distributed.models import Metrics, build_model, store_model
from hive_ray.distributed.progress import Progress
from hive_ray.distributed.rows import RowStore, batch_places
from hive_ray.distributed.tables import Fingerprint, OnMismatch, Selection
from hive_ray.distributed.tables import fingerprint as fingerprint_of
from hive_ray.distributed.weights import Average, consolidated_state
from hive_ray.schemas import Rows
from hive_ray.seeds import generator_for, id_for, seed_for

MAX_FAILURES = 2
"""Times that a run goes on from its last checkpoint by itself after a worker has died."""
COLLECTIVE_TIMEOUT_S = "1800"
AUTOCAST = {"bf16": "bfloat16", "fp16": "float16"}


class Objective(Protocol):
    """What the training loop needs to know about a model: which weights move, the loss of some rows, how to save.

    An objective may offer `summarise(means, num_rows) -> Metrics`: what to log of a step's rows, whose measures have
    these means (an accuracy over some of them, say, from two of the means).
    """

    model: nn.Module

    def loss(self, model: nn.Module, rows: Rows, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Mean loss of the rows and further measures; `model` is `self.model` in DeepSpeed's wrapping."""
        ...

    def save(self, folder: Path, state: dict[str, Tensor]) -> None:
        """Write a portable model folder, card.json in it, with the weights of `state` (a state dict of `model`)."""
        ...


@dataclass(frozen=True)
class _Run:
    """All that a worker is told."""

    objective: Callable[..., Objective]
    kwargs: dict[str, Any]
    selection: Selection
    columns: list[str]
    settings: Training
    name: str
    out: str
    metrics: str
    fingerprint: Fingerprint


def fit(
    objective: Callable[..., Objective],
    *,
    name: str,
    run: str,
    rows: Callable[[], Selection],
    columns: list[str],
    settings: Training,
    fingerprint: Fingerprint,
    on_mismatch: OnMismatch = "refuse",
    **kwargs: Any,
) -> Metrics:
    """Train `objective(**kwargs)` on selected rows into the model folder <run>/<name>; its last measures.

    `settings` are added to the fingerprint. The same call goes on with a run that was killed, or keeps what is done.
    """
    fingerprint = fingerprint | fingerprint_of(settings)
    run, out = storage.absolute(run), storage.join(storage.absolute(run), name)
    metrics = storage.join(run, "metrics", f"{name}.jsonl")

    def make() -> None:
        require(name, settings.workers)
        selection = rows()
        if not len(selection):
            raise ValueError(f"{name}: {selection.path} has no rows to train on; look at its manifest for drops")
        told = _Run(objective, kwargs, selection, columns, settings, name, out, metrics, fingerprint)
        _run_workers(told, storage.join(run, "checkpoints"))

    return build_model(name, out, fingerprint, make, on_mismatch=on_mismatch)


def _run_workers(told: _Run, folder: str) -> None:
    workers = told.settings.workers
    os.environ.setdefault("RAY_TRAIN_COLLECTIVE_TIMEOUT_S", COLLECTIVE_TIMEOUT_S)
    files, inside = storage.filesystem(folder)
    # Other settings, or ZeRO parts for another number of workers, must not be gone on with: they have another name.
    key = id_for(json.dumps(told.fingerprint, sort_keys=True), workers.num_actors)
    name = f"{told.name.replace('/', '-')}-{key}"
    trainer = TorchTrainer(
        _train,
        train_loop_config={"told": told},
        torch_config=TorchConfig(backend="nccl" if workers.num_gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers.num_actors,
            use_gpu=workers.num_gpus > 0,
            resources_per_worker={"CPU": workers.num_cpus, "GPU": workers.num_gpus},
        ),
        run_config=RunConfig(
            name=name,
            storage_path=inside,
            storage_filesystem=files,
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    failed = trainer.fit().return_value
    if failed:
        raise FloatingPointError(failed)
    storage.remove_tree(storage.join(folder, name))  # the model is whole; nothing goes on from them


def learning_rate(settings: Training, images: int) -> float:
    """The rate of the batch that ends at `images`: linear warm-up, then constant or half a cosine down to 0."""
    if images < settings.warmup_images:
        return settings.learning_rate * images / settings.warmup_images
    if settings.schedule == "constant":
        return settings.learning_rate
    past = images - settings.warmup_images
    progress = min(1.0, past / max(1, settings.total_images - settings.warmup_images))
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def deepspeed_config(settings: Training) -> dict[str, Any]:
    """DeepSpeed's settings. Weights stay in fp32; a lower precision is autocast's, so the average needs no copies."""
    config: dict[str, Any] = {
        "train_batch_size": settings.batch_size,
        "train_micro_batch_size_per_gpu": settings.micro_batch_size,
        "gradient_clipping": settings.max_grad_norm,
        "zero_optimization": {"stage": settings.zero_stage},
        "steps_per_print": 1 << 40,
    }
    if settings.zero_stage == 3:
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 0  # no weight escapes the parts
    if settings.precision in AUTOCAST:
        config["torch_autocast"] = {"enabled": True, "dtype": AUTOCAST[settings.precision]}
    return config


def _train(config: dict[str, Any]) -> str:
    """One worker's run. Returns why it failed for good, or an empty string."""
    told: _Run = config["told"]
    logging.getLogger().setLevel(logging.ERROR)  # Ray Train says every report of every rank
    started = time.monotonic()
    loop = _Loop(told, ray.train.get_context())
    try:
        loop.run()
    except FloatingPointError as error:  # the same on every rank; starting again would end in the same
        return str(error)
    loop.save(time.monotonic() - started)
    loop.close()
    return ""


class _Loop:
    """A worker's engine, rows and counters."""

    def __init__(self, told: _Run, context: ray.train.TrainContext):
        settings = told.settings
        self.told, self.settings, self.rank, self.world = (
            told,
            settings,
            context.get_world_rank(),
            context.get_world_size(),
        )
        if not settings.workers.num_gpus:
            torch.set_num_threads(max(1, int(settings.workers.num_cpus)))
        self.rows = RowStore(told.selection, told.columns, write=context.get_local_rank() == 0)
        self.objective = told.objective(**told.kwargs)
        self.engine = start_engine(self.objective.model, settings)
        torch.distributed.barrier()  # the rows have been laid
        self.rows.open()
        self.average = (
            Average(self.engine.module, settings.ema_decay, settings.ema_rule) if settings.ema_decay else None
        )
        self.images, self.last, self.log = 0, {}, []
        self._restore()

    def run(self) -> None:
        """Train up to the last image, with checkpoints on the way."""
        settings = self.settings
        progress = Progress(self.told.name, settings.total_images, "images", done=self.images)
        while self.images < settings.total_images:
            before = self.images
            self.last = self._step()
            loss = self.last["train/loss"]
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"{self.told.name}: the loss is {loss} after {self.images} images; lower the learning rate "
                    f"({settings.learning_rate:g}), lengthen the warm-up, or look for broken rows in the table"
                )
            due = progress.advance(self.images - before, f", loss {loss:.4f}") if self.rank == 0 else False
            rate = round(progress.per_second, 3)
            self.log.append(json.dumps({"images": self.images} | self.last | {"train/images_per_second": rate}))
            if due:
                self._write_log()
            every, ended = settings.checkpoint_images, self.images >= settings.total_images
            if ended or before // every < self.images // every:
                self._checkpoint()

    def save(self, seconds: float) -> None:
        """Write the portable model folder from the averaged (or else the last) weights."""
        if self.average:
            self.average.copy_to(self.engine.module)
        state = consolidated_state(self.engine.module)
        if self.rank == 0:
            told = self.told
            metrics = self.last | {"images": self.images}
            store_model(
                told.out,
                lambda folder: self.objective.save(folder, state),
                told.fingerprint,
                metrics,
                seconds,
            )
            print(f"{told.name}: trained on {self.images} images, saved to {told.out}", flush=True)

    def close(self) -> None:
        """Give back the disk space of the rows, once no worker of this machine reads them."""
        torch.distributed.barrier()
        self.rows.close()

    def _step(self) -> Metrics:
        """One optimiser step on one global batch; measures averaged over all ranks and micro batches."""
        settings, share = self.settings, self.settings.batch_size // self.world
        places = batch_places(self.images, settings.batch_size, self.rows.num_rows, settings.seed)
        mine = places[self.rank * share : (self.rank + 1) * share]
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate(settings, self.images + settings.batch_size)
        totals: Metrics = {}
        micro = settings.micro_batch_size
        for start in range(0, share, micro):
            draw = ("batch", settings.seed, self.rank, self.images + start)
            torch.manual_seed(seed_for("layers", *draw))  # dropout layers know no other generator
            batch = self.rows.read(mine[start : start + micro])
            loss, measures = self.objective.loss(self.engine, batch, generator_for(*draw))
            self.engine.backward(loss)
            self.engine.step()
            if self.average and (settings.ema_rule == "micro_batch" or start + micro == share):
                self.average.update(self.engine.module)
            for key, value in (measures | {"train/loss": loss.item()}).items():
                totals[key] = totals.get(key, 0.0) + value * micro / share
        self.images += settings.batch_size
        summarise = getattr(self.objective, "summarise", lambda means, num_rows: means)
        return summarise(self._mean_over_ranks(totals), settings.batch_size)

    def _mean_over_ranks(self, totals: Metrics) -> Metrics:
        keys = sorted(totals)
        values = torch.tensor([totals[key] for key in keys], dtype=torch.float64, device=self.engine.device)
        torch.distributed.all_reduce(values)
        return dict(zip(keys, (values / self.world).tolist(), strict=True))

    def _checkpoint(self) -> None:
        """Collective: each rank writes its part of the state, Ray merges them into one folder."""
        average = self.average.state() if self.average else None
        state = {"images": self.images, "last": self.last, "average": average}
        with tempfile.TemporaryDirectory() as folder:
            self.engine.save_checkpoint(folder, tag="state", client_state=state)
            self._write_log()
            ray.train.report(self.last, checkpoint=Checkpoint.from_directory(folder))

    def _restore(self) -> None:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return
        with checkpoint.as_directory() as folder:
            _, state = self.engine.load_checkpoint(folder, tag="state")
        self.images, self.last = state["images"], state["last"]
        if self.average:
            self.average.load(state["average"])
        if self.rank == 0:
            print(f"{self.told.name}: resumed at {self.images} images", flush=True)
            lines = storage.read_text(self.told.metrics).splitlines()
            self.log = [line for line in lines if json.loads(line)["images"] <= self.images]

    def _write_log(self) -> None:
        if self.rank == 0:
            storage.write_text(self.told.metrics, "".join(f"{line}\n" for line in self.log))


def start_engine(model: nn.Module, settings: Training) -> deepspeed.DeepSpeedEngine:
    """The model's trained weights under DeepSpeed's ZeRO and AdamW (0.9, 0.999); needs a process group."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # Else DeepSpeed tries out every op's compiler at start, and compiles a shared-memory collective for inference.
    deepspeed.ops.__compatible_ops__ = {}
    model.train()
    for weight in model.parameters():  # the broadcast and ZeRO's flat buffers know no channels-last weights
        weight.data = weight.data.clone(memory_format=torch.contiguous_format)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(
        weights, lr=settings.learning_rate, betas=(0.9, 0.999), weight_decay=settings.weight_decay
    )
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=deepspeed_config(settings), dist_init_required=False
    )
    return engine
