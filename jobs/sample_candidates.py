"""Candidates: several edits of each prompt of the rank split, for people to rank.

prompts, editors/current (sft, or what the round before made) -> candidates, or candidates_unguided

python -m jobs.sample_candidates shapes --run runs/one --arm rejection
"""

from jobs.command import run_job

if __name__ == "__main__":  # before what the work needs is imported, which takes seconds
    run_job("sample_candidates")

from hive_ray.artifacts.model_store import model_digest
from hive_ray.artifacts.tables import Manifest, build_table, table_digest
from hive_ray.cluster.mapping import map_table
from hive_ray.config import Candidates
from hive_ray.editor.sampling import EditSampler
from hive_ray.schemas import CANDIDATES, PROMPTS
from hive_ray.seeds import seed_for
from jobs.run import Run, fingerprint

UNGUIDED = "candidates_unguided"


def build(run: Run) -> Manifest:
    """The table that people rank."""
    return _sample(run, "candidates", run.config.candidates)


def unguided(run: Run) -> Manifest:
    """Other edits of the same prompts, for rejection fine-tuning: guidance that is trained on would act twice."""
    settings = run.config.candidates
    scales = {"guidance_scale": (1.0, 1.0), "image_guidance_scale": (1.0, 1.0)}
    return _sample(run, UNGUIDED, settings.model_copy(update=scales | {"seed": seed_for("unguided", settings.seed)}))


def for_arm(run: Run) -> Manifest:
    """What the run's arm learns from: unguided edits for `rejection`, else those that people rank."""
    return unguided(run) if run.feedback_arm == "rejection" else build(run)


def _sample(run: Run, table: str, settings: Candidates) -> Manifest:
    prompts, editor = run.path("prompts"), run.path("editors/current")
    name = model_digest(editor)

    def make():
        return map_table(
            prompts, PROMPTS, EditSampler, produces=CANDIDATES, resources=settings.resources,
            where={"split": "rank"}, limit=settings.num_prompts, editor=editor, settings=settings, name=name,
        )  # fmt: skip

    made_from = fingerprint(settings, prompts=table_digest(prompts), editor=name)
    return build_table(
        run.path(table), CANDIDATES, made_from, make,
        on_mismatch=run.on_mismatch, least_kept=settings.least_kept,
    )  # fmt: skip
