"""What a finished table is, and what decides its rows.

    <table>/manifest.json    written last: a table with a manifest is finished

The fingerprint of a table or a model holds the settings and the digests of the inputs that decide it. A table of the
same fingerprint is kept. Another fingerprint is refused, or deletes the table, as the caller says (`OnMismatch`).
"""

import json
import subprocess
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel

from hive_ray import storage
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
from hive_ray.errors import ContractError
from hive_ray.schemas import table_name
from hive_ray.seeds import id_for

Fingerprint = dict[str, Any]
OnMismatch = Literal["refuse", "rebuild"]

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
"""Sections inside others that a fingerprint leaves out."""
IGNORED_SETTINGS = {"least_kept", "send_seed"}
"""Settings of any section that a fingerprint leaves out. They decide whether a table is finished, or how an endpoint is
asked, but no row."""
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
"""Settings that were added later -> the value that stood in their place before. A fingerprint leaves out a setting of
this value, so that tables made before are kept."""


@dataclass(frozen=True)
class Manifest:
    """What a finished table holds and how it was made."""

    table: str
    """The name of its schema."""
    fingerprint: Fingerprint
    rows_in: int
    rows_out: int
    dropped: dict[str, int]
    """Reason -> number of rows that were dropped for it, the most frequent reason first."""
    files: list[str]
    """Paths relative to the table, in reading order."""
    file_rows: list[int]
    """Rows of each file."""
    git_commit: str
    seconds: float
    """What the last build took. A resumed build spent it on `rows_timed` rows only."""
    counts: dict[str, float] = field(default_factory=dict)
    """Sums of what was counted, such as tokens and dollars."""
    rows_timed: int = 0
    """Input rows that the last build processed."""
    samples: dict[str, list[str]] = field(default_factory=dict)
    """Drop reason -> what the first rows looked like that were dropped for it, in words."""


def fingerprint_of(*settings: BaseModel, **inputs: str) -> Fingerprint:
    """The fingerprint of these settings and of the digests of inputs, by name.

    IGNORED_SECTIONS are left out inside other sections. Most of them change speed, costs or displays only. `fit` adds
    the `Training` section that it runs, and the stages that a `DenoisingError` section decides add it.
    """
    flat: Fingerprint = {}
    for section in settings:
        _flatten(section, type(section).__name__.lower(), flat)
    flat = {name: value for name, value in flat.items() if name not in VALUES_BEFORE or value != VALUES_BEFORE[name]}
    flat |= {f"input.{name}": digest for name, digest in inputs.items()}
    return json.loads(json.dumps(flat))  # a manifest that was read holds lists in place of tuples


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
    """The differences in words: `pairs.seed was 0, is 1; ...`."""
    absent = "absent"
    changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key, absent) != new.get(key, absent)]
    return "; ".join(f"{key} was {old.get(key, absent)}, is {new.get(key, absent)}" for key in changed)


def mismatch_error(path: str, old: Fingerprint, new: Fingerprint) -> FileExistsError:
    """The error for a folder that was made from other settings or inputs."""
    return FileExistsError(
        f"{path} was made otherwise: {describe_differences(old, new)}. "
        f"Move it away, choose another run folder, or pass --rebuild to delete it and make it again"
    )


def read_manifest(path: str) -> Manifest | None:
    """The manifest of a finished table, or None."""
    found = storage.read_json(storage.join(path, "manifest.json"))
    return None if found is None else Manifest(**found)


def table_digest(path: str, *others: str) -> str:
    """An id of the content of finished tables, made from their fingerprints. The order of several tables counts."""
    if others:
        return id_for(*map(table_digest, (path, *others)))
    done = finished_manifest(path)
    return id_for(done.table, json.dumps(done.fingerprint, sort_keys=True))


def finished_manifest(path: str, schema: pa.Schema | None = None) -> Manifest:
    """The manifest of a table that must be finished.

    Raises FileNotFoundError if it is not, and ContractError if the table is not of the given schema.
    """
    done = read_manifest(path)
    if done is None:
        raise FileNotFoundError(f"{path} has no manifest.json: the job that makes it has not finished; run it first")
    if schema is not None and done.table != table_name(schema):
        raise ContractError(f"{path} holds the table {done.table!r}, but {table_name(schema)!r} was wanted")
    return done


def count_rows(path: str) -> int:
    """Rows of a finished table."""
    return finished_manifest(path).rows_out


@cache
def git_commit() -> str:
    """The commit of this checkout, with the suffix -dirty if files differ from it. `unknown` outside of git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (subprocess.CalledProcessError, FileNotFoundError):
        return "unknown"
