"""DeepSpeed's engine from our settings: ZeRO 0 to 3, offload, precision; and what it will hold in memory."""

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import deepspeed
import psutil
import torch
from torch import nn

from hive_ray.config import Training
from hive_ray.errors import Stopped
from hive_ray.training.deepspeed_fixes import (
    has_overflowed,
    keep_gradients_in_place,
    loss_scaler,
    lower_loss_scale,
    set_max_grad_norm,
    skip_step_where,
    skip_unused_compilers,
)

AUTOCAST_DTYPES = {"bf16": "bfloat16", "fp16": "float16"}
BYTES_PER_WEIGHT = 4
"""Bytes of a weight, and of each of its companions: they stay in fp32, a lower precision is autocast's."""
BUCKET_SIZE = 50_000_000
"""Numbers that ZeRO sends at a time, 0.2 GB: DeepSpeed's own ten times as many are 2 GB of buffer, for no speed."""
MAX_LIVE_WEIGHTS = 4 * BUCKET_SIZE
"""Weights that stage 3 has in whole at a time: DeepSpeed's own 10^9 are all of Stable Diffusion 1.5."""
ALL_WEIGHTS = 10**15
"""More weights than there are."""
CGROUP_FILES = (
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""By version 2 and 1: the folder, the limit, what is used, and, in memory.stat, what of it is files."""
USABLE_SHARE = 0.95
"""Share of the free memory that the weights and their companions may fill: activations come on top."""


def deepspeed_config(settings: Training, *, universal: bool = False) -> dict[str, Any]:
    """DeepSpeed's settings. Weights stay in fp32; a lower precision is autocast's, so the average needs no copies.

    universal: the checkpoint to be opened was written by another number of workers and converted.
    """
    zero: dict[str, Any] = {
        "stage": settings.zero_stage,
        "reduce_bucket_size": BUCKET_SIZE,
        "allgather_bucket_size": BUCKET_SIZE,
    }
    if settings.zero_stage == 3:
        zero["stage3_param_persistence_threshold"] = 0  # no weight escapes the parts
        zero |= {"stage3_max_live_parameters": MAX_LIVE_WEIGHTS, "stage3_max_reuse_distance": MAX_LIVE_WEIGHTS}
    if settings.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": settings.workers.num_gpus > 0}
    if settings.offload == "weights":
        zero["offload_param"] = {"device": "cpu", "pin_memory": settings.workers.num_gpus > 0}
    config: dict[str, Any] = {
        "train_batch_size": settings.batch_size,
        "train_micro_batch_size_per_gpu": settings.micro_batch_size,
        "gradient_clipping": settings.max_grad_norm if settings.zero_stage else 0.0,  # `take_step` does it without ZeRO
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,  # torch's fused AdamW is no slower, and needs no compiler
        "steps_per_print": 1 << 40,
    }
    if settings.precision in AUTOCAST_DTYPES:
        config["torch_autocast"] = {
            "enabled": True,
            "dtype": AUTOCAST_DTYPES[settings.precision],
            "lower_precision_safe_modules": [],  # of which ZeRO would send gradients, and stage 3 weights, in 16 bits
        }
    if settings.precision == "fp16":
        zero["sub_group_size"] = ALL_WEIGHTS  # stage 3 updates the loss scale with each group, in the middle of a step
    if universal:
        config["checkpoint"] = {"load_universal": True}
    return config


def start_engine(model: nn.Module, settings: Training, *, universal: bool = False) -> deepspeed.DeepSpeedEngine:
    """The model's trained weights under DeepSpeed's ZeRO and AdamW (0.9, 0.999); needs a process group."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    skip_unused_compilers()
    model.train()
    channels_last = [weight for weight in model.parameters() if not weight.is_contiguous()]
    for weight in model.parameters():  # the broadcast and ZeRO's flat buffers know no channels-last weights
        weight.data = weight.data.clone(memory_format=torch.contiguous_format)
    if settings.compile:
        model.compile()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(
        weights,
        lr=settings.learning_rate,
        betas=(0.9, 0.999),
        weight_decay=settings.weight_decay,
        fused=True,  # on a CPU, too, less than half the time of one weight after the other
    )
    config = deepspeed_config(settings, universal=universal)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
    if settings.zero_stage == 0:
        keep_gradients_in_place(engine, optimizer, torch.distributed.get_world_size())
        for weight in channels_last:  # nothing is parted: convolutions may have their weights as they like them
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return engine


def autocast(settings: Training) -> torch.autocast:
    """The precision of what an objective computes outside its wrapped model, such as a frozen text encoder's states."""
    device = "cuda" if settings.workers.num_gpus else "cpu"
    dtype = getattr(torch, AUTOCAST_DTYPES.get(settings.precision, "float32"))
    return torch.autocast(device, dtype=dtype, enabled=settings.precision in AUTOCAST_DTYPES)


def take_step(engine: deepspeed.DeepSpeedEngine, max_grad_norm: float) -> float | None:
    """`engine.step()`; the L2 norm of the whole gradient over all ranks that it took, before it is cut at
    `max_grad_norm` (0: it is not). A gradient that is not finite changes no weight.

    None within an accumulation. ZeRO's optimisers measure and cut by themselves; without ZeRO it is done here, where
    DeepSpeed would not tell the norm that it finds.
    """
    if not engine.is_gradient_accumulation_boundary():
        engine.step()
        return None
    step = _zero_step if engine.zero_optimization() else _step
    return step(engine, max_grad_norm, loss_scaler(engine))


def _zero_step(engine: deepspeed.DeepSpeedEngine, max_grad_norm: float, scaler: torch.amp.GradScaler | None) -> float:
    scale = scaler.get_scale() if scaler else 1.0
    if scaler:  # ZeRO cuts before the scaler takes fp16's loss scale off again
        set_max_grad_norm(engine, max_grad_norm * scale)
    engine.step()
    if scaler and has_overflowed(engine):  # DeepSpeed leaves the step out, and the scale as it is: for ever
        lower_loss_scale(scaler, scale)
    norm = engine.get_global_grad_norm()
    assert norm is not None, "ZeRO's optimisers measure the norm in each step"
    return float(norm) / scale


def _step(engine: deepspeed.DeepSpeedEngine, max_grad_norm: float, scaler: torch.amp.GradScaler | None) -> float:
    optimizer = cast(torch.optim.Optimizer, engine.optimizer)
    if scaler:
        scaler.unscale_(optimizer)
    weights = [weight for group in optimizer.param_groups for weight in group["params"] if weight.grad is not None]
    norm = nn.utils.get_total_norm([weight.grad for weight in weights])
    # On a GPU the host would have to wait to know whether there is anything to cut. (NaN is: it is not within.)
    if max_grad_norm and (norm.is_cuda or not norm <= max_grad_norm):
        nn.utils.clip_grads_with_norm_(weights, max_grad_norm, norm)
    if not scaler:  # which looks for itself; torch's fused AdamW leaves out a step at which something was found
        skip_step_where(optimizer, (~norm.isfinite()).float() if norm.is_cuda or not norm.isfinite() else None)
    engine.step()
    return float(norm)


def estimate_memory(
    trained: int, frozen: int, settings: Training, other_frozen: int = 0
) -> dict[str, dict[str, float]]:
    """Bytes that one worker holds before any activation: {"device": {what: bytes}, "host": {what: bytes}}.

    trained, frozen: numbers of weights of the model that DeepSpeed wraps; other_frozen: of frozen ones outside it.
    After ZeRO (Rajbhandari et al. 2020), with fp32 weights: stage 1 parts the optimiser, 2 the gradients too, 3 the
    weights too. From stage 1 on DeepSpeed's optimiser keeps a second fp32 copy of its part. Buffers: what is sent at a
    time, at stage 0 all gradients, and the whole weights of the layers at work at stage 3.
    """
    workers, stage = settings.workers.num_actors, settings.zero_stage
    part = BYTES_PER_WEIGHT * trained / workers
    whole = BYTES_PER_WEIGHT * trained
    weights = (part + BYTES_PER_WEIGHT * frozen / workers) if stage == 3 else whole + BYTES_PER_WEIGHT * frozen
    optimizer = {0: 2 * whole}.get(stage, 3 * part)
    average = 0.0 if not settings.ema_decay else part if stage == 3 else whole
    gradients = part if stage >= 2 else whole
    buffers = BYTES_PER_WEIGHT * min(trained, 2 * BUCKET_SIZE if stage else trained) + BYTES_PER_WEIGHT * min(
        trained + frozen, MAX_LIVE_WEIGHTS if stage == 3 else 0
    )
    device = {"weights": weights, "gradients": gradients, "average": average, "buffers": buffers}
    device["frozen outside the model"] = BYTES_PER_WEIGHT * other_frozen
    host: dict[str, float] = {}
    (host if settings.offload != "none" else device)["optimizer"] = optimizer
    if settings.offload == "weights":
        host |= {"weights": device.pop("weights"), "average": device.pop("average")}
    return {"device": device, "host": host}


def check_memory(
    name: str,
    model: nn.Module,
    settings: Training,
    local_workers: int,
    max_over_ranks: Callable[[float], float],
    free: Callable[[bool], float] | None = None,
    frozen_modules: Sequence[nn.Module] = (),
) -> None:
    """Raise Stopped, on every rank alike, where some rank's weights and their companions cannot fit.

    local_workers: ranks that share this machine's memory. max_over_ranks: the greatest of a number over all ranks.
    free: bytes of the device's (True) or the host's memory, to stand in for the real ones.
    frozen_modules: frozen modules that a GPU will hold outside the model; on a CPU they are in what is taken already.
    """
    free = free or free_bytes
    on_gpu = settings.workers.num_gpus > 0
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    outside = sum(map(_size, frozen_modules)) if on_gpu else 0
    estimate = estimate_memory(trained, _size(model) - trained, settings, outside)
    needs = {True: sum(estimate["device"].values()), False: sum(estimate["host"].values()) * local_workers}
    if not on_gpu:
        needs = {False: needs[False] + needs[True] * local_workers}
    for device, need in needs.items():
        lacking = max_over_ranks(need - USABLE_SHARE * free(device) if need else 0.0)
        if lacking > 0:
            kinds = estimate["device"] | estimate["host"]
            listed = ", ".join(f"{kind} {_gigabytes(size)}" for kind, size in kinds.items())
            place = "the GPU" if device else f"the machine, for {local_workers} workers on it"
            raise Stopped(
                f"{name}: {trained:,} trained weights need {_gigabytes(need)} in the memory of {place}, before any "
                f"activation ({listed} a worker), and {_gigabytes(lacking)} of it is not there: raise zero_stage "
                f"(now {settings.zero_stage}) or the number of workers, set offload, train with lora_rank, or set "
                "ema_decay to 0"
            )


def free_bytes(device: bool) -> float:
    """Memory that is free now: of this process's GPU, or of the machine, or of the container that it runs in."""
    if device:
        return torch.cuda.mem_get_info()[0]
    return min(psutil.virtual_memory().available, free_container_bytes())


def free_container_bytes(root: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes that this container may still take by its memory control group, of version 2 or 1; infinity without one.

    What the kernel keeps of files, and gives back where memory is asked for, counts as free.
    """
    for folder, most, used, files in CGROUP_FILES:
        try:
            limit = (root / folder / most).read_text().strip()
            taken = int((root / folder / used).read_text())
            counts = dict(line.split() for line in (root / folder / "memory.stat").read_text().splitlines())
        except OSError:
            continue
        return math.inf if limit == "max" else int(limit) - taken + int(counts[files])
    return math.inf


def _size(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB"
