"""Settings of a training, of the editor or of the reward model."""

from typing import Literal

from pydantic import Field, model_validator

from hive_ray.config.section import Resources, Section


class Watching(Section):
    """Logging and validation during training. Changes no weights."""

    tracker: Literal["tensorboard", "wandb", "mlflow", "none"] = "tensorboard"
    """Experiment tracker. <run>/metrics/<name>.jsonl is always written. Install W&B or MLflow yourself; they read their
    usual variables (WANDB_API_KEY, MLFLOW_TRACKING_URI, ...)."""
    project: str = "hive-ray"
    """W&B project or MLflow experiment."""
    validation_images: int | None = Field(default=None, ge=1)
    """Images between two validations; None validates after each quarter of the training. The start and the end are
    always validated."""
    num_previews: int = Field(default=4, ge=0)
    """Held-out rows whose edits are sampled at each validation."""


class Recovery(Section):
    """Checkpoints and fault tolerance of a training. Changes no weights."""

    keep_last: int = Field(default=2, ge=1)
    """Newest checkpoints to keep during training. Keep more than one, since a file may get lost."""
    keep_best: int = Field(default=0, ge=0)
    """Checkpoints to keep in addition, those with the lowest validation loss. Above 0, the loss is measured before each
    checkpoint."""
    max_failures: int = Field(default=2, ge=0)
    """Most automatic restarts after a worker has died. Announced preemptions of nodes do not count."""
    wait_minutes: float = Field(default=30.0, gt=0)
    """Minutes in total to wait for nodes that join late; after that the training stops with a message."""
    most_bad_rows: float = Field(default=0.01, ge=0, le=1)
    """Largest share of rows, 0 to 1, that may be bad, such as a broken image. Bad rows are reported, skipped and
    counted. One row more stops the run."""


class Training(Section):
    """How a model is trained: shared by the editor and the reward model."""

    total_images: int = Field(ge=1)
    """Rows to train on in total, over all workers, rounded up to full batches."""
    batch_size: int = Field(ge=1)
    """Rows per optimiser step, over all workers and accumulation steps."""
    micro_batch_size: int = Field(ge=1)
    """Rows per worker and forward pass; `batch_size` is a multiple of this times the workers."""
    learning_rate: float = Field(gt=0)
    """Peak learning rate of AdamW."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up: constant, or cosine decay to 0."""
    warmup_images: int = Field(default=0, ge=0)
    """Images of linear learning-rate warm-up."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Weight decay of AdamW."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Clip gradients to this norm; 0 disables clipping (InstructPix2Pix)."""
    ema_decay: float = Field(default=0.9999, ge=0, lt=1)
    """Largest decay of the exponential moving average (EMA) of the weights, min(ema_decay, (1 + n) / (10 + n)); 0
    disables the EMA."""
    ema_rule: Literal["step", "micro_batch", "diffusers"] = "step"
    """What n in the EMA decay counts: optimiser steps; micro-batches of a worker, though weights change only at steps
    (InstructPix2Pix); or steps after the first, which copies the weights (diffusers)."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Floating point format of the forward and backward passes; fp32 master weights are kept."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """What DeepSpeed ZeRO partitions: nothing (0), optimiser states (1), gradients (2), weights (3), cumulatively."""
    offload: Literal["none", "optimizer", "weights"] = "none"
    """What is kept in CPU instead of GPU memory: optimiser states, or weights too (ZeRO stage 3)."""
    compile: bool = False
    """Use torch.compile: minutes at the start, then faster steps. Not at ZeRO stage 3."""
    checkpoint_images: int = Field(ge=1)
    """Images between two checkpoints."""
    validation_rows: int = Field(default=0, ge=0)
    """Rows held out to measure the validation loss, at most a tenth of all; 0 holds out none."""
    seed: int = 0
    """Seed of the order of rows and of all noise."""
    watching: Watching = Watching()
    workers: Resources = Resources()
    """Training workers: `num_actors` is their number; `batch_size` and `least_actors` are not used."""
    recovery: Recovery = Recovery()

    @model_validator(mode="after")
    def _possible(self) -> "Training":
        least = {"none": 0, "optimizer": 1, "weights": 3}[self.offload]
        if self.zero_stage < least:
            raise ValueError(
                f"offload is {self.offload!r} and zero_stage {self.zero_stage}: set zero_stage to {least} or more, or "
                "offload to 'none'"
            )
        if self.compile and self.zero_stage == 3:
            raise ValueError("compile is true and zero_stage 3, which cannot be compiled: choose one of them")
        return self

    @model_validator(mode="after")
    def _divisible(self) -> "Training":
        step = self.micro_batch_size * self.workers.num_actors
        if self.batch_size % step:
            raise ValueError(
                f"batch_size is {self.batch_size}, which is not a multiple of micro_batch_size x workers = {step}: "
                "change one of them"
            )
        return self
