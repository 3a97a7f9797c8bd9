"""Evaluation of a reward model: against people, against CLIP, and on edits that no person would prefer.

held-out rankings, RewardModel -> evaluate_reward_model -> the model's card and the report

Remarks about differences follow their confidence intervals. `accuracies.py` compares rewards with ranks.

N rankings, K edits of each; a rank of 0 is padding
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hive_ray import config
from hive_ray.images import decode, encode, resize
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
from hive_ray.reward.model import RewardModel, ScoringModel
from hive_ray.reward.objective import (
    Remedies,
    loss_from_settings,
    measure_rewards,
    predict_rewards,
    preference_mask,
    warning_for,
)
from hive_ray.schemas import Row, Rows
from hive_ray.statistics.intervals import Interval, interval
from hive_ray.statistics.preferences import preference_loss

MIN_NOTICED_RATE = 0.75
"""A probe is noticed if the true edit is preferred to it at least this often; guessing gives 0.5."""
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
PEOPLE = ("another_person", "all_others")
HELD_OUT_FILE = "held_out.json"
"""In a reward model's folder: (right, total) by accuracy and held-out prompt, to compare models on the same prompts."""
NOTHING_HELD_OUT = {"warning": "no ranking was held out (reward.held_out_rate): nobody knows what it is worth"}
MIN_AGREEMENT = 0.6
"""People agree little if they predict a smaller share of each other's preferences."""
MIN_PIXEL_CHANGE = 32
"""Levels of 0..255 in any colour from which a pixel counts as changed by an edit."""
NUM_BINS = 5
MIN_KIND_RANKINGS = 5
PROBES = {
    "did_nothing": "an edit that did nothing",
    "destroyed_rest": "an edit that destroyed the rest of the picture",
    "swapped": "source and edited picture swapped",
    "other_instruction": "another instruction",
}
"""Name of a probe -> what a model that fails it does not notice."""


def evaluate_reward_model(
    predictions: Predictions, model: RewardModel, start: RewardModel, clip: str, rows: Rows, settings: config.Reward
) -> dict[str, Any]:
    """The evaluation in a reward model's card, on RANKINGS rows that it was not trained on.

    predictions: the model's. start: the model before training. clip: the CLIP folder or hub name of the baselines.
    """
    before = predict(start, rows)
    beside = predictions_by_people(rows) | predictions_by_clip(
        measure_edits(ClipScorer(clip).similarities, rows), predictions, rows
    )
    noticed = run_probes(model, rows)
    return evaluation_card(predictions, before, beside, noticed, rows, settings)


def predictions_by_clip(
    similarities: Mapping[str, Tensor], predictions: Predictions, rows: Rows
) -> dict[str, Predictions]:
    """The predictions of CLIP's similarities (N, K), by name, for the rankings that CLIP can measure."""
    clip_predictions = {}
    for name, parts in CLIP_MEASURES.items():
        places = measurable_rows(rows, parts)
        if places:
            rewards = sum((similarities[part] for part in parts), start=torch.zeros(()))
            clip_predictions[name] = Predictions(rewards, predictions.ranks, predictions.prompts).select(places)
    return clip_predictions


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
    levelled = {name: accuracy for name, accuracy in compared.items() if name not in PEOPLE}
    clear = clear_preferences(predictions, rows)
    return card | {
        "shared": accuracies(clear) | {"preferences": len(clear.prompts)} if clear else {},
        "across_prompts": {
            name: accuracy_across_prompts(rewards) for name, rewards in ({"held_out": predictions} | levelled).items()
        },
        "held_out_rankings": len(predictions.prompts),
        "held_out_prompts": len(set(predictions.prompts)),
        "kinds": accuracies_by_kind(predictions, [row["instruction"] for row in rows]),
        "noticed": {name: asdict(rate) for name, rate in probe_rates.items()},
        "calibration": bins,
        "calibration_error": calibration_error(bins),
        "warning": warning_for(card["held_out"], remedies) or "",
        "remarks": remarks(card, probe_rates),
    }


def predict(model: RewardModel, rows: Rows) -> Predictions:
    """The predictions of a model for RANKINGS rows."""
    return Predictions(*predict_rewards(model, rows), [row["prompt_id"] for row in rows])


def measure_predictions(predictions: Predictions, settings: config.Reward) -> dict[str, Any]:
    """`measure_rewards` of predictions, with the `accuracy_intervals` of their accuracies."""
    measures = measure_rewards(predictions.rewards, predictions.ranks, loss_from_settings(settings))
    return {**measures, "intervals": accuracy_intervals(predictions)}


