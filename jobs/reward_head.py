"""A reward model on the editor's denoising errors, beside or without BLIP: a linear head that rankings fit.

rankings, editors/sft -> denoising_errors
rankings, reward_blip -> reward_measures
both -> reward

Pictures are seen on the cluster alone; numbers come back, and the head is fitted here. The editor is the first round's
in every round, so that one reward means one thing, whichever editor made the edits.
"""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hive_ray import config, console, storage
from hive_ray.artifacts.manifest import Fingerprint, fingerprint_of, table_digest
from hive_ray.artifacts.model_store import model_digest, store_model
from hive_ray.artifacts.selection import read_edit_ids, read_rows, select
from hive_ray.cluster.mapping import MapTable, map_table
from hive_ray.editor.denoising_errors import ErrorMeasurer, evaluations_per_edit, feature_names
from hive_ray.reward.accuracies import ACCURACY, Predictions
from hive_ray.reward.card import RewardCard
from hive_ray.reward.head import LinearHead, deviation_within_prompts, fit_head
from hive_ray.reward.judges import CLIP_MEASURES, EditMeasurer
from hive_ray.reward.model import is_reward_model
from hive_ray.reward.model_evaluation import HELD_OUT_FILE, NOTHING_HELD_OUT, evaluation_card, measure_predictions
from hive_ray.reward.objective import Remedies, is_held_out, is_trained_on, loss_from_settings, measure_rewards
from hive_ray.reward.predictors import measurable_rows, predictions_by_clip, predictions_by_people
from hive_ray.schemas import DENOISING_ERRORS, EDIT_MEASURES, RANKINGS, Rows
from hive_ray.statistics.agreement import RankingError, check_ranks
from jobs.actors.judging import BLIP, BLIP_FEATURE, CLIP_FEATURE, Head, portable, relative_to
from jobs.run import Run
from jobs.stage import ModelStage, StagesOfModel, TableStage

ERRORS = "denoising_errors"
COLUMNS = ("ranking_id", "prompt_id", "instruction", "source_caption", "edited_caption", "ranks")
HEAD_SETTINGS = ("denoisingerror.ridge", "denoisingerror.train_blip", "denoisingerror.clip_image")
"""Settings that change no error."""
GUIDED_PASSES = 3
"""Network evaluations of a step of sampling: with instruction and source, with the source, with neither."""
REMEDIES = Remedies(
    diverged="its features are not finite; look at the table denoising_errors",
    nothing_learned="collect more rankings, or check that they are not random",
    overfitted="collect more rankings, or raise reward.denoising_error.ridge",
)


@dataclass(frozen=True)
class MeasuredRankings:
    """Rankings without pictures, and what was measured of their edits; 0 where an edit is not there.

    N rankings, K edits of each, F features.
    """

    rows: Rows
    """RANKINGS rows; of edits, the ids."""
    ranks: Tensor
    """(N, K)"""
    features: Tensor
    """(N, K, F), the errors and, where they are features, CLIP's similarity and BLIP's reward."""
    similarities: Mapping[str, Tensor]
    """"blip", "clip_direction" and "clip_image", (N, K) each."""

    def predictions(self, rewards: Tensor) -> Predictions:
        """What rewards (N, K) foretell."""
        return Predictions(rewards, self.ranks, [row["prompt_id"] for row in self.rows])


def stages(name: str, share: float, blip: str = "") -> StagesOfModel:
    """What is measured of the ranked edits, and the model <run>/<name>, by the rankings of this share of the prompts
    that are not held out.

    blip: the name of the BLIP model in the run that is one more feature.
    """
    return ERRORS_STAGE, _measures_stage(f"{name}_measures", blip), _head_stage(name, share, blip)


