"""Rankings: what people, or the simulated annotators of the embedded domain, prefer; and what thumbs say.

candidates, annotations -> rankings
thumbs of the served page -> thumbs
"""

from typing import Any

from hive_ray import storage
from hive_ray.annotation.database import Database, DatabaseAway
from hive_ray.annotation.feedback import rankings_of, thumbs
from hive_ray.config import Rankings, Resources
from hive_ray.distributed.mapping import map_table
from hive_ray.distributed.tables import Manifest, build_table, read_manifest, table_digest, write_rows
from hive_ray.distributed.tables import fingerprint as fingerprint_of
from hive_ray.reward.rankings import Annotation, parse_annotations, rankings_from_people
from hive_ray.schemas import CANDIDATES, RANKINGS, Rows, Stopped
from hive_ray.seeds import id_for
from hive_ray.shapes.annotator import SimulatedAnnotator, rank_candidates
from jobs.run import Run, fingerprint, main


class People:
    """Joins what people ranked, by prompt_id, to the candidates that they saw."""

    def __init__(self, annotations: dict[str, list[Annotation]], device: str = "cpu") -> None:
        self.annotations = annotations

    def __call__(self, rows: Rows) -> Rows:
        return [ranking for row in rows for ranking in rankings_from_people(row, self.annotations)]


class Simulated:
    """Ranks by the judge, with a person's noise and ties."""

    def __init__(self, settings: Rankings, device: str = "cpu") -> None:
        seats = range(settings.annotators_per_prompt)
        self.annotators = [SimulatedAnnotator(seat, seed=settings.seed) for seat in seats]

    def __call__(self, rows: Rows) -> Rows:
        return rank_candidates(rows, self.annotators)


ANNOTATORS = {"people": People, "shapes": Simulated}
THUMBS_PER_FILE = 32
"""Rankings of thumbs in a file: their pictures are in memory at a time."""


def build(run: Run) -> Manifest:
    candidates, settings = run.path("candidates"), run.config.rankings
    told, content = _told(run)
    if settings.thumbs:
        take_thumbs(run)

    def make():
        return map_table(
            candidates, CANDIDATES, ANNOTATORS[settings.annotator], produces=RANKINGS,
            resources=Resources(num_gpus=0), **told,
        )  # fmt: skip

    stage = settings.model_copy(update={"annotations": ""})
    made_from = fingerprint(stage, candidates=table_digest(candidates), annotations=content)
    del made_from["rankings.thumbs"]  # another table
    return build_table(run.path("rankings"), RANKINGS, made_from, make, on_mismatch=run.on_mismatch)


def _told(run: Run) -> tuple[dict[str, Any], str]:
    """What the annotators are made with, and a digest of what people said: their file is read here, since it may lie
    where no worker finds it."""
    if run.config.rankings.annotator != "people":
        return {"settings": run.config.rankings}, ""
    path = _annotations(run)
    lines = storage.read_text(path).splitlines()
    return {"annotations": parse_annotations(lines, path)}, id_for(*lines)


def _annotations(run: Run) -> str:
    """The file of what people said of this round's candidates."""
    given, exported = run.config.rankings.annotations, run.path("annotations.jsonl")
    path = given or exported
    if not storage.exists(path):
        raise Stopped(
            f"round {run.number} waits for people to rank {run.path('candidates')}: {path} is not there. "
            + (f"Correct rankings.annotations, or set it to '' for {exported}. " if given else "")
            + f"Have them rank (make annotate RUN={run.root}), write what they said "
            f"({run.command('export_annotations')}), and give the same command again"
        )
    return path


def take_thumbs(run: Run) -> None:
    """The table `thumbs`, once, before this round's rankings are finished: the page goes on, and a rerun keeps what is
    learned from. `--rebuild` takes them as they are now."""
    table, rankings = run.path("thumbs"), run.path("rankings")
    if run.on_mismatch == "refuse" and (read_manifest(table) or read_manifest(rankings)):
        print("thumbs: kept as they were when this round took them; newer ones are for the next round", flush=True)
        return
    database = Database(run.config.rankings.thumbs)
    if database.file is not None and not database.file.exists():
        raise FileNotFoundError(f"rankings.thumbs is {database}, which is no database: correct it, or set it to ''")
    try:
        database.migrate()
        found = thumbs(database)
        content = id_for(*(f"{one.key} {one.edit_id} {one.liked}" for one in found))
        made = write_rows(
            table, RANKINGS, rankings_of(database, found), fingerprint_of(thumbs=content), on_mismatch=run.on_mismatch,
            rows_per_file=THUMBS_PER_FILE,
        )  # fmt: skip
    except DatabaseAway as error:
        raise Stopped(f"thumbs: {error}; nothing was lost: mend that and run again") from error
    finally:
        database.close()
    alone = sum(made.dropped.values())
    print(f"thumbs: {len(found)} make {made.rows_out} rankings; {alone} could not be compared", flush=True)


if __name__ == "__main__":
    main(build)
