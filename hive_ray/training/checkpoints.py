"""Checkpoints of a training: whole or not there, stored while it goes on, opened by any number of workers.

    <folder>/<images>/state/...                    DeepSpeed's files of the engine
    <folder>/<images>/average-<rank>.safetensors   averaged weights: all (rank 0), or a rank's part (ZeRO stage 3)
    <folder>/<images>/rank-<rank>.json             what a rank stored, with sizes, and where it stood; last

A checkpoint is whole when every rank's list is there and every file is as long as listed. Ray Train's own checkpoints
are not used: their snapshot opens in the same Ray version only, and not at all where one folder is missing; files of
the same name from two ranks replace each other in silence.
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
FORCE_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""torch.load's own setting, stronger than what it is called with."""


@dataclass(frozen=True)
class TrainingState:
    """Where a training stands, besides its weights."""

    images: int
    last: Metrics
    """Measures of the last step."""
    world: int
    """Number of workers that wrote it."""
    updates: int = 0
    """Updates of the averaged weights."""
    zero_stage: int = 0
    scaler: dict[str, float] = field(default_factory=dict)
    """State of fp16's loss scaling."""
    bad_rows: dict[str, str] = field(default_factory=dict)
    """Place of a row that nothing can be learned from -> its id and why."""
    files: dict[str, int] = field(default_factory=dict)
    """Bytes of the files that this rank stored."""


