"""Maps a plain actor over a table with Ray Data, one fixed shard of the input at a time.

The driver sends places of rows and receives counts. Rows and pictures go from the source's files to an actor to the
table's files. Batch size, number of actors and restarts do not change the rows or their order.
"""

import json
import logging
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import pyarrow as pa
import ray
import torch
from ray.data import ActorPoolStrategy, DataContext

from hive_ray import storage
from hive_ray.artifacts.building import ERROR_PREFIX, Mapped, Shard, write_shard
from hive_ray.artifacts.dropped import strip_pictures
from hive_ray.artifacts.selection import Selection, Where, select
from hive_ray.cluster.environment import apply_service_variables, service_variables
from hive_ray.cluster.starting import require_resources
from hive_ray.config import Resources
from hive_ray.errors import Stopped
from hive_ray.schemas import Dropped, Result, Rows, table_name

Actor = Callable[[Rows], Sequence[Result]]
"""`__init__(device=..., **kwargs)` loads the model, `__call__` maps rows.

It may also return `Dropped` and `Counted`, which go into the manifest and not into the table. A dropped row that is
given is kept for inspection (`artifacts/dropped.py`). Raising `Stopped` ends the stage.
"""

STOP_GRACE_S = 10.0
"""Seconds that the other actors have to finish their current work, which may have cost money."""
SHARDS_PER_ACTOR = 2
"""Shards that an actor holds: one is read or written while another is mapped."""
MAX_SHARD_BYTES = 64 * 2**20
"""Approximate limit of a shard's size in its files. An actor holds SHARDS_PER_ACTOR shards, as several copies."""


@dataclass(frozen=True)
class MapTable:
    """A plan for `building.build_table`: maps the rows of one table to rows of another."""

    source: Selection
    actor: Callable[..., Actor]
    produces: pa.Schema
    resources: Resources
    kwargs: dict[str, Any]
    rows_per_shard: int
    dropped_per_shard: int
    """Number of dropped rows per reason that keep their pictures."""
    environment: dict[str, str] = field(default_factory=service_variables, repr=False)
    """The settings of services for the actors, taken from the process that makes the plan."""

    @property
    def rows_in(self) -> int:
        """Number of rows that the actor maps."""
        return len(self.source)

    def run(self, path: str, shards: list[int]) -> Iterator[Shard]:
        """Map and write these shards of the table at `path`. Yields each shard after it is written."""
        require_resources(table_name(self.produces), self.resources)
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.verbose_progress = False
        context.execution_no_progress_timeout_s = -1  # waiting for new nodes may take long
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # build_table reports progress
        mapped = ray.data.from_items(
            [{"shard": number} for number in shards], override_num_blocks=len(shards)
        ).map_batches(
            _ShardMapper,
            fn_constructor_kwargs={"plan": self, "path": path},
            compute=_pool(self.resources, len(shards)),
            batch_size=1,
            num_cpus=self.resources.num_cpus,
            num_gpus=self.resources.num_gpus,
        )
        stopped = ""
        since = 0.0
        for row in mapped.iter_rows():
            result = json.loads(row["written"])
            if "stopped" not in result:
                yield Shard(**result)
            elif not stopped:
                stopped = result["stopped"]
                since = time.monotonic()
            if stopped and time.monotonic() - since > STOP_GRACE_S:
                break
        if stopped:
            raise Stopped(stopped)


def map_table(
    path: str | Sequence[str],
    schema: pa.Schema,
    actor: Callable[..., Actor],
    *,
    produces: pa.Schema,
    resources: Resources,
    where: Where | None = None,
    limit: int | None = None,
    rows_per_shard: int = 32,
    dropped_per_shard: int = 0,
    **kwargs: Any,
) -> MapTable:
    """Plan to map the rows of a table, or of several of one schema, with `actor(device=..., **kwargs)`.

    `where` selects rows. A shard has `rows_per_shard` rows, fewer if pictures are large (`MAX_SHARD_BYTES`).
    """
    source = select(path, schema, where=where, limit=limit)
    return MapTable(source, actor, produces, resources, kwargs, _fitting(source, rows_per_shard), dropped_per_shard)


