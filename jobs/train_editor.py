"""Fine-tune the editor. Every arm is the same training on another table from another start; those on rankings and on
the editor's own edits have other losses.

pairs or scored_pairs, or one of them beside `latents`, or rankings, or scored candidates -> editors/<arm>

python -m jobs.train_editor shapes --run runs/one --arm dpo
"""

from jobs.command import run_job

if __name__ == "__main__":  # before what the work needs is imported, which takes seconds
    run_job("train_editor")

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
from torch import Tensor

from hive_ray import config
from hive_ray.artifacts.joined import join
from hive_ray.artifacts.manifest import Fingerprint, fingerprint_of, read_manifest, table_digest
from hive_ray.artifacts.model_store import Metrics, model_digest
from hive_ray.artifacts.selection import Selection, select
from hive_ray.cluster.fitting import fit
from hive_ray.config import SUMMABLE_ARMS, Dpo, Nft, Training, split_arm
from hive_ray.editor.model import Editor, EditorCard
from hive_ray.editor.negative_aware import NegativeAwareObjective
from hive_ray.editor.objective import EditorObjective, LevelObjective
from hive_ray.editor.preference import PreferenceObjective, has_comparison
from hive_ray.pairs.cycle import source_names
from hive_ray.reward.shaping import instruction_suffix
from hive_ray.schemas import LATENTS, PAIRS, RANKING_LATENTS, RANKINGS, SCORED_CANDIDATES, SCORED_PAIRS
from hive_ray.training.validation import hold_out
from jobs import average_editors, encode_latents
from jobs.run import CURRENT, RANKINGS_BY_REWARD, Run, fingerprint
from jobs.stage import ModelStage, make_all


class _WithCard(EditorObjective):
    """An editor's objective, with the card of what it will have become."""

    def __init__(self, start: str, editor: config.Editor, suffix: str, table: str) -> None:
        model = Editor.build(start, single_file=editor.single_file)
        super().__init__(model, editor)
        self.card = model.card.model_copy(
            update={"resolution": editor.resolution, "instruction_suffix": suffix, "training_table": table}
        )

    def save(self, folder: Path, state: dict[str, Tensor], card: EditorCard | None = None) -> None:
        super().save(folder, state, card or self.card)


class EditorTraining(_WithCard):
    """Training on pairs."""


class LevelTraining(_WithCard, LevelObjective):
    """Training on pairs with a learned embedding of their quality levels."""

    def __init__(self, start: str, editor: config.Editor, suffix: str, table: str) -> None:
        super().__init__(start, editor, suffix, table)
        self.card = self.card.model_copy(update={"level_guidance_scale": editor.level_guidance_scale})


class PreferenceTraining(_WithCard, PreferenceObjective):
    """Training on rankings."""


class NegativeAwareTraining(_WithCard, NegativeAwareObjective):
    """Training on the editor's own edits, the bad ones included."""


@dataclass(frozen=True)
class Arm:
    """What one editor is trained on, and from which editor; None starts from `editor.start`."""

    table: str
    start: str | None
    shaping: str | None = None
    objective: type[EditorObjective] = EditorTraining
    dpo: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `editor.dpo` that it has in place of the run's."""

    @property
    def ranked(self) -> bool:
        """Whether it learns from rankings directly."""
        return self.objective is PreferenceTraining

    @property
    def negative_aware(self) -> bool:
        """Whether it learns from bad edits what not to do."""
        return self.objective is NegativeAwareTraining

    @property
    def schema(self) -> pa.Schema:
        """What its table's rows are."""
        return SCHEMAS.get(self.table, SCORED_PAIRS)

    def columns(self, settings: config.Editor) -> list[str]:
        """What its training reads of a row."""
        if self.ranked:
            return RANKING_COLUMNS + (RANKING_PICTURES if settings.latents == "none" else LATENT_COLUMNS)
        is_encoded = settings.latents != "none" and self.schema is not SCORED_CANDIDATES
        levels = LEVELS if self.objective is LevelTraining else []
        return COLUMNS + levels + (LATENT_COLUMNS if is_encoded else PICTURES)

    def training(self, settings: config.Editor) -> Training:
        """How it is fitted."""
        if self.ranked:
            return settings.dpo.training
        if self.negative_aware:
            return settings.nft.training
        return settings.finetune if self.start else settings.sft

    def settings(self, settings: config.Editor) -> config.Editor:
        """The editor's settings, as it has them."""
        return settings.model_copy(update={"dpo": settings.dpo.model_copy(update=dict(self.dpo))})

    def fingerprinted_settings(self, settings: config.Editor) -> config.Editor:
        """Those of its settings that decide its weights: the sections of other losses are as if nobody had set them."""
        others = {} if self.ranked else {"dpo": Dpo()}
        others |= {} if self.negative_aware else {"nft": Nft()}
        unread = ("arm",) if self.objective is LevelTraining else ("arm", "level_rate_factor", "level_guidance_scale")
        others |= {name: type(settings).model_fields[name].default for name in unread}
        return self.settings(settings).model_copy(update={"start": ""} | others)


