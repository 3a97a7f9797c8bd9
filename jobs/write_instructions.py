"""Edits in words for each caption.

captions -> instructions
"""

from jobs.command import run_job

if __name__ == "__main__":  # before what the work needs is imported, which takes seconds
    run_job("write_instructions")

import json
from collections.abc import Iterator
from itertools import islice

from hive_ray import storage
from hive_ray.artifacts.manifest import Fingerprint, Manifest, table_digest
from hive_ray.artifacts.selection import read_rows
from hive_ray.cluster.mapping import MapTable, map_rows, map_table
from hive_ray.config import Instructions
from hive_ray.language.batches import answer_in_batches
from hive_ray.language.endpoint import TRIAL_ROWS, Endpoint, stop_if_unusable
from hive_ray.language.openai_client import check_endpoint
from hive_ray.pairs.captions import caption_rows, read_captions
from hive_ray.pairs.instructions import InstructionWriter, build_request
from hive_ray.pairs.triplets import EXAMPLES, read_triplets
from hive_ray.schemas import CAPTIONS, INSTRUCTIONS, Dropped, Row
from hive_ray.seeds import id_for
from hive_ray.shapes.actors import ShapesWriter, random_captions
from jobs.estimate import Estimate, measure
from jobs.run import Run, fingerprint
from jobs.stage import Stage, TableStage

FINETUNED = "finetuned"


def build(run: Run) -> Manifest:
    CAPTIONS_STAGE.make(run)
    return INSTRUCTIONS_STAGE.make(run)


def stages(run: Run) -> list[Stage]:
    """The tables that this job makes."""
    return [CAPTIONS_STAGE, INSTRUCTIONS_STAGE]


def _instructions_fingerprint(run: Run) -> Fingerprint:
    settings = writer_settings(run)
    examples = id_for(*map(json.dumps, shown_examples(settings)))
    stage = settings.model_copy(update={"examples": ""})  # an address, whose content counts
    return fingerprint(stage, captions=table_digest(run.path("captions")), examples=examples)


def _plan_instructions(run: Run) -> MapTable:
    settings = writer_settings(run)
    examples = shown_examples(settings)
    if settings.writer == "openai":
        storage.remove_unfinished(run.path("answers"))
        ask_first(run, settings, examples)
    return PLANS[settings.writer](run, settings, examples)


def estimate(run: Run) -> Estimate:
    """What the instructions will take, by the answers to the first captions, which are kept."""
    settings = writer_settings(run)
    if settings.writer == "openai" and settings.spending.batch:
        raise ValueError("how long a batch takes cannot be measured: estimate with --instructions.spending.no-batch")
    CAPTIONS_STAGE.make(run)
    if settings.writer == "openai":
        check_endpoint(settings.llm, "instructions.llm")
    return measure(run, PLANS[settings.writer](run, settings, shown_examples(settings)))


def ask_first(run: Run, settings: Instructions, examples: list[dict]) -> None:
    """Ask for the edits of the first captions, or for all in batches, before the cluster does.

    What comes is kept. EndpointError or `Stopped` says why nothing comes, or nothing that can be used. Where all of
    the first answers are kept already, the endpoint is not looked for.
    """
    captions, answers = run.path("captions"), run.path("answers")
    endpoint = Endpoint(answers, settings.spending, send_seed=settings.send_seed)
    first = list(islice(read_rows(captions, CAPTIONS), TRIAL_ROWS))
    if not all(endpoint.answers.find(build_request(row, settings, examples)) for row in first):
        check_endpoint(settings.llm, "instructions.llm")
    if settings.spending.batch:
        answer_in_batches(endpoint, (build_request(row, settings, examples) for row in read_rows(captions, CAPTIONS)))
    made = map_rows(InstructionWriter(settings, answers, examples), first)
    stop_if_unusable("instructions", made, "See instructions.llm, .structure and .form")


def by_grammar(run: Run, settings: Instructions, examples: list[dict]) -> MapTable:
    """Instructions in the words of the embedded domain; it needs no examples."""
    return map_table(
        run.path("captions"), CAPTIONS, ShapesWriter, produces=INSTRUCTIONS, resources=settings.resources,
        settings=settings,
    )  # fmt: skip


def by_language_model(run: Run, settings: Instructions, examples: list[dict]) -> MapTable:
    """Instructions from the endpoint; what it answers is kept in <run>/answers."""
    return map_table(
        run.path("captions"), CAPTIONS, InstructionWriter, produces=INSTRUCTIONS, resources=settings.resources,
        settings=settings, answers=run.path("answers"), examples=examples,
    )  # fmt: skip


PLANS = {"shapes": by_grammar, "openai": by_language_model}
"""By the setting `instructions.writer`."""


def writer_settings(run: Run) -> Instructions:
    """The settings, with the model that `finetune_writer` made in place of "finetuned"."""
    settings, card = run.config.instructions, run.path("writer/card.json")
    if settings.llm != FINETUNED:
        return settings
    if not storage.exists(card):
        raise FileNotFoundError(f"{card} does not exist: run jobs.finetune_writer, or name a model (instructions.llm)")
    try:
        made = json.loads(storage.read_text(card))
        return settings.model_copy(update={"llm": made["model"], "form": made["form"]})
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{card} does not name a model ({error}): run jobs.finetune_writer with --rebuild") from error


def shown_examples(settings: Instructions) -> list[dict]:
    """The triplets that are shown before each caption, in the form that is asked for."""
    if not settings.examples:
        return []
    triplets = read_triplets(settings.examples, least=1)[: settings.num_examples]
    return EXAMPLES[settings.form](triplets)


def _captions_fingerprint(run: Run) -> Fingerprint:
    settings = run.config.instructions
    return fingerprint(settings_of_captions(settings), content=captions_digest(settings))


def captions_of(settings: Instructions) -> Iterator[Row | Dropped]:
    """The first `num_captions` different captions, and what was dropped on the way, as they are read."""
    if settings.captions == "shapes":
        texts = random_captions(settings.num_captions, settings.seed)
    else:
        texts = read_captions(settings.captions, settings.caption_column)
    return caption_rows(texts, settings.num_captions)


def captions_digest(settings: Instructions) -> str:
    """Names the captions that will be kept, since a file may change under its name; ValueError if there are none."""
    ids = [row["caption_id"] for row in captions_of(settings) if not isinstance(row, Dropped)]
    if not ids:
        raise ValueError(
            f"{settings.captions} has no captions; it wants one a line, or in each row's column "
            f"{settings.caption_column!r} (instructions.caption_column)"
        )
    return id_for(*ids)


def settings_of_captions(settings: Instructions) -> Instructions:
    """Only what decides the captions, so that another writer does not draw them again."""
    names = ("captions", "caption_column", "num_captions", "seed")
    return Instructions(**{name: getattr(settings, name) for name in names})


CAPTIONS_STAGE = TableStage(
    name="captions",
    schema=CAPTIONS,
    fingerprint=_captions_fingerprint,
    rows=lambda run: captions_of(run.config.instructions),
)
INSTRUCTIONS_STAGE = TableStage(
    name="instructions",
    schema=INSTRUCTIONS,
    reads=("captions",),
    fingerprint=_instructions_fingerprint,
    plan=_plan_instructions,
    least_kept=lambda run: run.config.instructions.least_kept,
)
