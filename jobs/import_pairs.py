"""Somebody else's pairs in place of generated ones: the jobs that follow `make_pairs` go on from them.

a dataset -> imported -> pairs (train split), prompts (held-out splits, and HIVE's test.jsonl)
"""

from jobs.command import run_job

if __name__ == "__main__":  # before what the work needs is imported, which takes seconds
    run_job("import_pairs")

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import zip_longest

import pyarrow as pa

from hive_ray import storage
from hive_ray.artifacts.manifest import Fingerprint, Manifest, OnMismatch, mismatch_error, read_manifest, table_digest
from hive_ray.artifacts.selection import read_rows
from hive_ray.cluster.mapping import MapTable, map_table
from hive_ray.config import Importing
from hive_ray.console import say, warn
from hive_ray.pairs.formats.digests import dataset_digest, legacy_digest
from hive_ray.pairs.formats.imported import imported_rows
from hive_ray.pairs.formats.measuring import PairMeasurer
from hive_ray.pairs.formats.pair_reader import read_pairs
from hive_ray.pairs.formats.text_rows import read_prompts
from hive_ray.schemas import IMPORTED, PAIRS, PROMPTS, Counted, Result, prompt_row, to_table
from jobs.make_pairs import held_out
from jobs.run import Run, fingerprint
from jobs.stage import Stage, TableStage

WITHOUT_CAPTIONS = "without_captions"
CONTENT = "input.content"
"""Under which a fingerprint has the digest of a dataset."""
ROWS_PER_FILE = 64
"""Of tables that the driver writes: with pictures of 2 MB a file is 256 MB."""


def build(run: Run) -> Manifest:
    build_imported(run)
    PROMPTS_STAGE.make(run)
    return PAIRS_STAGE.make(run)


def stages(run: Run) -> list[Stage]:
    """The tables that this job makes."""
    return [IMPORTED_STAGE, PROMPTS_STAGE, PAIRS_STAGE]


def _pairs_fingerprint(run: Run) -> Fingerprint:
    settings = select_settings(run.config.importing, "clip", "cycle", "drop_swapped")
    return fingerprint(settings, "clip", imported=table_digest(run.path("imported")))


def _plan_pairs(run: Run) -> MapTable:
    settings = run.config.importing
    return map_table(
        run.path("imported"), IMPORTED, PairMeasurer, produces=PAIRS, resources=settings.resources,
        where={"split": "train"}, settings=settings,
    )  # fmt: skip


def _imported_fingerprint(run: Run) -> Fingerprint:
    settings = run.config.importing
    stage = select_settings(
        settings, "dataset", "split_name", "pictures", "num_pairs", "rank_rate", "test_rate", "least_kept"
    )
    made_from = fingerprint(stage, content=dataset_digest(settings.dataset, settings.pictures))
    return keep_if_unchanged(
        run, "imported", IMPORTED, made_from, settings.dataset, lambda: imported_rows(read_pairs(settings), settings)
    )


def _rows_of_imported(run: Run) -> Iterator[Result]:
    settings = run.config.importing
    return count_missing_captions(imported_rows(read_pairs(settings), settings))


def build_imported(run: Run) -> Manifest:
    """The `imported` table: a copy of what can be kept, with splits, and what was dropped for which reason."""
    made = IMPORTED_STAGE.make(run)
    if bare := round(made.counts.get(WITHOUT_CAPTIONS, 0)):
        warn(
            f"{bare} of {made.rows_out} pairs have no captions, so their clip_source_text "
            "and clip_direction are 0: not measured",
            stage="imported",
        )
    return made


def _prompts_fingerprint(run: Run) -> Fingerprint:
    settings, imported = run.config.importing, run.path("imported")
    content = dataset_digest(settings.prompts, settings.prompt_pictures) if settings.prompts else ""
    made_from = fingerprint(
        select_settings(settings, "prompts", "prompt_pictures"), content=content, imported=table_digest(imported)
    )
    if settings.prompts:
        made_from = keep_if_unchanged(
            run, "prompts", PROMPTS, made_from, settings.prompts, lambda: imported_prompts(settings, imported)
        )
    return made_from


def rebuild_if_unfinished(name: str) -> Callable[[Run], OnMismatch]:
    """What is done with this table of other settings; an unfinished one begins anew in any case."""
    return lambda run: run.on_mismatch if read_manifest(run.path(name)) else "rebuild"


