"""Candidates: several edits of each prompt of the rank split, for people to rank.

prompts, editors/current (sft, or what the round before made) -> candidates, or candidates_unguided

python -m jobs.sample_candidates shapes --run runs/one --arm rejection
"""

from jobs.command import run_job

if __name__ == "__main__":  # before what the work needs is imported, which takes seconds
    run_job("sample_candidates")

from collections.abc import Callable

from hive_ray.artifacts.manifest import Fingerprint, Manifest, table_digest
from hive_ray.artifacts.model_store import model_digest
from hive_ray.cluster.mapping import MapTable, map_table
from hive_ray.config import Candidates
from hive_ray.editor.sampling import EditSampler
from hive_ray.schemas import CANDIDATES, PROMPTS
from hive_ray.seeds import seed_for
from jobs.run import CURRENT, Run, fingerprint
from jobs.stage import TableStage, make_all

UNGUIDED = "candidates_unguided"


def build(run: Run) -> Manifest:
    """The table that people rank."""
    return CANDIDATES_STAGE.make(run)


def unguided(run: Run) -> Manifest:
    """Other edits of the same prompts, for rejection fine-tuning: guidance that is trained on would act twice."""
    return UNGUIDED_STAGE.make(run)


def build_for_arm(run: Run) -> Manifest:
    """The candidates of the run's arm."""
    return make_all(run, stages(run))


def stages(run: Run) -> list[TableStage]:
    """The table for the run's arm: unguided edits for `rejection`, otherwise the edits that people rank."""
    return [UNGUIDED_STAGE if run.feedback_arm == "rejection" else CANDIDATES_STAGE]


def _guided(run: Run) -> Candidates:
    return run.config.candidates


def _unguided(run: Run) -> Candidates:
    settings = run.config.candidates
    scales = {"guidance_scale": (1.0, 1.0), "image_guidance_scale": (1.0, 1.0)}
    return settings.model_copy(update=scales | {"seed": seed_for("unguided", settings.seed)})


def _stage(name: str, settings_of: Callable[[Run], Candidates]) -> TableStage:
    def compute_fingerprint(run: Run) -> Fingerprint:
        prompts, editor = table_digest(run.path("prompts")), model_digest(run.path(CURRENT))
        return fingerprint(settings_of(run), prompts=prompts, editor=editor)

    def plan(run: Run) -> MapTable:
        settings, editor = settings_of(run), run.path(CURRENT)
        return map_table(
            run.path("prompts"), PROMPTS, EditSampler, produces=CANDIDATES, resources=settings.resources,
            where={"split": "rank"}, limit=settings.num_prompts, editor=editor, settings=settings,
            name=model_digest(editor),
        )  # fmt: skip

    return TableStage(
        name=name,
        schema=CANDIDATES,
        reads=("prompts", CURRENT),
        fingerprint=compute_fingerprint,
        plan=plan,
        least_kept=lambda run: run.config.candidates.least_kept,
    )


CANDIDATES_STAGE = _stage("candidates", _guided)
UNGUIDED_STAGE = _stage(UNGUIDED, _unguided)
