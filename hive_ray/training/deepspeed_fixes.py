"""What the training takes of DeepSpeed and PyTorch beyond their public API. All such uses are here.

INTERNALS says of each why. tests/test_internals.py names the one that a new release no longer has.
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
"""What DeepSpeed writes into checkpoints beside numbers."""
UNIVERSAL_INFO = {"universal_checkpoint_info": {"universal_checkpoint_version": 0.2}}
"""What its conversion wants to find in a checkpoint, and its engine does not write by itself."""
MODEL_STATES_FILE = "mp_rank_00_model_states.pt"
"""The file with the weights of an engine without ZeRO."""
MUON_MODULE = "deepspeed.runtime.zero.muon.muon_optimizer"


# --- Starting ---------------------------------------------------------------------------------------------------------


def skip_unused_compilers() -> None:
    """Have DeepSpeed try no compiler as it starts: not that of every op, nor that of its Muon.

    It tries out each op, and compiles a shared-memory collective for inference. It asks of each optimiser whether it is
    its Muon. Imported by DeepSpeed, that compiles kernels, and all of torch's compiler would be imported for what
    nobody runs here: a second of each worker's start.
    """
    deepspeed.ops.__compatible_ops__ = {}  # pyright: ignore[reportAttributeAccessIssue] - made by its __getattr__
    compiles, compiler.compile = compiler.compile, lambda: compiler.dummy_decorator
    try:
        importlib.import_module(MUON_MODULE)
    finally:
        compiler.compile = compiles


def keep_gradients_in_place(engine: deepspeed.DeepSpeedEngine, optimizer: torch.optim.Optimizer, workers: int) -> None:
    """Without ZeRO: leave out work of the engine's that changes nothing."""
    # One worker's gradients would be copied three times, to be averaged with nobody's.
    engine.enable_backward_allreduce = workers > 1
    engine.zero_grad = optimizer.zero_grad  # its own looks for the weights in all modules, in each step


# --- Steps ------------------------------------------------------------------------------------------------------------


def engine_autocast(engine: deepspeed.DeepSpeedEngine) -> AbstractContextManager:
    """The precision in which the engine computes its own forward passes."""
    return autocast_if_enabled(engine)


def loss_scaler(engine: deepspeed.DeepSpeedEngine) -> torch.amp.GradScaler | None:
    """fp16's loss scaling, which DeepSpeed's checkpoints leave out; None at other precisions."""
    return engine.torch_autocast_z0_gradscaler or getattr(engine.optimizer, "torch_autocast_gradscaler", None)


def set_max_grad_norm(engine: deepspeed.DeepSpeedEngine, norm: float) -> None:
    """Have ZeRO's optimiser cut gradients at this norm, before fp16's loss scale is taken off."""
    optimizer: Any = engine.optimizer
    optimizer.clip_grad = norm


def has_overflowed(engine: deepspeed.DeepSpeedEngine) -> bool:
    """Whether ZeRO's optimiser left out the last step, since a gradient was not finite."""
    optimizer: Any = engine.optimizer
    return optimizer.overflow


def lower_loss_scale(scaler: torch.amp.GradScaler, scale: float) -> None:
    """Lower fp16's loss scale from `scale`, as after a step that was left out."""
    lower = {"scale": scale * scaler.get_backoff_factor(), "_growth_tracker": 0}
    scaler.load_state_dict(scaler.state_dict() | lower)


def skip_step_where(optimizer: Any, when: Tensor | None) -> None:
    """Have torch's fused AdamW leave out its next step where `when`, a scalar on its device, is not 0."""
    optimizer.found_inf = when


# --- Weights in parts, and checkpoints --------------------------------------------------------------------------------


def partition_of(weight: Any) -> Tensor | None:
    """This rank's part of a weight under ZeRO stage 3, flat and padded; None of a weight that is whole."""
    return weight.ds_tensor.data if hasattr(weight, "ds_tensor") else None


def full_numel(weight: Tensor) -> int:
    """How many numbers a weight has, also where this rank holds a part of it."""
    return getattr(weight, "ds_numel", weight.numel())


def convert_to_universal(state: Path, to: Path) -> None:
    """Write the checkpoint of the folder `state` into the folder `to`, in DeepSpeed's universal form, which any number
    of workers opens."""
    arguments = Namespace(
        input_folder=str(state),
        output_folder=str(to),
        num_extract_workers=1,  # this process: a training worker must not fork
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=False,
    )
    nowhere = io.StringIO()  # it prints, and draws bars for each weight
    with redirect_stdout(nowhere), redirect_stderr(nowhere):
        ds_to_universal.main(arguments)


# --- The table --------------------------------------------------------------------------------------------------------

THIS_FILE = "training/deepspeed_fixes.py"
ENGINE = "deepspeed.runtime.engine.DeepSpeedEngine"
INTERNALS = (
    Internal("deepspeed.ops.__compatible_ops__", THIS_FILE, "a start that tries out no op's compiler"),
    Internal(
        "deepspeed.runtime.compiler", THIS_FILE, "Muon imported without torch's compiler",
        attributes=("compile", "dummy_decorator"),
    ),
    Internal(MUON_MODULE, THIS_FILE, "the module that the engine would import by itself"),
    Internal(f"{ENGINE}.enable_backward_allreduce", THIS_FILE, "one worker's gradients are not copied to be averaged"),
    Internal(f"{ENGINE}.zero_grad", THIS_FILE, "gradients are cleared without a walk through all modules"),
    Internal(
        "deepspeed.runtime.torch_autocast.autocast_if_enabled", THIS_FILE, "previews in the precision of the training",
        parameters=("engine",),
    ),
    Internal(f"{ENGINE}.torch_autocast_z0_gradscaler", THIS_FILE, "fp16's loss scale in checkpoints, without ZeRO"),
    Internal(
        "deepspeed.runtime.zero.stage_1_and_2.DeepSpeedZeroOptimizer", THIS_FILE,
        "fp16 at ZeRO 1 and 2: the scale in checkpoints, the norm at which gradients are cut, a scale that falls",
        attributes=("torch_autocast_gradscaler", "clip_grad", "overflow"),
    ),
    Internal(
        "deepspeed.runtime.zero.stage3.DeepSpeedZeroOptimizer_Stage3", THIS_FILE, "the same at ZeRO 3",
        attributes=("torch_autocast_gradscaler", "clip_grad", "overflow"),
    ),
    Internal(
        "deepspeed.runtime.zero.partition_parameters", THIS_FILE, "the average of a rank's own part at ZeRO 3",
        attributes=("ds_tensor", "ds_numel"),
    ),
    Internal(
        "deepspeed.checkpoint.ds_to_universal", THIS_FILE, "checkpoints that another number of workers opens",
        attributes=("main",),
    ),
    Internal(
        "deepspeed.utils.tensor_fragment.fragment_address", THIS_FILE,
        "a record in checkpoints that torch.load lets pass",
    ),
    Internal("deepspeed.runtime.fp16.loss_scaler.LossScaler", THIS_FILE, "the same"),
    Internal("deepspeed.runtime.zero.config.ZeroStageEnum", THIS_FILE, "the same"),
    Internal(
        "torch.amp.GradScaler", THIS_FILE, "fp16 at ZeRO: a step that is left out lowers the scale",
        attributes=("_growth_tracker",),
    ),
    Internal(
        "torch.optim.AdamW", THIS_FILE, "gradients that are not finite change no weight, without a wait for the GPU",
        attributes=("found_inf",),
    ),
)  # fmt: skip
