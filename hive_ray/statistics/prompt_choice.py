"""The choice of prompts that people rank, and their order: those whose edits differ most, and a random share.

measured prompts -> choose_prompts -> chosen prompts

The chosen prompts are of three groups:
    held out    they measure the reward model; always drawn at random, so that its accuracy is that of random prompts
    by score    those of the others with the greatest scores, with a least number of each kind of edit
    random      drawn from the remaining ones

`probability` is a prompt's inclusion probability (Horvitz and Thompson 1952): 1 for prompts chosen by score, and the
drawn share of the group for prompts drawn at random. The sum of value / probability over the chosen prompts is an
unbiased estimate of the sum over all prompts.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from hive_ray.config import Choosing
from hive_ray.seeds import uniform_for

RANDOM = "random"
RARE_KIND_RATE = 0.02
"""Kinds with a smaller share of the prompts count together as one kind."""


@dataclass(frozen=True)
class MeasuredPrompt:
    """A prompt with measures of its edits; NaN for a measure that was not taken."""

    prompt_id: str
    instruction: str
    spread: float = math.nan
    """Mean squared difference between the latents of two edits, 0 or more."""
    disagreement: float = math.nan
    """Mean entropy of the order of two edits, 0 to 1 bit."""


@dataclass(frozen=True)
class ChosenPrompt:
    """A prompt that people rank."""

    prompt: MeasuredPrompt
    chosen_by: str
    """"random", or the measure that chose it (`choosing.by`)."""
    probability: float
    """Inclusion probability, above 0 and at most 1."""


def choose_prompts(
    prompts: Sequence[MeasuredPrompt],
    settings: Choosing,
    *,
    held_out_rate: float,
    is_held_out: Callable[[str], bool],
) -> list[ChosenPrompt]:
    """`settings.num_ranked` of the prompts (all if it is 0 or if there are fewer), in the order of ranking.

    held_out_rate: the share of held-out prompts among the chosen ones, if there are enough.
    is_held_out: whether the prompt with this id is held out.
    The groups are mixed evenly, so that any first part of the order has its share of random prompts. The order of
    `prompts` does not matter.
    """
    drawn = sorted(prompts, key=lambda prompt: _draw(prompt.prompt_id, settings.seed))
    held_out = [prompt for prompt in drawn if is_held_out(prompt.prompt_id)]
    others = [prompt for prompt in drawn if not is_held_out(prompt.prompt_id)]
    places = min(settings.num_ranked or len(drawn), len(drawn))
    held_out_places = min(round(held_out_rate * places), len(held_out))
    held_out_places = max(held_out_places, places - len(others))
    other_places = places - held_out_places
    random_places = min(round(settings.random_rate * places), other_places)
    if settings.by == RANDOM:
        random_places = other_places
    best = best_prompts(others, other_places - random_places, settings)
    best_ids = {prompt.prompt_id for prompt in best}
    left = [prompt for prompt in others if prompt.prompt_id not in best_ids]
    return _mixed(
        [
            [ChosenPrompt(prompt, settings.by, 1.0) for prompt in best],
            _first_of(left, random_places),
            _first_of(held_out, held_out_places),
        ]
    )


def best_prompts(prompts: Sequence[MeasuredPrompt], count: int, settings: Choosing) -> list[MeasuredPrompt]:
    """The `count` prompts with the greatest scores, the greatest first; of equal scores the first in `prompts`.

    Among them are at least floor(least_kind_rate x count x share) of each kind, its best ones, where `share` is that of
    the kind among `prompts`.
    """
    if count == 0:
        return []
    scores = _scores(prompts, settings)
    order = sorted(range(len(prompts)), key=lambda place: -scores[place])
    kinds = kinds_of([prompt.instruction for prompt in prompts])
    least = {
        kind: math.floor(settings.least_kind_rate * count * number / len(prompts))
        for kind, number in Counter(kinds).items()
    }
    taken: set[int] = set()
    for place in order:
        if least[kinds[place]] > 0:
            least[kinds[place]] -= 1
            taken.add(place)
    for place in order:
        if len(taken) == count:
            break
        taken.add(place)
    return [prompts[place] for place in order if place in taken]


def kinds_of(instructions: Sequence[str]) -> list[str]:
    """The kind of each instruction: its first word in lower case, or "" for a rare kind (RARE_KIND_RATE)."""
    words = [" ".join(instruction.lower().split()[:1]) for instruction in instructions]
    counts = Counter(words)
    return [word if counts[word] >= RARE_KIND_RATE * len(words) else "" for word in words]


def _scores(prompts: Sequence[MeasuredPrompt], settings: Choosing) -> np.ndarray:
    """A score for each prompt. A measure that was not taken counts as the least."""
    spread = np.nan_to_num([prompt.spread for prompt in prompts], nan=-np.inf)
    disagreement = np.nan_to_num([prompt.disagreement for prompt in prompts], nan=-np.inf)
    if settings.by == "both":
        return (rankdata(spread) + rankdata(disagreement)) / 2
    return spread if settings.by == "spread" else disagreement


def _draw(prompt_id: str, seed: int) -> tuple[float, str]:
    """A sort key that draws prompts without replacement."""
    return uniform_for("choosing", seed, prompt_id), prompt_id


def _first_of(drawn: Sequence[MeasuredPrompt], count: int) -> list[ChosenPrompt]:
    """The first `count` of a group in the order in which it was drawn."""
    return [ChosenPrompt(prompt, RANDOM, count / len(drawn)) for prompt in drawn[:count]]


def _mixed(groups: Sequence[Sequence[ChosenPrompt]]) -> list[ChosenPrompt]:
    """The groups as one list, in which each keeps its order and is spread evenly."""
    spaced = [
        ((index + 0.5) / len(group), number, chosen)
        for number, group in enumerate(groups)
        for index, chosen in enumerate(group)
    ]
    return [chosen for *_, chosen in sorted(spaced, key=lambda entry: entry[:2])]
