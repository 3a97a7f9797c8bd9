"""Latents of all pairs, encoded once for every epoch and every arm: `train_editor` reads them in place of pictures.

pairs -> latents

Scored pairs are the same pictures under the same ids, so that training looks a row's latents up by its pair_id.
"""

from hive_ray.distributed.mapping import MapTable, map_table
from hive_ray.distributed.models import model_digest
from hive_ray.distributed.tables import Manifest, build_table, table_digest
from hive_ray.distributed.tables import fingerprint as fingerprint_of
from hive_ray.editor.latents import LatentEncoder
from hive_ray.schemas import LATENTS, PAIRS
from jobs.run import Run, main

DECIDING = ("resolution", "crop", "flip", "latents")
"""Of the editor's settings, those that change the latents."""


def build(run: Run) -> Manifest:
    settings, pairs = run.config.editor, run.path("pairs")
    if settings.latents == "none":
        raise ValueError("editor.latents is 'none': set it to 'fp32' or 'fp16' to encode latents once")

    def make() -> MapTable:
        return map_table(
            pairs, PAIRS, LatentEncoder, produces=LATENTS, resources=settings.resources, rows_per_shard=256,
            start=settings.start, settings=settings,
        )  # fmt: skip

    made_from = fingerprint_of(pairs=table_digest(pairs), start=model_digest(settings.start))
    made_from |= {f"editor.{name}": getattr(settings, name) for name in DECIDING}
    return build_table(run.path("latents"), LATENTS, made_from, make, on_mismatch=run.on_mismatch)


if __name__ == "__main__":
    main(build)