def _fitting(source: Selection, rows: int) -> int:
    """`rows`, halved until they take at most MAX_SHARD_BYTES, judged by the size of the first file; at least 1."""
    if source.files:
        first = source.files[0]
        each = (storage.file_size(first) or 0) / max(1, storage.open_parquet(first).metadata.num_rows)
        while rows > 1 and rows * each > MAX_SHARD_BYTES:
            rows //= 2
    return rows


def load_actor(plan: MapTable) -> Actor:
    """Create the plan's actor in this process, on the device of the plan."""
    apply_service_variables(plan.environment)
    on_gpu = plan.resources.num_gpus > 0
    if not on_gpu:
        torch.set_num_threads(max(1, int(plan.resources.num_cpus)))
    return plan.actor(device="cuda" if on_gpu else "cpu", **plan.kwargs)


def _pool(resources: Resources, shards: int) -> ActorPoolStrategy:
    """The pool of actors of a stage, at most as many as shards."""
    most = min(resources.num_actors, shards)
    least = min(resources.least_actors or most, most)
    return ActorPoolStrategy(
        min_size=least, max_size=most, max_concurrent_calls_per_actor=SHARDS_PER_ACTOR, enable_true_multi_threading=True
    )


class _ShardMapper:
    """Maps shards with an actor and writes them. Runs in a Ray actor."""

    def __init__(self, plan: MapTable, path: str):
        self.plan = plan
        self.path = path
        self.table = table_name(plan.produces)
        self.start_error = ""
        """Why the actor could not start, if a person can fix that. A new process would fail in the same way."""
        try:
            self._require_folder()
            self.actor = load_actor(plan)
        except (Stopped, OSError, ValueError) as error:
            self.start_error = f"{self.table} cannot begin: {type(error).__name__}: {error}"
        self.turn = threading.Lock()  # models are not thread-safe; reading and writing are

    def _require_folder(self) -> None:
        """Raise Stopped if this node does not see the folder of the table, which the driver has made."""
        if not self.path.startswith(storage.S3) and not os.path.isdir(self.path):
            raise Stopped(
                f"node {platform.node()} has no folder {self.path}: use an s3:// address, or a folder that all nodes "
                "of the cluster share, as the run folder"
            )

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        return {"written": [json.dumps(self._result_of(int(number))) for number in batch["shard"]]}

    def _result_of(self, number: int) -> dict[str, Any]:
        if self.start_error:
            return {"stopped": self.start_error}
        try:
            return vars(self._write(number))
        except Stopped as stopped:
            return {"stopped": str(stopped)}
        except OSError as error:  # a full disk or an unreachable S3 is not the fault of a row
            return {
                "stopped": f"{self.table}, shard {number}: {error}; what is finished stays: fix the cause and run again"
            }

    def _write(self, number: int) -> Shard:
        plan, start = self.plan, number * self.plan.rows_per_shard
        rows = plan.source.read(start, start + plan.rows_per_shard).to_pylist()
        with self.turn:
            size = plan.resources.batch_size
            mapped = (map_rows(self.actor, rows[at : at + size]) for at in range(0, len(rows), size))
            became = Mapped.of(strip_pictures(chain.from_iterable(mapped), plan.produces, plan.dropped_per_shard))
        return write_shard(self.path, number, became, plan.produces, rows_in=len(rows))


def map_rows(actor: Actor, rows: Rows) -> list[Result]:
    """Map results. If a batch raises an exception, map its rows one by one, so that only rows that raise are dropped.

    `Stopped` is not caught: it ends the stage.
    """
    try:
        return list(actor(rows))
    except Stopped:
        raise
    except Exception as error:
        if len(rows) == 1:
            return [Dropped(f"{ERROR_PREFIX}{type(error).__name__}: {str(error)[:120]}")]
        return [mapped for row in rows for mapped in map_rows(actor, [row])]
