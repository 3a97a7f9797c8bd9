"""Somebody else's pairs in place of generated ones: the jobs that follow `make_pairs` go on from them.

a dataset -> imported -> pairs (train split), prompts (held-out splits, and HIVE's test.jsonl)
"""

from collections.abc import Iterable, Iterator

from hive_ray.config import Importing
from hive_ray.distributed.mapping import map_table
from hive_ray.distributed.tables import Manifest, build_table, read_rows, table_digest, write_rows
from hive_ray.pairs.formats.folders import read_prompts
from hive_ray.pairs.formats.found import imported_rows
from hive_ray.pairs.formats.measuring import PairMeasurer
from hive_ray.pairs.formats.reading import dataset_digest, read_pairs
from hive_ray.schemas import IMPORTED, PAIRS, PROMPTS, Row, prompt_row
from jobs.make_pairs import held_out
from jobs.run import Run, fingerprint, main

BARE = "without_captions"
ROWS_PER_FILE = 64
"""Of tables that the driver writes: with pictures of 2 MB a file is 256 MB."""


def build(run: Run) -> Manifest:
    settings, imported = run.config.importing, run.path("imported")
    take_pairs(run)
    take_prompts(run)

    def measure():
        return map_table(
            imported, IMPORTED, PairMeasurer, produces=PAIRS, resources=settings.resources,
            where={"split": "train"}, settings=settings,
        )  # fmt: skip

    stage = only(settings, "clip", "cycle", "drop_swapped")
    made_from = fingerprint(stage, "clip", imported=table_digest(imported))
    return build_table(run.path("pairs"), PAIRS, made_from, measure, on_mismatch=run.on_mismatch)


def take_pairs(run: Run) -> Manifest:
    """The `imported` table: a copy of what can be kept, with splits, and what was dropped for which reason."""
    settings = run.config.importing
    rows = counting_bare(imported_rows(read_pairs(settings), settings))
    stage = only(settings, "dataset", "split_name", "pictures", "num_pairs", "rank_rate", "test_rate")
    made_from = fingerprint(stage, content=dataset_digest(settings.dataset))
    made = write_rows(
        run.path("imported"), IMPORTED, rows, made_from, on_mismatch=run.on_mismatch, rows_per_file=ROWS_PER_FILE
    )
    if bare := round(made.counts.get(BARE, 0)):
        print(
            f"imported: {bare} of {made.rows_out} pairs have no captions, so their clip_source_text "
            "and clip_direction are 0: not measured",
            flush=True,
        )
    return made


def take_prompts(run: Run) -> Manifest:
    """The `prompts` table: held-out pairs without their edited picture, then the prompts of a file."""
    settings, imported = run.config.importing, run.path("imported")
    content = dataset_digest(settings.prompts) if settings.prompts else ""
    made_from = fingerprint(
        only(settings, "prompts", "prompt_pictures"), content=content, imported=table_digest(imported)
    )
    return write_rows(
        run.path("prompts"), PROMPTS, found_prompts(settings, imported), made_from,
        on_mismatch=run.on_mismatch, rows_per_file=ROWS_PER_FILE,
    )  # fmt: skip


def found_prompts(settings: Importing, imported: str) -> Iterator[Row]:
    """Held-out pairs, but no twins, as prompts; then those of `importing.prompts`."""
    for row in read_rows(imported, IMPORTED, where={"split": held_out, "origin": "imported"}):
        yield prompt_row(row | {"instruction_id": row["pair_id"]}, row["source_image"])
    if settings.prompts:
        yield from read_prompts(settings)


def counting_bare(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows, and beside each that has no source caption one that counts it."""
    for row in rows:
        yield row
        if row.get("source_caption") == "":
            yield {"counted": {BARE: 1}}


def only(settings: Importing, *names: str) -> Importing:
    """The settings that decide one table, so that the others do not make it again."""
    return Importing(**{name: getattr(settings, name) for name in names})


if __name__ == "__main__":
    main(build)
