"""Held-out rows: their selection, their loss at fixed noise and timesteps, and pictures of their edits.

a Selection -> rows to train on, held-out rows -> validation/loss every so many images

Validation does not affect training: it restores all weights, modes and random generators.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import cast

import deepspeed
import numpy as np
import torch
import torch.distributed
from torch import nn

from hive_ray.artifacts.model_store import Metrics
from hive_ray.artifacts.selection import Selection
from hive_ray.config import Training
from hive_ray.console import warn
from hive_ray.schemas import Row
from hive_ray.seeds import seed_for, uniform_for
from hive_ray.training.bad_rows import RowQuarantine
from hive_ray.training.collectives import sum_over_ranks
from hive_ray.training.deepspeed_fixes import engine_autocast
from hive_ray.training.engine import autocast
from hive_ray.training.objectives import Objective, summarise_measures
from hive_ray.training.prefetching import to_device
from hive_ray.training.rows import RowStore
from hive_ray.training.weights import WeightAverage

VALIDATION_LOSS = "validation/loss"
"""Name of the mean loss over the held-out rows."""
MAX_HELD_OUT_SHARE = 0.1
"""Greatest share of a table that is held out."""
ROWS_PER_READ = 256
DEFAULT_VALIDATIONS = 4
"""Number of validations in a training if `watching.validation_images` is not set."""


def hold_out(
    selection: Selection, columns: list[str], sources_of: Callable[[Row], list[str]], num_rows: int
) -> tuple[Selection, Selection]:
    """Split a selection into the rows to train on and about `num_rows` held-out rows, at most a tenth of all.

    `sources_of` returns the names of what a row was made from, given its `columns`. Rows that share a name, directly or
    through other rows, are on the same side. Hashes of the names decide, so another table of the same rows holds out
    the same ones.
    """
    most = min(num_rows, int(MAX_HELD_OUT_SHARE * len(selection)))
    sources = _linked([sources_of(row) for row in _rows(selection, columns)]) if most else [""] * len(selection)
    rows_of, held_out = Counter(sources), set()
    for name in sorted(rows_of, key=lambda name: uniform_for("validation", name)):
        if rows_of[name] <= most:
            held_out.add(name)
            most -= rows_of[name]
    out = np.array([name in held_out for name in sources], dtype=bool)
    return _those(selection, ~out), _those(selection, out)


def _rows(selection: Selection, columns: list[str]) -> Iterator[Row]:
    for start in range(0, len(selection), ROWS_PER_READ):
        yield from selection.read(start, start + ROWS_PER_READ, columns).to_pylist()


def _linked(names: list[list[str]]) -> list[str]:
    """For each row, the first in order of all names that are linked to it (union-find)."""
    least: dict[str, str] = {}

    def root(name: str) -> str:
        while (above := least.setdefault(name, name)) != name:
            least[name] = least.setdefault(above, above)  # path halving
            name = above
        return name

    for first, *others in names:
        for other in others:
            low, high = sorted((root(first), root(other)))
            least[high] = low
    return [root(first) for first, *_ in names]


def _those(selection: Selection, which: np.ndarray) -> Selection:
    return replace(selection, file_of=selection.file_of[which], row_of=selection.row_of[which])


def validation_due(settings: Training, before: int, images: int) -> bool:
    """Whether to validate after the step from `before` to `images` rows seen."""
    intervals = [settings.watching.validation_images or -(-settings.total_images // DEFAULT_VALIDATIONS)]
    if settings.recovery.keep_best:
        intervals.append(settings.checkpoint_images)
    return images >= settings.total_images or any(before // step < images // step for step in intervals)


class Validation:
    """Measures the held-out rows with the averaged weights, which are those that will be saved.

    Collective: every rank makes the same number of forward passes, as ZeRO stage 3 requires.
    """

    def __init__(self, store: RowStore, name: str, settings: Training, *, rank: int, world: int) -> None:
        self.store = store
        self.name = name
        self.settings = settings
        self.rank = rank
        self.world = world
        self.quarantine = RowQuarantine(store, name, settings.recovery.most_bad_rows)

    @torch.no_grad()
    def measure(self, objective: Objective, engine: deepspeed.DeepSpeedEngine) -> Metrics:
        """validation/loss and the objective's other measures, as means over the good rows.

        The noise of batch i of `micro_batch_size` rows is seeded from (seed, i), whichever rank reads it. So the
        measures do not depend on the number of workers.
        """
        micro = self.settings.micro_batch_size
        num_known = len(self.quarantine.local_bad_rows)
        device = cast(torch.device, engine.device)
        batches = -(-self.store.num_rows // micro)
        totals: Metrics = {"rows": 0.0}
        for turn in range(-(-batches // self.world)):
            number = turn * self.world + self.rank
            counts = number < batches  # otherwise the pass only matches those of other ranks
            place = (number % batches) * micro
            draw = ("validation", self.settings.seed, number % batches)
            torch.manual_seed(seed_for("layers", *draw))  # for layers that draw from torch's default generator
            places = np.arange(place, min(place + micro, self.store.num_rows))
            batch, good = self.quarantine.take(self.quarantine.prepare(objective.prepare, places, draw))
            with autocast(self.settings):
                loss, measures = objective.loss(engine, to_device(device, batch))
            for key, value in (measures | {"train/loss": loss.item(), "rows": 1.0}).items():
                totals[key] = totals.get(key, 0.0) + value * good * counts
        for why in list(self.quarantine.local_bad_rows.values())[num_known:]:
            warn(f"skipped the held-out {why}", stage=self.name)
        sums = sum_over_ranks(totals, device)
        rows = max(sums.pop("rows"), 1.0)
        means = summarise_measures(objective, {name: total / rows for name, total in sums.items()}, rows)
        return {f"validation/{name.partition('/')[2]}": value for name, value in means.items()}

    @torch.no_grad()
    def preview(self, objective: Objective, engine: deepspeed.DeepSpeedEngine) -> bytes | None:
        """A PNG of edits of some held-out rows, on rank 0. None on other ranks, or if the objective has no preview.

        Under ZeRO stage 3 all ranks draw it together, since each holds only a partition of the weights.
        """
        draw = getattr(objective, "preview", None)
        count = min(self.settings.watching.num_previews, self.store.num_rows)
        if draw is None or not count or (self.rank and self.settings.zero_stage < 3):
            return None
        rows = self.store.read(np.linspace(0, self.store.num_rows - 1, count).astype(int))
        with engine_autocast(engine):  # like the engine's forward passes
            picture = draw(rows)
        return None if self.rank else picture


@contextmanager
def evaluation_mode(engine: deepspeed.DeepSpeedEngine, average: WeightAverage | None) -> Iterator[None]:
    """Put the model into eval mode with its averaged weights. On exit, restore weights, modes and random generators.

    Every rank must enter this context.
    """
    model = cast(nn.Module, engine.module)
    device = cast(torch.device, engine.device)
    modes: dict[nn.Module, bool] = {module: module.training for module in model.modules()}
    devices = [device] if device.type == "cuda" else []
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=devices))
        if average:
            stack.enter_context(average.swapped_in())
        stack.callback(
            engine.empty_partition_cache
        )  # before the weights change back, since stage 3 keeps some gathered
        model.eval()
        try:
            yield
        finally:
            for module, training in modes.items():
                module.training = training
