"""Evaluation of a reward model on held-out rankings: its accuracy, other predictors, calibration and probes.

held-out rankings, RewardModel -> evaluate_reward_model -> the model's card and the report

Remarks about differences follow their confidence intervals. `accuracies.py` compares rewards with ranks.

N rankings, K edits of each; a rank of 0 is padding
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from hive_ray import config
from hive_ray.reward.accuracies import (
    ACCURACY,
    Predictions,
    accuracies,
    accuracy_across_prompts,
    accuracy_differences,
    accuracy_intervals,
    describe_difference,
)
from hive_ray.reward.judges import CLIP_MEASURES, ClipScorer
from hive_ray.reward.model import RewardModel
from hive_ray.reward.objective import (
    Remedies,
    loss_from_settings,
    measure_rewards,
    preference_mask,
    warning_for,
)
from hive_ray.reward.predictors import (
    PEOPLE,
    clear_preferences,
    measure_edits,
    predict,
    predictions_by_clip,
    predictions_by_people,
)
from hive_ray.reward.probes import PROBES, run_probes
from hive_ray.schemas import Rows
from hive_ray.statistics.intervals import Interval
from hive_ray.statistics.preferences import preference_loss

COMPARISONS = {
    "held_out_before_training": "reward model before training",
    "another_person": "one other person",
    "all_others": "all other people together",
    "clip_direction": "CLIP direction",
    "clip_image": "CLIP image",
    "clip": "CLIP direction + image",
    "blip_start": "BLIP before training",
    "blip": "BLIP alone",
    "denoising_error": "denoising errors alone",
    "sum": "BLIP + denoising errors + CLIP",
}
"""Other predictors of the held-out rankings, by their names in the card."""
HELD_OUT_FILE = "held_out.json"
"""In a reward model's folder: (right, total) by accuracy and held-out prompt, to compare models on the same prompts."""
NOTHING_HELD_OUT = {"warning": "no ranking was held out, so its accuracy is unknown; raise reward.held_out_rate"}
MIN_NOTICED_RATE = 0.75
"""A probe is noticed if the true edit has the greater reward at least this often; guessing gives 0.5."""
MIN_AGREEMENT = 0.6
"""People agree little if they predict a smaller share of each other's preferences."""
NUM_BINS = 5
"""Bins of the calibration."""
MIN_KIND_RANKINGS = 5
"""Kinds of edits with fewer rankings are left out."""


def evaluate_reward_model(
    predictions: Predictions, model: RewardModel, start: RewardModel, clip: str, rows: Rows, settings: config.Reward
) -> dict[str, Any]:
    """The evaluation in a reward model's card, on RANKINGS rows that it was not trained on.

    predictions: the model's. start: the model before training. clip: the CLIP folder or hub name of the baselines.
    """
    similarities = measure_edits(ClipScorer(clip).similarities, rows)
    others = predictions_by_people(rows) | predictions_by_clip(similarities, predictions, rows)
    return evaluation_card(predictions, predict(start, rows), others, run_probes(model, rows), rows, settings)


def evaluation_card(
    predictions: Predictions,
    before_training: Predictions,
    others: Mapping[str, Predictions],
    probe_rates: Mapping[str, Interval],
    rows: Rows,
    settings: config.Reward,
    remedies: Remedies = Remedies(),  # noqa: B008 - immutable
) -> dict[str, Any]:
    """The evaluation of a reward model on N held-out rankings, as its card holds it.

    predictions: its own. before_training: those of the model before training. others: those of other predictors, by
    their names in COMPARISONS. probe_rates: the result of `run_probes`. rows: the N rankings.
    """
    compared = {"held_out_before_training": before_training} | dict(others)
    card = {
        "held_out": measure_predictions(predictions, settings),
        "held_out_before_training": measure_predictions(before_training, settings),
        "beside": {name: accuracies(theirs) for name, theirs in others.items()},
        "minus": {
            name: accuracy_differences(predictions.counts(), theirs.counts()) for name, theirs in compared.items()
        },
    }
    bins = calibration(predictions.rewards, predictions.ranks, settings)
    # Ranks of different prompts cannot be compared, so people are left out.
    across_prompts = {"held_out": accuracy_across_prompts(predictions)}
    for name, theirs in compared.items():
        if name not in PEOPLE:
            across_prompts[name] = accuracy_across_prompts(theirs)
    clear = clear_preferences(predictions, rows)
    return card | {
        "shared": accuracies(clear) | {"preferences": len(clear.prompts)} if clear else {},
        "across_prompts": across_prompts,
        "held_out_rankings": len(predictions.prompts),
        "held_out_prompts": len(set(predictions.prompts)),
        "kinds": accuracies_by_kind(predictions, [row["instruction"] for row in rows]),
        "noticed": {name: asdict(rate) for name, rate in probe_rates.items()},
        "calibration": bins,
        "calibration_error": calibration_error(bins),
        "warning": warning_for(card["held_out"], remedies) or "",
        "remarks": remarks(card, probe_rates),
    }


def measure_predictions(predictions: Predictions, settings: config.Reward) -> dict[str, Any]:
    """`measure_rewards` of predictions, with the `accuracy_intervals` of their accuracies."""
    measures = measure_rewards(predictions.rewards, predictions.ranks, loss_from_settings(settings))
    return {**measures, "intervals": accuracy_intervals(predictions)}


