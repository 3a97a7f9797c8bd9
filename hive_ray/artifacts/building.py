"""Making a table: build, resume, keep or refuse. A table is finished or absent.

    <table>/building.json             fingerprint of a build in progress, written first
    <table>/__dropped__, __examples__ what is kept of dropped rows (`dropped.py`)
    <table>/data/part-00000.parquet   the rows of one fixed shard of the input, written in one piece
    <table>/manifest.json             written last

Every row is made exactly once. The input table alone decides which rows make a shard, and writing a shard again
replaces its file with the same bytes. A killed build leaves finished shards, and a resumed build makes only the others.
"""

import io
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from hive_ray import storage
from hive_ray.artifacts.dropped import write_dropped
from hive_ray.artifacts.manifest import (
    Fingerprint,
    Manifest,
    OnMismatch,
    describe_differences,
    git_commit,
    mismatch_error,
    read_manifest,
)
from hive_ray.artifacts.progress import Progress, format_counts, format_duration
from hive_ray.console import say, tell_result
from hive_ray.errors import Stopped
from hive_ray.files.owners import is_unfinished
from hive_ray.schemas import Counted, Dropped, Result, Rows, table_name, to_table

ERROR_PREFIX = "error: "
"""The drop reason of a row that made its actor raise starts with this."""
MAX_SAMPLES, MAX_SAMPLE_CHARS = 3, 300
"""Samples that a manifest keeps for each drop reason, and characters of each sample."""
ROWS_PER_GROUP = 32
"""Rows of a Parquet row group, which is the least that is read of a file."""
ROWS_PER_FILE = 1024
"""Rows in a file of a table that the driver writes itself."""
TABLE_FILES = re.compile(
    r"(data|__dropped__|__examples__)/part-\d+\.parquet|(manifest|building|card)\.json|rewards\.svg"
)
"""The files that may be in a table's folder."""


@dataclass(frozen=True)
class Shard:
    """What one fixed part of the input became. The driver sees no more of its rows than this."""

    number: int
    rows_in: int
    rows_out: int
    dropped: dict[str, int]
    counts: dict[str, float] = field(default_factory=dict)
    samples: dict[str, list[str]] = field(default_factory=dict)

    @property
    def file(self) -> str:
        """The path of its file, relative to the table."""
        return f"data/part-{self.number:05d}.parquet"

    @property
    def errors(self) -> dict[str, int]:
        """The drops of rows that made the actor raise. A resumed build makes a shard with errors again."""
        return {reason: count for reason, count in self.dropped.items() if reason.startswith(ERROR_PREFIX)}


@dataclass(frozen=True)
class Mapped:
    """What a part of the input became."""

    rows: Rows
    """Rows of the table, in their order."""
    dropped: list[Dropped]
    counts: dict[str, float]
    """The sums of everything that was counted, by name."""

    @classmethod
    def of(cls, results: Iterable[Result]) -> "Mapped":
        """Sort the results of an actor by their kind."""
        rows: Rows = []
        dropped: list[Dropped] = []
        counts: Counter[str] = Counter()
        for result in results:
            if isinstance(result, Dropped):
                dropped.append(result)
            elif isinstance(result, Counted):
                counts.update(result.values)
            else:
                rows.append(result)
        return cls(rows, dropped, dict(counts))


class Plan(Protocol):
    """How a table is made, shard by shard (`mapping.map_table` returns one)."""

    @property
    def rows_in(self) -> int: ...

    @property
    def rows_per_shard(self) -> int: ...

    def run(self, path: str, shards: list[int]) -> Iterator[Shard]:
        """Write these shards of the table at `path`, in any order. Yields each one after it is written."""
        ...


