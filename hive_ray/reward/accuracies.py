"""Accuracy of rewards: how often they order edits as people did, by prompt, with bootstrap intervals.

rewards, ranks -> Predictions -> accuracies, and differences of two predictions of the same prompts

N rankings, K edits of each; a rank of 0 is padding
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from hive_ray.reward.objective import count_right_preferences, find_right_rankings, pairwise_accuracy, ranking_accuracy
from hive_ray.statistics.intervals import Interval, interval, ratio, ratio_gap
from hive_ray.statistics.measures import mann_whitney_u

ACCURACY, RANKING_ACCURACY = "reward/accuracy", "reward/ranking_accuracy"
Counts = dict[str, tuple[float, float]]
"""Prompt -> (right, total)."""


@dataclass(frozen=True)
class Predictions:
    """Rewards (N, K) of a model, a measure or a person, and the ranks (N, K) by people that they should predict."""

    rewards: Tensor
    ranks: Tensor
    prompts: Sequence[str]
    """The prompt_id of each of N rankings. Several people may have ranked the same prompt."""

    def counts(self) -> dict[str, Counts]:
        """(right, total) of each prompt, for both accuracies. Prompts without a preference are left out."""
        right, preferences = count_right_preferences(self.rewards, self.ranks)
        whole, ordered = find_right_rankings(self.rewards, self.ranks)
        return {ACCURACY: self._by_prompt(right, preferences), RANKING_ACCURACY: self._by_prompt(whole, ordered)}

    def _by_prompt(self, right: Tensor, total: Tensor) -> Counts:
        """Counts of each ranking (N,), summed by prompt. Prompts whose total is 0 are left out."""
        sums: dict[str, tuple[float, float]] = {}
        for prompt, part, whole in zip(self.prompts, right.tolist(), total.tolist(), strict=True):
            right_before, total_before = sums.get(prompt, (0.0, 0.0))
            sums[prompt] = (right_before + part, total_before + whole)
        return {prompt: counts for prompt, counts in sums.items() if counts[1]}

    def select(self, places: Sequence[int]) -> "Predictions":
        """The predictions for the rankings at these places."""
        return Predictions(self.rewards[places], self.ranks[places], [self.prompts[place] for place in places])


def accuracy_intervals(predictions: Predictions) -> dict[str, dict[str, float]]:
    """Value, low and high of both accuracies, with intervals that resample prompts; empty without any preference."""
    return {name: asdict(interval(prompts, ratio)) for name, prompts in predictions.counts().items() if prompts}


def accuracies(predictions: Predictions) -> dict[str, Any]:
    """Both accuracies, the keys as in `measure_rewards`, and their `accuracy_intervals`."""
    return {
        ACCURACY: pairwise_accuracy(predictions.rewards, predictions.ranks),
        RANKING_ACCURACY: ranking_accuracy(predictions.rewards, predictions.ranks),
        "intervals": accuracy_intervals(predictions),
    }


def accuracy_across_prompts(predictions: Predictions) -> float:
    """How often the best edit of one prompt has a greater reward than the worst of another; equal rewards count half.

    The weights of pairs depend on how rewards compare across prompts, which comparisons within prompts do not measure.
    Guessing gives 0.5. The result is 0.5, too, if fewer than two prompts have a preference.
    """
    worst_rank = predictions.ranks.max(1, keepdim=True).values
    best, worst = predictions.ranks == 1, (predictions.ranks == worst_rank) & (worst_rank > 1)
    groups: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for place, prompt in enumerate(predictions.prompts):
        if worst[place].any():
            groups[prompt][0].extend(predictions.rewards[place][best[place]].tolist())
            groups[prompt][1].extend(predictions.rewards[place][worst[place]].tolist())
    all_best = [reward for group, _ in groups.values() for reward in group]
    all_worst = [reward for _, group in groups.values() for reward in group]
    within_prompts = sum(len(of_prompt[0]) * len(of_prompt[1]) for of_prompt in groups.values())
    pairs = len(all_best) * len(all_worst) - within_prompts
    if not pairs:
        return 0.5
    return (mann_whitney_u(all_best, all_worst) - sum(mann_whitney_u(*group) for group in groups.values())) / pairs


def accuracy_differences(ours: Mapping[str, Counts], theirs: Mapping[str, Counts]) -> dict[str, Any]:
    """Our accuracies minus theirs, paired by prompt, with intervals; and `prompts`, the number of shared prompts.

    ours, theirs: the results of `Predictions.counts`. Empty if they share no prompt.
    """
    fours: dict[str, dict[str, tuple[float, ...]]] = {}
    for name in ours:
        in_both = ours[name].keys() & theirs[name]
        fours[name] = {prompt: (*ours[name][prompt], *theirs[name][prompt]) for prompt in in_both}
    if not fours[ACCURACY]:
        return {}
    gaps = {name: asdict(interval(prompts, ratio_gap)) for name, prompts in fours.items()}
    return gaps | {"prompts": len(fours[ACCURACY])}


def describe_difference(difference: Mapping[str, Any]) -> str:
    """The difference in accuracy of `accuracy_differences`, in words."""
    gap = Interval(**difference[ACCURACY])
    words = f"a difference of {gap.value:+.2f}, 95 % interval {gap.low:+.2f} to {gap.high:+.2f}"
    return f"{words}, {difference['prompts']} prompts".replace("-", "\u2212")