def _head_stage(name: str, share: float, blip: str) -> ModelStage:
    measures_name = f"{name}_measures"

    def compute_fingerprint(run: Run) -> Fingerprint:
        settings, rankings = run.config.reward, run.ranking_tables()
        made_from = fingerprint_of(
            settings.denoising_error, features=settings.features, loss=settings.loss,
            tie_threshold=f"{settings.tie_threshold:g}", temperature=f"{settings.temperature:g}",
            held_out_rate=f"{settings.held_out_rate:g}", share=f"{share:g}", rankings=table_digest(*rankings),
            errors=table_digest(run.path(ERRORS)), measures=table_digest(run.path(measures_name)),
        )  # fmt: skip
        if len(settings.denoising_error.conditions) > 1 and not settings.denoising_error.clip_image:
            # Heads that were made before had a weight for the instruction's errors alone. None of them saw CLIP.
            made_from["head"] = "a weight for each condition"
        return made_from

    def store(run: Run, made_from: Fingerprint) -> None:
        settings, rankings, editor = run.config.reward, run.ranking_tables(), run.path("editors/sft")
        measures, out = run.path(measures_name), run.path(name)
        started = time.monotonic()
        learned, unseen, bad = split_rankings(run, measures, share, with_blip=bool(blip))
        beside = extra_features(settings, with_blip=bool(blip))
        names = (*feature_names(settings.denoising_error), *beside.values())
        linear = fit(learned, names, settings)
        ours = unseen.predictions(linear(unseen.features))
        content = {
            "rankings": table_digest(*rankings),
            "features": list(names),
            "bad_rankings": bad,
            "cost": cost(run.config),
            "train": measure_predictions(learned.predictions(linear(learned.features)), settings),
            "train_rankings": len(learned.rows),
            "train_prompts": len({row["prompt_id"] for row in learned.rows}),
            **(evaluate_head(ours, unseen, learned, linear, settings) if unseen.rows else NOTHING_HELD_OUT),
        }
        card = RewardCard.model_validate(content)
        print_card(card)
        root = run.rounds[0].root
        clip = run.config.evaluation.clip if settings.denoising_error.clip_image else ""
        head = Head(
            linear, settings.denoising_error, relative_to(out, editor, root), model_digest(editor),
            portable(clip) if clip else "", model_digest(clip) if clip else "",
        )  # fmt: skip

        def save(folder: Path) -> None:
            head.save(folder)
            if blip:
                shutil.copytree(storage.fetch_folder(run.path(blip)), folder / BLIP)
            if unseen.rows:
                (folder / HELD_OUT_FILE).write_text(json.dumps(ours.counts()))
            (folder / "card.json").write_text(json.dumps(card.to_json(), indent=2))

        metrics = measure_rewards(linear(learned.features), learned.ranks, loss_from_settings(settings))
        store_model(out, save, made_from, metrics, time.monotonic() - started)

    return ModelStage(name=name, reads=(ERRORS, measures_name), fingerprint=compute_fingerprint, store=store)


def extra_features(settings: config.Reward, *, with_blip: bool) -> dict[str, str]:
    """The features after the errors: their columns in EDIT_MEASURES and their names, in their order."""
    names = {}
    if settings.denoising_error.clip_image:
        names["clip_image"] = CLIP_FEATURE
    if with_blip:
        names["blip"] = BLIP_FEATURE
    return names


def _errors_fingerprint(run: Run) -> Fingerprint:
    settings = run.config.reward
    made_from = fingerprint_of(
        settings.denoising_error, rankings=table_digest(*run.ranking_tables()),
        editor=model_digest(run.path("editors/sft")), **_held_out_rate(settings),
    )  # fmt: skip
    return {key: value for key, value in made_from.items() if key not in HEAD_SETTINGS}


def _measure_errors(run: Run) -> MapTable:
    settings, rankings = run.config.reward, run.ranking_tables()
    edits_of = new_edits_by_ranking(rankings, settings)
    return map_table(
        rankings, RANKINGS, ErrorMeasurer, produces=DENOISING_ERRORS, resources=settings.resources,
        where={"ranking_id": edits_of.__contains__}, editor=run.path("editors/sft"),
        settings=settings.denoising_error, edits_of=edits_of,
    )  # fmt: skip


ERRORS_STAGE = TableStage(
    name=ERRORS, schema=DENOISING_ERRORS, reads=("rankings", "editors/sft"), fingerprint=_errors_fingerprint,
    plan=_measure_errors,
)  # fmt: skip
"""The denoising errors of all ranked edits, in all rounds so far."""


def _measures_stage(name: str, blip: str) -> TableStage:
    """BLIP's rewards and CLIP's similarities of all ranked edits. `blip` is a model of the run; "" stands for what
    training would start from."""

    def blip_of(run: Run) -> str:
        return run.path(blip) if blip else blip_at_start(run.config.reward)

    def compute_fingerprint(run: Run) -> Fingerprint:
        settings, address = run.config.reward, blip_of(run)
        made_from: Fingerprint = fingerprint_of(
            rankings=table_digest(*run.ranking_tables()), clip=model_digest(run.config.evaluation.clip),
            blip=model_digest(address) if address else "", **_held_out_rate(settings),
        )  # fmt: skip
        if settings.denoising_error.learned_rate < 1:
            made_from["denoisingerror.learned_rate"] = settings.denoising_error.learned_rate
        return made_from

    def plan(run: Run) -> MapTable:
        settings, rankings = run.config.reward, run.ranking_tables()
        edits_of = new_edits_by_ranking(rankings, settings)
        return map_table(
            rankings, RANKINGS, EditMeasurer, produces=EDIT_MEASURES, resources=settings.resources,
            where={"ranking_id": edits_of.__contains__}, clip=run.config.evaluation.clip, edits_of=edits_of,
            blip=blip_of(run),
        )  # fmt: skip

    reads = ("rankings", blip) if blip else ("rankings",)
    return TableStage(name=name, schema=EDIT_MEASURES, reads=reads, fingerprint=compute_fingerprint, plan=plan)


