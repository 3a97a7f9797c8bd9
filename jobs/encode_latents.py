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

from hive_ray.artifacts.manifest import Fingerprint, Manifest, fingerprint_of, table_digest
from hive_ray.artifacts.model_store import model_digest
from hive_ray.cluster.mapping import Actor, MapTable, map_table
from hive_ray.editor.latents import LatentEncoder, RankingLatentEncoder
from hive_ray.schemas import LATENTS, PAIRS, RANKING_LATENTS, RANKINGS, table_name
from jobs.run import Run
from jobs.stage import TableStage

LATENT_SETTINGS = ("resolution", "crop", "flip", "latents")
"""Of the editor's settings, those that change the latents."""


def build(run: Run) -> Manifest:
    """The latents of all pairs."""
    return LATENTS_STAGE.make(run)


def stages(run: Run) -> list[TableStage]:
    """The table that this job makes."""
    return [LATENTS_STAGE]


def build_for_rankings(run: Run, tables: Sequence[str]) -> Manifest:
    """The latents of all rankings in `tables`; it fails where more are broken than a training would bear."""
    return ranking_latents_stage(tables).make(run)


def ranking_latents_stage(tables: Sequence[str]) -> TableStage:
    """The table `ranking_latents` of the rankings at these addresses."""
    return _latents_stage(
        "ranking_latents", lambda run: list(tables), RANKINGS, RankingLatentEncoder, RANKING_LATENTS,
        least_kept=lambda run: 1 - run.config.editor.dpo.training.recovery.most_bad_rows,
    )  # fmt: skip


def _latents_stage(
    name: str,
    tables_of: Callable[[Run], list[str]],
    schema: pa.Schema,
    encoder: Callable[..., Actor],
    produces: pa.Schema,
    reads: tuple[str, ...] = (),
    least_kept: Callable[[Run], float] = lambda run: 0.0,
) -> TableStage:
    def compute_fingerprint(run: Run) -> Fingerprint:
        settings = run.config.editor
        if settings.latents == "none":
            raise ValueError("editor.latents is 'none': set it to 'fp32' or 'fp16' to encode latents once")
        inputs = {table_name(schema): table_digest(*tables_of(run)), "start": model_digest(settings.start)}
        return fingerprint_of(**inputs) | {
            f"editor.{setting}": getattr(settings, setting) for setting in LATENT_SETTINGS
        }

    def plan(run: Run) -> MapTable:
        settings = run.config.editor
        return map_table(
            tables_of(run), schema, encoder, produces=produces, resources=settings.resources, rows_per_shard=256,
            start=settings.start, settings=settings,
        )  # fmt: skip

    return TableStage(
        name=name, schema=produces, reads=reads, fingerprint=compute_fingerprint, plan=plan, least_kept=least_kept
    )


LATENTS_STAGE = _latents_stage(
    "latents", lambda run: [run.path("pairs")], PAIRS, LatentEncoder, LATENTS, reads=("pairs",)
)
