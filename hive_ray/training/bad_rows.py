"""Rows that nothing can be learned from: named in the log, passed over and counted, up to a share of the table.

An objective finds them (`BadRows`), this keeps account of them, alike on all ranks. A good row counts as much as it
would in a batch without bad ones: one part in `batch_size` of a step's gradient.
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
"""Rows passed over since training began, every time that one was drawn."""
MAX_LISTED = 10
PrepareBatch = Callable[[Rows, torch.Generator], Batch]
"""An objective's `prepare`."""


class PreparedBatch(NamedTuple):
    """A micro batch of good rows."""

    batch: Batch
    good: int
    """How many of its rows count."""
    places: np.ndarray
    """Of its rows."""
    found: dict[int, str]
    """Bad rows that were found on the way: place -> id and reason."""
    again: Callable[[], "PreparedBatch"]
    """Makes it from what is known then."""


class RowQuarantine:
    """The rows of a table that can be learned from, as far as is known."""

    def __init__(self, rows: RowStore, name: str, most_bad_rows: float) -> None:
        self.rows, self.name, self.most_bad_rows = rows, name, most_bad_rows
        self.bad_rows: dict[int, str] = {}
        """Place -> id and reason, the same on all ranks."""
        self.local_bad_rows: dict[int, str] = {}
        """What this rank alone knows yet."""

    def prepare(self, batch_of: PrepareBatch, places: np.ndarray, draw: tuple[str | int, ...]) -> PreparedBatch:
        """A batch of the good rows among these places, by a generator from `draw`.

        Where there is none, of a good row from elsewhere that does not count: each rank runs the model once whatever it
        finds, so that no other waits for it. May run in a thread, ahead of time: what it finds is not known to others
        before `take`.
        """
        found: dict[int, str] = {}
        for candidates in chain([places], self._elsewhere(draw)):
            good = self._known_good(candidates, found)
            while len(good):
                try:
                    rows = self.rows.read(good)
                    batch, counted = batch_of(rows, generator_for(*draw)), len(good) if candidates is places else 0
                    return PreparedBatch(batch, counted, good, found, partial(self.prepare, batch_of, places, draw))
                except BadRows as bad:
                    for index, reason in bad.reasons.items():
                        place = int(good[index])
                        found[place] = f"{rows[index].get(self.rows.key, place)}: {reason}"
                    good = self._known_good(good, found)
        reasons = (self.bad_rows | self.local_bad_rows | found).values()
        raise Stopped(f"{self.name}: all {self.rows.num_rows} rows are bad, such as {self._named(reasons)}")

    def take(self, prepared: PreparedBatch) -> tuple[Batch, int]:
        """The batch, and how many of its rows count, as if it were prepared only now: made again where one of its rows
        has been found bad since."""
        if len(self._known_good(prepared.places, {})) < len(prepared.places):
            prepared = prepared.again()
        self.local_bad_rows = self.local_bad_rows | prepared.found
        return prepared.batch, prepared.good

    def average_good_rows(self, measures: Metrics, batch_size: int, skipped: float) -> Metrics:
        """A step's measures, means over a whole batch, made means over its good rows; Stopped if too many are bad.

        All ranks call it with the same `measures`. Those of SKIPPED are the batch's share of bad rows, and become the
        number of rows skipped in all; `skipped` is what it was.
        """
        share = measures[SKIPPED_ROWS]
        if share:
            self._agree()
        good = max(1 - share, 1 / batch_size)
        means = {name: value / good for name, value in measures.items()}
        return means | {SKIPPED_ROWS: skipped + round(share * batch_size)}

    def _elsewhere(self, draw: tuple[str | int, ...]) -> Iterator[np.ndarray]:
        """Every row of the table, one at a time, in an order of this batch's own."""
        order = np.random.default_rng(seed_for("elsewhere", *draw)).permutation(self.rows.num_rows)
        yield from np.split(order, len(order))

    def _known_good(self, places: np.ndarray, found: dict[int, str]) -> np.ndarray:
        known = self.bad_rows.keys() | self.local_bad_rows.keys() | found.keys()
        return np.array([place for place in places.tolist() if place not in known], dtype=np.int64)

    def _agree(self) -> None:
        """Tell all ranks what each has found, log it once, and stop all of them if it is too much."""
        told = [{}] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(told, self.local_bad_rows)
        fresh = {place: why for found in told for place, why in found.items() if place not in self.bad_rows}
        self.bad_rows, self.local_bad_rows = self.bad_rows | dict(sorted(fresh.items())), {}
        if torch.distributed.get_rank() == 0:
            for why in fresh.values():
                warn(f"skipped {why}", stage=self.name)
        if len(self.bad_rows) > self.most_bad_rows * self.rows.num_rows:
            named = self._named(self.bad_rows.values())
            raise Stopped(
                f"{self.name}: {len(self.bad_rows)} of {self.rows.num_rows} rows are bad, more than "
                f"recovery.most_bad_rows ({self.most_bad_rows:g}) allows: {named}. "
                "Mend the table, or raise it and go on"
            )

    def _named(self, reasons: Iterable[str]) -> str:
        reasons = list(reasons)
        more = f"; and {len(reasons) - MAX_LISTED} more" if len(reasons) > MAX_LISTED else ""
        return "; ".join(reasons[:MAX_LISTED]) + more