def keep_if_unchanged(
    run: Run, name: str, schema: pa.Schema, made_from: Fingerprint, dataset: str, rows: Callable[[], Iterable[Result]]
) -> Fingerprint:
    """The fingerprint of a finished table, in place of `made_from`, where only the times of a dataset's files are other
    ones and the `rows` that it gives are the same.

    They are read and compared then, once for each state of the dataset, which is noted in <run>/<name>_seen.json. A
    table of an older version, which knew a dataset by names and sizes alone, is kept by these. Raises FileExistsError
    if the dataset has changed and may not be read again.
    """
    path, note = run.path(name), run.path(f"{name}_seen.json")
    done = read_manifest(path)
    before = done.fingerprint if done else {}
    old, new = str(before.get(CONTENT)), str(made_from[CONTENT])
    if old == new or before != made_from | {CONTENT: old}:
        return made_from
    if "-" not in old:
        if run.on_mismatch == "rebuild":
            return made_from
        if legacy_digest(dataset) == old:
            say(f"of {dataset} as an older version knew it, by names and sizes; --rebuild reads it anew", stage=name)
            return before
    elif sizes_of(old) == sizes_of(new):
        same = {"was": old, "is": new}
        if storage.exists(note) and json.loads(storage.read_text(note)) == same:
            return before
        say(f"files of {dataset} have other times, so their rows are compared with the table's", stage=name)
        if has_rows(path, schema, rows()):
            storage.write_text(note, json.dumps(same))
            return before
    if run.on_mismatch == "rebuild":
        return made_from
    raise FileExistsError(
        f"{dataset} has changed since {name} was made of it, in files, sizes or content. "
        f"{mismatch_error(path, before, made_from)}"
    )


def sizes_of(content: str) -> str:
    """The part of a dataset's digest that stands for names and sizes."""
    return content.partition("-")[0]


def has_rows(path: str, schema: pa.Schema, rows: Iterable[Result]) -> bool:
    """Whether a table holds these rows; ids stand for pictures."""
    columns = [field.name for field in schema if not pa.types.is_large_binary(field.type)]
    kept = (row for row in rows if isinstance(row, dict))
    there = read_rows(path, schema, columns)
    return all(
        row is not None and old is not None and to_table([row], schema).select(columns).to_pylist() == [old]
        for row, old in zip_longest(kept, there)
    )


def imported_prompts(settings: Importing, imported: str) -> Iterator[Result]:
    """Held-out pairs, but no twins, as prompts; then those of `importing.prompts`."""
    for row in read_rows(imported, IMPORTED, where={"split": held_out, "origin": "imported"}):
        yield prompt_row(row | {"instruction_id": row["pair_id"]}, row["source_image"])
    if settings.prompts:
        yield from read_prompts(settings)


def count_missing_captions(rows: Iterable[Result]) -> Iterator[Result]:
    """The rows, and beside each that has no source caption one that counts it."""
    for row in rows:
        yield row
        if isinstance(row, dict) and row["source_caption"] == "":
            yield Counted({WITHOUT_CAPTIONS: 1})


def select_settings(settings: Importing, *names: str) -> Importing:
    """The settings that decide one table, so that the others do not make it again."""
    return Importing(**{name: getattr(settings, name) for name in names})


IMPORTED_STAGE = TableStage(
    name="imported",
    schema=IMPORTED,
    fingerprint=_imported_fingerprint,
    rows=_rows_of_imported,
    rows_per_file=ROWS_PER_FILE,
    on_mismatch=rebuild_if_unfinished("imported"),
)
PROMPTS_STAGE = TableStage(
    name="prompts",
    schema=PROMPTS,
    reads=("imported",),
    fingerprint=_prompts_fingerprint,
    rows=lambda run: imported_prompts(run.config.importing, run.path("imported")),
    rows_per_file=ROWS_PER_FILE,
    on_mismatch=rebuild_if_unfinished("prompts"),
)
"""Held-out pairs without their edited picture, then the prompts of a file."""
PAIRS_STAGE = TableStage(
    name="pairs", schema=PAIRS, reads=("imported",), fingerprint=_pairs_fingerprint, plan=_plan_pairs
)