def accuracies_by_kind(predictions: Predictions, instructions: list[str]) -> dict[str, dict[str, Any]]:
    """Accuracies by kind of edit, the first word of its instruction; only kinds with LEAST_OF_A_KIND rankings."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, instruction in enumerate(instructions):
        places[(instruction.lower().split() or [""])[0]].append(place)
    frequent = [kind for kind in places if len(places[kind]) >= MIN_KIND_RANKINGS]
    frequent.sort(key=lambda kind: (-len(places[kind]), kind))
    return {kind: accuracies(predictions.select(places[kind])) | {"rankings": len(places[kind])} for kind in frequent}


def predictions_by_people(rows: Rows) -> dict[str, Predictions]:
    """People's predictions of each other where several ranked a prompt: what a model can be expected to reach.

    "another_person": the ranks of each other person take the place of rewards. "all_others": the mean ranks of all
    others do, which predict better. Both are over the preferences of all people; empty if no prompt was shared.
    """
    predictions: dict[str, list[tuple[list[float], list[int], str]]] = {"another_person": [], "all_others": []}
    for (prompt_id, *_), places in _rankings_of(rows).items():
        orders = [rows[place]["ranks"] for place in places]
        for place, order in enumerate(orders):
            others = orders[:place] + orders[place + 1 :]
            for other in others:
                predictions["another_person"].append(([-float(rank) for rank in other], order, prompt_id))
            if others:
                means = [-fmean(ranks) for ranks in zip(*others, strict=True)]
                predictions["all_others"].append((means, order, prompt_id))
    predictions_by = {}
    for name, rankings in predictions.items():
        if rankings:
            rewards, ranks, prompts = zip(*rankings, strict=True)
            predictions_by[name] = Predictions(_padded(rewards), _padded(ranks), prompts)
    return predictions_by


def clear_preferences(predictions: Predictions, rows: Rows) -> Predictions | None:
    """Predictions of the clear preferences, each as a ranking of its two edits; None if there is no clear preference.

    A preference is clear if at least two people have it and nobody has the reverse. rows: the N rankings.
    """
    rewards: list[list[float]] = []
    prompts: list[str] = []
    for (prompt_id, *_), places in _rankings_of(rows).items():
        people = preference_mask(predictions.ranks[places]).sum(0)  # (K, K)
        for better, worse in ((people >= 2) & (people.T == 0)).nonzero().tolist():
            rewards.append(predictions.rewards[places[0], [better, worse]].tolist())
            prompts.append(prompt_id)
    return Predictions(torch.tensor(rewards), torch.tensor([[1, 2]] * len(rewards)), prompts) if rewards else None


def _rankings_of(rows: Rows) -> dict[tuple[str, ...], list[int]]:
    """The places of the rankings of each prompt with the same edits."""
    places: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        places[row["prompt_id"], *(edit["edit_id"] for edit in row["edits"])].append(place)
    return places


def _padded(lists: Sequence[list]) -> Tensor:
    """Lists of different lengths -> (N, K), padded with 0."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(values) for values in lists], batch_first=True)


def predict_by_scoring(model: ScoringModel, rows: Rows) -> Predictions:
    """The predictions of a model of any kind for RANKINGS rows, scored one ranking at a time."""
    rewards = measure_edits(lambda pairs: {"reward": _scores(model, pairs)}, rows)["reward"]
    return Predictions(rewards, _padded([row["ranks"] for row in rows]), [row["prompt_id"] for row in rows])


def _scores(model: ScoringModel, pairs: Rows) -> list[float]:
    return model.score(
        [pair["source_image"] for pair in pairs],
        [pair["edited_image"] for pair in pairs],
        [pair["instruction"] for pair in pairs],
    )


def measure_edits(measure: Callable[[Rows], Mapping[str, Any]], rows: Rows) -> dict[str, Tensor]:
    """Measures of every edit of RANKINGS rows by name: (N, K) each, padded with 0.

    measure: pairs -> the measures of each pair, by name.
    """
    num_edits = max((len(row["edits"]) for row in rows), default=0)
    table_of: dict[str, Tensor] = {}
    for place, row in enumerate(rows):
        pairs = [row | {"edited_image": edit["image"]} for edit in row["edits"]]
        for name, values in measure(pairs).items():
            table = table_of.setdefault(name, torch.zeros(len(rows), num_edits))
            table[place, : len(values)] = torch.as_tensor(values)
    return table_of


def measurable_rows(rows: Rows, measures: tuple[str, ...]) -> list[int]:
    """Places of the rows for which CLIP has these measures: directions need captions, and thumbs have none."""
    captioned = "clip_direction" not in measures
    return [place for place, row in enumerate(rows) if captioned or (row["source_caption"] and row["edited_caption"])]


