"""Rewards of the training pairs, and what they mean for training: a weight, or a quality phrase.

pairs, reward -> rewards (of each judge) -> scored_pairs, or scored_pairs_<arm>, with its card.json and rewards.svg

python -m jobs.score_pairs shapes --run runs/one --arm weighted
"""

from jobs.command import run_job

if __name__ == "__main__":  # before what the work needs is imported, which takes seconds
    run_job("score_pairs")

import json
import re
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from hive_ray import storage
from hive_ray.artifacts.manifest import Fingerprint, Manifest, fingerprint_of, table_digest
from hive_ray.artifacts.model_store import model_digest
from hive_ray.artifacts.selection import read_rows
from hive_ray.cluster.mapping import MapTable, map_rows, map_table
from hive_ray.config import Resources, Scoring, VisionJudge
from hive_ray.console import say
from hive_ray.diffusion.backbone import load_tokenizer
from hive_ray.editor.model import append_suffix
from hive_ray.reward import distribution
from hive_ray.reward.judges import CLIP_MEASURES, combine_rewards, judge_source_code
from hive_ray.reward.shaping import SHAPINGS, RewardShaping, fit_shaping
from hive_ray.schemas import PAIRS, REWARDS, SCORED_PAIRS, Dropped, Result
from hive_ray.seeds import id_for
from jobs.actors.scoring import PairScorer, PairShaper, rewards_of
from jobs.run import Run, fingerprint
from jobs.stage import Stage, TableStage

CARD, CHART = "card.json", "rewards.svg"
"""Beside the scored pairs: what their rewards look like, in numbers and as a chart."""


def build(run: Run, shaping: str | None = None) -> Manifest:
    """The table that `finetuned` is trained on, by `scoring.shaping`, or scored_pairs_<shaping> of another arm."""
    for stage in _rewards_stages(run):
        stage.make(run)
    shaped, described, chart = _feedback(run, _shaping_settings(run, shaping))
    scored = _scored_pairs_stage(run, shaping, shaped)
    manifest = scored.make(run)
    card = described | {"reward_model": _model_of(run)}
    storage.write_text(run.path(f"{scored.name}/{CARD}"), json.dumps(card, indent=2))
    storage.write_text(run.path(f"{scored.name}/{CHART}"), chart)
    return manifest


def stages(run: Run, shaping: str | None = None) -> list[Stage]:
    """The rewards of each judge, what they say together, and the pairs that are scored by it."""
    return [*_rewards_stages(run), _scored_pairs_stage(run, shaping)]


def _rewards_stages(run: Run) -> list[Stage]:
    judges = run.config.scoring.judges
    combined = [_combining_stage(judges)] if len(judges) > 1 else []
    return [*map(_judging_stage, judges), *combined]


def _named_shaping(run: Run, shaping: str | None) -> str | None:
    """The arm whose pairs these are; None for those that `scoring.shaping` shapes."""
    arm = run.config.editor.arm
    return shaping or (arm if arm in SHAPINGS else None)


def _shaping_settings(run: Run, shaping: str | None) -> Scoring:
    named = _named_shaping(run, shaping)
    return run.config.scoring.model_copy(update={"shaping": named} if named else {})


def _model_of(run: Run) -> str:
    """Names all judges together."""
    settings = run.config.scoring
    digests = [_digest(run, judge) for judge in settings.judges]
    return digests[0] if len(digests) == 1 else id_for(settings.combine, *digests)


def _scored_pairs_stage(run: Run, shaping: str | None, shaped: RewardShaping | None = None) -> TableStage:
    """The pairs with their weights or levels; `shaped` is what all rewards say together, where that is known."""
    named, rewards = _named_shaping(run, shaping), rewards_name(run.config.scoring.judges)

    def compute_fingerprint(run: Run) -> Fingerprint:
        settings = _shaping_settings(run, shaping)
        # The rewards' digest speaks for CLIP and the vision model.
        settings = settings.model_copy(update={"clip": "", "vision": VisionJudge()})
        digest, editor = table_digest(run.path(rewards)), model_digest(run.config.editor.start)
        return fingerprint(settings, rewards=digest, editor=editor)

    def plan(run: Run) -> MapTable:
        settings = _shaping_settings(run, shaping)
        return map_table(
            run.path("pairs"), PAIRS, PairShaper, produces=SCORED_PAIRS, resources=Resources(num_gpus=0),
            rows_per_shard=256, rewards=run.path(rewards), shaping=settings.shaping,
            feedback=shaped or _feedback(run, settings)[0], model=_model_of(run),
        )  # fmt: skip

    return TableStage(
        name=f"scored_pairs_{named}" if named else "scored_pairs", schema=SCORED_PAIRS, reads=("pairs", rewards),
        fingerprint=compute_fingerprint, plan=plan, least_kept=lambda run: run.config.scoring.least_kept,
    )  # fmt: skip


def weighted(run: Run) -> Manifest:
    """The scored pairs of the arm `weighted`."""
    return build(run, "weighted")


def build_for_arm(run: Run) -> Manifest:
    """The scored pairs that the run's arm is trained on; where no arm was named, those of `finetuned`."""
    arm = run.feedback_arm
    if arm in SHAPINGS:
        return build(run, arm)
    if run.arm not in ("finetuned", Run.arm):
        raise ValueError(f"arm {run.arm!r} has no scored pairs; choose one of finetuned, {', '.join(SHAPINGS)}")
    return build(run)


