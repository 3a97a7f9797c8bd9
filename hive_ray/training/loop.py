"""The training loop of one worker, for any Objective.

A step depends only on the weights and the number of images seen. The rows, the learning rate and the random numbers
follow from that number, so a run that was killed continues exactly as if it had not been.
"""

import math
import time
from collections.abc import Iterator
from functools import partial
from typing import cast

import torch
import torch.distributed
from torch import Tensor

from hive_ray.artifacts.model_store import Metrics, store_model
from hive_ray.artifacts.progress import format_duration
from hive_ray.config import Training
from hive_ray.console import say, tell_result, warn
from hive_ray.errors import Stopped
from hive_ray.seeds import seed_for
from hive_ray.training.bad_rows import SKIPPED_ROWS, PreparedBatch, RowQuarantine
from hive_ray.training.checkpoints import Checkpoints, LoadedCheckpoint, TrainingState
from hive_ray.training.collectives import max_over_ranks, run_until_all_finish, sum_over_ranks
from hive_ray.training.deepspeed_fixes import loss_scaler
from hive_ray.training.engine import autocast, check_memory, start_engine, take_step
from hive_ray.training.job import TrainingJob, Worker
from hive_ray.training.objectives import summarise_measures
from hive_ray.training.prefetching import Prefetcher, pin_memory, prefetch_executor, to_device
from hive_ray.training.rows import RowStore, batch_places
from hive_ray.training.validation import VALIDATION_LOSS, Validation, evaluation_mode, validation_due
from hive_ray.training.watching import TrainingMonitor
from hive_ray.training.weights import WeightAverage, consolidated_state

PREEMPTION_POLL_S = 5.0
"""Seconds between checks whether a node will be taken away, by the clock of rank 0."""
MAX_LOST_STEPS = 50
"""Training stops after this many steps in a row with a gradient that is not finite. fp16's loss scale needs about a
third of them to come down from its start."""
PREEMPTION_DUE = "preemption due"
"""Key of a flag among a step's measures, so that it needs no collective of its own."""


