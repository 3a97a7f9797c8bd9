"""What a stage will take, before it starts; and how far that was off, afterwards.

a plan -> <run>/estimates/<table>.json
"""

import json
from dataclasses import asdict, dataclass

from hive_ray import storage
from hive_ray.artifacts.manifest import Manifest
from hive_ray.artifacts.progress import format_counts, format_duration
from hive_ray.cluster.mapping import MapTable
from hive_ray.cluster.rates import measure_rate
from hive_ray.console import say, tell_result
from hive_ray.schemas import table_name
from jobs.run import Run


@dataclass(frozen=True)
class Estimate:
    """Of one table."""

    rows: int
    """Rows in."""
    rows_out: int
    seconds: float
    """By the clock, with all actors at work."""
    gpu_hours: float
    counts: dict[str, float]
    """Tokens and dollars."""


def measure(run: Run, plan: MapTable) -> Estimate:
    """Map the first rows by the clock, say what all will take, and leave it in the run folder."""
    name, rate, actors = table_name(plan.produces), measure_rate(plan), plan.resources.num_actors
    seconds = plan.rows_in * rate.seconds
    made = Estimate(
        rows=plan.rows_in,
        rows_out=round(plan.rows_in * rate.rows_out),
        seconds=seconds / actors,
        gpu_hours=seconds * plan.resources.num_gpus / 3600,
        counts={name: count * plan.rows_in for name, count in sorted(rate.counts.items())},
    )
    storage.write_text(_address(run, name), json.dumps(asdict(made), indent=2))
    tell_result(
        f"{name}, estimated: {made.rows:,} rows become {made.rows_out:,} in {format_duration(made.seconds)} with "
        f"{actors} actors, {made.gpu_hours:,.3g} GPU-hours{format_counts(made.counts)}"
    )
    return made


def compare(run: Run, manifest: Manifest) -> None:
    """Say how far the estimate of a table that is finished now was off, if there was one."""
    address = _address(run, manifest.table)
    if not (storage.exists(address) and manifest.rows_timed):
        return
    thought = Estimate(**json.loads(storage.read_text(address)))
    seconds = thought.seconds * manifest.rows_timed / thought.rows
    off = {"time": manifest.seconds / seconds, "rows": manifest.rows_out / max(1, thought.rows_out)}
    off |= {
        name: manifest.counts[name] / count
        for name, count in thought.counts.items()
        if count and name in manifest.counts
    }
    said = ", ".join(f"{name} {round(100 * (ratio - 1)):+d} %" for name, ratio in off.items())
    say(f"against the estimate: {said}", stage=manifest.table)


def _address(run: Run, name: str) -> str:
    return run.path(f"estimates/{name}.json")
