"""Weights from a single file (.safetensors or .ckpt), without running code that the file contains.

a file -> {compvis name: weight}, with the averaged weights (EMA) of the U-Net if the file has them
"""

import pickle
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hive_ray.files.model_folders import ModelFolderError

UNET_PREFIX = "model.diffusion_model."
SINGLE_FILE_SUFFIXES = (".safetensors", ".ckpt")
LIGHTNING_GLOBALS = re.compile(
    r"(pytorch_lightning|lightning)\.[\w.]+|numpy\.(_?core\.multiarray\.scalar|dtype|dtypes\.\w+)|_codecs\.encode"
)
"""What Lightning pickles with the weights: the classes of its callbacks and their numbers. They are never loaded."""


def is_single_file(start: str | Path) -> bool:
    """Whether the address of a model is that of a single file, not of a folder or on the hub."""
    return str(start).endswith(SINGLE_FILE_SUFFIXES)


def check_single_file(path: str | Path) -> None:
    """Raise a ModelFolderError for a file that does not exist."""
    if not Path(path).is_file():
        raise ModelFolderError(f"{path} does not exist; give a .safetensors or .ckpt file, a folder or a hub name")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """All weights of a file by their names in it; ModelFolderError for a pickle that contains code."""
    path = Path(path)
    check_single_file(path)
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    while isinstance(content, dict) and "state_dict" in content:
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise ModelFolderError(f"{path} holds a {type(content).__name__}, not weights by name; give a state dict")
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def prefer_ema(weights: dict[str, Tensor], path: str | Path) -> tuple[dict[str, Tensor], bool]:
    """The weights with the running average (EMA) of the U-Net instead of its last weights, and whether there is one.

    LDM's LitEma names the average of model.diffusion_model.input_blocks.0.0.weight without dots:
    model_ema.diffusion_modelinput_blocks00weight. ModelFolderError if only some weights have an average.
    """
    places = {
        name: "model_ema." + name.removeprefix("model.").replace(".", "") for name in _below(UNET_PREFIX, weights)
    }
    lacking = [average for average in places.values() if average not in weights]
    if len(lacking) == len(places):
        return weights, False
    if lacking:
        raise ModelFolderError(f"{path} has averaged weights, but lacks {first_few(lacking)}: it is incomplete")
    return weights | {name: weights[average] for name, average in places.items()}, True


def first_few(names: Iterable[str], most: int = 4) -> str:
    """Names for an error message: the first `most`, and the number of the others."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


class _Inert:
    """Replaces Lightning's classes: takes any arguments and any state, and keeps nothing."""

    def __new__(cls, *_: object) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ModelFolderError(f"{path} is not a complete .safetensors file: {error}; fetch it again") from error


def _read_pickle(path: Path) -> Any:
    """The content of a file by torch.load with `weights_only`. Lightning's classes are replaced, others refused."""
    try:
        zipped = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (ValueError, RuntimeError, EOFError):  # no zip archive: torch's format before 1.6, or no checkpoint at all
        zipped = None
    stand_ins = [name for name in zipped or [] if LIGHTNING_GLOBALS.fullmatch(name)]
    code = sorted(set(zipped or []) - set(stand_ins))
    if code:
        raise ModelFolderError(
            f"{path} is a pickle that holds more than weights: loading it would run {first_few(code)}. It is refused;"
            " give a .safetensors file of the same weights, or, if you trust the file, save only its state dict"
        )
    try:
        with torch.serialization.safe_globals([(_Inert, name) for name in stand_ins]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped is not None)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        seen = str(error).split("\n")[0][:200]
        raise ModelFolderError(
            f"{path} cannot be read as weights ({seen}): it is broken, or a pickle with code, which is never run;"
            " fetch it again, or give a .safetensors file"
        ) from error


def _below(prefix: str, weights: Iterable[str]) -> list[str]:
    return [name for name in weights if name.startswith(prefix)]
