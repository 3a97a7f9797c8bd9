"""What a reward model is worth: beside people, beside CLIP, and on edits that any person would see through.

held-out rankings, RewardModel -> worth -> the model's card and the report

What is said of a difference in words is what its interval supports; how rewards are counted is in `accuracies.py`.

N rankings, K edits of each; a rank of 0 marks an edit that is not there
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
    Foretold,
    accuracies,
    across_prompts,
    differences,
    in_words,
    intervals,
)
from hive_ray.reward.judges import CLIP_MEASURES, ClipScorer
from hive_ray.reward.model import RewardModel, ScoringModel
from hive_ray.reward.objective import Remedies, doubt, loss_of, measure, preferred, rewards_of
from hive_ray.schemas import Row, Rows
from hive_ray.statistics.intervals import Interval, interval
from hive_ray.statistics.preferences import preference_loss

NOTICED = 0.75
"""A probe on which the true edit is preferred more rarely goes unnoticed; guessing has 0.5."""
BESIDE = {
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
"""By names in the card: who else ranks the held-out rankings."""
PEOPLE = ("another_person", "all_others")
HELD_OUT = "held_out.json"
"""In a reward model's folder: how much is right of how much by accuracy and held-out prompt, so that models can be
compared by what they do on the same prompts."""
NOTHING_HELD_OUT = {"warning": "no ranking was held out (reward.held_out_rate): nobody knows what it is worth"}
AGREED = 0.6
"""People who foretell fewer of each other's preferences agree little."""
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


def worth(
    ours: Foretold, model: RewardModel, start: RewardModel, clip: str, rows: Rows, settings: config.Reward
) -> dict[str, Any]:
    """The part of a reward model's card that says what it is worth, by RANKINGS rows that it never saw.

    ours: what the model foretells of them. start: what its training started from. clip: a CLIP folder or hub name, the
    simple judges beside it.
    """
    before = foretold(start, rows)
    beside = people(rows) | by_clip(judged(ClipScorer(clip).measured, rows), ours, rows)
    noticed = probe(model, rows)
    return compared(ours, before, beside, noticed, rows, settings)


def by_clip(similarities: Mapping[str, Tensor], ours: Foretold, rows: Rows) -> dict[str, Foretold]:
    """What CLIP's similarities (N, K) by name foretell of those rankings of `ours` that it can measure."""
    return {
        name: Foretold(
            sum((similarities[part] for part in summed), start=torch.zeros(())), ours.ranks, ours.prompts
        ).some(those)
        for name, summed in CLIP_MEASURES.items()
        if (those := measurable(rows, summed))
    }


def compared(
    ours: Foretold,
    before: Foretold,
    beside: Mapping[str, Foretold],
    noticed: Mapping[str, Interval],
    rows: Rows,
    settings: config.Reward,
    remedies: Remedies = Remedies(),  # noqa: B008 - immutable
) -> dict[str, Any]:
    """What a reward model foretells of N held-out rankings, as its card has it.

    before: the same of what it started from. beside: of others, by their names in BESIDE. noticed: what `probe` found.
    rows: the N rankings.
    """
    others = {"held_out_before_training": before} | dict(beside)
    said = {
        "held_out": measured(ours, settings),
        "held_out_before_training": measured(before, settings),
        "beside": {name: accuracies(theirs) for name, theirs in beside.items()},
        "minus": {name: differences(ours.counts(), theirs.counts()) for name, theirs in others.items()},
    }
    bins = calibration(ours.rewards, ours.ranks, settings)
    levelled = {name: one for name, one in others.items() if name not in PEOPLE}
    clear = shared(ours, rows)
    return said | {
        "shared": accuracies(clear) | {"preferences": len(clear.prompts)} if clear else {},
        "across_prompts": {name: across_prompts(one) for name, one in ({"held_out": ours} | levelled).items()},
        "held_out_rankings": len(ours.prompts),
        "held_out_prompts": len(set(ours.prompts)),
        "kinds": kinds(ours, [row["instruction"] for row in rows]),
        "noticed": {name: asdict(rate) for name, rate in noticed.items()},
        "calibration": bins,
        "calibration_error": calibration_error(bins),
        "warning": doubt(said["held_out"], remedies) or "",
        "remarks": remarks(said, noticed),
    }


