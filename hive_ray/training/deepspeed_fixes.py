"""Every use of internals of DeepSpeed and PyTorch in the training. INTERNALS lists them with reasons.

tests/test_internals.py fails with the name of the symbol that a new release no longer has.
"""

import importlib
import io
from argparse import Namespace
from contextlib import AbstractContextManager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.checkpoint import ds_to_universal
from deepspeed.runtime import compiler
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.torch_autocast import autocast_if_enabled
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from torch import Tensor

from hive_ray.internals import Internal

SAFE_CLASSES = [fragment_address, LossScaler, ZeroStageEnum]
"""Classes of the objects that DeepSpeed writes into checkpoints besides tensors and numbers."""
UNIVERSAL_INFO = {"universal_checkpoint_info": {"universal_checkpoint_version": 0.2}}
"""An entry that DeepSpeed's conversion requires in a checkpoint and its engine does not write."""
MODEL_STATES_FILE = "mp_rank_00_model_states.pt"
"""The file with the weights of an engine without ZeRO."""
MUON_MODULE = "deepspeed.runtime.zero.muon.muon_optimizer"
"""Imported early with its kernels' compilation switched off."""


# --- Starting ---------------------------------------------------------------------------------------------------------


def skip_unused_compilers() -> None:
    """Stop DeepSpeed from running compilers when it starts.

    It tests the compiler of each op and compiles a collective for inference. It also imports its Muon optimiser, which
    compiles kernels and so imports all of torch's compiler. Nothing here uses either.
    """
    deepspeed.ops.__compatible_ops__ = {}  # pyright: ignore[reportAttributeAccessIssue] - set by its __getattr__
    compiles = compiler.compile
    compiler.compile = lambda: compiler.dummy_decorator
    try:
        importlib.import_module(MUON_MODULE)
    finally:
        compiler.compile = compiles


def keep_gradients_in_place(engine: deepspeed.DeepSpeedEngine, optimizer: torch.optim.Optimizer, workers: int) -> None:
    """Without ZeRO: skip work of the engine that has no effect on the result."""
    # With one worker there is nothing to average; the engine would still copy the gradients three times.
    engine.enable_backward_allreduce = workers > 1
    engine.zero_grad = optimizer.zero_grad  # the engine's own walks through all modules in each step


# --- Steps ------------------------------------------------------------------------------------------------------------


def engine_autocast(engine: deepspeed.DeepSpeedEngine) -> AbstractContextManager:
    """The autocast context of the engine's forward passes."""
    return autocast_if_enabled(engine)


def loss_scaler(engine: deepspeed.DeepSpeedEngine) -> torch.amp.GradScaler | None:
    """The loss scaler of fp16, which DeepSpeed's checkpoints leave out; None at other precisions."""
    return engine.torch_autocast_z0_gradscaler or getattr(engine.optimizer, "torch_autocast_gradscaler", None)


def set_max_grad_norm(engine: deepspeed.DeepSpeedEngine, norm: float) -> None:
    """Set the norm to which ZeRO's optimiser clips gradients. At fp16 it clips gradients that are still scaled."""
    optimizer: Any = engine.optimizer
    optimizer.clip_grad = norm


def has_overflowed(engine: deepspeed.DeepSpeedEngine) -> bool:
    """Whether ZeRO's optimiser skipped the last step because a gradient was not finite."""
    optimizer: Any = engine.optimizer
    return optimizer.overflow


def lower_loss_scale(scaler: torch.amp.GradScaler, scale: float) -> None:
    """Reduce fp16's loss scale from `scale`, as the scaler does after a skipped step."""
    lower = {"scale": scale * scaler.get_backoff_factor(), "_growth_tracker": 0}
    scaler.load_state_dict(scaler.state_dict() | lower)


def skip_step_where(optimizer: Any, when: Tensor | None) -> None:
    """Make torch's fused AdamW skip its next step if `when`, a scalar on its device, is not 0; None: do not."""
    optimizer.found_inf = when


