"""What a reward model is worth: beside people, beside CLIP, and on edits that any person would see through.

held-out rankings, RewardModel -> worth -> the model's card and the report

N rankings, K edits of each; a rank of 0 marks an edit that is not there
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hive_ray import config
from hive_ray.images import decode, encode, resize
from hive_ray.preferences import preference_loss
from hive_ray.reward.judges import CLIP_MEASURES, ClipScorer
from hive_ray.reward.model import RewardModel
from hive_ray.reward.objective import (
    doubt,
    loss_of,
    measure,
    pairwise_accuracy,
    preferred,
    ranking_accuracy,
    rewards_of,
)
from hive_ray.schemas import Row, Rows

Accuracies = dict[str, float]
NOTICED = 0.75
"""A probe on which the true edit is preferred more rarely is remarked on; guessing has 0.5."""
CHANGED = 32
"""Levels of 0..255 in any colour from which a pixel counts as changed by an edit."""
NUM_BINS = 5
LEAST_OF_A_KIND = 5
PROBES = {
    "did_nothing": "an edit that did nothing",
    "destroyed_rest": "an edit that destroyed the rest of the picture",
    "swapped": "source and edited picture swapped",
    "other_instruction": "another instruction",
}
"""Names of probes -> what a model that fails one does not notice."""


def worth(model: RewardModel, start: RewardModel, clip: str, rows: Rows, settings: config.Reward) -> dict[str, Any]:
    """The part of a reward model's card that says what it is worth, by RANKINGS rows that it never saw.

    start: what its training started from. clip: a CLIP folder or hub name, the simple judges beside it.
    """
    rewards, ranks = rewards_of(model, rows)
    loss = loss_of(settings)
    unseen = measure(rewards, ranks, loss)
    simple = judged(ClipScorer(clip).measured, rows)
    beside = agreement(rows) | {
        name: accuracies(sum(simple[one] for one in summed)[those], ranks[those])
        for name, summed in CLIP_MEASURES.items()
        if (those := measurable(rows, summed))
    }
    noticed, bins = probe(model, rows), calibration(rewards, ranks, settings)
    return {
        "held_out": unseen,
        "held_out_before_training": measure(*rewards_of(start, rows), loss),
        "held_out_rankings": len(rows),
        "held_out_prompts": len({row["prompt_id"] for row in rows}),
        "beside": beside,
        "kinds": kinds(rewards, ranks, [row["instruction"] for row in rows]),
        "noticed": noticed,
        "calibration": bins,
        "calibration_error": calibration_error(bins),
        "warning": doubt(unseen) or "",
        "remarks": remarks(unseen, beside, noticed),
    }


def accuracies(rewards: Tensor, ranks: Tensor) -> Accuracies:
    """Both accuracies of rewards (N, K) on ranks (N, K), the keys as in `objective.measure`."""
    return {
        "reward/accuracy": pairwise_accuracy(rewards, ranks),
        "reward/ranking_accuracy": ranking_accuracy(rewards, ranks),
    }


def kinds(rewards: Tensor, ranks: Tensor, instructions: list[str]) -> dict[str, dict[str, float]]:
    """Accuracies by kind of edit, which is the first word of its instruction; LEAST_OF_A_KIND rankings make one."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, instruction in enumerate(instructions):
        places[(instruction.lower().split() or [""])[0]].append(place)
    return {
        kind: accuracies(rewards[those], ranks[those]) | {"rankings": len(those)}
        for kind, those in sorted(places.items(), key=lambda one: (-len(one[1]), one[0]))
        if len(those) >= LEAST_OF_A_KIND
    }


def agreement(rows: Rows) -> dict[str, Accuracies]:
    """How well people foretell each other where several ranked a prompt: what a model can be expected to reach.

    "another_person": every other person's ranks of the prompt in place of rewards. "all_others": the mean ranks of all
    others, which know more. Both over the preferences of all people; empty if nobody shared a prompt.
    """
    orders_of: dict[tuple, list[list[int]]] = defaultdict(list)
    for row in rows:
        orders_of[row["prompt_id"], *(edit["edit_id"] for edit in row["edits"])].append(row["ranks"])
    found: dict[str, list[tuple[list[float], list[int]]]] = {"another_person": [], "all_others": []}
    for orders in orders_of.values():
        for place, order in enumerate(orders):
            others = orders[:place] + orders[place + 1 :]
            found["another_person"] += [([-float(rank) for rank in other], order) for other in others]
            if others:
                found["all_others"].append(([-fmean(ranks) for ranks in zip(*others, strict=True)], order))
    return {name: accuracies(*map(_padded, zip(*each, strict=True))) for name, each in found.items() if each}


