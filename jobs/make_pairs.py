"""Pictures for the instructions: training pairs by Prompt-to-Prompt, and prompts for the held-out ones.

instructions -> pairs (train split), prompts (held-out splits), pairs.html
"""

from jobs.command import run_job

if __name__ == "__main__":  # before what the work needs is imported, which takes seconds
    run_job("make_pairs")

from hive_ray.artifacts.tables import Fingerprint, Manifest, build_table, table_digest
from hive_ray.cluster.mapping import MapTable, map_table
from hive_ray.diffusion.backbone import check_backbone
from hive_ray.pairs.generation import PairGenerator, SourceGenerator
from hive_ray.schemas import INSTRUCTIONS, PAIRS, PROMPTS
from hive_ray.shapes.actors import ScenePainter
from jobs import inspect_pairs
from jobs.estimate import Estimate, compare, measure
from jobs.run import Run, fingerprint

ROWS_PER_PAIR = 4
"""Of the U-Net's batch: source and edited picture, with and without the caption."""
PROMPT_MAKERS = {"generated": SourceGenerator, "shapes": ScenePainter}


def build(run: Run) -> Manifest:
    settings = run.config.pairs
    check_backbone(settings.base)
    make_prompts(run)
    made = build_table(
        run.path("pairs"), PAIRS, _made_from(run), lambda: pairs(run),
        on_mismatch=run.on_mismatch, least_kept=settings.least_kept,
    )  # fmt: skip
    compare(run, made)
    inspect_pairs.build(run)
    return made


def make_prompts(run: Run) -> Manifest:
    """The table `prompts`, of the held-out instructions."""
    settings = run.config.pairs

    def make() -> MapTable:
        return map_table(
            run.path("instructions"), INSTRUCTIONS, PROMPT_MAKERS[settings.prompts], produces=PROMPTS,
            resources=settings.resources, where={"split": held_out}, settings=settings,
        )  # fmt: skip

    return build_table(run.path("prompts"), PROMPTS, _made_from(run), make, on_mismatch=run.on_mismatch)


def _made_from(run: Run) -> Fingerprint:
    settings = run.config.pairs
    models = ("base", "clip", "safety_checker") if settings.safety_checker else ("base", "clip")
    return fingerprint(settings, *models, instructions=table_digest(run.path("instructions")))


def pairs(run: Run) -> MapTable:
    """How the pairs are made."""
    settings = run.config.pairs
    generation = settings.resources.model_copy(update={"batch_size": _rows_at_a_time(settings)})
    return map_table(
        run.path("instructions"), INSTRUCTIONS, PairGenerator, produces=PAIRS, resources=generation,
        where={"split": "train"}, dropped_per_shard=settings.inspection.dropped_per_shard, settings=settings,
    )  # fmt: skip


def estimate(run: Run) -> Estimate:
    """What the pairs will take, by the first two batches."""
    settings, made = run.config.pairs, measure(run, pairs(run))
    samples = made.rows * settings.samples_per_instruction
    evaluations = samples * settings.num_inference_steps * ROWS_PER_PAIR
    print(f"pairs: {samples:,} pairs drawn, {evaluations:,} pictures through the U-Net", flush=True)
    return made


def held_out(split: str) -> bool:
    """Whether a split is kept for ranking or testing."""
    return split != "train"


def _rows_at_a_time(settings) -> int:
    """Instructions whose samples fill one batch."""
    return max(1, settings.resources.batch_size // settings.samples_per_instruction)
