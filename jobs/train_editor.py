"""Fine-tune the editor. Every arm is the same training on another table from another start; `dpo` has another loss.

pairs or scored_pairs, or one of them beside `latents`, or rankings -> editors/<arm>

python -m jobs.train_editor shapes --run runs/one --arm dpo
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
from torch import Tensor

from hive_ray import config
from hive_ray.config import Dpo
from hive_ray.distributed.joined import join
from hive_ray.distributed.models import Metrics, model_digest
from hive_ray.distributed.tables import Selection, read_manifest, select, table_digest
from hive_ray.distributed.training import fit
from hive_ray.distributed.validation import hold_out
from hive_ray.editor.model import Editor, EditorCard
from hive_ray.editor.objective import EditorObjective
from hive_ray.editor.preference import PreferenceObjective
from hive_ray.pairs.cycle import sources_of
from hive_ray.reward.shaping import instruction_suffix
from hive_ray.schemas import LATENTS, PAIRS, RANKINGS, SCORED_PAIRS
from jobs import encode_latents
from jobs.run import Run, fingerprint, main


class _Carded:
    """An editor's objective, with the card of what it will have become."""

    def __init__(self, start: str, editor: config.Editor, suffix: str, table: str) -> None:
        model = Editor.build(start, single_file=editor.single_file)
        super().__init__(model, editor)
        self.card = model.card.model_copy(
            update={"resolution": editor.resolution, "instruction_suffix": suffix, "training_table": table}
        )

    def save(self, folder: Path, state: dict[str, Tensor], card: EditorCard | None = None) -> None:
        super().save(folder, state, card or self.card)


class EditorTraining(_Carded, EditorObjective):
    """Training on pairs."""


class PreferenceTraining(_Carded, PreferenceObjective):
    """Training on rankings."""


@dataclass(frozen=True)
class Arm:
    """What one editor is trained on, and from which editor; None starts from `editor.start`."""

    table: str
    start: str | None
    shaping: str | None = None
    objective: type[EditorObjective] = EditorTraining

    @property
    def ranked(self) -> bool:
        """Whether it learns from rankings directly."""
        return self.objective is PreferenceTraining


CURRENT = "editors/current"  # sft, or in a later round what the one before made
ARMS = {
    "sft": Arm("pairs", None),
    "control": Arm("pairs", CURRENT),  # trained on as long as the arms below, without feedback
    "finetuned": Arm("scored_pairs", CURRENT, "configured"),
    "conditional": Arm("scored_pairs_conditional", CURRENT, "conditional"),
    "weighted": Arm("scored_pairs_weighted", CURRENT, "weighted"),
    "dpo": Arm("rankings", CURRENT, objective=PreferenceTraining),  # no reward model between
}
COLUMNS = ["pair_id", "instruction", "weight"]
PICTURES = ["source_image", "edited_image"]
ENCODED = ["latents"]
SOURCES = ["origin", "source_caption", "edited_caption"]
RANKED = ["ranking_id", "instruction", "source_image", "edits", "ranks"]


def build(run: Run, name: str = "sft") -> Metrics:
    told, tables, arm = training(run, name), _plan(run, name)[0], ARMS[name]
    if arm.ranked:
        schema, columns = RANKINGS, RANKED
    else:
        schema = SCORED_PAIRS if arm.shaping else PAIRS
        columns = COLUMNS + (PICTURES if run.config.editor.latents == "none" else ENCODED)

    @cache
    def sides() -> tuple[Selection, Selection]:
        return _sides(run, tables, schema, told["settings"].validation_rows)

    return fit(
        **told,
        rows=lambda: sides()[0],
        held_out=lambda: sides()[1],
        columns=columns,
        shown=["source_image"] if arm.ranked else PICTURES,
        on_mismatch=run.on_mismatch,
    )


def training(run: Run, name: str) -> dict[str, Any]:
    """What decides an arm's weights, and what its objective is made with: arguments of `fit`, and of `export`."""
    settings, (tables, start, suffix) = run.config.editor, _plan(run, name)
    arm = ARMS[name]
    if read_manifest(run.path(arm.table)) is None:
        raise FileNotFoundError(f"{run.path(arm.table)} is not finished; this makes it: {_made_by(run, name)}")
    digest = table_digest(*tables)
    stage = settings.model_copy(update={"start": ""} if arm.ranked else {"start": "", "dpo": Dpo()})
    return dict(
        objective=arm.objective,
        name=f"editors/{name}",
        run=(run if arm.start else run.so_far[0]).root,
        settings=settings.dpo.training if arm.ranked else settings.finetune if arm.start else settings.sft,
        fingerprint=fingerprint(stage, table=digest, start=model_digest(start)),
        start=start,
        editor=settings,
        suffix=suffix,
        table=digest,
    )


def _sides(run: Run, tables: list[str], schema: pa.Schema, num_held_out: int) -> tuple[Selection, Selection]:
    """The rows to train on, and those held out: whole prompts of rankings, of pairs whole sources, beside their latents
    where these are encoded once."""
    rows = select(tables, schema)
    if schema is RANKINGS:
        return hold_out(rows, ["prompt_id"], lambda row: [row["prompt_id"]], num_held_out)
    columns = SOURCES + (PICTURES if num_held_out and _lacks_captions(tables, schema) else [])
    sides = hold_out(rows, columns, sources_of, num_held_out)
    if run.config.editor.latents == "none":
        return sides
    encode_latents.build(run)
    latents = select(run.path("latents"), LATENTS)
    trained, held_out = (join(side, latents) if len(side) else side for side in sides)
    return trained, held_out


def _lacks_captions(tables: list[str], schema: pa.Schema) -> bool:
    """Whether some pair has no captions, so that its pictures have to say where it comes from."""
    columns = ("source_caption", "edited_caption")
    return any(len(select(tables, schema, where={column: lambda words: not words}, limit=1)) for column in columns)


def _plan(run: Run, name: str) -> tuple[list[str], str, str]:
    """Addresses of the tables, of the start, and the instruction suffix of the editor to come."""
    if name not in ARMS:
        raise ValueError(f"arm {name!r} is unknown; choose one of {', '.join(ARMS)}")
    arm = ARMS[name]
    start = run.path(arm.start) if arm.start else run.config.editor.start
    shaping = run.config.scoring.shaping if arm.shaping == "configured" else arm.shaping
    suffix = instruction_suffix(run.config.scoring.phrase) if shaping == "conditional" else ""
    return run.rankings_so_far() if arm.ranked else [run.path(arm.table)], start, suffix


def _made_by(run: Run, name: str) -> str:
    """What to type to have the table made that an arm is trained on."""
    if ARMS[name].shaping:
        return f"{run.command('score_pairs')} --arm {name}"
    if ARMS[name].ranked:
        return run.command("collect_rankings")
    if run.config.importing.dataset:
        return run.command("import_pairs")
    if read_manifest(run.path("imported")):
        return f"{run.command('import_pairs')} --importing.dataset <the dataset that was imported>"
    return run.command("make_pairs")


def finetune(run: Run) -> Metrics:
    """The second fine-tuning, on scored pairs."""
    return build(run, "finetuned")


if __name__ == "__main__":
    main(lambda run: build(run, run.arm))
