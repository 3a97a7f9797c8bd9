"""How often rewards order edits as people did, by prompt, with the intervals that so many prompts allow.

rewards, ranks -> Foretold -> accuracies, and differences between two who foretold the same prompts

N rankings, K edits of each; a rank of 0 marks an edit that is not there
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from hive_ray.reward.objective import pairwise_accuracy, ranking_accuracy, right_preferences, right_rankings
from hive_ray.statistics.intervals import Interval, interval, ratio, ratio_gap
from hive_ray.statistics.measures import wins

ACCURACY, RANKING_ACCURACY = "reward/accuracy", "reward/ranking_accuracy"
Counts = dict[str, tuple[float, float]]
"""Prompt -> how much was right, of how much."""


@dataclass(frozen=True)
class Foretold:
    """Rewards (N, K) by a model, a measure or a person, and the ranks (N, K) of people that they foretell."""

    rewards: Tensor
    ranks: Tensor
    prompts: Sequence[str]
    """The prompt_id of each of N rankings; several people may have ranked one."""

    def counts(self) -> dict[str, Counts]:
        """By accuracy and prompt, how much was right of how much; a prompt with nothing to be right of is left out."""
        right, preferences = right_preferences(self.rewards, self.ranks)
        whole, ordered = right_rankings(self.rewards, self.ranks)
        counted: dict[str, dict[str, list[float]]] = {
            name: defaultdict(lambda: [0.0, 0.0]) for name in (ACCURACY, RANKING_ACCURACY)
        }
        columns = (right, preferences, whole, ordered)
        rows = zip(self.prompts, *(column.tolist() for column in columns), strict=True)
        for prompt, num_right, num_preferences, is_whole, is_ordered in rows:
            for name, part, of in ((ACCURACY, num_right, num_preferences), (RANKING_ACCURACY, is_whole, is_ordered)):
                counted[name][prompt][0] += part
                counted[name][prompt][1] += of
        return {
            name: {prompt: (part, of) for prompt, (part, of) in prompts.items() if of}
            for name, prompts in counted.items()
        }

    def some(self, places: Sequence[int]) -> "Foretold":
        """The rankings at these places alone."""
        return Foretold(self.rewards[places], self.ranks[places], [self.prompts[place] for place in places])


def intervals(foretold: Foretold) -> dict[str, dict[str, float]]:
    """Value, low and high of both accuracies, resampled by prompt; empty without any preference."""
    return {name: asdict(interval(prompts, ratio)) for name, prompts in foretold.counts().items() if prompts}


def accuracies(foretold: Foretold) -> dict[str, Any]:
    """Both accuracies, the keys as in `objective.measure`, and their `intervals`."""
    return {
        ACCURACY: pairwise_accuracy(foretold.rewards, foretold.ranks),
        RANKING_ACCURACY: ranking_accuracy(foretold.rewards, foretold.ranks),
        "intervals": intervals(foretold),
    }


def across_prompts(foretold: Foretold) -> float:
    """How often an edit ranked best has a greater reward than another prompt's edit ranked worst; equal rewards are
    half.

    Comparisons within prompts say nothing of a reward's level, which weights of pairs rely on; this does. 0.5 is
    guessing, and what is returned without two prompts that have a preference.
    """
    worst_rank = foretold.ranks.max(1, keepdim=True).values
    best, worst = foretold.ranks == 1, (foretold.ranks == worst_rank) & (worst_rank > 1)
    groups: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for place, prompt in enumerate(foretold.prompts):
        if worst[place].any():
            groups[prompt][0].extend(foretold.rewards[place][best[place]].tolist())
            groups[prompt][1].extend(foretold.rewards[place][worst[place]].tolist())
    all_best = [reward for group, _ in groups.values() for reward in group]
    all_worst = [reward for _, group in groups.values() for reward in group]
    pairs = len(all_best) * len(all_worst) - sum(len(one) * len(other) for one, other in groups.values())
    if not pairs:
        return 0.5
    return (wins(all_best, all_worst) - sum(wins(*group) for group in groups.values())) / pairs


def differences(ours: Mapping[str, Counts], theirs: Mapping[str, Counts]) -> dict[str, Any]:
    """Our accuracies minus theirs by what both counted of the same prompts, resampled in pairs, and `prompts`, how many
    these are; empty if there are none."""
    fours = {
        name: {prompt: (*ours[name][prompt], *theirs[name][prompt]) for prompt in ours[name].keys() & theirs[name]}
        for name in ours
    }
    if not fours[ACCURACY]:
        return {}
    found = {name: asdict(interval(prompts, ratio_gap)) for name, prompts in fours.items()}
    return found | {"prompts": len(fours[ACCURACY])}


def in_words(minus: Mapping[str, Any]) -> str:
    """What `differences` found of preferences."""
    gap = Interval(**minus[ACCURACY])
    said = f"a difference of {gap.value:+.2f}, 95 % interval {gap.low:+.2f} to {gap.high:+.2f}"
    return f"{said}, {minus['prompts']} prompts".replace("-", "\u2212")
