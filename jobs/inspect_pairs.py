"""A page that shows which pairs were kept, which were dropped, and why; `make_pairs` ends with it.

pairs -> pairs.html
"""

from jobs.command import run_job

if __name__ == "__main__":  # before what the work needs is imported, which takes seconds
    run_job("inspect_pairs")

import numpy as np

from hive_ray import storage
from hive_ray.artifacts.building import ERROR_PREFIX
from hive_ray.artifacts.dropped import read_examples, read_kept_and_dropped
from hive_ray.artifacts.manifest import Fingerprint, finished_manifest
from hive_ray.artifacts.selection import Selection, select
from hive_ray.config import Pairs
from hive_ray.console import tell_result
from hive_ray.pairs.inspection import SIMILARITIES, InspectedPairs, write_page
from hive_ray.schemas import PAIRS, Rows
from jobs.run import Run

READS = ("pairs",)
"""What it reads; it makes no table."""


def build(run: Run) -> str:
    """Write the page of a finished table of pairs; its address."""
    address = run.path("pairs.html")
    storage.write_text(address, write_page(gather(run)))
    tell_result(f"kept and dropped ones are shown in {address}", stage="pairs")
    return address


def gather(run: Run) -> InspectedPairs:
    """What the page shows, from the table's manifest, some columns of at most MAX_FILES files and a few rows."""
    path, most = run.path("pairs"), run.config.pairs.inspection.num_shown
    rows = select(path, PAIRS)
    manifest = finished_manifest(path)
    if "pairs.samples_per_instruction" not in manifest.fingerprint:
        raise ValueError(f"{path} was imported, not drawn: of its pairs nobody dropped any for the reasons of the page")
    settings = made_with(run.config.pairs, manifest.fingerprint)
    failed = {reason: count for reason, count in manifest.dropped.items() if reason.startswith(ERROR_PREFIX)}
    dropped = {reason: count for reason, count in manifest.dropped.items() if reason not in failed}
    num_drawn = (manifest.rows_in - sum(failed.values())) * settings.samples_per_instruction
    num_kept = num_drawn - sum(dropped.values())
    with_twins, dropped_values = read_kept_and_dropped(path, manifest.files, PAIRS, [*SIMILARITIES, "origin"])
    forth = np.array([origin != "cycle" for origin in with_twins["origin"].to_pylist()], dtype=bool)
    return InspectedPairs(
        settings=settings,
        num_kept=num_kept,
        num_twins=manifest.rows_out - num_kept,
        dropped=dropped,
        failed=failed,
        kept_values={name: with_twins[name].to_numpy()[forth] for name in SIMILARITIES},
        dropped_values={name: dropped_values[name].to_numpy() for name in SIMILARITIES},
        kept=_kept(rows, most, settings.keep_per_instruction),
        examples=read_examples(path, most),
    )


def made_with(settings: Pairs, fingerprint: Fingerprint) -> Pairs:
    """The settings that a table was made with, whatever this command line says of them."""
    names = [name for name in Pairs.model_fields if f"pairs.{name}" in fingerprint]
    return settings.model_copy(update={name: fingerprint[f"pairs.{name}"] for name in names})


def _kept(rows: Selection, most: int, keep_per_instruction: int) -> Rows:
    """At most `most` rows from all over the table that are no twins, of which so many may stand together."""
    found = {}
    for start in range(0, len(rows), max(1, len(rows) // most)):
        block = rows.read(start, start + keep_per_instruction + 1).to_pylist()
        found |= {row["pair_id"]: row for row in [row for row in block if row["origin"] != "cycle"][:1]}
    return list(found.values())[:most]
