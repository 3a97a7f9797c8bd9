"""Skips rows that cannot be used. They are logged and counted, and training stops if they are too many.

An objective reports bad rows with `BadRows`. `RowQuarantine` records them, identically on all ranks. A good row has the
same weight as in a batch without bad rows: 1 / batch_size of the step's gradient.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed

from hive_ray.artifacts.model_store import Metrics
from hive_ray.console import warn
from hive_ray.errors import BadRows, Stopped
from hive_ray.schemas import Rows
from hive_ray.seeds import generator_for, seed_for
from hive_ray.training.objectives import Batch
from hive_ray.training.rows import RowStore

SKIPPED_ROWS = "train/skipped_rows"
"""Number of skipped rows since training began. A row counts each time it is drawn."""
MAX_LISTED = 10
"""Rows that an error lists."""
PrepareBatch = Callable[[Rows, torch.Generator], Batch]
"""The type of `Objective.prepare`."""


class PreparedBatch(NamedTuple):
    """A micro batch of good rows."""

    batch: Batch
    num_good: int
    """Number of its rows that count."""
    places: np.ndarray
    """Places of its rows in the table."""
    bad_rows: dict[int, str]
    """Bad rows that were found while preparing it: place -> id and reason."""
    prepare_again: Callable[[], "PreparedBatch"]
    """Prepares the batch again, without the rows known to be bad by then."""


class RowQuarantine:
    """Separates the rows of a table that can be used from those that cannot, as far as is known."""

    def __init__(self, rows: RowStore, name: str, most_bad_rows: float) -> None:
        """name: of the training, for messages. most_bad_rows: greatest share of bad rows, 0 to 1."""
        self.rows = rows
        self.name = name
        self.most_bad_rows = most_bad_rows
        self.bad_rows: dict[int, str] = {}
        """Place -> id and reason, the same on all ranks."""
        self.local_bad_rows: dict[int, str] = {}
        """Bad rows that only this rank knows yet."""

    def prepare(self, prepare_batch: PrepareBatch, places: np.ndarray, draw: tuple[str | int, ...]) -> PreparedBatch:
        """Prepare a batch of the good rows among `places`. Its random generator is seeded from `draw`.

        If none of them is good, the batch holds a good row from elsewhere, which does not count. So each rank runs the
        model once and no rank waits for another. May run ahead of time in a thread: the rows it finds are recorded by
        `take`. Raises Stopped if the table has no good row.
        """
        found: dict[int, str] = {}
        for candidates in chain([places], self._elsewhere(draw)):
            good = self._known_good(candidates, found)
            while len(good):
                rows = self.rows.read(good)
                try:
                    batch = prepare_batch(rows, generator_for(*draw))
                except BadRows as bad:
                    for index, reason in bad.reasons.items():
                        place = int(good[index])
                        found[place] = f"{rows[index].get(self.rows.key, place)}: {reason}"
                    good = self._known_good(good, found)
                else:
                    num_good = len(good) if candidates is places else 0
                    again = partial(self.prepare, prepare_batch, places, draw)
                    return PreparedBatch(batch, num_good, good, found, again)
        reasons = (self.bad_rows | self.local_bad_rows | found).values()
        raise Stopped(f"{self.name}: all {self.rows.num_rows} rows are bad, such as {self._listed(reasons)}")

    def take(self, prepared: PreparedBatch) -> tuple[Batch, int]:
        """The batch and the number of its rows that count.

        The batch is prepared again if one of its rows has been found bad since it was prepared.
        """
        if len(self._known_good(prepared.places, {})) < len(prepared.places):
            prepared = prepared.prepare_again()
        self.local_bad_rows = self.local_bad_rows | prepared.bad_rows
        return prepared.batch, prepared.num_good

    def average_good_rows(self, measures: Metrics, batch_size: int, skipped: float) -> Metrics:
        """A step's means over its good rows, from its means over the full batch. Raises Stopped if too many are bad.

        All ranks call it with the same arguments. In `measures`, SKIPPED_ROWS is the share of bad rows in the batch. In
        the result it is the number of rows skipped since training began, of which `skipped` came before this step.
        """
        share = measures[SKIPPED_ROWS]
        if share:
            self._share_bad_rows()
        good = max(1 - share, 1 / batch_size)
        means = {name: value / good for name, value in measures.items()}
        return means | {SKIPPED_ROWS: skipped + round(share * batch_size)}

    def _elsewhere(self, draw: tuple[str | int, ...]) -> Iterator[np.ndarray]:
        """Every row of the table, one at a time, in an order seeded from `draw`."""
        order = np.random.default_rng(seed_for("elsewhere", *draw)).permutation(self.rows.num_rows)
        yield from np.split(order, len(order))

    def _known_good(self, places: np.ndarray, found: dict[int, str]) -> np.ndarray:
        """The places that are not known to be bad."""
        known = self.bad_rows.keys() | self.local_bad_rows.keys() | found.keys()
        return np.array([place for place in places.tolist() if place not in known], dtype=np.int64)

    def _share_bad_rows(self) -> None:
        """Exchange the bad rows of all ranks and log the new ones once. Stopped on all ranks if there are too many."""
        found_by_ranks: list[dict[int, str]] = [{}] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(found_by_ranks, self.local_bad_rows)
        new: dict[int, str] = {}
        for found in found_by_ranks:
            new |= {place: reason for place, reason in found.items() if place not in self.bad_rows}
        self.bad_rows = self.bad_rows | dict(sorted(new.items()))
        self.local_bad_rows = {}
        if torch.distributed.get_rank() == 0:
            for reason in new.values():
                warn(f"skipped {reason}", stage=self.name)
        if len(self.bad_rows) > self.most_bad_rows * self.rows.num_rows:
            raise Stopped(
                f"{self.name}: {len(self.bad_rows)} of {self.rows.num_rows} rows are bad, more than "
                f"recovery.most_bad_rows ({self.most_bad_rows:g}) allows: {self._listed(self.bad_rows.values())}. "
                "Repair the table, or raise recovery.most_bad_rows and give the same command"
            )

    def _listed(self, reasons: Iterable[str]) -> str:
        reasons = list(reasons)
        more = f"; and {len(reasons) - MAX_LISTED} more" if len(reasons) > MAX_LISTED else ""
        return "; ".join(reasons[:MAX_LISTED]) + more
