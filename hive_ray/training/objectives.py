"""What the training loop and the validation need to know about a model."""

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from hive_ray.artifacts.model_store import Metrics
from hive_ray.schemas import Rows

Batch = dict[str, Tensor]
"""The input of a loss, by names that the objective chooses."""


class Objective(Protocol):
    """A model to train: its weights, how rows become batches, the loss of a batch, and how to save the model.

    `prepare` and `loss` are separate so that the next batch is prepared while a GPU computes the current one.

    An objective may also have:

    - `summarise(means, num_rows) -> Metrics`: the measures to log for rows whose measures have these means, for example
      an accuracy that is the ratio of two means
    - `preview(rows) -> bytes | None`: a PNG of what the model makes of these rows
    - `frozen_modules`: further modules outside `model` that are moved to its device
    """

    @property
    def model(self) -> nn.Module:
        """The module that is trained."""
        ...

    def prepare(self, rows: Rows, generator: torch.Generator) -> Batch:
        """The work of the host: decode pictures, draw random numbers, tokenise texts. Returns tensors on the CPU.

        The result depends only on the rows and the generator. For a GPU it is called in a thread, at the same time as
        `loss`. Raises BadRows for rows that cannot be used; these are not passed again.
        """
        ...

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Metrics]:
        """The mean loss over the rows of a batch, and further measures as numbers or tensors of one number.

        `model` is `self.model` wrapped by DeepSpeed. The batch is on its device.
        """
        ...

    def save(self, folder: Path, state: dict[str, Tensor]) -> None:
        """Write a portable model folder with card.json. `state` is a state dict of `model` with the weights to save."""
        ...


def summarise_measures(objective: Objective, means: Metrics, num_rows: float) -> Metrics:
    """The measures to log for `num_rows` rows with these means: `objective.summarise`, or `means` without it."""
    summarise = getattr(objective, "summarise", None)
    return summarise(means, num_rows) if summarise else means