def calibration(rewards: Tensor, ranks: Tensor, settings: config.Reward) -> list[dict[str, float]]:
    """The model's confidence in preferences and its accuracy, in NUM_BINS equal bins of the confidence, 0.5..1.

    Of two edits with different ranks, the model gives the one with the greater reward the probability
    P(better) / (P(better) + P(worse)), by the likelihood of its loss. Bins without preferences are left out.
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
    """Mean distance of predicted from observed over preferences (Guo et al. 2017); 0 without any."""
    total = sum(part["preferences"] for part in bins)
    distance = sum(part["preferences"] * abs(part["predicted"] - part["observed"]) for part in bins)
    return distance / total if total else 0.0


def run_probes(model: RewardModel, rows: Rows, *, batch_size: int = 32) -> dict[str, Interval]:
    """How often the edit that people ranked best has a greater reward than each of its PROBES; ties count half.

    The first ranking of each prompt counts, and intervals resample prompts. "destroyed_rest" keeps the pixels that the
    edit changed and takes the other pixels from another prompt's source picture. "other_instruction" is the same edit
    with another prompt's instruction. Empty if there is only one instruction.
    """
    firsts = list({row["prompt_id"]: row for row in reversed(rows)}.values())[::-1]
    triplets: list[tuple[bytes, bytes, str]] = []  # the true edit and then its probes, prompt by prompt
    prompts: list[str] = []
    for place, row in enumerate(firsts):
        others = (firsts[(place + step) % len(firsts)] for step in range(1, len(firsts)))
        other = next((candidate for candidate in others if candidate["instruction"] != row["instruction"]), None)
        if other is not None:
            triplets += _probes(row, other, model.resolution)
            prompts.append(row["prompt_id"])
    if not triplets:
        return {}
    rewards: list[float] = []
    for start in range(0, len(triplets), batch_size):
        sources, edits, instructions = zip(*triplets[start : start + batch_size], strict=True)
        rewards += model.score(list(sources), list(edits), list(instructions))
    table = np.array(rewards).reshape(-1, 1 + len(PROBES))
    true, probes = table[:, :1], table[:, 1:]
    preferred_to = (true > probes) + (true == probes) / 2  # (prompts, PROBES): 1, half or 0
    return {
        name: interval(dict(zip(prompts, column.tolist(), strict=True)))
        for name, column in zip(PROBES, preferred_to.T, strict=True)
    }


def _probes(row: Row, other: Row, resolution: int) -> list[tuple[bytes, bytes, str]]:
    """(source, edited, instruction) of the edit that was ranked best, then of its PROBES in their order."""
    source, instruction = row["source_image"], row["instruction"]
    edited = row["edits"][int(np.argmin(row["ranks"]))]["image"]
    before = resize(decode(source), resolution).astype(int)
    after = resize(decode(edited), resolution).astype(int)
    around = resize(decode(other["source_image"]), resolution).astype(int)
    changed = (abs(after - before) >= MIN_PIXEL_CHANGE).any(-1, keepdims=True)
    return [
        (source, edited, instruction),
        (source, source, instruction),
        (source, encode(np.where(changed, after, around).astype(np.uint8)), instruction),
        (edited, source, instruction),
        (source, edited, other["instruction"]),
    ]


def remarks(card: Mapping[str, Any], probe_rates: Mapping[str, Interval]) -> list[str]:
    """Warnings in words, where a model is no better than a simple baseline or misses a probe; intervals decide.

    card: `held_out`, `held_out_before_training`, `beside` and `minus` of the model's card. probe_rates: the result of
    `run_probes`.
    """
    ours, minus = card["held_out"][ACCURACY], {name: gap for name, gap in card["minus"].items() if gap}
    sentences = []
    for name in CLIP_MEASURES:
        if name in minus:
            sentences += _beside(
                minus[name],
                f"{name} ranks held-out edits better, with no training",
                f"it cannot be told apart from {name}, which needs no training",
                f"{card['beside'][name][ACCURACY]:.2f} against {ours:.2f}",
            )
    if "held_out_before_training" in minus:
        sentences += _beside(
            minus["held_out_before_training"],
            "training made it worse on held-out edits",
            "that training helped cannot be told from chance",
            f"{card['held_out_before_training'][ACCURACY]:.2f} before it, {ours:.2f} after",
        )
    bounds = card["beside"].get("another_person", {}).get("intervals", {}).get(ACCURACY)
    if bounds:
        sentences += _among_people(Interval(**bounds))
    for name, rate in probe_rates.items():
        sentences += _unnoticed(PROBES[name], rate)
    return sentences


def _beside(difference: Mapping[str, Any], worse: str, unsure: str, figures: str) -> list[str]:
    """A remark on a model's accuracy `minus` that of another; none if the model is significantly better."""
    gap = Interval(**difference[ACCURACY])
    if gap.low > 0:
        return []
    return [f"{worse if gap.high < 0 else unsure}: {figures} ({describe_difference(difference)})"]


def _among_people(agreement: Interval) -> list[str]:
    figures = _beside_chance(agreement)
    if agreement.high < MIN_AGREEMENT:
        return [f"people agree little with each other ({figures}): no model can learn much of this"]
    return [f"whether people agree at all cannot be told ({figures})"] if agreement.low <= 0.5 else []


def _unnoticed(change: str, rate: Interval) -> list[str]:
    """A remark on how often the true edit has a greater reward than a probe; none if it surely is often enough."""
    if rate.low >= MIN_NOTICED_RATE:
        return []
    how_often = f"how often the true edit has the greater reward ({_beside_chance(rate)})"
    if rate.high < MIN_NOTICED_RATE:
        return [f"it does not notice {change}, by {how_often}"]
    return [f"whether it notices {change} cannot be told by {how_often}"]


def _beside_chance(share: Interval) -> str:
    return f"{share.value:.2f}, 95 % interval {share.low:.2f} to {share.high:.2f}; chance is 0.50"
