"""Checked Parquet in and out: a table is finished or absent, and making it again resumes or keeps it.

    <table>/building.json             fingerprint of a build in progress, written first
    <table>/__dropped__, __examples__ what is left of rows that were dropped (`dropped.py`)
    <table>/data/part-00000.parquet   what became of one fixed shard of the input, written whole or not at all
    <table>/manifest.json             written last

Exactly once: which input rows make a shard depends on the input table alone, and a shard's file replaces itself; so a
killed build leaves whole shards, a retried shard writes the same bytes, and a resumed build does only absent ones.
"""

import io
import json
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from hive_ray import storage
from hive_ray.artifacts.dropped import write_dropped
from hive_ray.artifacts.progress import Progress, format_counts, format_duration
from hive_ray.config import (
    DenoisingError,
    Inspection,
    LearningCurve,
    Preview,
    Recovery,
    Resources,
    Spending,
    Training,
    Watching,
)
from hive_ray.console import say, tell_result
from hive_ray.errors import ContractError, Stopped
from hive_ray.files.owners import is_unfinished
from hive_ray.schemas import Counted, Dropped, Result, Row, Rows, table_name, to_table
from hive_ray.seeds import id_for

Fingerprint = dict[str, Any]
OnMismatch = Literal["refuse", "rebuild"]
Where = Mapping[str, Any]
"""Column -> the value that a row must have there, or a predicate of the value."""

ERROR_PREFIX = "error: "
"""How the drop reason of a row starts that made its actor raise."""
MAX_SAMPLES, MAX_SAMPLE_CHARS = 3, 300
"""Samples that a manifest keeps of a drop reason, and characters of each."""
ROWS_PER_GROUP = 32
ROWS_PER_FILE = 1024
"""Rows a file of the tables that the driver writes itself."""
TABLE_FILES = re.compile(
    r"(data|__dropped__|__examples__)/part-\d+\.parquet|(manifest|building|card)\.json|rewards\.svg"
)
"""Files of a table's folder."""


@dataclass(frozen=True)
class Manifest:
    """What a finished table is and how it came to be; `files` are relative to the table, in reading order."""

    table: str
    fingerprint: Fingerprint
    rows_in: int
    rows_out: int
    dropped: dict[str, int]
    files: list[str]
    file_rows: list[int]
    git_commit: str
    seconds: float
    counts: dict[str, float] = field(default_factory=dict)
    """What else was counted on the way, such as tokens and dollars."""
    rows_timed: int = 0
    """Rows in that `seconds` were spent on; a resumed build did only those that were left."""
    samples: dict[str, list[str]] = field(default_factory=dict)
    """Drop reason -> what the first rows that were dropped for it looked like, where their actor said."""


@dataclass(frozen=True)
class Shard:
    """What became of one fixed part of the input; all that the driver ever sees of its rows."""

    number: int
    rows_in: int
    rows_out: int
    dropped: dict[str, int]
    counts: dict[str, float] = field(default_factory=dict)
    samples: dict[str, list[str]] = field(default_factory=dict)

    @property
    def file(self) -> str:
        """Its file, relative to the table."""
        return f"data/part-{self.number:05d}.parquet"

    @property
    def errors(self) -> dict[str, int]:
        """Drops of rows that made the actor raise; a resumed build tries the whole shard again."""
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
        """Write these shards of the table at `path`, in any order, and report each one once it is written."""
        ...


IGNORED_SECTIONS = (
    DenoisingError,
    Inspection,
    LearningCurve,
    Preview,
    Recovery,
    Resources,
    Spending,
    Training,
    Watching,
)
"""Sections inside others that a stage's fingerprint leaves out."""
IGNORED_SETTINGS = {"least_kept", "send_seed"}
"""Settings of any section that it leaves out: they decide whether a table is finished, or how an endpoint is asked."""
VALUES_BEFORE = {
    "instructions.temperature": 0.7,
    "pairs.single_file.tokenizer": "openai/clip-vit-large-patch14",
    "pairs.single_file.prediction_type": "",
    "evaluation.best_of": 1,
    "importing.rankings": "",
    "editor.dpo.min_rank_gap": 1,
    "editor.dpo.timesteps": (0.0, 1.0),
    "editor.dpo.safeguard": 0.0,
    "editor.dpo.safeguard_margin": 0.0,
    "editor.dpo.shuffled": False,
    "editor.dpo.imported_rankings": True,
    "editor.nft.beta": 1.0,
    "editor.arm": "scored",
    "editor.level_rate_factor": 100.0,
    "editor.level_guidance_scale": 0.0,
    "reward.features": "blip",
    "rankings.num_annotators": 0,
    "denoisingerror.learned_rate": 1.0,
    "denoisingerror.log": False,
    "denoisingerror.clip_image": False,
    "denoisingerror.conditions": ("instruction", "source", "nothing"),
}
"""Settings that were added later -> what stood in their place before; with that value they are left out, so that
tables made before are kept."""