def foretold(model: RewardModel, rows: Rows) -> Foretold:
    """What a model's rewards foretell of RANKINGS rows."""
    return Foretold(*rewards_of(model, rows), [row["prompt_id"] for row in rows])


def measured(foretold: Foretold, settings: config.Reward) -> dict[str, Any]:
    """`objective.measure` of what was foretold, with the `intervals` of its accuracies."""
    found = measure(foretold.rewards, foretold.ranks, loss_of(settings))
    return {**found, "intervals": intervals(foretold)}


def kinds(foretold: Foretold, instructions: list[str]) -> dict[str, dict[str, Any]]:
    """Accuracies by kind of edit, which is the first word of its instruction; LEAST_OF_A_KIND rankings make one."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, instruction in enumerate(instructions):
        places[(instruction.lower().split() or [""])[0]].append(place)
    return {
        kind: accuracies(foretold.some(those)) | {"rankings": len(those)}
        for kind, those in sorted(places.items(), key=lambda one: (-len(one[1]), one[0]))
        if len(those) >= LEAST_OF_A_KIND
    }


def people(rows: Rows) -> dict[str, Foretold]:
    """What people foretell of each other where several ranked a prompt: what a model can be expected to reach.

    "another_person": every other person's ranks of the prompt in place of rewards. "all_others": the mean ranks of all
    others, which know more. Both over the preferences of all people; empty if nobody shared a prompt.
    """
    found: dict[str, list[tuple[list[float], list[int], str]]] = {"another_person": [], "all_others": []}
    for (prompt_id, *_), places in _rankings_of(rows).items():
        orders = [rows[place]["ranks"] for place in places]
        for place, order in enumerate(orders):
            others = orders[:place] + orders[place + 1 :]
            found["another_person"] += [([-float(rank) for rank in other], order, prompt_id) for other in others]
            if others:
                means = [-fmean(ranks) for ranks in zip(*others, strict=True)]
                found["all_others"].append((means, order, prompt_id))
    columns = {name: list(zip(*each, strict=True)) for name, each in found.items() if each}
    return {
        name: Foretold(_padded(rewards), _padded(ranks), prompts) for name, (rewards, ranks, prompts) in columns.items()
    }


def shared(foretold: Foretold, rows: Rows) -> Foretold | None:
    """The clear preferences among people, each as a ranking of its two edits: at least two people have it, and nobody
    has the reverse. None where there is none, such as where one person ranked each prompt.

    rows: the N rankings that are foretold.
    """
    rewards: list[list[float]] = []
    prompts: list[str] = []
    for (prompt_id, *_), places in _rankings_of(rows).items():
        people = preferred(foretold.ranks[places]).sum(0)  # (K, K)
        for better, worse in ((people >= 2) & (people.T == 0)).nonzero().tolist():
            rewards.append(foretold.rewards[places[0], [better, worse]].tolist())
            prompts.append(prompt_id)
    return Foretold(torch.tensor(rewards), torch.tensor([[1, 2]] * len(rewards)), prompts) if rewards else None


def _rankings_of(rows: Rows) -> dict[tuple[str, ...], list[int]]:
    """By prompt and edits, the places of the rankings of them."""
    places: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        places[row["prompt_id"], *(edit["edit_id"] for edit in row["edits"])].append(place)
    return places


def _padded(lists: Sequence[list]) -> Tensor:
    """Lists of different lengths -> (N, K), filled up with 0."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(one) for one in lists], batch_first=True)


def scored(model: ScoringModel, rows: Rows) -> Foretold:
    """What the rewards of a model of any kind foretell of RANKINGS rows, scored one ranking at a time."""
    rewards = judged(lambda pairs: {"reward": _scores(model, pairs)}, rows)["reward"]
    return Foretold(rewards, _padded([row["ranks"] for row in rows]), [row["prompt_id"] for row in rows])


def _scores(model: ScoringModel, pairs: Rows) -> list[float]:
    columns = ("source_image", "edited_image", "instruction")
    return model.score(*([pair[column] for pair in pairs] for column in columns))


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