def _padded(lists: tuple[list, ...]) -> Tensor:
    """Lists of different lengths -> (N, K), filled up with 0."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(one) for one in lists], batch_first=True)


def judged(measured: Callable[[Rows], Mapping[str, Any]], rows: Rows) -> dict[str, Tensor]:
    """What is measured of pairs, a number each by name, of every edit of RANKINGS rows: (N, K) each; 0 where an edit is
    not there."""
    found: dict[str, Tensor] = {}
    for place, row in enumerate(rows):
        for name, values in measured([row | {"edited_image": edit["image"]} for edit in row["edits"]]).items():
            table = found.setdefault(name, torch.zeros(len(rows), max(len(row["edits"]) for row in rows)))
            table[place, : len(values)] = torch.as_tensor(values)
    return found


def measurable(rows: Rows, measures: tuple[str, ...]) -> list[int]:
    """Places of the rows of which CLIP can measure these: directions need captions, and thumbs have none."""
    captioned = "clip_direction" not in measures
    return [place for place, row in enumerate(rows) if captioned or (row["source_caption"] and row["edited_caption"])]


def calibration(rewards: Tensor, ranks: Tensor, settings: config.Reward) -> list[dict[str, float]]:
    """How sure the model is of preferences, and how often it is right, in NUM_BINS equal bins of 0.5..1.

    Of two edits that a person ranked apart, the model gives the one with the greater reward the probability
    P(better) / (P(better) + P(worse)), by the likelihood of its loss. Bins without preferences are left out.
    """
    threshold = settings.tie_threshold if settings.loss == "rao_kupper" else 1.0
    margins = (rewards[:, :, None] - rewards[:, None, :])[preferred(ranks)].double() / settings.temperature
    surer, apart = margins.abs(), torch.zeros(len(margins), dtype=torch.bool)
    sure = torch.sigmoid(preference_loss(-surer, apart, threshold) - preference_loss(surer, apart, threshold))
    right, place = (margins.sign() + 1) / 2, ((sure - 0.5) * 2 * NUM_BINS).long().clamp(max=NUM_BINS - 1)
    return [
        {
            "predicted": sure[inside].mean().item(),
            "observed": right[inside].mean().item(),
            "preferences": int(inside.sum()),
        }
        for inside in (place == number for number in range(NUM_BINS))
        if inside.any()
    ]


def calibration_error(bins: list[dict[str, float]]) -> float:
    """Mean distance of predicted from observed over preferences (Guo et al. 2017); 0 without any."""
    total = sum(one["preferences"] for one in bins)
    return sum(one["preferences"] * abs(one["predicted"] - one["observed"]) for one in bins) / total if total else 0.0


def probe(model: RewardModel, rows: Rows, *, batch_size: int = 32) -> dict[str, float]:
    """How often the edit that people ranked best has a greater reward than each of PROBES made of it; equal is half.

    Of each prompt the first ranking counts. "destroyed_rest" keeps the pixels that the edit changed and puts another
    prompt's source picture around them; "other_instruction" asks for what another prompt does. Empty for one prompt.
    """
    firsts = list({row["prompt_id"]: row for row in reversed(rows)}.values())[::-1]
    made: list[tuple[bytes, bytes, str]] = []  # the true edit and then its probes, prompt by prompt
    for place, row in enumerate(firsts):
        others = (firsts[(place + step) % len(firsts)] for step in range(1, len(firsts)))
        other = next((one for one in others if one["instruction"] != row["instruction"]), None)
        if other is not None:
            made += _probes(row, other, model.resolution)
    if not made:
        return {}
    rewards: list[float] = []
    for start in range(0, len(made), batch_size):
        rewards += model.score(*(list(column) for column in zip(*made[start : start + batch_size], strict=True)))
    table = np.array(rewards).reshape(-1, 1 + len(PROBES))
    preferred_rate = (np.sign(table[:, :1] - table[:, 1:]) + 1).mean(0) / 2
    return dict(zip(PROBES, preferred_rate.tolist(), strict=True))


def _probes(row: Row, other: Row, resolution: int) -> list[tuple[bytes, bytes, str]]:
    """(source, edited, instruction) of the edit that was ranked best, then of PROBES in their order."""
    source, instruction = row["source_image"], row["instruction"]
    edited = row["edits"][int(np.argmin(row["ranks"]))]["image"]
    before, after, around = (
        resize(decode(image), resolution).astype(int) for image in (source, edited, other["source_image"])
    )
    changed = (abs(after - before) >= CHANGED).any(-1, keepdims=True)
    return [
        (source, edited, instruction),
        (source, source, instruction),
        (source, encode(np.where(changed, after, around).astype(np.uint8)), instruction),
        (edited, source, instruction),
        (source, edited, other["instruction"]),
    ]


def remarks(model: Accuracies, beside: dict[str, Accuracies], probes: dict[str, float]) -> list[str]:
    """In words, where a model is no better than something simple, or blind; `beside`: people and CLIP by name."""
    ours, found = model["reward/accuracy"], []
    for name in CLIP_MEASURES:
        if name in beside and beside[name]["reward/accuracy"] >= ours:
            theirs = beside[name]["reward/accuracy"]
            found.append(
                f"{name} ranks held-out edits as well or better, with no training: {theirs:.2f} against {ours:.2f}"
            )
    people = beside.get("another_person", {}).get("reward/accuracy")
    if people is not None and people < 0.6:
        found.append(
            f"people agree little with each other ({people:.2f}; chance is 0.50): no model can learn much of this"
        )
    for name, rate in probes.items():
        if rate < NOTICED:
            found.append(
                f"it does not notice {PROBES[name]}: the true edit has the greater reward in {rate:.0%} of cases"
            )
    return found
