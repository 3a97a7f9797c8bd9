"""Rankings: what people, or the simulated annotators of the embedded domain, prefer; and what thumbs say.

candidates, chosen, annotations -> rankings
thumbs of the served page -> thumbs

What people said is joined to the candidates by the ids of prompts and edits, here, before the stage: each line of their
file is a row, or is counted in the manifest by the reason for which it is left out.

Simulated annotators rank the prompts of the table `chosen`, all candidates where there is none. What people said of any
candidate counts.
"""

from jobs.command import run_job

if __name__ == "__main__":  # before what the work needs is imported, which takes seconds
    run_job("collect_rankings")

from collections.abc import Sequence
from functools import cache
from typing import Any

from hive_ray import storage
from hive_ray.annotation.database import Database, DatabaseUnavailableError
from hive_ray.annotation.feedback import rankings_from_thumbs, read_thumbs
from hive_ray.artifacts.building import write_rows
from hive_ray.artifacts.chosen import read_chosen
from hive_ray.artifacts.manifest import Fingerprint, Manifest, fingerprint_of, read_manifest, table_digest
from hive_ray.artifacts.selection import read_edit_ids, select
from hive_ray.cluster.mapping import MapTable, map_table
from hive_ray.config import Rankings, Resources
from hive_ray.console import say, tell_result, warn
from hive_ray.errors import Stopped
from hive_ray.files.text_files import parse_json_lines
from hive_ray.reward.rankings import Annotation, join_annotations, rankings_from_people
from hive_ray.schemas import CANDIDATES, RANKINGS, Result, Row, Rows
from hive_ray.seeds import id_for
from hive_ray.shapes.annotator import SimulatedAnnotator, rank_candidates
from jobs.run import Run, fingerprint
from jobs.stage import Stage, TableStage


class PeopleRanker:
    """Gives the candidates what people said of them, and the account of their lines with the prompt `first`."""

    def __init__(
        self, annotations: dict[str, list[Annotation]], account: Sequence[Result] = (), first: str = "",
        device: str = "cpu",
    ) -> None:  # fmt: skip
        self.annotations, self.account, self.first = annotations, account, first

    def __call__(self, rows: Rows) -> list[Result]:
        return [became for row in rows for became in self._became(row)]

    def _became(self, row: Row) -> list[Result]:
        account = self.account if row["prompt_id"] == self.first else ()
        return [*rankings_from_people(row, self.annotations), *account]


class SimulatedRanker:
    """Ranks by the judge, with a person's noise and ties."""

    def __init__(self, settings: Rankings, device: str = "cpu") -> None:
        self.per_prompt = settings.annotators_per_prompt
        seats = range(settings.num_annotators or self.per_prompt)
        self.annotators = [SimulatedAnnotator(seat, seed=settings.seed) for seat in seats]

    def __call__(self, rows: Rows) -> Rows:
        return rank_candidates(rows, self.annotators, self.per_prompt)


ANNOTATORS = {"people": PeopleRanker, "shapes": SimulatedRanker}
THUMBS_PER_FILE = 32
"""Rankings of thumbs in a file: their pictures are in memory at a time."""


def build(run: Run) -> Manifest:
    settings = run.config.rankings
    annotators: dict[str, Any] = {"settings": settings}
    said = b""
    if settings.annotator == "people":
        path = _annotations(run)
        said = storage.read_bytes(path)
        # They are read before an older table is deleted.
        if run.on_mismatch == "rebuild" or read_manifest(run.path("rankings")) is None:
            annotators = _annotations_of_people(run, said, path)
    if settings.thumbs:
        take_thumbs(run)
    return _rankings_stage(run, annotators, said).make(run)


def stages(run: Run) -> list[Stage]:
    """The table that people, or simulated ones, make; `thumbs` may lie beside it."""
    return [_rankings_stage(run, {})]