def probe(model: RewardModel, rows: Rows, *, batch_size: int = 32) -> dict[str, Interval]:
    """How often the edit that people ranked best has a greater reward than each of PROBES made of it; equal is half.

    Of each prompt the first ranking counts; intervals resample prompts. "destroyed_rest" keeps the pixels that the
    edit changed and puts another prompt's source picture around them; "other_instruction" asks for what another prompt
    does. Empty for one prompt.
    """
    firsts = list({row["prompt_id"]: row for row in reversed(rows)}.values())[::-1]
    made: list[tuple[bytes, bytes, str]] = []  # the true edit and then its probes, prompt by prompt
    prompts: list[str] = []
    for place, row in enumerate(firsts):
        others = (firsts[(place + step) % len(firsts)] for step in range(1, len(firsts)))
        other = next((one for one in others if one["instruction"] != row["instruction"]), None)
        if other is not None:
            made += _probes(row, other, model.resolution)
            prompts.append(row["prompt_id"])
    if not made:
        return {}
    rewards: list[float] = []
    for start in range(0, len(made), batch_size):
        rewards += model.score(*(list(column) for column in zip(*made[start : start + batch_size], strict=True)))
    table = np.array(rewards).reshape(-1, 1 + len(PROBES))
    true, probes = table[:, :1], table[:, 1:]
    preferred_to = (true > probes) + (true == probes) / 2  # (prompts, PROBES): 1, half or 0
    return {
        name: interval(dict(zip(prompts, column.tolist(), strict=True)))
        for name, column in zip(PROBES, preferred_to.T, strict=True)
    }


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


def remarks(said: Mapping[str, Any], probes: Mapping[str, Interval]) -> list[str]:
    """In words, where a model is no better than something simple, or blind; nothing is claimed against an interval.

    said: what `worth` has measured, `held_out`, `held_out_before_training`, `beside` and `minus` as in the card.
    """
    ours, minus = said["held_out"][ACCURACY], {name: gap for name, gap in said["minus"].items() if gap}
    found = []
    for name in CLIP_MEASURES:
        if name in minus:
            found += _beside(
                minus[name],
                f"{name} ranks held-out edits better, with no training",
                f"it cannot be told apart from {name}, which needs no training",
                f"{said['beside'][name][ACCURACY]:.2f} against {ours:.2f}",
            )
    if "held_out_before_training" in minus:
        found += _beside(
            minus["held_out_before_training"],
            "training made it worse on held-out edits",
            "that training helped cannot be told from chance",
            f"{said['held_out_before_training'][ACCURACY]:.2f} before it, {ours:.2f} after",
        )
    bounds = said["beside"].get("another_person", {}).get("intervals", {}).get(ACCURACY)
    if bounds:
        found += _among_people(Interval(**bounds))
    for name, rate in probes.items():
        found += _unnoticed(PROBES[name], rate)
    return found


def _beside(minus: Mapping[str, Any], worse: str, unsure: str, figures: str) -> list[str]:
    """What is said of a model that is `minus` better than something: nothing, if it surely is."""
    gap = Interval(**minus[ACCURACY])
    if gap.low > 0:
        return []
    return [f"{worse if gap.high < 0 else unsure}: {figures} ({in_words(minus)})"]


def _among_people(agreed: Interval) -> list[str]:
    figures = _beside_chance(agreed)
    if agreed.high < AGREED:
        return [f"people agree little with each other ({figures}): no model can learn much of this"]
    return [f"whether people agree at all cannot be told ({figures})"] if agreed.low <= 0.5 else []


def _unnoticed(what: str, rate: Interval) -> list[str]:
    """What is said of how often the true edit has a greater reward than a probe: nothing, if that surely is often."""
    if rate.low >= NOTICED:
        return []
    how_often = f"how often the true edit has the greater reward ({_beside_chance(rate)})"
    if rate.high < NOTICED:
        return [f"it does not notice {what}, by {how_often}"]
    return [f"whether it notices {what} cannot be told by {how_often}"]


def _beside_chance(share: Interval) -> str:
    return f"{share.value:.2f}, 95 % interval {share.low:.2f} to {share.high:.2f}; chance is 0.50"