def accuracies_by_kind(predictions: Predictions, instructions: list[str]) -> dict[str, dict[str, Any]]:
    """Accuracies by kind of edit, the first word of its instruction; only kinds with MIN_KIND_RANKINGS rankings."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, instruction in enumerate(instructions):
        places[(instruction.lower().split() or [""])[0]].append(place)
    frequent = [kind for kind in places if len(places[kind]) >= MIN_KIND_RANKINGS]
    frequent.sort(key=lambda kind: (-len(places[kind]), kind))
    return {kind: accuracies(predictions.select(places[kind])) | {"rankings": len(places[kind])} for kind in frequent}


def calibration(rewards: Tensor, ranks: Tensor, settings: config.Reward) -> list[dict[str, float]]:
    """Confidence and accuracy of a model's preferences, in NUM_BINS equal bins of the confidence, 0.5..1.

    rewards, ranks: (N, K). The confidence in a preference is the probability of the edit with the greater reward,
    P(better) / (P(better) + P(worse)), by the likelihood of the loss. Bins without preferences are left out.
    """
    threshold = settings.tie_threshold if settings.loss == "rao_kupper" else 1.0
    margins = (rewards[:, :, None] - rewards[:, None, :])[preference_mask(ranks)].double() / settings.temperature
    margin = margins.abs()
    tied = torch.zeros(len(margins), dtype=torch.bool)
    confidence = torch.sigmoid(preference_loss(-margin, tied, threshold) - preference_loss(margin, tied, threshold))
    right = (margins.sign() + 1) / 2
    place = ((confidence - 0.5) * 2 * NUM_BINS).long().clamp(max=NUM_BINS - 1)
    bins = []
    for number in range(NUM_BINS):
        inside = place == number
        if inside.any():
            bins.append({
                "predicted": confidence[inside].mean().item(),
                "observed": right[inside].mean().item(),
                "preferences": int(inside.sum()),
            })  # fmt: skip
    return bins


def calibration_error(bins: list[dict[str, float]]) -> float:
    """Expected calibration error: the mean over preferences of |predicted - observed| (Guo et al. 2017); 0 if none."""
    total = sum(part["preferences"] for part in bins)
    distance = sum(part["preferences"] * abs(part["predicted"] - part["observed"]) for part in bins)
    return distance / total if total else 0.0


def remarks(card: Mapping[str, Any], probe_rates: Mapping[str, Interval]) -> list[str]:
    """Sentences that warn of a model that is not better than a simple baseline or misses a probe, by the intervals.

    card: `held_out`, `held_out_before_training`, `beside` and `minus` of the model's card. probe_rates: the result of
    `run_probes`.
    """
    ours, minus = card["held_out"][ACCURACY], {name: gap for name, gap in card["minus"].items() if gap}
    sentences = []
    for name in CLIP_MEASURES:
        if name in minus:
            sentences += _comparison_remarks(
                minus[name],
                f"{name} ranks held-out edits better, with no training",
                f"it is not shown to be better than {name}, which needs no training",
                f"{card['beside'][name][ACCURACY]:.2f} against {ours:.2f}",
            )
    if "held_out_before_training" in minus:
        sentences += _comparison_remarks(
            minus["held_out_before_training"],
            "training made it worse on held-out edits",
            "training is not shown to have helped",
            f"{card['held_out_before_training'][ACCURACY]:.2f} before it, {ours:.2f} after",
        )
    bounds = card["beside"].get("another_person", {}).get("intervals", {}).get(ACCURACY)
    if bounds:
        sentences += _agreement_remarks(Interval(**bounds))
    for name, rate in probe_rates.items():
        sentences += _probe_remarks(PROBES[name], rate)
    return sentences


def _comparison_remarks(difference: Mapping[str, Any], worse: str, unsure: str, figures: str) -> list[str]:
    """A remark on the difference of two models' accuracies; none if the first is significantly better."""
    gap = Interval(**difference[ACCURACY])
    if gap.low > 0:
        return []
    return [f"{worse if gap.high < 0 else unsure}: {figures} ({describe_difference(difference)})"]


def _agreement_remarks(agreement: Interval) -> list[str]:
    figures = _with_chance(agreement)
    if agreement.high < MIN_AGREEMENT:
        return [f"people agree little with each other ({figures}): no model can learn much from them"]
    return [f"people are not shown to agree at all ({figures})"] if agreement.low <= 0.5 else []


def _probe_remarks(change: str, rate: Interval) -> list[str]:
    """A remark on how often the true edit has a greater reward than a probe; none if the interval is high enough."""
    if rate.low >= MIN_NOTICED_RATE:
        return []
    evidence = f"the true edit has the greater reward at a rate of {_with_chance(rate)}"
    if rate.high < MIN_NOTICED_RATE:
        return [f"it does not notice {change}: {evidence}"]
    return [f"it is not shown to notice {change}: {evidence}"]


def _with_chance(share: Interval) -> str:
    return f"{share.value:.2f}, 95 % interval {share.low:.2f} to {share.high:.2f}; chance is 0.50"