class Checkpoints:
    """The checkpoints of one training, as one of its ranks sees them."""

    def __init__(self, folder: str, rank: int = 0, *, keep_last: int = 2, keep_best: int = 0, best: str = ""):
        """`keep_best` more than the last ones are kept: those whose measure `best` is least."""
        self.folder, self.rank = folder, rank
        self.keep_last, self.keep_best, self.best = keep_last, keep_best, best
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._storing: Future | None = None

    def save(self, engine: deepspeed.DeepSpeedEngine, average: WeightAverage | None, stand: TrainingState) -> None:
        """Collective: write the state to this machine's disk, then store it while training goes on.

        Waits first for the checkpoint before this one, so that one at most is on its way.
        """
        self.wait()
        local = scratch.new_folder("checkpoint")
        # Frozen weights are those of the start: an adapter's checkpoint is small.
        engine.save_checkpoint(
            str(local), tag=STATE_TAG, client_state=dict(UNIVERSAL_INFO), exclude_frozen_parameters=True
        )
        if average and (self.rank == 0 or stand.zero_stage == 3):
            weights = {name: weight.contiguous() for name, weight in average.weights.items()}
            save_file(weights, local / f"average-{self.rank}.safetensors")
        self._storing = self._thread.submit(self._store, local, stand)

    def wait(self) -> None:
        """Until this rank's part of the last checkpoint is stored; raises what kept it from that."""
        storing, self._storing = self._storing, None
        if storing:
            storing.result()

    def newest(self) -> TrainingState | None:
        """The newest whole checkpoint; says of newer ones what they lack. They may be on their way, or damaged."""
        found = self._found()
        for images in sorted(found, reverse=True):
            path = storage.join(self.folder, str(images))
            stand, lack = _look(found[images], path)
            if stand is not None:
                return stand
            warn(f"{path} is not whole ({lack}): the checkpoint before is used")
        return None

    def remove_after(self, images: int) -> None:
        """Remove checkpoints of more images, before others take their names: files of two would mingle."""
        for seen in self._found():
            if seen > images:
                storage.remove_tree(storage.join(self.folder, str(seen)))

    def open(self, images: int, world: int) -> "LoadedCheckpoint":
        """A whole checkpoint on this machine, ready for `world` workers; a second call finds what the first made."""
        path = storage.join(self.folder, str(images))
        local = storage.fetch_folder(path)
        if local.is_relative_to(storage.cache_folder()):
            scratch.claim(local)
        stand = _stands(path, ["rank-0.json"])[0]
        if stand.world == world or not stand.zero_stage:
            return LoadedCheckpoint(local, local, stand)
        state = storage.cache_folder() / "universal" / id_for(path, json.dumps(asdict(stand), sort_keys=True))
        scratch.claim(state)
        if not (state / "latest_universal").exists():  # written last
            with _only_weights():
                convert_to_universal(local / STATE_TAG, state / STATE_TAG)
        return LoadedCheckpoint(local, state, stand)

    def _store(self, local: Path, stand: TrainingState) -> None:
        try:
            path = storage.join(self.folder, str(stand.images))
            names = [name for name in storage.list_files(str(local)) if "/" in name or name.startswith("average")]
            files = {name: (local / name).stat().st_size for name in names}
            for name in names:
                storage.copy_file(str(local / name), storage.join(path, name))
            told = json.dumps(asdict(stand) | {"files": files})
            storage.write_text(storage.join(path, f"rank-{self.rank}.json"), told)
        finally:
            shutil.rmtree(local, ignore_errors=True)
        if self.rank == 0:
            self._prune()

    def _prune(self) -> None:
        """Remove what is neither among the last nor the best, nor newer than the newest whole one."""
        whole = {}
        for images, files in self._found().items():
            stand, _ = _look(files, storage.join(self.folder, str(images)))
            if stand is not None:
                whole[images] = stand.last.get(self.best, math.inf)
        last = sorted(whole)[-self.keep_last :]
        best = sorted(set(whole) - set(last), key=lambda images: (whole[images], images))[: self.keep_best]
        for images in self._found():
            if last and images < last[-1] and images not in {*last, *best}:
                storage.remove_tree(storage.join(self.folder, str(images)))

    def _found(self) -> dict[int, dict[str, int]]:
        """Images -> the files of the checkpoint, with their bytes."""
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
    engine_folder: Path
    """What DeepSpeed opens with TAG."""
    training_state: TrainingState

    @property
    def universal(self) -> bool:
        """Whether `state` was converted for another number of workers."""
        return self.engine_folder != self.folder

    def restore(self, engine: deepspeed.DeepSpeedEngine, average: WeightAverage | None, rank: int, world: int) -> None:
        """Collective: the weights, the optimiser, the average and fp16's loss scale as they were."""
        with _only_weights():
            engine.load_checkpoint(str(self.engine_folder), tag=STATE_TAG, load_module_strict=False)
        if average:
            average.load(self.average_partitions(rank, world), self.training_state.updates, rank)
        if scaler := loss_scaler(engine):
            scaler.load_state_dict(self.training_state.scaler)

    def average_partitions(self, rank: int, world: int) -> list[dict[str, Tensor]]:
        """What `WeightAverage.load` goes on from: the whole average, or parts of it, no more than this rank needs."""
        if self.training_state.zero_stage < 3:
            ranks = [0]
        elif self.training_state.world == world:
            ranks = [rank]
        else:
            ranks = list(range(self.training_state.world))
        return [load_file(self.folder / f"average-{one}.safetensors") for one in ranks]

    def weights(self, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
        """The averaged weights, or the last ones where no average was kept: whole, fp32, on the CPU.

        shapes: of the trained weights, by name.
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
        """Remove what was made on this machine to open it."""
        if self.universal:
            shutil.rmtree(self.engine_folder, ignore_errors=True)
            scratch.release(self.engine_folder)
        if self.folder.is_relative_to(storage.cache_folder()):
            shutil.rmtree(self.folder, ignore_errors=True)
            scratch.release(self.folder)


def _stands(path: str, lists: list[str]) -> list[TrainingState]:
    return [TrainingState(**json.loads(storage.read_text(storage.join(path, name)))) for name in lists]


def _look(files: dict[str, int], path: str) -> tuple[TrainingState | None, str]:
    """What rank 0 says of a whole checkpoint; else what it lacks."""
    lists = sorted(name for name in files if name.startswith("rank-"))
    if "rank-0.json" not in lists:
        return None, "it was never finished"
    stands = _stands(path, lists)
    missing = sorted({f"rank-{rank}.json" for rank in range(stands[0].world)} - set(lists))
    if missing:
        return None, f"{', '.join(missing)} missing"
    for stand in stands:
        for name, size in stand.files.items():
            if name not in files:
                return None, f"{name} missing"
            if files[name] != size:
                return None, f"{name} has {files[name]:,} bytes of {size:,}"
    return stands[0], ""


@contextmanager
def _only_weights() -> Iterator[None]:
    """DeepSpeed would unpickle whatever it finds; while this lasts, nothing but numbers and its own records is read.

    ValueError where a file holds more: it may come from a bucket into which others can write.
    """
    before = os.environ.get(FORCE_WEIGHTS_ONLY)
    os.environ[FORCE_WEIGHTS_ONLY] = "1"
    try:
        with torch.serialization.safe_globals(SAFE_CLASSES):
            yield
    except pickle.UnpicklingError as error:
        seen = re.sub(r"(?s).*WeightsUnpickler error: |\. .*", "", str(error))[:200]
        raise ValueError(
            f"a checkpoint holds more than weights, and is not opened, since that could run code ({seen}); look who can"
            " write into its folder, remove it, and give the same command: it goes on from the one before"
        ) from error
    finally:
        if before is None:
            del os.environ[FORCE_WEIGHTS_ONLY]
        else:
            os.environ[FORCE_WEIGHTS_ONLY] = before