def build_table(
    path: str,
    schema: pa.Schema,
    fingerprint: Fingerprint,
    make: Callable[[], Plan],
    *,
    on_mismatch: OnMismatch = "refuse",
    least_kept: float = 0.0,
) -> Manifest:
    """Make the table at `path`, resume a killed build, or keep a table of the same fingerprint.

    least_kept: the least share, 0..1, of rows that must be kept of all rows that are kept or dropped.

    Raises `Stopped` if no row is kept of an input with rows, or a smaller share than `least_kept`. The table is then
    unfinished, and "rebuild" makes it again. Raises FileExistsError for another fingerprint under "refuse", and
    RuntimeError if more than half of the rows made the actor raise.
    """
    kept = _kept(path, schema, fingerprint, on_mismatch)
    if kept is not None:
        return kept
    started, plan, name = time.monotonic(), make(), table_name(schema)
    division = {"rows_in": plan.rows_in, "rows_per_shard": plan.rows_per_shard}
    _begin(path, fingerprint, division)
    done = {shard.number: shard for shard in _written_shards(path) if not shard.errors}
    if on_mismatch == "rebuild" and _too_few(list(done.values()), plan.rows_in, least_kept):
        storage.remove_tree(path)
        _begin(path, fingerprint, division)
        done = {}
    absent = [number for number in range(-(-plan.rows_in // plan.rows_per_shard)) if number not in done]
    progress = Progress(name, plan.rows_in, "rows", done=sum(shard.rows_in for shard in done.values()))
    if done:
        say(f"resumed, {progress.done}/{plan.rows_in} rows are done", stage=name)
    for shard in plan.run(path, absent) if absent else ():
        done[shard.number] = shard
        _refuse_failures(name, plan.rows_in, list(done.values()))
        progress.advance(shard.rows_in, f", {sum(one.rows_out for one in done.values())} kept")
    timed = sum(done[number].rows_in for number in absent)
    shards = [done[number] for number in sorted(done)]
    return _finish(path, schema, fingerprint, shards, started, timed, least_kept)


def write_rows(
    path: str,
    schema: pa.Schema,
    rows: Iterable[Result],
    fingerprint: Fingerprint,
    *,
    on_mismatch: OnMismatch = "refuse",
    rows_per_file: int = ROWS_PER_FILE,
    least_kept: float = 0.0,
    may_be_empty: bool = False,
) -> Manifest:
    """Make a table in this process, for stages with small rows. A table of the same fingerprint is kept.

    rows: not read if the table is kept. A killed build starts again from the first row.
    on_mismatch: "rebuild" makes the table again even if the fingerprint is the same, since the source of the rows may
        have changed in a way that no fingerprint shows.
    rows_per_file: the rows that are in memory at a time. Rows with pictures need fewer than `ROWS_PER_FILE`.

    Raises as `build_table`, but an empty table is finished if it `may_be_empty`.
    """
    kept = _kept(path, schema, fingerprint, on_mismatch, again=on_mismatch == "rebuild")
    if kept is not None:
        return kept
    started, source, shards = time.monotonic(), iter(rows), []
    storage.remove_tree(path)
    _begin(path, fingerprint, {})
    while chunk := list(islice(source, rows_per_file)):
        mapped = Mapped.of(chunk)
        rows_in = len(mapped.rows) + len(mapped.dropped)
        shards.append(write_shard(path, len(shards), mapped, schema, rows_in=rows_in))
    timed = sum(shard.rows_in for shard in shards)
    return _finish(path, schema, fingerprint, shards, started, timed, None if may_be_empty else least_kept)


def _kept(
    path: str, schema: pa.Schema, fingerprint: Fingerprint, on_mismatch: OnMismatch, *, again: bool = False
) -> Manifest | None:
    """The manifest of a finished table that is kept; None if the table must be built. `again` keeps none.

    Raises FileExistsError for another fingerprint under "refuse", and deletes the table under "rebuild".
    """
    done = read_manifest(path)
    if done is not None and done.fingerprint == fingerprint and not again:
        tell_result(f"kept, {done.rows_out} rows (nothing changed)", stage=done.table)
        return done
    started = _building(path)
    old = done.fingerprint if done else started.get("fingerprint")
    if old is None:
        _clear_remains(path, on_mismatch)
    if old is not None and old != fingerprint:
        if on_mismatch == "refuse":
            raise mismatch_error(path, old, fingerprint)
        say(f"made again, since {describe_differences(old, fingerprint)}", stage=table_name(schema))
        storage.remove_tree(path)
    return None


def _clear_remains(path: str, on_mismatch: OnMismatch) -> None:
    """Delete the unfinished files of a folder without a fingerprint.

    Raises FileExistsError if it holds files that no table has, or finished ones under "refuse".
    """
    found = storage.list_files(path)
    names = [name for name in found if not is_unfinished(name.rpartition("/")[2])]
    if names and (on_mismatch == "refuse" or not all(TABLE_FILES.fullmatch(name) for name in names)):
        shown = ", ".join(names[:3])
        raise FileExistsError(
            f"{path} holds files ({shown}), but no manifest.json or building.json that says of which table: move it "
            "away, or pass --rebuild if they are an older build's remains"
        )
    if found:
        storage.remove_tree(path)


def _building(path: str) -> dict[str, Any]:
    return storage.read_json(storage.join(path, "building.json")) or {}


def _begin(path: str, fingerprint: Fingerprint, division: dict[str, int]) -> None:
    """Write building.json. Shards of another fingerprint, or of another division of the input, are deleted."""
    building = {"fingerprint": fingerprint, **division}
    if _building(path) != building:
        storage.remove_tree(path)
        storage.write_text(storage.join(path, "building.json"), json.dumps(building, indent=2))


def _finish(
    path: str,
    schema: pa.Schema,
    fingerprint: Fingerprint,
    shards: list[Shard],
    started: float,
    rows_timed: int,
    least_kept: float | None,
) -> Manifest:
    """Write the manifest. Raises `Stopped` if too few rows are kept, unless `least_kept` is None."""
    dropped, counts = _summed(shard.dropped for shard in shards), _summed(shard.counts for shard in shards)
    manifest = Manifest(
        table=table_name(schema),
        fingerprint=fingerprint,
        rows_in=sum(shard.rows_in for shard in shards),
        rows_out=sum(shard.rows_out for shard in shards),
        dropped=dict(sorted(dropped.items(), key=lambda item: (-item[1], item[0]))),
        files=[shard.file for shard in shards],
        file_rows=[shard.rows_out for shard in shards],
        git_commit=git_commit(),
        seconds=round(time.monotonic() - started, 3),
        counts=dict(sorted(counts.items())),
        rows_timed=rows_timed,
        samples=_sampled(shard.samples for shard in shards),
    )
    reasons = ", ".join(f"{count} {reason}" for reason, count in manifest.dropped.items()) or "none"
    if least_kept is not None and _too_few(shards, manifest.rows_in, least_kept):
        raise Stopped(_why_too_few(path, manifest, reasons, least_kept))
    storage.remove_unfinished(path)
    storage.write_text(storage.join(path, "manifest.json"), json.dumps(asdict(manifest), indent=2))
    tell_result(
        f"{manifest.rows_out} rows from {manifest.rows_in} in {format_duration(manifest.seconds)}; "
        f"dropped: {reasons}{format_counts(manifest.counts)}",
        stage=manifest.table,
    )
    for reason, samples in manifest.samples.items():
        say(f"{reason}, such as {samples[0]}", stage=manifest.table)
    return manifest


def _too_few(shards: list[Shard], rows_in: int, least_kept: float) -> bool:
    """Whether all input is processed, and no row or less than this share is kept."""
    if not rows_in or sum(shard.rows_in for shard in shards) < rows_in:
        return False
    kept = sum(shard.rows_out for shard in shards)
    dropped = sum(sum(shard.dropped.values()) for shard in shards)
    return kept == 0 or kept < least_kept * (kept + dropped)


def _why_too_few(path: str, manifest: Manifest, reasons: str, least_kept: float) -> str:
    wanted = f", and at least {least_kept:.0%} are wanted (least_kept)" if manifest.rows_out else ""
    shown = "".join(f"\n  {reason}: {sample}" for reason, samples in manifest.samples.items() for sample in samples)
    return (
        f"{manifest.table}: {manifest.rows_out} rows from {manifest.rows_in}{wanted}; dropped: {reasons}. {path} is "
        f"not finished. Correct the settings or the input, or pass --rebuild to make it again as it is{shown}"
    )


def _sampled(samples: Iterable[Mapping[str, list[str]]]) -> dict[str, list[str]]:
    """The first MAX_SAMPLES samples of each reason."""
    found: dict[str, list[str]] = {}
    for one in samples:
        for reason, texts in one.items():
            known = found.setdefault(reason, [])
            known += texts[: MAX_SAMPLES - len(known)]
    return found


def _refuse_failures(name: str, rows_in: int, shards: list[Shard]) -> None:
    """Raise RuntimeError if more than half of all rows made the actor raise. A rerun tries those rows again."""
    failed = [shard.errors for shard in sorted(shards, key=lambda shard: shard.number) if shard.errors]
    count = sum(sum(errors.values()) for errors in failed)
    if 2 * count <= rows_in:
        return
    first = next(iter(failed[0])).removeprefix(ERROR_PREFIX)
    raise RuntimeError(
        f"{name}: {count} of {rows_in} rows failed, the first with {first!r}; correct that and run the job again"
    )


def write_shard(path: str, number: int, mapped: Mapped, schema: pa.Schema, *, rows_in: int) -> Shard:
    """Write what `rows_in` input rows became, in one file.

    What `Dropped.row` carries is written to other folders first, so that a finished shard always has it.
    """
    dropped = Counter(drop.reason for drop in mapped.dropped)
    table = to_table(mapped.rows, schema)
    samples = _sampled(
        {drop.reason: [drop.sample[:MAX_SAMPLE_CHARS]]} for drop in mapped.dropped if drop.sample is not None
    )
    counts = dict(sorted(mapped.counts.items()))
    shard = Shard(number, rows_in, table.num_rows, dict(sorted(dropped.items())), counts, samples)
    footer = json.dumps({"rows_in": rows_in, "dropped": shard.dropped, "counts": shard.counts, "samples": samples})
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, table.schema) as writer:
        writer.write_table(table, row_group_size=ROWS_PER_GROUP)
        writer.add_key_value_metadata({"shard": footer})
    write_dropped(path, number, mapped.dropped, schema)
    storage.write_bytes(storage.join(path, shard.file), buffer.getvalue())
    return shard


def _written_shards(path: str) -> Iterator[Shard]:
    """The shards that earlier builds have finished, from the footers of their files."""
    for name in storage.list_files(storage.join(path, "data")):
        if not name.startswith("."):  # a killed write leaves hidden files
            yield _shard_of(storage.join(path, "data", name), int(name.removeprefix("part-").removesuffix(".parquet")))


@storage.retry_s3
def _shard_of(file: str, number: int) -> Shard:
    with storage.open_parquet(file) as parquet:
        found = json.loads(parquet.metadata.metadata[b"shard"])
        counts, samples = found.get("counts", {}), found.get("samples", {})
        return Shard(number, found["rows_in"], parquet.metadata.num_rows, found["dropped"], counts, samples)


def _summed(counts: Iterable[Mapping[str, float]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return total
