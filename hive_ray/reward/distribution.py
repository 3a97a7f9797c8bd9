"""The distribution of the rewards of a table: statistics, edges of the quality levels, and weights.

rewards, RewardShaping -> describe_rewards, reward_histogram -> scored_pairs/card.json, scored_pairs/rewards.svg
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hive_ray.pages.charts import histogram
from hive_ray.reward.shaping import RewardShaping, quality_level, quantile_edges
from hive_ray.statistics.measures import effective_sample_size


def describe_rewards(reward: np.ndarray, shaped: np.ndarray, shaping: RewardShaping) -> dict[str, Any]:
    """Statistics of rewards (N,), of `shaped` (N,), the rewards minus their baselines, and of the resulting weights.

    Levels and weights depend on `shaped`. `effective_sample_size` is the number of equally weighted pairs that carry as
    much information as the weighted ones (Kish 1965).
    """
    levels = Counter(quality_level(value, shaping.edges) for value in shaped.tolist())
    weights = shaping.weights(shaped)
    return {
        "pairs": len(reward),
        "reward": _summary(reward),
        "shaped": _summary(shaped),
        "level_edges": list(shaping.edges),
        "levels": {str(level): levels[level] for level in range(1, 6)},
        "weights": {
            "beta": shaping.beta,
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
    """The result of `describe_rewards` as a sentence."""
    reward, weights = description["reward"], description["weights"]
    edges = ", ".join(f"{edge:.3f}" for edge in description["level_edges"])
    counts = ", ".join(map(str, description["levels"].values()))
    shaped = description["shaped"]
    return (
        f"mean {reward['mean']:.3f}, deviation {reward['deviation']:.3f} ({shaped['deviation']:.3f} shaped); "
        f"levels begin at {edges} with {counts} pairs; weights (beta {weights['beta']:g}) with an "
        f"effective sample size of {weights['effective_sample_size']:.0f} of {description['pairs']} pairs"
    )


def reward_histogram(shaped: np.ndarray, origins: Sequence[str], shaping: RewardShaping) -> str:
    """A histogram of `shaped` (N,) for each origin of pairs, with the edges of the quality levels, as SVG."""
    of = np.array(origins)
    groups = {origin: shaped[of == origin] for origin in sorted(set(origins))}
    x_label = "reward" if shaping.baseline is None else "reward minus the reward expected from the instruction"
    return histogram(groups, x_label, "share of pairs", vertical_lines={"level edges": shaping.edges})