SCHEMAS = {
    "pairs": PAIRS,
    "rankings": RANKINGS,
    "scored_candidates": SCORED_CANDIDATES,
    "best_candidates": SCORED_CANDIDATES,
}
"""Of tables; any other is of scored pairs."""
ARMS = {
    "sft": Arm("pairs", None),
    "control": Arm("pairs", CURRENT),  # trained on as long as the arms below, without feedback
    "finetuned": Arm("scored_pairs", CURRENT, "configured"),  # or another one, see `arm_of`
    "conditional": Arm("scored_pairs_conditional", CURRENT, "conditional"),
    "conditional_sft": Arm("scored_pairs_conditional", None, "conditional"),  # hears the phrase from the beginning
    "weighted": Arm("scored_pairs_weighted", CURRENT, "weighted"),
    "level": Arm("scored_pairs_level", CURRENT, "level", objective=LevelTraining),
    "dpo": Arm("rankings", CURRENT, objective=PreferenceTraining),  # no reward model between
    "shuffled": Arm("rankings", CURRENT, objective=PreferenceTraining, dpo={"shuffled": True}),  # dpo's control
    "nft": Arm("scored_candidates", CURRENT, objective=NegativeAwareTraining),
    "rejection": Arm("best_candidates", CURRENT),
}
CONTROLS = ("control", "shuffled")
"""The arms that learn nothing from what people said."""
COLUMNS = ["pair_id", "instruction", "weight"]
LEVELS = ["quality_level"]
PICTURES = ["source_image", "edited_image"]
LATENT_COLUMNS = ["latents"]
SOURCE_COLUMNS = ["origin", "source_caption", "edited_caption"]
RANKING_COLUMNS = ["ranking_id", "instruction", "ranks"]
RANKING_PICTURES = ["source_image", "edits"]


def arm_of(run: Run, name: str) -> Arm:
    """The arm of an editor's name; `finetuned` is the one that `editor.arm` names."""
    parts = parts_of(run, name)
    if len(parts) > 1:
        raise ValueError(f"{name} is added up, not trained: name one of its parts, {' or '.join(parts)}")
    split_arm(name, tuple(ARMS))  # refuses what is none
    chosen, arm = run.config.editor.arm, ARMS[name]
    if name == "finetuned" and chosen != "scored":
        arm = ARMS[chosen]
    if arm.shaping == "configured":
        shaping = run.config.scoring.shaping
        arm = replace(arm, shaping=shaping, objective=ARMS[shaping].objective)
    return arm


def parts_of(run: Run, name: str) -> list[str]:
    """The arms whose changes an editor of this name adds up; the name itself of one that is trained."""
    added = run.config.editor.arm if name == "finetuned" else name
    parts = added.split("+")
    is_sum = 1 < len(parts) == len({*parts}) and {*parts} <= {*SUMMABLE_ARMS}
    return parts if is_sum else [name]


def build(run: Run, name: str = "sft") -> Metrics:
    """The editor <run>/editors/<name>, trained, or added up from its parts, which are trained first."""
    return make_all(run, stages(run, name))


def stages(run: Run, name: str = "") -> list[ModelStage]:
    """The editor of an arm, after those of its parts if it is a sum; of the run's arm if no name is given."""
    name = name or run.arm
    parts = parts_of(run, name)
    if parts == [name]:
        return [_trained_stage(run, name)]
    return [*(_trained_stage(run, part) for part in parts), average_editors.sum_stage(name, CURRENT, parts)]


def _trained_stage(run: Run, name: str) -> ModelStage:
    arm = arm_of(run, name)
    tables = (arm.table,)
    if arm.ranked:
        by_reward = (RANKINGS_BY_REWARD,) if run.config.candidate_scoring.ranked_rate else ()
        tables = ("rankings", *by_reward)

    def compute_fingerprint(run: Run) -> Fingerprint:
        arguments = training(run, name)
        return arguments["fingerprint"] | fingerprint_of(arguments["settings"])

    return ModelStage(
        name=f"editors/{name}", reads=(*tables, arm.start) if arm.start else tables, fingerprint=compute_fingerprint,
        train=lambda run: _trained(run, name),
    )  # fmt: skip


def _trained(run: Run, name: str) -> Metrics:
    arguments, tables, arm = training(run, name), _plan(run, name)[0], arm_of(run, name)

    @cache
    def sides() -> tuple[Selection, Selection]:
        return _split_rows(run, tables, arm, arguments["settings"].validation_rows)

    return fit(
        **arguments,
        rows=lambda: sides()[0],
        held_out=lambda: sides()[1],
        columns=arm.columns(run.config.editor),
        preview_columns=["source_image"] if arm.ranked else PICTURES,
        on_mismatch=run.on_mismatch,
    )


