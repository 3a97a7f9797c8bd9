"""What a training worker receives, and which of the workers it is."""

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
    """Creates the objective."""
    kwargs: dict[str, Any]
    """The arguments of `objective`."""
    selection: Selection
    """The rows to train on."""
    columns: list[str]
    """The columns that the objective reads."""
    held_out: Selection | None
    """Rows for validation. They are not trained on."""
    preview_columns: Sequence[str]
    """Further columns that `Objective.preview` reads from the held-out rows."""
    settings: Training
    run: str
    """The run folder."""
    name: str
    """The name of the training within the run, such as `editors/sft`."""
    out: str
    """The model folder that is written at the end."""
    fingerprint: Fingerprint
    checkpoints: str
    """The folder of its checkpoints."""


@dataclass(frozen=True)
class Preemption:
    """Nodes of a training that will be taken away soon."""

    nodes: frozenset[str]
    """Ids of the nodes."""
    deadline: float | None
    """When the first of them goes, in seconds since the epoch; None if unknown."""


@dataclass(frozen=True)
class Worker:
    """One process of a training. Ranks count from 0."""

    rank: int
    world: int
    """Number of processes in the training."""
    local_rank: int
    local_world: int
    """Number of the training's processes on this machine."""
    preemption: Callable[[], Preemption | None] | None = None
    """Returns the nodes that will be taken away. None if nodes are never taken away. All workers have one, or none."""

    @classmethod
    def of_this_process(cls) -> "Worker":
        """For a process that torchrun started: its process group exists, LOCAL_RANK and LOCAL_WORLD_SIZE are set."""
        return cls(
            rank=torch.distributed.get_rank(),
            world=torch.distributed.get_world_size(),
            local_rank=int(os.environ["LOCAL_RANK"]),
            local_world=int(os.environ["LOCAL_WORLD_SIZE"]),
        )
