"""What the start of a stage takes: python -m bench.starts

Four pairs of two instructions by two actors, one step each, through `make_pairs`' plan: with workers that are started
anew, and with workers that are forked with their imports done. In turns, on clusters of this process.
"""

import tempfile

import ray

from bench.pairs import instructions, timed
from bench.ratios import say
from hive_ray import storage
from hive_ray.artifacts.building import build_table, write_rows
from hive_ray.artifacts.manifest import table_digest
from hive_ray.cluster.mapping import map_table
from hive_ray.cluster.starting import start_ray
from hive_ray.pairs.generation import PairGenerator
from hive_ray.presets import shapes
from hive_ray.schemas import INSTRUCTIONS, PAIRS
from jobs.pipeline import WORKERS_IMPORT

ROUNDS = 4
FILTERS = ("least_clip_image", "least_clip_direction", "least_clip_source_text", "least_clip_edited_text",
           "least_contrast", "least_difference")  # fmt: skip
"""Bounds that pairs of one denoising step do not reach."""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_instructions(folder)

        def took(name: str, modules: tuple[str, ...]) -> float:
            start_ray(workers_import=modules)
            short_stage(folder, f"{name}, the first")  # waits for what is to be forked, and for Ray Data's own workers
            seconds = timed(lambda: short_stage(folder, name))
            ray.shutdown()
            return seconds

        say(
            "anew over forked",
            [took(f"anew {number}", ()) / took(f"forked {number}", WORKERS_IMPORT) for number in range(ROUNDS)],
        )


def write_instructions(folder: str) -> None:
    """<folder>/instructions: two of them."""
    write_rows(storage.join(folder, "instructions"), INSTRUCTIONS, instructions(2), {})


def short_stage(folder: str, name: str) -> None:
    """<folder>/<name>: pairs of <folder>/instructions, by two actors, one denoising step each."""
    settings = shapes().pairs.model_copy(
        update={"num_inference_steps": 1, "samples_per_instruction": 2} | dict.fromkeys(FILTERS, -1.0)
    )
    source = storage.join(folder, "instructions")
    build_table(
        storage.join(folder, name), PAIRS, {"from": table_digest(source)},
        lambda: map_table(
            source, INSTRUCTIONS, PairGenerator, produces=PAIRS, resources=settings.resources, rows_per_shard=1,
            settings=settings,
        ),
    )  # fmt: skip


if __name__ == "__main__":
    main()