def fingerprint_of(*settings: BaseModel, **inputs: str) -> Fingerprint:
    """Flat settings and the digests of inputs: what decides the rows of a table or the weights of a model.

    IGNORED_SECTIONS change no rows and no weights, but speed, costs or what is looked at: they are left out; so is a
    `Training` inside a stage's settings, since `fit` adds the one that it runs, and a `DenoisingError`, since the
    stages that it decides add it.
    """
    flat: Fingerprint = {}
    for section in settings:
        _flatten(section, type(section).__name__.lower(), flat)
    flat = {name: value for name, value in flat.items() if name not in VALUES_BEFORE or value != VALUES_BEFORE[name]}
    flat |= {f"input.{name}": digest for name, digest in inputs.items()}
    return json.loads(json.dumps(flat))  # tuples are lists, as in a manifest that was read


def _flatten(section: BaseModel, prefix: str, flat: Fingerprint) -> None:
    for name in type(section).model_fields:
        if name in IGNORED_SETTINGS:
            continue
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            if not isinstance(value, IGNORED_SECTIONS):
                _flatten(value, f"{prefix}.{name}", flat)
        else:
            flat[f"{prefix}.{name}"] = value


def describe_differences(old: Fingerprint, new: Fingerprint) -> str:
    """`pairs.seed was 0, is 1; ...`"""
    absent = "absent"
    changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key, absent) != new.get(key, absent)]
    return "; ".join(f"{key} was {old.get(key, absent)}, is {new.get(key, absent)}" for key in changed)


def mismatch_error(path: str, old: Fingerprint, new: Fingerprint) -> FileExistsError:
    """The error of a folder that other settings or inputs made."""
    return FileExistsError(
        f"{path} was made otherwise: {describe_differences(old, new)}. "
        f"Move it away, choose another run folder, or pass --rebuild to delete it and make it again"
    )


def read_manifest(path: str) -> Manifest | None:
    """The manifest of a finished table, or None."""
    found = storage.read_json(storage.join(path, "manifest.json"))
    return None if found is None else Manifest(**found)


def table_digest(path: str, *others: str) -> str:
    """Names the content of finished tables by what they were made from; of several, in this order."""
    if others:
        return id_for(*map(table_digest, (path, *others)))
    done = finished_manifest(path)
    return id_for(done.table, json.dumps(done.fingerprint, sort_keys=True))


def finished_manifest(path: str, schema: pa.Schema | None = None) -> Manifest:
    """The manifest of a table that has to be finished, and to be of this schema where one is given.

    FileNotFoundError where it is not finished, ContractError where it holds another table.
    """
    done = read_manifest(path)
    if done is None:
        raise FileNotFoundError(f"{path} has no manifest.json: the job that makes it has not finished; run it first")
    if schema is not None and done.table != table_name(schema):
        raise ContractError(f"{path} holds the table {done.table!r}, but {table_name(schema)!r} was wanted")
    return done


def build_table(
    path: str,
    schema: pa.Schema,
    fingerprint: Fingerprint,
    make: Callable[[], Plan],
    *,
    on_mismatch: OnMismatch = "refuse",
    least_kept: float = 0.0,
) -> Manifest:
    """Make the table at `path`, finish a build that was killed, or keep what the same settings and inputs made.

    `Stopped` where rows came in and none is kept, or a smaller share of what came of them than `least_kept`: the table
    is not finished then, and "rebuild" makes it again.
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
    """Make a table from rows of this process, for stages with small rows; kept and refused as `build_table`.

    "rebuild" makes it again in any case: what it is made from may have changed in ways that nobody sees. `Stopped` as
    in `build_table`, unless it `may_be_empty`.

    `rows` is not touched if the table is kept; a killed build starts again. Dropped rows are counted. Rows of
    one file are in memory at a time: rows with pictures want fewer than `ROWS_PER_FILE`.
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
    """The finished table that may stay, unless it is made `again`; None if it must be built. Other settings are refused
    or deleted."""
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
    """Make room for a table where a folder does not say of what it is; FileExistsError where its files are not known to
    be remains of one of ours, or nobody has said that they may go."""
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
    """Leave word of what is being built; shards of another division of the input cannot be gone on with."""
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
    """Write the manifest; `Stopped` where too few rows are kept, unless `least_kept` is None."""
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
    """Whether all rows have been seen, and none is kept, or less than this share of what came of them."""
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
    """The first MAX_SAMPLES of each reason."""
    found: dict[str, list[str]] = {}
    for one in samples:
        for reason, texts in one.items():
            known = found.setdefault(reason, [])
            known += texts[: MAX_SAMPLES - len(known)]
    return found


def _refuse_failures(name: str, rows_in: int, shards: list[Shard]) -> None:
    """Stop a stage if more than half of all its rows made the actor raise; a rerun tries those rows again."""
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
    """The shards that a killed build left, from the footers of their files."""
    for name in storage.list_files(storage.join(path, "data")):
        if not name.startswith("."):  # else the remains of a write that was killed
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


