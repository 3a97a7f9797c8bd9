"""A stage of a run: one table or one model, what decides what is in it, and how it is made.

    TableStage(name="pairs", schema=PAIRS, reads=("instructions",), fingerprint=..., plan=...).make(run)

What is finished and was decided by the same is kept. What other settings or inputs made is refused, or made again with
--rebuild. What was killed goes on.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, TypeVar

import pyarrow as pa

from hive_ray import storage
from hive_ray.artifacts.building import ROWS_PER_FILE, Plan, build_table, write_rows
from hive_ray.artifacts.manifest import Fingerprint, Manifest, OnMismatch, describe_differences, read_manifest
from hive_ray.artifacts.model_store import Metrics, build_model, is_finished_model
from hive_ray.errors import Stopped
from hive_ray.schemas import Result
from jobs import estimate
from jobs.run import Run, check_inputs, is_finished

Made = TypeVar("Made", bound=Manifest | Metrics, covariant=True)
"""What is known of what a stage made: a table's manifest, or a model's last measures."""


class State(StrEnum):
    """How far a stage of a run is."""

    FINISHED = "finished"
    STALE = "stale"
    """Finished by other settings or inputs than those that the run has now."""
    UNFINISHED = "unfinished"
    """Begun and not finished: the same command goes on."""
    MISSING = "missing"


@dataclass(frozen=True)
class Finished:
    """What a finished table or model says of how it was made."""

    fingerprint: Fingerprint
    seconds: float | None = None
    """Seconds that it took; None for a model without made.json."""
    rows: int | None = None
    """Rows of a table; None for a model."""
    dropped: int | None = None
    """Rows that were dropped on the way; None for a model."""


@dataclass(frozen=True)
class StageStatus:
    """How far a stage of a run is."""

    stage: "Stage[Any]"
    state: State
    reason: str = ""
    """Why it is stale, in words."""
    finished: Finished | None = None
    """The finished table or model, which may be stale; None if there is none."""


@dataclass(frozen=True, kw_only=True)
class Stage(ABC, Generic[Made]):
    """What tables and models have in common."""

    name: str
    """What it writes: the name of the table or model in the run folder."""
    reads: tuple[str, ...] = ()
    """Names of the tables and models of the run that have to be finished before."""
    fingerprint: Callable[[Run], Fingerprint]
    """The settings and the digests of inputs that decide what it holds. The inputs are finished."""

    @abstractmethod
    def make(self, run: Run) -> Made:
        """The finished table or model: kept, gone on with, or made."""

    @abstractmethod
    def finished(self, run: Run) -> Finished | None:
        """The finished table or model in the run folder; None if there is none."""

    @abstractmethod
    def is_begun(self, run: Run) -> bool:
        """Whether something of it is there."""

    def status(self, run: Run, stale: Iterable[str] = ()) -> StageStatus:
        """How far it is. `stale`: names of stale tables and models, of any stage."""
        finished = self.finished(run)
        if finished is None:
            return StageStatus(self, State.UNFINISHED if self.is_begun(run) else State.MISSING)
        reason = self._stale_because(run, finished.fingerprint, stale)
        return StageStatus(self, State.STALE if reason else State.FINISHED, reason, finished)

    def _stale_because(self, run: Run, made_from: Fingerprint, stale: Iterable[str]) -> str:
        """Why the finished table or model is stale; "" if it is not."""
        stale_inputs = [name for name in self.reads if name in stale]
        if stale_inputs:
            return f"{' and '.join(stale_inputs)} will be made again"
        absent = [name for name in self.reads if not is_finished(run.path(name))]
        if absent:
            return f"{' and '.join(absent)} is gone"
        try:
            fingerprint = self.fingerprint(run)
        except (ValueError, OSError, Stopped) as error:
            return str(error)
        return describe_differences(made_from, fingerprint) if made_from != fingerprint else ""


@dataclass(frozen=True, kw_only=True)
class TableStage(Stage[Manifest]):
    """A table. The cluster makes it by a `plan`, or this process from `rows`."""

    schema: pa.Schema
    plan: Callable[[Run], Plan] | None = None
    rows: Callable[[Run], Iterable[Result]] | None = None
    rows_per_file: int = ROWS_PER_FILE
    """Of rows that this process writes, which are in memory at a time."""
    least_kept: Callable[[Run], float] = lambda run: 0.0
    """The least share of its rows that has to be kept."""
    may_be_empty: bool = False
    on_mismatch: Callable[[Run], OnMismatch] = lambda run: run.on_mismatch

    def make(self, run: Run) -> Manifest:
        """The finished table; says how far an estimate of it was off."""
        check_inputs(run, self.reads)
        path = run.path(self.name)
        fingerprint = self.fingerprint(run)
        mismatch = self.on_mismatch(run)
        plan = self.plan
        if plan is None:
            assert self.rows is not None, f"{self.name} has neither a plan nor rows"
            return write_rows(
                path, self.schema, self.rows(run), fingerprint, on_mismatch=mismatch, rows_per_file=self.rows_per_file,
                least_kept=self.least_kept(run), may_be_empty=self.may_be_empty,
            )  # fmt: skip
        manifest = build_table(
            path, self.schema, fingerprint, lambda: plan(run), on_mismatch=mismatch, least_kept=self.least_kept(run)
        )
        estimate.compare(run, manifest)
        return manifest

    def finished(self, run: Run) -> Finished | None:
        manifest = read_manifest(run.path(self.name))
        if manifest is None:
            return None
        dropped = sum(manifest.dropped.values())
        return Finished(manifest.fingerprint, manifest.seconds, manifest.rows_out, dropped)

    def is_begun(self, run: Run) -> bool:
        return storage.exists(storage.join(run.path(self.name), "building.json"))


@dataclass(frozen=True, kw_only=True)
class ModelStage(Stage[Metrics]):
    """A model folder. Either `store` writes it by `store_model`, or `train` keeps or trains it by `fit`."""

    store: Callable[[Run, Fingerprint], None] | None = None
    train: Callable[[Run], Metrics] | None = None

    def make(self, run: Run) -> Metrics:
        """The finished model's last measures."""
        if self.train is not None:  # which looks for its tables by itself
            return self.train(run)
        check_inputs(run, self.reads)
        store = self.store
        assert store is not None, f"{self.name} is neither stored nor trained"
        fingerprint = self.fingerprint(run)
        return build_model(
            self.name, run.path(self.name), fingerprint, lambda: store(run, fingerprint), on_mismatch=run.on_mismatch
        )

    def finished(self, run: Run) -> Finished | None:
        if not is_finished_model(run.path(self.name)):
            return None
        made = storage.read_json(storage.join(run.path(self.name), "made.json"))
        return Finished(made["fingerprint"], made["seconds"]) if made else Finished({})

    def is_begun(self, run: Run) -> bool:
        return self.train is not None and storage.exists(run.path(f"metrics/{self.name}.jsonl"))


StagesOfModel = tuple[*tuple[Stage[Any], ...], ModelStage]
"""The stages that make a model: first those of its inputs, last that of the model itself."""


def make_all(run: Run, stages: Sequence[Stage[Made]]) -> Made:
    """Make one stage after the other; what the last one made."""
    *before, last = stages
    for stage in before:
        stage.make(run)
    return last.make(run)