def rewards_name(judges: tuple[str, ...]) -> str:
    """The table of what these judges say: `rewards` of the reward model alone, rewards_<judge>, or rewards_combined."""
    judge, *others = judges
    if others:
        return "rewards_combined"
    return "rewards" if judge == "model" else f"rewards_{re.sub(r'[.:]', '_', judge)}"


def _digest(run: Run, judge: str) -> str:
    """Names a judge by all that its rewards depend on."""
    settings = run.config.scoring
    if judge == "model":
        return model_digest(run.path("reward"))
    if judge in CLIP_MEASURES:
        return id_for(judge, model_digest(settings.clip))
    if judge == "openai":
        return id_for(judge, settings.vision.model_dump_json(exclude={"spending", "send_seed"}))
    return id_for(judge, judge_source_code(judge))


def plan_scoring(run: Run, judge: str) -> MapTable:
    """How a judge's rewards are made; an endpoint's answers are kept in <run>/judge_answers."""
    settings = run.config.scoring
    over_http = settings.resources.model_copy(update={"num_gpus": 0.0})
    return map_table(
        run.path("pairs"), PAIRS, PairScorer, produces=REWARDS, rows_per_shard=256,
        resources=over_http if judge == "openai" else settings.resources,
        judge=judge, settings=settings, reward=run.path("reward"), answers=run.path("judge_answers"),
    )  # fmt: skip


def _judging_stage(judge: str) -> TableStage:
    """The table of one judge's rewards."""

    def compute_fingerprint(run: Run) -> Fingerprint:
        return fingerprint_of(pairs=table_digest(run.path("pairs")), reward=_digest(run, judge))

    def plan(run: Run) -> MapTable:
        if judge == "openai":
            storage.remove_unfinished(run.path("judge_answers"))
            ask_first(run)
        return plan_scoring(run, judge)

    return TableStage(
        name=rewards_name((judge,)), schema=REWARDS, reads=("pairs", "reward") if judge == "model" else ("pairs",),
        fingerprint=compute_fingerprint, plan=plan, least_kept=lambda run: run.config.scoring.least_kept,
    )  # fmt: skip


def ask_first(run: Run) -> None:
    """Have the vision model judge the first pairs before the cluster does; what it answers is kept.

    EndpointError or `Stopped` says why nothing comes, or nothing that can be used. Where all of the first answers are
    kept already, the endpoint is not looked for.
    """
    from hive_ray.language.endpoint import TRIAL_ROWS, stop_if_unusable  # here: the openai client takes long to import
    from hive_ray.language.openai_client import check_endpoint
    from hive_ray.reward.vision import VisionScorer

    settings, answers = run.config.scoring.vision, run.path("judge_answers")
    scorer = VisionScorer(settings, answers)
    first = list(islice(read_rows(run.path("pairs"), PAIRS), TRIAL_ROWS))
    if not all(scorer.is_answered(row) for row in first):
        check_endpoint(settings.llm, "scoring.vision.llm")
    advice = "See scoring.vision.llm and .structure"
    stop_if_unusable("rewards", map_rows(scorer, first), advice)


def _combining_stage(judges: tuple[str, ...]) -> TableStage:
    """The table of what all judges say together."""
    names = {judge: rewards_name((judge,)) for judge in judges}

    def compute_fingerprint(run: Run) -> Fingerprint:
        digests = {judge: table_digest(run.path(name)) for judge, name in names.items()}
        return fingerprint_of(how=run.config.scoring.combine, **digests)

    return TableStage(
        name=rewards_name(judges), schema=REWARDS, reads=tuple(names.values()), fingerprint=compute_fingerprint,
        rows=_combined, least_kept=lambda run: run.config.scoring.least_kept,
    )  # fmt: skip


def _combined(run: Run) -> list[Result]:
    """What all judges say together of the pairs that each of them scored."""
    settings = run.config.scoring
    rewards = [rewards_of(run.path(rewards_name((judge,)))) for judge in settings.judges]
    pair_ids = [pair_id for pair_id in rewards[0] if all(pair_id in one for one in rewards)]
    rows: list[Result] = [Dropped("no_reward")] * (len(set().union(*rewards)) - len(pair_ids))
    if pair_ids:
        combined = combine_rewards(
            np.array([[one[pair_id] for pair_id in pair_ids] for one in rewards]), settings.combine
        )
        rows += [
            {"pair_id": pair_id, "reward": float(reward)} for pair_id, reward in zip(pair_ids, combined, strict=True)
        ]
    return rows


def _feedback(run: Run, settings: Scoring) -> tuple[RewardShaping, dict[str, Any], str]:
    """What all rewards say together, their distribution in numbers, and a chart of it.

    The tokenizer of what `editor` starts from makes room for the phrase. The distribution is said in a line, too, so
    that a reward model that says nothing is seen on the day.
    """
    editor = run.config.editor
    reward_of = rewards_of(run.path(rewards_name(settings.judges)))
    columns = ["pair_id", "instruction", "origin"]
    rows = [row for row in read_rows(run.path("pairs"), PAIRS, columns) if row["pair_id"] in reward_of]
    instructions, values = [row["instruction"] for row in rows], np.array([reward_of[row["pair_id"]] for row in rows])
    tokenizer = load_tokenizer(editor.start, editor.single_file)
    shaped = fit_shaping(instructions, values, settings, partial(append_suffix, tokenizer))
    advantages = np.array([shaped.advantage(*row) for row in zip(instructions, values, strict=True)])
    said = distribution.describe_rewards(values, advantages, shaped)
    say(distribution.summary_sentence(said), stage="rewards")
    return shaped, said, distribution.reward_histogram(advantages, [row["origin"] for row in rows], shaped)