def learning_rate(settings: Training, images: int) -> float:
    """The rate of the batch that ends at `images` rows: linear warm-up, then constant or half a cosine down to 0."""
    if images < settings.warmup_images:
        return settings.learning_rate * images / settings.warmup_images
    if settings.schedule == "constant":
        return settings.learning_rate
    past = images - settings.warmup_images
    progress = min(1.0, past / max(1, settings.total_images - settings.warmup_images))
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def seed_layers(seed: int, device: torch.device) -> None:
    """Seed torch's default generators, which dropout layers use.

    Without a GPU, torch.manual_seed would record a stack trace on each call, for a GPU that is initialised later.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


class TrainingLoop:
    """The engine, the rows and the counters of one worker."""

    def __init__(self, job: TrainingJob, worker: Worker):
        settings = job.settings
        self.job = job
        self.settings = settings
        self.worker = worker
        self.rank = worker.rank
        self.world = worker.world
        self.is_local_leader = worker.local_rank == 0  # writes the files of this machine
        if not settings.workers.num_gpus:
            torch.set_num_threads(max(1, int(settings.workers.num_cpus)))
        self.rows = RowStore(job.selection, job.columns, write=self.is_local_leader)
        columns = list(dict.fromkeys([*job.columns, *job.preview_columns]))
        self.held_out = RowStore(job.held_out, columns, write=self.is_local_leader) if job.held_out else None
        self.objective = job.objective(**job.kwargs)
        self.quarantine = RowQuarantine(self.rows, job.name, settings.recovery.most_bad_rows)
        self.images = 0
        self.last_measures: Metrics = {}
        self.lost_steps = 0
        self.device = torch.device("cuda" if settings.workers.num_gpus else "cpu")
        self.preemption_due = False  # whether all ranks check for preemptions after this step
        self.last_poll = time.monotonic()  # when they last checked
        self.preempted_nodes: set[str] = set()  # nodes that will be taken away
        keep = settings.recovery
        self.checkpoints = Checkpoints(
            job.checkpoints, self.rank, keep_last=keep.keep_last, keep_best=keep.keep_best, best=VALIDATION_LOSS
        )
        max_over_all = partial(max_over_ranks, device=self.device)
        frozen = getattr(self.objective, "frozen_modules", ())
        check_memory(job.name, self.objective.model, settings, worker.local_world, max_over_all, frozen_modules=frozen)
        made_by = self._start()
        stores = [self.rows, *([self.held_out] if self.held_out else [])]
        run_until_all_finish(lambda: [store.write_cache(job.name) for store in stores], self.device)
        for store in stores:
            store.open()
        self.validation = None
        if self.held_out:
            self.validation = Validation(self.held_out, job.name, settings, rank=self.rank, world=self.world)
        self.monitor = TrainingMonitor(job.run, job.name, settings, rank=self.rank, resumed_at=self.images)
        self.batches = Prefetcher(self._micro_batches(self.images), prefetch_executor(self.device))
        if self.images and self.rank == 0:
            self._report_resumption(made_by)

    def run(self) -> None:
        """Train to the end and store checkpoints on the way."""
        try:
            self._steps()
            self.checkpoints.wait()
        finally:
            self.batches.close()
            self.monitor.close()

    def _steps(self) -> None:
        settings = self.settings
        if self.validation and not self.images:
            self.monitor.log_step(0, self._validate())
        while self.images < settings.total_images:
            before = self.images
            self.last_measures = self._step()
            loss = self.last_measures["train/loss"]
            if self.validation and math.isfinite(loss) and validation_due(settings, before, self.images):
                self.last_measures |= self._validate()
            # Once a node is known to be taken away, each step may be the last.
            self.monitor.log_step(self.images, self.last_measures, flush_now=bool(self.preempted_nodes))
            if not math.isfinite(loss):
                raise Stopped(
                    f"{self.job.name}: the loss is {loss} after {self.images} images; lower the learning rate "
                    f"({settings.learning_rate:g}), lengthen the warm-up, or look for broken rows in the table"
                )
            self.lost_steps = 0 if math.isfinite(self.last_measures["train/gradient_norm"]) else self.lost_steps + 1
            if self.lost_steps == MAX_LOST_STEPS:
                raise Stopped(
                    f"{self.job.name}: the gradient's norm is {self.last_measures['train/gradient_norm']} in "
                    f"{MAX_LOST_STEPS} steps in a row, up to {self.images} images; use bf16 or fp32 "
                    f"(it is {settings.precision}), lower the learning rate, or look for broken rows"
                )
            every, ended = settings.checkpoint_images, self.images >= settings.total_images
            if ended or before // every < self.images // every:
                self._checkpoint()
            if self.preemption_due:
                self._checkpoint_before_preemption()

    def _validate(self) -> Metrics:
        """The measures of the held-out rows. Also stores a preview picture."""
        self.batches.wait_until_idle()  # validation uses the same tokenizer and threads
        assert self.validation is not None
        with evaluation_mode(self.engine, self.average):
            measures = self.validation.measure(self.objective, self.engine)
            picture = self.validation.preview(self.objective, self.engine)
        self.monitor.log_picture(self.images, picture)
        return measures

    def save(self, seconds: float) -> None:
        """Write the model folder with the averaged weights, or with the last ones if no average is kept."""
        if self.average:
            self.average.copy_to_model()
        state = consolidated_state(self.objective.model)
        if self.rank == 0:
            job = self.job
            metrics = self.last_measures | {"images": self.images}
            store_model(
                job.out,
                lambda folder: self.objective.save(folder, state),
                job.fingerprint,
                metrics,
                seconds,
            )
            took = f"{self.images} images in {format_duration(seconds)}"
            tell_result(f"trained on {took}, saved to {job.out}", stage=job.name)

    def close(self) -> None:
        """Remove the row caches once no worker of this machine reads them."""
        torch.distributed.barrier()
        self.rows.close()
        if self.held_out:
            self.held_out.close()

    def _step(self) -> Metrics:
        """One optimiser step on one global batch. Returns measures averaged over all ranks and micro batches."""
        settings, share = self.settings, self._share
        for group in cast(torch.optim.Optimizer, self.engine.optimizer).param_groups:
            group["lr"] = learning_rate(settings, self.images + settings.batch_size)
        due = time.monotonic() - self.last_poll >= PREEMPTION_POLL_S
        poll = self.rank == 0 and self.worker.preemption is not None and due
        totals: dict[str, float | Tensor] = {PREEMPTION_DUE: float(poll)}
        micro = settings.micro_batch_size
        for start in range(0, share, micro):
            seed_layers(seed_for("layers", *self._draw(self.images + start)), self.device)
            batch, good = self.quarantine.take(next(self.batches))
            with autocast(settings):
                loss, measures = self.objective.loss(self.engine, to_device(self.device, batch))
            self.engine.backward(loss * (good / micro))
            norm = take_step(self.engine, settings.max_grad_norm)
            if self.average and (settings.ema_rule == "micro_batch" or start + micro == share):
                self.average.update()
            for key, value in (
                measures | {"train/loss": loss.detach().double()}
            ).items():  # GPU values are read once a step
                totals[key] = totals.get(key, 0.0) + value * good / share
            totals[SKIPPED_ROWS] = totals.get(SKIPPED_ROWS, 0.0) + (micro - good) / share
        self.images += settings.batch_size
        sums = sum_over_ranks(totals, self.device)
        skipped = self.last_measures.get(SKIPPED_ROWS, 0)
        self.preemption_due = sums.pop(PREEMPTION_DUE) > 0
        means = {name: total / self.world for name, total in sums.items()}
        means = self.quarantine.average_good_rows(means, settings.batch_size, skipped)
        measures = {"train/learning_rate": learning_rate(settings, self.images), "train/gradient_norm": norm}
        if self.device.type == "cuda":
            measures["train/peak_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        if self.average:
            measures["train/ema_decay"] = self.average.last_decay
        num_good = settings.batch_size - means[SKIPPED_ROWS] + skipped
        return summarise_measures(self.objective, means, num_good) | measures

    @property
    def _share(self) -> int:
        """Number of rows of a batch that belong to this rank."""
        return self.settings.batch_size // self.world

    def _draw(self, image: int) -> tuple[str | int, ...]:
        """The seed of the random numbers of this rank's micro batch after `image` rows."""
        return ("batch", self.settings.seed, self.rank, image)

    def _micro_batches(self, images: int) -> Iterator[PreparedBatch]:
        """This rank's micro batches of all steps after `images` rows."""
        settings, share, micro = self.settings, self._share, self.settings.micro_batch_size
        for seen in range(images, settings.total_images, settings.batch_size):
            places = batch_places(seen, settings.batch_size, self.rows.num_rows, settings.seed)
            mine = places[self.rank * share : (self.rank + 1) * share]
            for start in range(0, share, micro):
                draw = self._draw(seen + start)
                made = self.quarantine.prepare(self.objective.prepare, mine[start : start + micro], draw)
                yield made._replace(batch=pin_memory(self.device, made.batch))

    def _checkpoint(self) -> None:
        """Collective: each rank writes its part of the state and stores it in the background."""
        scaler = loss_scaler(self.engine)
        state = TrainingState(
            images=self.images,
            last=self.last_measures,
            world=self.world,
            updates=self.average.updates if self.average else 0,
            zero_stage=self.settings.zero_stage,
            scaler=scaler.state_dict() if scaler else {},
            bad_rows={str(place): why for place, why in self.quarantine.bad_rows.items()},
        )
        self.monitor.flush()
        self.checkpoints.save(self.engine, self.average, state)

    def _checkpoint_before_preemption(self) -> None:
        """Collective: if a node of this training will be taken away, store a checkpoint at once."""
        self.last_poll = time.monotonic()
        preemption = self.worker.preemption() if self.worker.preemption else None
        fresh = preemption.nodes - self.preempted_nodes if preemption else frozenset()
        if preemption is None or not fresh:
            return
        self.preempted_nodes |= fresh
        self._checkpoint()
        self.checkpoints.wait()
        torch.distributed.barrier()
        if self.rank == 0:
            left = f", {preemption.deadline - time.time():.0f} s before its end" if preemption.deadline else ""
            warn(f"a node is being taken away; checkpoint at {self.images} images{left}", stage=self.job.name)

    def _start(self) -> int:
        """Collective: create the engine and the average, or restore them from the newest complete checkpoint.

        Returns the number of workers that wrote the checkpoint, 0 without one.
        """
        settings, checkpoint = self.settings, self._open_newest()
        self.engine = start_engine(self.objective.model, settings, universal=bool(checkpoint and checkpoint.universal))
        self.average = (
            WeightAverage(self.objective.model, settings.ema_decay, settings.ema_rule) if settings.ema_decay else None
        )
        if checkpoint is None:
            return 0
        checkpoint.restore(self.engine, self.average, self.rank, self.world)
        state = checkpoint.training_state
        self.images, self.last_measures = state.images, state.last
        self.quarantine.bad_rows = {int(place): why for place, why in state.bad_rows.items()}
        torch.distributed.barrier()
        if self.is_local_leader:
            checkpoint.remove_local_files()
        return state.world

    def _open_newest(self) -> LoadedCheckpoint | None:
        """Collective: the newest complete checkpoint, fetched by one rank of each machine; None if there is none."""
        state = self.checkpoints.newest() if self.rank == 0 else None
        if self.rank == 0:
            self.checkpoints.remove_after(state.images if state else -1)
        images = int(max_over_ranks(state.images if state else -1, self.device))
        if images < 0:
            return None
        if not self.is_local_leader:
            torch.distributed.barrier()
        checkpoint = self.checkpoints.open(images, self.world)
        if self.is_local_leader:
            torch.distributed.barrier()
        return checkpoint

    def _report_resumption(self, made_by: int) -> None:
        """Say where training continues and how many steps are repeated."""
        repeated = (self.monitor.last_logged - self.images) // self.settings.batch_size
        others = f", made by {made_by} workers" if made_by != self.world else ""
        say(f"resumed at {self.images} images{others}, {repeated} logged steps are repeated", stage=self.job.name)


def train(job: TrainingJob, worker: Worker) -> str:
    """Run the training of one worker, in its process group of torch.distributed. Rank 0 writes the model folder.

    Returns why the training cannot succeed, the same on every rank, or an empty string.
    """
    started = time.monotonic()
    try:
        loop = TrainingLoop(job, worker)
        loop.run()
    except Stopped as error:  # a restart would fail in the same way
        return str(error)
    loop.save(time.monotonic() - started)
    loop.monitor.report()
    loop.close()
    return ""