def blip_at_start(settings: config.Reward) -> str:
    """The BLIP that is compared with errors alone: what training would start from, if it is a reward model already."""
    return settings.start if is_reward_model(storage.fetch_model(settings.start)) else ""


def _held_out_rate(settings: config.Reward) -> dict[str, str]:
    """What decides which prompts are measured, where not all are."""
    is_part = settings.denoising_error.learned_rate < 1
    return {"held_out_rate": f"{settings.held_out_rate:g}"} if is_part else {}


def share_of_head(settings: config.Reward, share: float) -> float:
    """The share of the prompts that BLIP leaves to the head, of the share that both learn from. A head that is fitted
    to rankings that BLIP knows trusts it too much (stacked generalisation, Wolpert 1992). 0 where the head has all."""
    rate = settings.denoising_error.learned_rate
    return share * rate if rate < 1 else 0.0


def is_measured(prompt_id: str, settings: config.Reward) -> bool:
    """Whether the head is fitted to, or measured on, the rankings of this prompt."""
    rate = settings.held_out_rate
    return is_held_out(prompt_id, rate) or is_trained_on(prompt_id, rate, settings.denoising_error.learned_rate)


def new_edits_by_ranking(rankings: Sequence[str], settings: config.Reward) -> dict[str, list[str]]:
    """By ranking_id, the ids of the edits that no ranking before it had: several people rank the same edits. Rankings
    that the head never reads are left out."""
    known: set[str] = set()
    edits_of: dict[str, list[str]] = {}
    for file in select(rankings, RANKINGS).files:
        for row in read_edit_ids(file, "ranking_id", "prompt_id"):
            if not is_measured(row["prompt_id"], settings):
                continue
            new = [edit["edit_id"] for edit in row["edits"] if edit["edit_id"] not in known]
            known.update(new)
            if new:
                edits_of[row["ranking_id"]] = new
    return edits_of


def split_rankings(
    run: Run, measures: str, share: float, *, with_blip: bool
) -> tuple[MeasuredRankings, MeasuredRankings, int]:
    """The rankings that are learned from, those that are held out, and how many were left out: whose ranks are no order
    of their edits, or with an edit of which nothing could be measured."""
    errors = {row["edit_id"]: row["features"] for row in read_rows(run.path(ERRORS), DENOISING_ERRORS)}
    beside = {row["edit_id"]: row for row in read_rows(measures, EDIT_MEASURES)}
    settings, bad = run.config.reward, 0
    rate, share = settings.held_out_rate, share * settings.denoising_error.learned_rate
    learned: Rows = []
    unseen: Rows = []
    for file in select(run.ranking_tables(), RANKINGS).files:
        for row in read_edit_ids(file, *COLUMNS):
            held_out = is_held_out(row["prompt_id"], rate)
            if not held_out and not is_trained_on(row["prompt_id"], rate, share):
                continue
            why = problem_with_ranking(
                row["ranks"], [edit["edit_id"] for edit in row["edits"]], errors.keys() & beside.keys()
            )
            if why:
                bad += 1
                console.warn(f"not used: {row['ranking_id']}: {why}", stage="reward")
            else:
                (unseen if held_out else learned).append(row)
    columns = [*extra_features(settings, with_blip=with_blip)]
    return stack_measures(learned, errors, beside, columns), stack_measures(unseen, errors, beside, columns), bad


def problem_with_ranking(ranks: list[int], edit_ids: list[str], known: set[str]) -> str:
    """Why a ranking cannot be used; "" if it can."""
    try:
        check_ranks(ranks, len(edit_ids))
    except RankingError as error:
        return str(error)
    missing = [edit_id for edit_id in edit_ids if edit_id not in known]
    return f"nothing was measured of {', '.join(missing)}" if missing else ""


def stack_measures(
    rows: Rows, errors: Mapping[str, Sequence[float]], beside: Mapping[str, Mapping[str, Any]], columns: Sequence[str]
) -> MeasuredRankings:
    """Rankings with what was measured of their edits by edit_id. `columns`: those of `beside` that are features
    after the errors."""
    num_edits = max((len(row["edits"]) for row in rows), default=0)
    num_errors = len(next(iter(errors.values())))
    ranks = torch.zeros(len(rows), num_edits, dtype=torch.long)
    features = torch.zeros(len(rows), num_edits, num_errors, dtype=torch.float64)
    similarities = {name: torch.zeros(len(rows), num_edits) for name in ("blip", "clip_direction", "clip_image")}
    for place, row in enumerate(rows):
        for edit, (found, rank) in enumerate(zip(row["edits"], row["ranks"], strict=True)):
            ranks[place, edit] = rank
            features[place, edit] = torch.tensor(errors[found["edit_id"]])
            for name, table in similarities.items():
                table[place, edit] = beside[found["edit_id"]][name]
    features = torch.cat([features, *(similarities[name][:, :, None].double() for name in columns)], dim=2)
    return MeasuredRankings(rows, ranks, features, similarities)


