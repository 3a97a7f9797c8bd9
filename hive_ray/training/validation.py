"""Held-out rows: which they are, their loss at noise and timesteps that never change, and pictures of their edits.

a Selection -> rows to train on, rows held out -> validation/loss every so many images

Looking leaves no trace: every weight, mode and random stream of the training is as it was.
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
MAX_HELD_OUT_SHARE = 0.1
"""Share of a table that is held out at most."""
ROWS_PER_READ = 256
DEFAULT_VALIDATIONS = 4
"""Looks at the held-out rows where no number of images is set."""


def hold_out(
    selection: Selection, columns: list[str], sources_of: Callable[[Row], list[str]], num_rows: int
) -> tuple[Selection, Selection]:
    """The rows to train on and about `num_rows` held out, at most a tenth of all.

    `sources_of` names what a row was made from, given its `columns`. Rows that share a name, or are linked by rows that
    do, are on one side. Hashes of the names decide, so another table of the same rows holds out the same ones.
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
    """For each row the least of all names that are linked to it (union-find)."""
    least: dict[str, str] = {}

    def root(name: str) -> str:
        while (above := least.setdefault(name, name)) != name:
            least[name] = least.setdefault(above, above)  # halves the way for the next
            name = above
        return name

    for first, *others in names:
        for other in others:
            one, another = sorted((root(first), root(other)))
            least[another] = one
    return [root(first) for first, *_ in names]


def _those(selection: Selection, which: np.ndarray) -> Selection:
    return replace(selection, file_of=selection.file_of[which], row_of=selection.row_of[which])


def validation_due(settings: Training, before: int, images: int) -> bool:
    """Whether the held-out rows are looked at after the step from `before` to `images` rows seen."""
    every = [settings.watching.validation_images or -(-settings.total_images // DEFAULT_VALIDATIONS)]
    if settings.recovery.keep_best:
        every.append(settings.checkpoint_images)
    return images >= settings.total_images or any(before // one < images // one for one in every)


class Validation:
    """Measures of the held-out rows by the averaged weights, which are those that will be saved.

    Collective: every rank makes the same number of forward passes, as ZeRO stage 3 needs.
    """

    def __init__(self, store: RowStore, name: str, settings: Training, *, rank: int, world: int) -> None:
        self.store, self.name, self.settings, self.rank, self.world = store, name, settings, rank, world
        self.quarantine = RowQuarantine(store, name, settings.recovery.most_bad_rows)

    @torch.no_grad()
    def measure(self, objective: Objective, engine: deepspeed.DeepSpeedEngine) -> Metrics:
        """validation/loss and the objective's other measures, means over the rows that are good.

        Batch i of `micro_batch_size` rows has the noise of (seed, i), whichever rank reads it: the figures do not
        depend on the number of workers.
        """
        micro, known = self.settings.micro_batch_size, len(self.quarantine.local_bad_rows)
        device = cast(torch.device, engine.device)
        batches = -(-self.store.num_rows // micro)
        totals: Metrics = {"rows": 0.0}
        for turn in range(-(-batches // self.world)):
            number = turn * self.world + self.rank
            counts = number < batches  # else a pass that only keeps the others company
            place = (number % batches) * micro
            draw = ("validation", self.settings.seed, number % batches)
            torch.manual_seed(seed_for("layers", *draw))  # whoever draws from torch's own stream
            places = np.arange(place, min(place + micro, self.store.num_rows))
            batch, good = self.quarantine.take(self.quarantine.prepare(objective.prepare, places, draw))
            with autocast(self.settings):
                loss, measures = objective.loss(engine, to_device(device, batch))
            for key, value in (measures | {"train/loss": loss.item(), "rows": 1.0}).items():
                totals[key] = totals.get(key, 0.0) + value * good * counts
        for why in list(self.quarantine.local_bad_rows.values())[known:]:
            warn(f"skipped the held-out {why}", stage=self.name)
        found = sum_over_ranks(totals, device)
        rows = max(found.pop("rows"), 1.0)
        means = summarise_measures(objective, {name: total / rows for name, total in found.items()}, rows)
        return {f"validation/{name.partition('/')[2]}": value for name, value in means.items()}

    @torch.no_grad()
    def preview(self, objective: Objective, engine: deepspeed.DeepSpeedEngine) -> bytes | None:
        """A PNG of edits of some held-out rows on rank 0, None on others or if the objective draws none.

        Under ZeRO stage 3 all ranks draw the same, since each holds but a part of the weights.
        """
        draw = getattr(objective, "preview", None)
        count = min(self.settings.watching.num_previews, self.store.num_rows)
        if draw is None or not count or (self.rank and self.settings.zero_stage < 3):
            return None
        rows = self.store.read(np.linspace(0, self.store.num_rows - 1, count).astype(int))
        with engine_autocast(engine):  # as the engine's own forward passes
            picture = draw(rows)
        return None if self.rank else picture


@contextmanager
def evaluation_mode(engine: deepspeed.DeepSpeedEngine, average: WeightAverage | None) -> Iterator[None]:
    """The model in eval mode and with its averaged weights; afterwards everything is as before: weights, modes, random
    streams. Every rank must enter it."""
    model, device = cast(nn.Module, engine.module), cast(torch.device, engine.device)
    modes: dict[nn.Module, bool] = {module: module.training for module in model.modules()}
    devices = [device] if device.type == "cuda" else []
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=devices))
        if average:
            stack.enter_context(average.swapped_in())
        stack.callback(engine.empty_partition_cache)  # before the weights change back: stage 3 keeps some gathered
        model.eval()
        try:
            yield
        finally:
            for module, training in modes.items():
                module.training = training