@cache
def git_commit() -> str:
    """The commit of this checkout, with -dirty where files differ from it; `unknown` outside of git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (subprocess.CalledProcessError, FileNotFoundError):
        return "unknown"


@dataclass(frozen=True)
class Selection:
    """Rows of finished tables by place, (files[file_of[i]], row_of[i]) for i in 0..N, in their order."""

    paths: tuple[str, ...]
    schema: pa.Schema
    files: list[str]
    file_of: np.ndarray
    row_of: np.ndarray

    def __len__(self) -> int:
        return len(self.file_of)

    def read(self, start: int, stop: int, columns: list[str] | None = None) -> pa.Table:
        """The rows start..stop as a table of the schema (or of some of its columns)."""
        wanted = self.schema if columns is None else pa.schema([self.schema.field(name) for name in columns])
        parts = [
            _read_at(self.files[index], self.row_of[start:stop][self.file_of[start:stop] == index], wanted)
            for index in dict.fromkeys(self.file_of[start:stop].tolist())
        ]
        return pa.concat_tables([wanted.empty_table(), *parts]).replace_schema_metadata(self.schema.metadata)

    def key(self) -> str:
        """Names these rows in this order, by what their table was made from."""
        return id_for(*self.paths, table_digest(*self.paths), self.file_of.tobytes() + self.row_of.tobytes())

    @property
    def path(self) -> str:
        """The tables' addresses, for people."""
        return ", ".join(self.paths)


def select(
    path: str | Sequence[str], schema: pa.Schema, *, where: Where | None = None, limit: int | None = None
) -> Selection:
    """The rows of a finished table that `where` keeps, at most `limit`; only its columns are read.

    Several tables of one schema are as one, in this order.
    """
    paths = (path,) if isinstance(path, str) else tuple(path)
    manifests = [finished_manifest(one, schema) for one in paths]
    tables = list(zip(paths, manifests, strict=True))
    files = [storage.join(one, name) for one, manifest in tables for name in manifest.files]
    if where:
        kept = [_matching(storage.read_columns(file, list(where)), where) for file in files]
    else:
        kept = [np.arange(rows) for manifest in manifests for rows in manifest.file_rows]
    file_of = np.repeat(np.arange(len(files)), np.array([len(rows) for rows in kept], dtype=np.int64))[:limit]
    row_of = np.concatenate([np.empty(0, dtype=np.int64), *kept])[:limit]
    return Selection(paths, schema, files, file_of, row_of)


def _matching(table: pa.Table, where: Where) -> np.ndarray:
    keep = np.ones(table.num_rows, dtype=bool)
    for column, wanted in where.items():
        values = table[column].to_pylist()
        keep &= np.array([wanted(value) if callable(wanted) else value == wanted for value in values], dtype=bool)
    return np.flatnonzero(keep)


@storage.retry_s3
def _read_at(file: str, rows: np.ndarray, wanted: pa.Schema) -> pa.Table:
    """Some rows of one file (increasing), reading only the row groups they lie in."""
    with storage.open_parquet(file) as parquet:
        missing = sorted(set(wanted.names) - set(parquet.schema_arrow.names))
        if missing:
            raise ContractError(f"{file} has no columns {missing}")
        sizes = [parquet.metadata.row_group(index).num_rows for index in range(parquet.num_row_groups)]
        ends = np.cumsum(sizes)
        group_of = np.searchsorted(ends, rows, side="right")
        groups = np.unique(group_of)
        table = parquet.read_row_groups(groups.tolist(), columns=wanted.names).select(wanted.names)
    starts = np.cumsum([0, *(sizes[group] for group in groups)])[:-1]  # of each group inside `table`
    places = rows - (ends[group_of] - np.array(sizes)[group_of]) + starts[np.searchsorted(groups, group_of)]
    return table.take(places).cast(wanted)


def read_rows(
    path: str | Sequence[str], schema: pa.Schema, columns: list[str] | None = None, *, where: Where | None = None
) -> Iterator[Row]:
    """Stream the rows of a finished table, or of several of one schema, in their order."""
    selection = select(path, schema, where=where)
    small = not any(_may_be_large(schema.field(name).type) for name in columns or schema.names)
    # Each read opens its files anew: of a million rewards, 31,250 times.
    step = ROWS_PER_FILE if small else ROWS_PER_GROUP
    for start in range(0, len(selection), step):
        yield from selection.read(start, start + step, columns).to_pylist()


def _may_be_large(kind: pa.DataType) -> bool:
    """Whether a column may hold pictures or latents."""
    return pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


@storage.retry_s3
def read_edit_ids(file: str, *columns: str) -> Rows:
    """The rows of a file of `candidates` with some of its columns, and of their edits the ids alone: no pictures."""
    with storage.open_parquet(file) as parquet:
        leaves = [parquet.schema.column(index).path for index in range(len(parquet.schema))]
        ids = [path for path in leaves if path.startswith("edits.") and path.endswith(".edit_id")]
        return parquet.read(columns=[*columns, *ids]).to_pylist()


def count_rows(path: str) -> int:
    """Rows of a finished table."""
    return finished_manifest(path).rows_out
