"""Measures the speed of one actor of a stage: some batches to warm up, then timed ones. Nothing is written."""

import time
from collections import Counter
from dataclasses import dataclass

import ray

from hive_ray.artifacts.building import Mapped
from hive_ray.cluster.mapping import MapTable, load_actor, map_rows
from hive_ray.cluster.starting import require_resources
from hive_ray.schemas import table_name

MEASURE_S = 10.0
"""Seconds of timed mapping, unless the input ends earlier."""
RATE_TIMEOUT_S = 1800.0
"""Seconds to wait for the measurement."""


@dataclass(frozen=True)
class Rate:
    """What one input row costs one actor and what it becomes, on average."""

    seconds: float
    """Seconds per input row."""
    rows_out: float
    """Output rows per input row."""
    counts: dict[str, float]
    """The sums of `Counted` numbers, such as tokens, per input row."""


def measure_rate(plan: MapTable) -> Rate:
    """Measure an actor on the cluster with the plan's resources. ValueError if the input or the output is empty.

    Work that an actor need not repeat, such as requesting an answer that is already stored, costs no time here either.
    """
    require_resources(table_name(plan.produces), plan.resources)
    if not plan.rows_in:
        raise ValueError(f"{plan.source.path} has no rows to map, so nothing can be measured")
    rate = ray.remote(num_cpus=plan.resources.num_cpus, num_gpus=plan.resources.num_gpus)(_rate)
    return ray.get(rate.remote(plan), timeout=RATE_TIMEOUT_S)


def _rate(plan: MapTable) -> Rate:
    actor = load_actor(plan)
    size = plan.resources.batch_size
    mapped = 0
    made = 0
    seconds = 0.0
    counts = Counter()
    dropped = Counter()
    for start in range(0, plan.rows_in, size):
        rows = plan.source.read(start, start + size).to_pylist()
        started = time.monotonic()
        results = Mapped.of(map_rows(actor, rows))
        dropped.update(drop.reason for drop in results.dropped)
        if start == 0 and plan.rows_in > size:  # this batch was the warm-up
            continue
        seconds += time.monotonic() - started
        mapped += len(rows)
        made += len(results.rows)
        counts.update(results.counts)
        if seconds >= MEASURE_S:
            break
    if not made:
        reason = dropped.most_common(1)[0][0]
        sample = next((drop.sample for drop in results.dropped if drop.reason == reason and drop.sample), "")
        shown = f", such as {sample!r}" if sample else ""
        raise ValueError(f"none of the first {mapped} rows gave a result; the most frequent reason: {reason}{shown}")
    return Rate(seconds / mapped, made / mapped, {name: count / mapped for name, count in counts.items()})
