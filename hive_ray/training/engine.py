"""DeepSpeed's engine from our settings (ZeRO 0 to 3, offload, precision), its steps, and an estimate of its memory."""

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
"""Precision -> the dtype of autocast."""
BYTES_PER_WEIGHT = 4
"""Bytes of a weight, its gradient and each optimiser state: all are fp32. Autocast does lower precision."""
BUCKET_SIZE = 50_000_000
"""Elements that ZeRO sends at a time: 0.2 GB. DeepSpeed's default is ten times as large and not faster."""
MAX_LIVE_WEIGHTS = 4 * BUCKET_SIZE
"""Weights that stage 3 gathers at a time. DeepSpeed's default of 10^9 is all of Stable Diffusion 1.5."""
ALL_WEIGHTS = 10**15
"""More weights than any model has."""
CGROUP_FILES = (
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""For cgroup versions 2 and 1: folder, limit, usage, and the entry of memory.stat for the file cache."""
USABLE_SHARE = 0.95
"""Share of the free memory for weights, gradients and optimiser states. Activations need the rest."""


def deepspeed_config(settings: Training, *, universal: bool = False) -> dict[str, Any]:
    """DeepSpeed's settings. Weights stay in fp32 and autocast does lower precision, so the average needs no copies.

    universal: the checkpoint to load was converted from another number of workers.
    """
    zero: dict[str, Any] = {
        "stage": settings.zero_stage,
        "reduce_bucket_size": BUCKET_SIZE,
        "allgather_bucket_size": BUCKET_SIZE,
    }
    if settings.zero_stage == 3:
        zero["stage3_param_persistence_threshold"] = 0  # partition every weight
        zero |= {"stage3_max_live_parameters": MAX_LIVE_WEIGHTS, "stage3_max_reuse_distance": MAX_LIVE_WEIGHTS}
    if settings.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": settings.workers.num_gpus > 0}
    if settings.offload == "weights":
        zero["offload_param"] = {"device": "cpu", "pin_memory": settings.workers.num_gpus > 0}
    config: dict[str, Any] = {
        "train_batch_size": settings.batch_size,
        "train_micro_batch_size_per_gpu": settings.micro_batch_size,
        "gradient_clipping": settings.max_grad_norm if settings.zero_stage else 0.0,  # without ZeRO `take_step` clips
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,  # torch's fused AdamW is as fast and needs no compiler
        "steps_per_print": 1 << 40,
    }
    if settings.precision in AUTOCAST_DTYPES:
        config["torch_autocast"] = {
            "enabled": True,
            "dtype": AUTOCAST_DTYPES[settings.precision],
            "lower_precision_safe_modules": [],  # ZeRO would send their gradients and weights in 16 bits
        }
    if settings.precision == "fp16":
        zero["sub_group_size"] = ALL_WEIGHTS  # stage 3 updates the loss scale after each group, even within a step
    if universal:
        config["checkpoint"] = {"load_universal": True}
    return config


def start_engine(model: nn.Module, settings: Training, *, universal: bool = False) -> deepspeed.DeepSpeedEngine:
    """Wrap the model in DeepSpeed's engine with AdamW (betas 0.9, 0.999). Needs a process group."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    skip_unused_compilers()
    model.train()
    channels_last = [weight for weight in model.parameters() if not weight.is_contiguous()]
    for weight in model.parameters():  # broadcasts and ZeRO's flat buffers need contiguous weights
        weight.data = weight.data.clone(memory_format=torch.contiguous_format)
    if settings.compile:
        model.compile()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(
        weights,
        lr=settings.learning_rate,
        betas=(0.9, 0.999),
        weight_decay=settings.weight_decay,
        fused=True,  # faster than one weight after the other, on a CPU too
    )
    config = deepspeed_config(settings, universal=universal)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
    if settings.zero_stage == 0:
        keep_gradients_in_place(engine, optimizer, torch.distributed.get_world_size())
        for weight in channels_last:  # weights are not partitioned, so convolutions may have their preferred layout
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return engine


def autocast(settings: Training) -> torch.autocast:
    """The autocast context for what an objective computes outside its wrapped model, such as a frozen text encoder."""
    device = "cuda" if settings.workers.num_gpus else "cpu"
    dtype = getattr(torch, AUTOCAST_DTYPES.get(settings.precision, "float32"))
    return torch.autocast(device, dtype=dtype, enabled=settings.precision in AUTOCAST_DTYPES)


def take_step(engine: deepspeed.DeepSpeedEngine, max_grad_norm: float) -> float | None:
    """Call `engine.step()` and return the L2 norm of the full gradient over all ranks, before it is clipped.

    Gradients are clipped to `max_grad_norm`; 0 disables clipping. A gradient that is not finite changes no weight.
    Returns None within a gradient accumulation. ZeRO's optimisers measure and clip the norm themselves. Without ZeRO it
    is done here, since DeepSpeed does not return the norm.
    """
    if not engine.is_gradient_accumulation_boundary():
        engine.step()
        return None
    step = _zero_step if engine.zero_optimization() else _step
    return step(engine, max_grad_norm, loss_scaler(engine))


def _zero_step(engine: deepspeed.DeepSpeedEngine, max_grad_norm: float, scaler: torch.amp.GradScaler | None) -> float:
    scale = scaler.get_scale() if scaler else 1.0
    if scaler:  # ZeRO clips gradients that are still multiplied by the loss scale
        set_max_grad_norm(engine, max_grad_norm * scale)
    engine.step()
    if scaler and has_overflowed(engine):  # DeepSpeed skips the step and would never lower the scale
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
    # On a GPU, always clip: a comparison would make the host wait. `not <=` is also true for NaN.
    if max_grad_norm and (norm.is_cuda or not norm <= max_grad_norm):
        nn.utils.clip_grads_with_norm_(weights, max_grad_norm, norm)
    if not scaler:  # a scaler skips such steps itself
        skip_step_where(optimizer, (~norm.isfinite()).float() if norm.is_cuda or not norm.isfinite() else None)
    engine.step()
    return float(norm)


def estimate_memory(
    trained: int, frozen: int, settings: Training, other_frozen: int = 0
) -> dict[str, dict[str, float]]:
    """Bytes that one worker holds, without activations: {"device": {name: bytes}, "host": {name: bytes}}.

    trained, frozen: numbers of weights of the model that DeepSpeed wraps; other_frozen: of frozen modules outside it.
    Follows ZeRO (Rajbhandari et al. 2020) with fp32 weights: stage 1 partitions the optimiser states, stage 2 also the
    gradients, stage 3 also the weights. From stage 1 on DeepSpeed's optimiser keeps a second fp32 copy of its
    partition. Buffers hold what is sent at a time, at stage 0 all gradients, and at stage 3 the gathered weights.
    """
    workers = settings.workers.num_actors
    stage = settings.zero_stage
    part = BYTES_PER_WEIGHT * trained / workers
    full = BYTES_PER_WEIGHT * trained
    weights = (part + BYTES_PER_WEIGHT * frozen / workers) if stage == 3 else full + BYTES_PER_WEIGHT * frozen
    optimizer = {0: 2 * full}.get(stage, 3 * part)
    average = 0.0 if not settings.ema_decay else part if stage == 3 else full
    gradients = part if stage >= 2 else full
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
    """Raise Stopped on all ranks if the weights, gradients and optimiser states of some rank do not fit.

    local_workers: number of ranks that share this machine's memory.
    max_over_ranks: returns the greatest of a number over all ranks.
    free: bytes of free memory of the device (True) or the host (False); `free_bytes` if None.
    frozen_modules: frozen modules outside the model that a GPU will hold. On a CPU they already occupy memory.
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
                f"{name}: {trained:,} trained weights need {_gigabytes(need)} in the memory of {place}, without "
                f"activations ({listed} per worker), and {_gigabytes(lacking)} of it is missing: raise zero_stage "
                f"(now {settings.zero_stage}) or the number of workers, set offload, train with lora_rank, or set "
                "ema_decay to 0"
            )


def free_bytes(device: bool) -> float:
    """Bytes of free memory of this process's GPU (True), or of the machine or container (False)."""
    if device:
        return torch.cuda.mem_get_info()[0]
    return min(psutil.virtual_memory().available, free_container_bytes())


def free_container_bytes(root: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes that this container may still use under its cgroup limit, version 2 or 1; infinity without a limit.

    The file cache, which the kernel frees on demand, counts as free.
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
