"""The rankings that come with the embedded domain: what simulated people say of the shipped editor's edits.

captions -> prompts -> candidates of the shipped editor -> the third that differs most -> rankings -> a Parquet file

python -m studies.rank_shapes            # writes hive_ray/shapes/rankings, by way of a run in runs/shapes-rankings

It stands for the published rankings that a real user starts from. `--importing.rankings shapes` reads it.
"""

from jobs.command import run_job

if __name__ == "__main__":  # before what the work needs is imported, which takes seconds
    run_job("rank_shapes")

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from hive_ray import storage
from hive_ray.artifacts.selection import read_rows
from hive_ray.cluster.starting import start_ray
from hive_ray.config import Config
from hive_ray.console import tell_result
from hive_ray.images import decode, encode_small_jpeg
from hive_ray.presets import SHAPES_WEIGHTS, shapes
from hive_ray.schemas import RANKINGS, Row, to_table
from jobs import choose_candidates, collect_rankings, make_pairs, pipeline, sample_candidates, write_instructions
from jobs.own_settings import ShippedRankings
from jobs.run import Run

ROWS_PER_GROUP = 100
"""Rankings in a row group."""
ALMOST_ALL = 1 - 1e-9
"""`instructions.rank_rate` has to be less than 1."""


def configured(settings: ShippedRankings) -> Config:
    """The shapes preset with these sizes, and all captions for people to rank."""
    seed = {"seed": settings.seed}
    return shapes().changed({
        "instructions": seed | {"num_captions": settings.num_prompts, "rank_rate": ALMOST_ALL, "test_rate": 0.0},
        "pairs": seed,
        "candidates": seed | {"num_prompts": settings.num_prompts},
        "choosing": seed | {"num_ranked": settings.num_ranked},
        "rankings": seed | {"num_annotators": settings.people},
    })  # fmt: skip


def main(settings: ShippedRankings) -> None:
    """Make the rankings (finished tables are kept), and write them as one file."""
    start_ray(workers_import=pipeline.WORKERS_IMPORT)
    editor = {"editors/sft": str(SHAPES_WEIGHTS / "editor")}
    run = Run(storage.absolute(settings.run), configured(settings), elsewhere=editor)
    for stage in (
        write_instructions.build,
        make_pairs.PROMPTS_STAGE.make,
        sample_candidates.build,
        choose_candidates.build,
        collect_rankings.build,
    ):
        stage(run)
    settings.out.mkdir(parents=True, exist_ok=True)
    file = settings.out / "rankings.parquet"
    rows = sorted(read_rows(run.path("rankings"), RANKINGS), key=lambda row: (row["prompt_id"], row["annotator"]))
    with pq.ParquetWriter(file, RANKINGS, compression="zstd", compression_level=19, use_dictionary=False) as writer:
        for table in _in_groups(rows, settings.jpeg_quality):
            writer.write_table(table)
    tell_result(f"{len(rows)} rankings, {file.stat().st_size / 2**20:.1f} MB: {file}")


def _in_groups(rows: list[Row], quality: int) -> Iterator[pa.Table]:
    for start in range(0, len(rows), ROWS_PER_GROUP):
        yield to_table([_smaller(row, quality) for row in rows[start : start + ROWS_PER_GROUP]], RANKINGS)


def _smaller(row: Row, quality: int) -> Row:
    """The ranking with its pictures as JPEG."""
    edits = [edit | {"image": encode_small_jpeg(decode(edit["image"]), quality)} for edit in row["edits"]]
    return row | {"source_image": encode_small_jpeg(decode(row["source_image"]), quality), "edits": edits}
