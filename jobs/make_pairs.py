"""Pictures for the instructions: training pairs by Prompt-to-Prompt, and prompts for the held-out ones.

instructions -> pairs (train split), prompts (held-out splits), pairs.html
"""

from jobs.command import run_job

if __name__ == "__main__":  # before what the work needs is imported, which takes seconds
    run_job("make_pairs")

from hive_ray.artifacts.manifest import Fingerprint, Manifest, table_digest
from hive_ray.cluster.mapping import MapTable, map_table
from hive_ray.console import say
from hive_ray.diffusion.backbone import check_backbone
from hive_ray.pairs.generation import PairGenerator, SourceGenerator
from hive_ray.schemas import INSTRUCTIONS, PAIRS, PROMPTS
from hive_ray.shapes.actors import ScenePainter
from jobs import inspect_pairs
from jobs.estimate import Estimate, measure
from jobs.run import Run, fingerprint
from jobs.stage import Stage, TableStage

ROWS_PER_PAIR = 4
"""Of the U-Net's batch: source and edited picture, with and without the caption."""
PROMPT_MAKERS = {"generated": SourceGenerator, "shapes": ScenePainter}


def build(run: Run) -> Manifest:
    check_backbone(run.config.pairs.base)
    PROMPTS_STAGE.make(run)
    made = PAIRS_STAGE.make(run)
    inspect_pairs.build(run)
    return made


def stages(run: Run) -> list[Stage]:
    """The tables that this job makes."""
    return [PROMPTS_STAGE, PAIRS_STAGE]


def prompts(run: Run) -> MapTable:
    """How the prompts are made, of the held-out instructions."""
    settings = run.config.pairs
    return map_table(
        run.path("instructions"), INSTRUCTIONS, PROMPT_MAKERS[settings.prompts], produces=PROMPTS,
        resources=settings.resources, where={"split": held_out}, settings=settings,
    )  # fmt: skip


def _compute_fingerprint(run: Run) -> Fingerprint:
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
    say(f"{samples:,} pairs drawn, {evaluations:,} pictures through the U-Net", stage="pairs")
    return made


def held_out(split: str) -> bool:
    """Whether a split is kept for ranking or testing."""
    return split != "train"


def _rows_at_a_time(settings) -> int:
    """Instructions whose samples fill one batch."""
    return max(1, settings.resources.batch_size // settings.samples_per_instruction)


PROMPTS_STAGE = TableStage(
    name="prompts", schema=PROMPTS, reads=("instructions",), fingerprint=_compute_fingerprint, plan=prompts
)
PAIRS_STAGE = TableStage(
    name="pairs",
    schema=PAIRS,
    reads=("instructions",),
    fingerprint=_compute_fingerprint,
    plan=pairs,
    least_kept=lambda run: run.config.pairs.least_kept,
)
