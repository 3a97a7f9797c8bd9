"""Candidates: several edits of each prompt of the rank split, for people to rank.

prompts, editors/current (sft, or what the round before made) -> candidates
"""

from hive_ray.distributed.mapping import map_table
from hive_ray.distributed.models import model_digest
from hive_ray.distributed.tables import Manifest, build_table, table_digest
from hive_ray.editor.sampling import EditSampler
from hive_ray.schemas import CANDIDATES, PROMPTS
from jobs.run import Run, fingerprint, main


def build(run: Run) -> Manifest:
    prompts, editor, settings = run.path("prompts"), run.path("editors/current"), run.config.candidates
    name = model_digest(editor)

    def make():
        return map_table(
            prompts, PROMPTS, EditSampler, produces=CANDIDATES, resources=settings.resources,
            where={"split": "rank"}, limit=settings.num_prompts, editor=editor, settings=settings, name=name,
        )  # fmt: skip

    made_from = fingerprint(settings, prompts=table_digest(prompts), editor=name)
    return build_table(
        run.path("candidates"), CANDIDATES, made_from, make,
        on_mismatch=run.on_mismatch, least_kept=settings.least_kept,
    )  # fmt: skip


if __name__ == "__main__":
    main(build)