def _rankings_stage(run: Run, annotators: dict[str, Any], said: bytes | None = None) -> TableStage:
    """The table `rankings`; `annotators` is what its actors are made with, `said` the file of what people said, where
    it has been read."""
    settings, candidates = run.config.rankings, run.path("candidates")
    by_people = settings.annotator == "people"
    has_chosen = not by_people and read_manifest(run.path("chosen")) is not None

    @cache
    def chosen_prompts() -> set[str]:
        chosen = read_chosen(run.path("chosen"), candidates)
        assert chosen is not None, "the table `chosen` was there as the stage was declared"
        return {row["prompt_id"] for row in chosen}

    def compute_fingerprint(run: Run) -> Fingerprint:
        content = ""
        if by_people:
            read = storage.read_bytes(_annotations(run)) if said is None else said
            content = id_for(*read.decode(errors="replace").splitlines())
        inputs = {"candidates": table_digest(candidates), "annotations": content}
        if has_chosen:
            chosen_prompts()  # refuses what was chosen from others
            inputs["chosen"] = table_digest(run.path("chosen"))
        made_from = fingerprint(settings.model_copy(update={"annotations": ""}), **inputs)
        del made_from["rankings.thumbs"]  # another table
        return made_from

    def plan(run: Run) -> MapTable:
        where = {"prompt_id": chosen_prompts().__contains__} if has_chosen else None
        return map_table(
            candidates, CANDIDATES, ANNOTATORS[settings.annotator], produces=RANKINGS,
            resources=Resources(num_gpus=0), where=where, **annotators,
        )  # fmt: skip

    reads = ("candidates", "chosen") if has_chosen else ("candidates",)
    return TableStage(name="rankings", schema=RANKINGS, reads=reads, fingerprint=compute_fingerprint, plan=plan)


def _annotations_of_people(run: Run, said: bytes, path: str) -> dict[str, Any]:
    """What the actors for people's rankings are made with; their file is read here, since it may lie where no worker
    finds it. Stopped where too few of its lines fit the candidates."""
    candidates, settings = run.path("candidates"), run.config.rankings
    edits_of = _edits_of(candidates)
    annotations = join_annotations(parse_json_lines(said, path, objects=True), edits_of)
    if not annotations.lines:
        raise Stopped(f"{_waits(run)}: {path} is empty. {_remedy(run)}")
    if annotations.num_accepted == 0 or annotations.num_accepted < settings.least_kept * annotations.lines:
        wanted = f" At least {settings.least_kept:.0%} must (rankings.least_kept)." if annotations.num_accepted else ""
        raise Stopped(
            f"annotations {path}: {annotations}\nNothing is made of them.{wanted} Give the file of what people said of "
            f"{candidates} (rankings.annotations), or correct it, and run again"
        )
    if annotations.dropped:
        warn(f"annotations {path}: {annotations}")
    return {"annotations": annotations.by_prompt, "account": annotations.as_rows(), "first": next(iter(edits_of))}


def _edits_of(candidates: str) -> dict[str, list[str]]:
    """Prompt id -> the ids of its edits, in their order."""
    rows = (row for file in select(candidates, CANDIDATES).files for row in read_edit_ids(file, "prompt_id"))
    return {row["prompt_id"]: [edit["edit_id"] for edit in row["edits"]] for row in rows}


def _annotations(run: Run) -> str:
    """The file of what people said of this round's candidates."""
    given, exported = run.config.rankings.annotations, run.path("annotations.jsonl")
    path = given or exported
    if not storage.exists(path):
        correct = f"Correct rankings.annotations, or set it to '' for {exported}. " if given else ""
        raise Stopped(f"{_waits(run)}: {path} is not there. {correct}{_remedy(run)}")
    return path


def _waits(run: Run) -> str:
    return f"round {run.number} waits for people to rank {run.path('candidates')}"


def _remedy(run: Run) -> str:
    return (
        f"Have them rank (make annotate RUN={run.root}), write what they said ({run.command('export_annotations')}), "
        "and give the same command again"
    )


def take_thumbs(run: Run) -> None:
    """The table `thumbs`, once, before this round's rankings are finished: the page goes on, and a rerun keeps what is
    learned from. `--rebuild` takes them as they are now."""
    table, rankings = run.path("thumbs"), run.path("rankings")
    if run.on_mismatch == "refuse" and (read_manifest(table) or read_manifest(rankings)):
        say("kept as they were when this round took them; newer ones are for the next round", stage="thumbs")
        return
    database = Database(run.config.rankings.thumbs)
    if database.file is not None and not database.file.exists():
        raise FileNotFoundError(f"rankings.thumbs is {database}, which is no database: correct it, or set it to ''")
    try:
        database.migrate()
        found = read_thumbs(database)
        content = id_for(*(f"{one.key} {one.edit_id} {one.liked}" for one in found))
        made = write_rows(
            table, RANKINGS, rankings_from_thumbs(database, found), fingerprint_of(thumbs=content),
            on_mismatch=run.on_mismatch, rows_per_file=THUMBS_PER_FILE, may_be_empty=True,
        )  # fmt: skip
    except DatabaseUnavailableError as error:
        raise Stopped(f"thumbs: {error}; nothing was lost: mend that and run again") from error
    finally:
        database.close()
    alone = sum(made.dropped.values())
    tell_result(f"{len(found)} make {made.rows_out} rankings; {alone} could not be compared", stage="thumbs")
