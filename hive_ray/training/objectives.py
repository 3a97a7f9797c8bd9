"""What the training loop and its looks at held-out rows know of a model."""

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from hive_ray.artifacts.model_store import Metrics
from hive_ray.schemas import Rows

Batch = dict[str, Tensor]
"""All that a loss needs of some rows, by names of the objective's own."""


class Objective(Protocol):
    """What the training loop needs to know about a model: which weights move, the loss of some rows, how to save.

    What a batch takes is in two halves, so that the first can be done while a GPU is busy with the batch before.

    An objective may offer `summarise(means, num_rows) -> Metrics`: what to log of a step's rows, whose measures have
    these means (an accuracy over some of them, say, from two of the means); `preview(rows) -> bytes | None`: a PNG
    that shows what its model makes of them; and `frozen_modules`: those outside its model that come to its device.
    """

    @property
    def model(self) -> nn.Module:
        """The module that is trained."""
        ...

    def prepare(self, rows: Rows, generator: torch.Generator) -> Batch:
        """What the host does: pictures decoded, numbers drawn, texts cut into tokens; tensors on the CPU.

        Follows from the rows and the generator alone: beside a GPU a thread calls it, while `loss` is at work on the
        batch before. BadRows names rows that nothing can be learned from: they are left out from now on.
        """
        ...

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Metrics]:
        """Mean loss of the rows of a batch, which is on the model's device, and further measures, numbers or tensors of
        one; `model` is `self.model` in DeepSpeed's wrapping."""
        ...

    def save(self, folder: Path, state: dict[str, Tensor]) -> None:
        """Write a portable model folder, card.json in it, with the weights of `state` (a state dict of `model`)."""
        ...


def summarise_measures(objective: Objective, means: Metrics, num_rows: float) -> Metrics:
    """What is logged of so many rows whose measures have these means: the objective's word, if it has one."""
    summarise = getattr(objective, "summarise", None)
    return summarise(means, num_rows) if summarise else means
