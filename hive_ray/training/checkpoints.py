"""Checkpoints of a training: complete or ignored, stored in the background, loaded by any number of workers.

    <folder>/<images>/state/...                    DeepSpeed's files of the engine
    <folder>/<images>/average-<rank>.safetensors   averaged weights: all (rank 0), or a rank's partition (ZeRO stage 3)
    <folder>/<images>/rank-<rank>.json             TrainingState with the sizes of the rank's files; written last

A checkpoint is complete when each rank's JSON file exists and each file that it lists has the listed size. Ray Train's
own checkpoints are not used: their snapshot opens only in the Ray version that wrote it, and not if a folder is
missing. Files of the same name from two ranks silently overwrite each other.
"""

import json
import math
import os
import pickle
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

import deepspeed
import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor

from hive_ray import storage
from hive_ray.artifacts.model_store import Metrics
from hive_ray.console import warn
from hive_ray.files import scratch
from hive_ray.seeds import id_for
from hive_ray.training.deepspeed_fixes import (
    MODEL_STATES_FILE,
    SAFE_CLASSES,
    UNIVERSAL_INFO,
    convert_to_universal,
    loss_scaler,
)
from hive_ray.training.weights import WeightAverage, join_partitions

STATE_TAG = "state"
"""DeepSpeed's name for a checkpoint, and so the name of its folder."""
FORCE_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""A variable of PyTorch that makes every torch.load refuse to unpickle code."""


@dataclass(frozen=True)
class TrainingState:
    """The state of a training besides its weights, as stored in rank-<rank>.json."""

    images: int
    """Number of rows seen."""
    last: Metrics
    """Measures of the last step."""
    world: int
    """Number of workers that wrote the checkpoint."""
    updates: int = 0
    """Number of updates of the averaged weights; 0 if no average is kept."""
    zero_stage: int = 0
    scaler: dict[str, float] = field(default_factory=dict)
    """State of the loss scaler at fp16."""
    bad_rows: dict[str, str] = field(default_factory=dict)
    """Place of a row that cannot be used -> its id and the reason."""
    files: dict[str, int] = field(default_factory=dict)
    """File -> its size in bytes, for the files of this rank."""


class Checkpoints:
    """Saves, finds and loads the checkpoints of a training, for one of its ranks."""

    def __init__(self, folder: str, rank: int = 0, *, keep_last: int = 2, keep_best: int = 0, best: str = ""):
        """Keeps the last `keep_last` checkpoints, and of the others the `keep_best` with the lowest measure `best`."""
        self.folder = folder
        self.rank = rank
        self.keep_last = keep_last
        self.keep_best = keep_best
        self.best = best
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._storing: Future | None = None

    def save(self, engine: deepspeed.DeepSpeedEngine, average: WeightAverage | None, state: TrainingState) -> None:
        """Collective: write the checkpoint to the local disk, then copy it to the folder in the background.

        Waits first until the previous checkpoint is stored.
        """
        self.wait()
        local = scratch.new_folder("checkpoint")
        # Frozen weights never change. Without them the checkpoint of an adapter is small.
        engine.save_checkpoint(
            str(local), tag=STATE_TAG, client_state=dict(UNIVERSAL_INFO), exclude_frozen_parameters=True
        )
        if average and (self.rank == 0 or state.zero_stage == 3):
            weights = {name: weight.contiguous() for name, weight in average.weights.items()}
            save_file(weights, local / f"average-{self.rank}.safetensors")
        self._storing = self._thread.submit(self._store, local, state)

    def wait(self) -> None:
        """Wait until this rank's part of the last checkpoint is stored. Raises the error that prevented it."""
        storing, self._storing = self._storing, None
        if storing:
            storing.result()

    def newest(self) -> TrainingState | None:
        """The state of the newest complete checkpoint, or None. Warns about newer ones that are not complete."""
        files = self._list_files()
        for images in sorted(files, reverse=True):
            path = storage.join(self.folder, str(images))
            state, lack = _inspect(files[images], path)
            if state is not None:
                return state
            warn(f"{path} is incomplete ({lack}); the checkpoint before it is used")
        return None

    def remove_after(self, images: int) -> None:
        """Remove checkpoints of more than `images` rows, so that new ones never mix with their files."""
        for seen in self._list_files():
            if seen > images:
                storage.remove_tree(storage.join(self.folder, str(seen)))

    def open(self, images: int, world: int) -> "LoadedCheckpoint":
        """Fetch a complete checkpoint and convert it for `world` workers. A second call reuses the local files."""
        path = storage.join(self.folder, str(images))
        local = storage.fetch_folder(path)
        if local.is_relative_to(storage.cache_folder()):
            scratch.claim(local)
        state = _read_states(path, ["rank-0.json"])[0]
        if state.world == world or not state.zero_stage:
            return LoadedCheckpoint(local, local, state)
        key = id_for(path, json.dumps(asdict(state), sort_keys=True))
        converted = storage.cache_folder() / "universal" / key
        scratch.claim(converted)
        if not (converted / "latest_universal").exists():  # written last
            with _only_weights():
                convert_to_universal(local / STATE_TAG, converted / STATE_TAG)
        return LoadedCheckpoint(local, converted, state)

    def _store(self, local: Path, state: TrainingState) -> None:
        try:
            path = storage.join(self.folder, str(state.images))
            names = [name for name in storage.list_files(str(local)) if "/" in name or name.startswith("average")]
            files = {name: (local / name).stat().st_size for name in names}
            for name in names:
                storage.copy_file(str(local / name), storage.join(path, name))
            content = json.dumps(asdict(state) | {"files": files})
            storage.write_text(storage.join(path, f"rank-{self.rank}.json"), content)
        finally:
            shutil.rmtree(local, ignore_errors=True)
        if self.rank == 0:
            self._prune()

    def _prune(self) -> None:
        """Remove old checkpoints that are neither among the last nor among the best."""
        complete: dict[int, float] = {}
        for images, files in self._list_files().items():
            state, _ = _inspect(files, storage.join(self.folder, str(images)))
            if state is not None:
                complete[images] = state.last.get(self.best, math.inf)
        last = sorted(complete)[-self.keep_last :]
        best = sorted(set(complete) - set(last), key=lambda images: (complete[images], images))[: self.keep_best]
        for images in self._list_files():
            if last and images < last[-1] and images not in {*last, *best}:
                storage.remove_tree(storage.join(self.folder, str(images)))

    def _list_files(self) -> dict[int, dict[str, int]]:
        """Images -> the files of the checkpoint with their sizes in bytes."""
        found: dict[int, dict[str, int]] = {}
        for name, size in storage.list_sizes(self.folder).items():
            images, _, inside = name.partition("/")
            if images.isdigit() and inside:
                found.setdefault(int(images), {})[inside] = size
        return found


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A checkpoint on this machine."""

    folder: Path
    """Its files as they were saved."""
    engine_folder: Path
    """The folder that DeepSpeed loads: `folder`, or a conversion of it for another number of workers."""
    training_state: TrainingState

    @property
    def universal(self) -> bool:
        """Whether it was converted for another number of workers."""
        return self.engine_folder != self.folder

    def restore(self, engine: deepspeed.DeepSpeedEngine, average: WeightAverage | None, rank: int, world: int) -> None:
        """Collective: load the weights, the optimiser, the average and the loss scale of fp16."""
        with _only_weights():
            engine.load_checkpoint(str(self.engine_folder), tag=STATE_TAG, load_module_strict=False)
        if average:
            average.load(self.average_partitions(rank, world), self.training_state.updates, rank)
        if scaler := loss_scaler(engine):
            scaler.load_state_dict(self.training_state.scaler)

    def average_partitions(self, rank: int, world: int) -> list[dict[str, Tensor]]:
        """The input of `WeightAverage.load`: the full average, or the partitions of it that this rank needs."""
        if self.training_state.zero_stage < 3:
            ranks = [0]
        elif self.training_state.world == world:
            ranks = [rank]
        else:
            ranks = list(range(self.training_state.world))
        return [load_file(self.folder / f"average-{part}.safetensors") for part in ranks]

    def weights(self, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
        """The averaged weights, or the last ones if no average was kept: unpartitioned, fp32, on the CPU.

        shapes: the shapes of the trained weights, by name.
        """
        if self.training_state.updates:
            parts = self.average_partitions(rank=0, world=0)
            return {name: join_partitions([part[name] for part in parts], shape) for name, shape in shapes.items()}
        with _only_weights():
            if self.training_state.zero_stage:
                state = cast(
                    dict[str, Tensor], get_fp32_state_dict_from_zero_checkpoint(str(self.folder), tag=STATE_TAG)
                )
            else:
                file = self.folder / STATE_TAG / MODEL_STATES_FILE
                state = torch.load(file, map_location="cpu", weights_only=True)["module"]
        return {name: state[name].float() for name in shapes}

    def remove_local_files(self) -> None:
        """Remove the files that `Checkpoints.open` made on this machine."""
        if self.universal:
            shutil.rmtree(self.engine_folder, ignore_errors=True)
            scratch.release(self.engine_folder)
        if self.folder.is_relative_to(storage.cache_folder()):
            shutil.rmtree(self.folder, ignore_errors=True)
            scratch.release(self.folder)


def _read_states(path: str, lists: list[str]) -> list[TrainingState]:
    return [TrainingState(**json.loads(storage.read_text(storage.join(path, name)))) for name in lists]


def _inspect(files: dict[str, int], path: str) -> tuple[TrainingState | None, str]:
    """Rank 0's state if the checkpoint is complete; otherwise None and what is missing."""
    lists = sorted(name for name in files if name.startswith("rank-"))
    if "rank-0.json" not in lists:
        return None, "it was not finished"
    states = _read_states(path, lists)
    missing = sorted({f"rank-{rank}.json" for rank in range(states[0].world)} - set(lists))
    if missing:
        return None, f"{', '.join(missing)} missing"
    for state in states:
        for name, size in state.files.items():
            if name not in files:
                return None, f"{name} missing"
            if files[name] != size:
                return None, f"{name} has {files[name]:,} bytes of {size:,}"
    return states[0], ""


@contextmanager
def _only_weights() -> Iterator[None]:
    """Inside this context, torch.load accepts only tensors, numbers and DeepSpeed's own classes.

    DeepSpeed would unpickle anything, and a checkpoint may come from a bucket that others can write to. Raises
    ValueError if a file holds anything else.
    """
    before = os.environ.get(FORCE_WEIGHTS_ONLY)
    os.environ[FORCE_WEIGHTS_ONLY] = "1"
    try:
        with torch.serialization.safe_globals(SAFE_CLASSES):
            yield
    except pickle.UnpicklingError as error:
        content = re.sub(r"(?s).*WeightsUnpickler error: |\. .*", "", str(error))[:200]
        raise ValueError(
            f"a checkpoint holds more than weights, and is not opened, since that could run code ({content}). "
            "Check who can write to its folder, remove it, and give the same command: it continues from the one before"
        ) from error
    finally:
        if before is None:
            del os.environ[FORCE_WEIGHTS_ONLY]
        else:
            os.environ[FORCE_WEIGHTS_ONLY] = before
