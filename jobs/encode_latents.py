"""Latents of all pairs and rankings, encoded once for every epoch and every arm: `train_editor` reads them in place of
pictures.

pairs -> latents
rankings of several tables -> ranking_latents

Scored pairs are the same pictures under the same ids, so that training looks a row's latents up by its pair_id.
"""

from jobs.command import run_job

if __name__ == "__main__":  # before what the work needs is imported, which takes seconds
    run_job("encode_latents")

from collections.abc import Callable, Sequence

import pyarrow as pa

from hive_ray.artifacts.model_store import model_digest
from hive_ray.artifacts.tables import Manifest, build_table, table_digest
from hive_ray.artifacts.tables import fingerprint as fingerprint_of
from hive_ray.cluster.mapping import Actor, MapTable, map_table
from hive_ray.editor.latents import LatentEncoder, RankingLatentEncoder
from hive_ray.schemas import LATENTS, PAIRS, RANKING_LATENTS, RANKINGS, table_name
from jobs.run import Run

DECIDING = ("resolution", "crop", "flip", "latents")
"""Of the editor's settings, those that change the latents."""


def build(run: Run) -> Manifest:
    return _encoded(run, "latents", [run.path("pairs")], PAIRS, LatentEncoder, LATENTS)


def of_rankings(run: Run, tables: Sequence[str]) -> Manifest:
    """The latents of all rankings in `tables`; it fails where more are broken than a training would bear."""
    least_kept = 1 - run.config.editor.dpo.training.recovery.most_bad_rows
    return _encoded(run, "ranking_latents", tables, RANKINGS, RankingLatentEncoder, RANKING_LATENTS, least_kept)


def _encoded(
    run: Run,
    name: str,
    tables: Sequence[str],
    schema: pa.Schema,
    encoder: Callable[..., Actor],
    produces: pa.Schema,
    least_kept: float = 0.0,
) -> Manifest:
    settings = run.config.editor
    if settings.latents == "none":
        raise ValueError("editor.latents is 'none': set it to 'fp32' or 'fp16' to encode latents once")

    def make() -> MapTable:
        return map_table(
            tables, schema, encoder, produces=produces, resources=settings.resources, rows_per_shard=256,
            start=settings.start, settings=settings,
        )  # fmt: skip

    made_from = fingerprint_of(**{table_name(schema): table_digest(*tables)}, start=model_digest(settings.start))
    made_from |= {f"editor.{setting}": getattr(settings, setting) for setting in DECIDING}
    return build_table(run.path(name), produces, made_from, make, on_mismatch=run.on_mismatch, least_kept=least_kept)