# --- Partitioned weights, and checkpoints -----------------------------------------------------------------------------


def partition_of(weight: Any) -> Tensor | None:
    """This rank's partition of a weight under ZeRO stage 3, flat and padded; None if the weight is not partitioned."""
    return weight.ds_tensor.data if hasattr(weight, "ds_tensor") else None


def full_numel(weight: Tensor) -> int:
    """The number of elements of a weight, also if this rank holds only a partition of it."""
    return getattr(weight, "ds_numel", weight.numel())


def convert_to_universal(state: Path, to: Path) -> None:
    """Convert the checkpoint in `state` to DeepSpeed's universal form, which any number of workers loads, in `to`."""
    arguments = Namespace(
        input_folder=str(state),
        output_folder=str(to),
        num_extract_workers=1,  # in this process, since a training worker must not fork
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=False,
    )
    unread = io.StringIO()  # it prints a progress bar for each weight
    with redirect_stdout(unread), redirect_stderr(unread):
        ds_to_universal.main(arguments)


# --- The table --------------------------------------------------------------------------------------------------------

THIS_FILE = "training/deepspeed_fixes.py"
ENGINE = "deepspeed.runtime.engine.DeepSpeedEngine"
INTERNALS = (
    Internal("deepspeed.ops.__compatible_ops__", THIS_FILE, "no compiler of an op is tested at the start"),
    Internal(
        "deepspeed.runtime.compiler", THIS_FILE, "Muon is imported without torch's compiler",
        attributes=("compile", "dummy_decorator"),
    ),
    Internal(MUON_MODULE, THIS_FILE, "the module that the engine imports"),
    Internal(f"{ENGINE}.enable_backward_allreduce", THIS_FILE, "one worker's gradients are not averaged"),
    Internal(f"{ENGINE}.zero_grad", THIS_FILE, "gradients are cleared without a walk through all modules"),
    Internal(
        "deepspeed.runtime.torch_autocast.autocast_if_enabled", THIS_FILE, "previews use the precision of the training",
        parameters=("engine",),
    ),
    Internal(f"{ENGINE}.torch_autocast_z0_gradscaler", THIS_FILE, "fp16's loss scale is saved, without ZeRO"),
    Internal(
        "deepspeed.runtime.zero.stage_1_and_2.DeepSpeedZeroOptimizer", THIS_FILE,
        "fp16 at ZeRO 1 and 2: saving the loss scale, clipping scaled gradients, lowering the scale",
        attributes=("torch_autocast_gradscaler", "clip_grad", "overflow"),
    ),
    Internal(
        "deepspeed.runtime.zero.stage3.DeepSpeedZeroOptimizer_Stage3", THIS_FILE, "the same at ZeRO 3",
        attributes=("torch_autocast_gradscaler", "clip_grad", "overflow"),
    ),
    Internal(
        "deepspeed.runtime.zero.partition_parameters", THIS_FILE, "averaging a rank's partition at ZeRO 3",
        attributes=("ds_tensor", "ds_numel"),
    ),
    Internal(
        "deepspeed.checkpoint.ds_to_universal", THIS_FILE, "checkpoints are converted for another number of workers",
        attributes=("main",),
    ),
    Internal(
        "deepspeed.utils.tensor_fragment.fragment_address", THIS_FILE,
        "a class that torch.load accepts in checkpoints",
    ),
    Internal("deepspeed.runtime.fp16.loss_scaler.LossScaler", THIS_FILE, "the same"),
    Internal("deepspeed.runtime.zero.config.ZeroStageEnum", THIS_FILE, "the same"),
    Internal(
        "torch.amp.GradScaler", THIS_FILE, "fp16 at ZeRO: a skipped step lowers the scale",
        attributes=("_growth_tracker",),
    ),
    Internal(
        "torch.optim.AdamW", THIS_FILE, "gradients that are not finite change no weight, without waiting for the GPU",
        attributes=("found_inf",),
    ),
)  # fmt: skip
