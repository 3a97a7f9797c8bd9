"""How fast one actor of a stage is: some batches to warm up, then some by the clock, and nothing is written."""

import time
from collections import Counter
from dataclasses import dataclass

import ray

from hive_ray.artifacts.building import Mapped
from hive_ray.cluster.mapping import MapTable, load_actor, map_rows
from hive_ray.cluster.starting import require_resources
from hive_ray.schemas import table_name

MEASURE_S = 10.0
"""Batches are mapped by the clock until so much time has passed, or the input ends."""
RATE_TIMEOUT_S = 1800.0


@dataclass(frozen=True)
class Rate:
    """What one row of the input costs one actor, and becomes."""

    seconds: float
    rows_out: float
    counts: dict[str, float]
    """What the actor counts (`Counted`), such as tokens."""


def measure_rate(plan: MapTable) -> Rate:
    """Of an actor on the cluster, with the plan's resources; ValueError if there is nothing to map, or nothing comes.

    What an actor need not do again, such as to ask for an answer that is kept, takes no time here either.
    """
    require_resources(table_name(plan.produces), plan.resources)
    if not plan.rows_in:
        raise ValueError(f"{plan.source.path} has no rows to map, so nothing can be measured")
    rate = ray.remote(num_cpus=plan.resources.num_cpus, num_gpus=plan.resources.num_gpus)(_rate)
    return ray.get(rate.remote(plan), timeout=RATE_TIMEOUT_S)


def _rate(plan: MapTable) -> Rate:
    actor, size = load_actor(plan), plan.resources.batch_size
    mapped, made, seconds, counts, dropped = 0, 0, 0.0, Counter(), Counter()
    for start in range(0, plan.rows_in, size):
        rows = plan.source.read(start, start + size).to_pylist()
        began = time.monotonic()
        became = Mapped.of(map_rows(actor, rows))
        dropped.update(drop.reason for drop in became.dropped)
        if start == 0 and plan.rows_in > size:  # it warmed up
            continue
        seconds += time.monotonic() - began
        mapped += len(rows)
        made += len(became.rows)
        counts.update(became.counts)
        if seconds >= MEASURE_S:
            break
    if not made:
        reason = dropped.most_common(1)[0][0]
        sample = next((drop.sample for drop in became.dropped if drop.reason == reason and drop.sample), "")
        shown = f", such as {sample!r}" if sample else ""
        raise ValueError(f"none of the first {mapped} rows became anything; most often: {reason}{shown}")
    return Rate(seconds / mapped, made / mapped, {name: count / mapped for name, count in counts.items()})