def fit(learned: MeasuredRankings, names: Sequence[str], settings: config.Reward) -> LinearHead:
    """The head of the first features, which have these names."""
    features = learned.features[:, :, : len(names)]
    believed = prior_rewards(names)
    return fit_head(
        features, learned.ranks, names, loss_from_settings(settings), settings.denoising_error.ridge, believed
    )


def evaluate_head(
    ours: Predictions, unseen: MeasuredRankings, learned: MeasuredRankings, linear: LinearHead, settings: config.Reward
) -> dict[str, Any]:
    """What the model is worth on rankings that it never saw, beside people, CLIP, BLIP, errors, and their sum."""
    untaught = replace(linear, weights=prior_rewards(linear.names)[0])
    before = unseen.predictions(untaught(unseen.features))
    beside = other_predictions(ours, unseen, learned, linear, settings)
    return evaluation_card(ours, before, beside, {}, unseen.rows, settings, REMEDIES)


def other_predictions(
    ours: Predictions, unseen: MeasuredRankings, learned: MeasuredRankings, linear: LinearHead, settings: config.Reward
) -> dict[str, Predictions]:
    """What others foretell of the same rankings, by their names in COMPARISONS."""
    beside = predictions_by_people(unseen.rows) | predictions_by_clip(unseen.similarities, ours, unseen.rows)
    error_names = feature_names(settings.denoising_error)
    has_blip, errors_alone = BLIP_FEATURE in linear.names, linear.names == error_names
    errors = linear if errors_alone else fit(learned, error_names, settings)
    by_errors, blip = errors(unseen.features[:, :, : len(error_names)]), unseen.similarities["blip"]
    if not errors_alone:
        beside["denoising_error"] = unseen.predictions(by_errors)
    if blip.isnan().any():
        return beside
    beside["blip" if has_blip else "blip_start"] = unseen.predictions(blip)
    if "clip" in beside:
        clip = unseen.similarities["clip_direction"] + unseen.similarities["clip_image"]
        those = measurable_rows(unseen.rows, CLIP_MEASURES["clip"])
        beside["sum"] = unseen.predictions(sum_standardised([by_errors, blip, clip], unseen.ranks)).select(those)
    return beside


def prior_rewards(names: Sequence[str]) -> Tensor:
    """Rewards (D, F) that the head is made of before any ranking corrects it, the first of them alone until one says
    more: minus the mean error with the instruction; the mean error under each other condition, which says how hard a
    picture is; CLIP's similarity; BLIP's reward."""
    told = [name.endswith(", instruction") for name in names]
    others = [[name.endswith(f", {condition}") for name in names] for condition in ("source", "nothing")]
    beside = [[name == feature for name in names] for feature in (CLIP_FEATURE, BLIP_FEATURE)]
    features = torch.tensor([told, *(of_one for of_one in (*others, *beside) if any(of_one))], dtype=torch.float64)
    means = features / features.sum(1, keepdim=True)
    means[0] *= -1
    return means


def sum_standardised(rewards: Sequence[Tensor], ranks: Tensor) -> Tensor:
    """The sum of rewards (N, K) of several judges, each over its spread within prompts."""
    table = torch.stack([one.double() for one in rewards], dim=2)
    return (table / deviation_within_prompts(table, ranks > 0)).sum(2)


def cost(settings: config.Config) -> dict[str, int]:
    """Network evaluations for one edit: to score it, and to sample it with guidance by text and image."""
    sampling = settings.candidates.num_inference_steps * GUIDED_PASSES
    scoring = evaluations_per_edit(settings.reward.denoising_error)
    return {"network_evaluations": scoring, "network_evaluations_of_sampling": sampling}


def print_card(card: RewardCard) -> None:
    """Print what a person should know of the model."""
    if card.warning:
        console.warn(card.warning, stage="reward")
    for words in card.remarks:
        console.say(words, stage="reward")
    costs = card.cost
    console.say(
        f"an edit takes {costs['network_evaluations']} network evaluations to score, "
        f"{costs['network_evaluations_of_sampling']} to sample",
        stage="reward",
    )
    if card.held_out:
        console.tell_result(
            f"accuracy {card.held_out[ACCURACY]:.3f} on held-out preferences, "
            f"{card.held_out_before_training[ACCURACY]:.3f} before training by {card.train_rankings} rankings",
            stage="reward",
        )
