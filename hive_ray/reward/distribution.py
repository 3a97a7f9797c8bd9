"""The distribution of a table's rewards: their range, the edges of the quality levels, the size of the weights.

rewards, RewardShaping -> describe_rewards, reward_histogram -> scored_pairs/card.json, scored_pairs/rewards.svg
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hive_ray.pages.charts import histogram
from hive_ray.reward.shaping import RewardShaping, quality_level, quantile_edges
from hive_ray.statistics.measures import effective_sample_size


def describe_rewards(reward: np.ndarray, shaped: np.ndarray, feedback: RewardShaping) -> dict[str, Any]:
    """Statistics of rewards (N,), of rewards minus their baselines, `shaped` (N,), and of the resulting weights.

    Levels and weights follow `shaped`. `effective_sample_size` is the number of equally weighted pairs that carry as
    much information as the weighted ones (Kish 1965).
    """
    levels = Counter(quality_level(value, feedback.edges) for value in shaped.tolist())
    weights = feedback.weights(shaped)
    return {
        "pairs": len(reward),
        "reward": _summary(reward),
        "shaped": _summary(shaped),
        "level_edges": list(feedback.edges),
        "levels": {str(level): levels[level] for level in range(1, 6)},
        "weights": {
            "beta": feedback.beta,
            "mean": float(weights.mean()),
            "greatest": float(weights.max()),
            "effective_sample_size": effective_sample_size(weights.mean(), np.square(weights).mean(), len(weights)),
        },
    }


def _summary(values: np.ndarray) -> dict[str, Any]:
    return {
        "mean": float(values.mean()),
        "deviation": float(values.std()),
        "least": float(values.min()),
        "greatest": float(values.max()),
        "quantile_edges": list(quantile_edges(values)),
    }


def summary_sentence(description: Mapping[str, Any]) -> str:
    """The result of `describe_rewards` in a sentence."""
    reward, weights = description["reward"], description["weights"]
    edges = ", ".join(f"{edge:.3f}" for edge in description["level_edges"])
    counts = ", ".join(map(str, description["levels"].values()))
    shaped = description["shaped"]
    return (
        f"mean {reward['mean']:.3f}, deviation {reward['deviation']:.3f} ({shaped['deviation']:.3f} shaped); "
        f"levels begin at {edges} with {counts} pairs; as weights (beta {weights['beta']:g}) worth "
        f"{weights['effective_sample_size']:.0f} of {description['pairs']} pairs"
    )


def reward_histogram(shaped: np.ndarray, origins: Sequence[str], feedback: RewardShaping) -> str:
    """A histogram of `shaped` (N,) for each origin of pairs, with the edges of the levels, as SVG."""
    of = np.array(origins)
    groups = {origin: shaped[of == origin] for origin in sorted(set(origins))}
    across = "reward" if feedback.baseline is None else "reward above what the instruction's words lead to expect"
    return histogram(groups, across, "share of pairs", vertical_lines={"level edges": feedback.edges})