def training(run: Run, name: str) -> dict[str, Any]:
    """What decides an arm's weights, and what its objective is made with: arguments of `fit`, and of `export`."""
    settings, (tables, start, suffix) = run.config.editor, _plan(run, name)
    arm = arm_of(run, name)
    for table in tables:
        if read_manifest(table) is None:
            raise FileNotFoundError(f"{table} is not finished; this makes it: {_made_by(run, name, table)}")
    digest = table_digest(*tables)
    return dict(
        objective=arm.objective,
        name=f"editors/{name}",
        run=(run.rounds[0] if name == "sft" else run).root,
        settings=arm.training(settings),
        fingerprint=fingerprint(arm.fingerprinted_settings(settings), table=digest, start=model_digest(start)),
        start=start,
        editor=arm.settings(settings),
        suffix=suffix,
        table=digest,
    )


def _split_rows(run: Run, tables: list[str], arm: Arm, num_held_out: int) -> tuple[Selection, Selection]:
    """The rows to train on, and those held out: whole prompts of rankings and of candidates, whole sources of pairs.
    Pairs come with their latents where these are encoded once. Rankings that say nothing are left out."""
    schema = arm.schema
    rows = informative_rankings(tables, run.config.editor.dpo) if arm.ranked else select(tables, schema)
    if "prompt_id" in schema.names:
        sides = hold_out(rows, ["prompt_id"], lambda row: [row["prompt_id"]], num_held_out)
        return _with_latents(run, sides, tables) if arm.ranked else sides
    columns = SOURCE_COLUMNS + (PICTURES if num_held_out and _lacks_captions(tables, schema) else [])
    return _with_latents(run, hold_out(rows, columns, source_names, num_held_out))


def _with_latents(
    run: Run, sides: tuple[Selection, Selection], rankings: Sequence[str] = ()
) -> tuple[Selection, Selection]:
    """Rows of pairs, or of these tables of rankings, with their latents where these are encoded once."""
    if run.config.editor.latents == "none":
        return sides
    if rankings:
        encode_latents.build_for_rankings(run, rankings)
        latents = select(run.path("ranking_latents"), RANKING_LATENTS)
    else:
        encode_latents.build(run)
        latents = select(run.path("latents"), LATENTS)
    trained, held_out = (join(side, latents) if len(side) else side for side in sides)
    return trained, held_out


def informative_rankings(tables: list[str], settings: Dpo) -> Selection:
    """The rankings with a comparison to learn from; ValueError if none has one."""
    found = select(tables, RANKINGS, where={"ranks": lambda ranks: has_comparison(ranks, settings)})
    if not len(found):
        raise ValueError(
            f"none of the rankings in {', '.join(tables)} has two edits that are {settings.min_rank_gap} ranks apart: "
            "lower editor.dpo.min_rank_gap, or have people rank edits that differ more"
        )
    return found


def _lacks_captions(tables: list[str], schema: pa.Schema) -> bool:
    """Whether some pair has no captions, so that its pictures have to say where it comes from."""
    columns = ("source_caption", "edited_caption")
    return any(len(select(tables, schema, where={column: lambda words: not words}, limit=1)) for column in columns)


def _plan(run: Run, name: str) -> tuple[list[str], str, str]:
    """Addresses of the tables, of the start, and the instruction suffix of the editor to come."""
    arm = arm_of(run, name)
    start = run.path(arm.start) if arm.start else run.config.editor.start
    suffix = instruction_suffix(run.config.scoring.phrase) if arm.shaping == "conditional" else ""
    return run.dpo_ranking_tables() if arm.ranked else [run.path(arm.table)], start, suffix


def _made_by(run: Run, name: str, table: str) -> str:
    """What to type to have a table made that an arm is trained on."""
    arm = arm_of(run, name)
    if arm.shaping:
        return f"{run.command('score_pairs')} --arm {name if name == 'finetuned' else arm.shaping}"
    if table == run.path(RANKINGS_BY_REWARD):
        return run.command_for(RANKINGS_BY_REWARD)
    if arm.ranked:
        return run.command_for("rankings")
    if arm.schema is SCORED_CANDIDATES:
        return f"{run.command('score_candidates')} --arm {name}"
    return run.command_for("pairs")


def finetune(run: Run) -> Metrics:
    """The second fine-tuning, from feedback in the way that `editor.arm` names."""
    return build(run, "finetuned")


def controls(run: Run) -> None:
    """The editors without feedback that the evaluation names: what `finetuned` is to be held against."""
    for name in run.config.evaluation.editors:
        if name in CONTROLS:
            build(run, name)


def build_for_arm(run: Run) -> Metrics:
    """The editor that the command line names."""
    return build(run, run.arm)
