"""What a training is asked to do, and where one of its workers stands among the others."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed

from hive_ray.artifacts.manifest import Fingerprint
from hive_ray.artifacts.selection import Selection
from hive_ray.config import Training
from hive_ray.training.objectives import Objective


@dataclass(frozen=True)
class TrainingJob:
    """What every worker of a training receives."""

    objective: Callable[..., Objective]
    kwargs: dict[str, Any]
    """The objective's arguments."""
    selection: Selection
    columns: list[str]
    held_out: Selection | None
    """Rows that are looked at on the way and not learned from."""
    preview_columns: Sequence[str]
    """Further columns that pictures of the held-out rows need."""
    settings: Training
    run: str
    name: str
    out: str
    """The model folder that is written at the end."""
    fingerprint: Fingerprint
    checkpoints: str
    """The folder of its checkpoints."""


@dataclass(frozen=True)
class Preemption:
    """Nodes of a training that are about to be taken away."""

    nodes: frozenset[str]
    deadline: float | None
    """When the first of them goes, in seconds since the epoch; None where nobody says."""


@dataclass(frozen=True)
class Worker:
    """One process of a training. Its ranks count from 0."""

    rank: int
    world: int
    """Processes of the training."""
    local_rank: int
    local_world: int
    """Processes of the training on this machine."""
    preemption: Callable[[], Preemption | None] | None = None
    """Asks which nodes are about to go; None where none can be. All workers have one, or none has."""

    @classmethod
    def of_this_process(cls) -> "Worker":
        """As torchrun started this process: its process group exists, LOCAL_RANK and LOCAL_WORLD_SIZE are set."""
        return cls(
            rank=torch.distributed.get_rank(),
            world=torch.distributed.get_world_size(),
            local_rank=int(os.environ["LOCAL_RANK"]),
            local_world=int(os.environ["LOCAL_WORLD_SIZE"]),
        )
