"""What the rewards of a table look like: where they lie, where the quality levels begin, what the weights are worth.

rewards, Feedback -> described, draw -> scored_pairs/card.json, scored_pairs/rewards.svg
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hive_ray.pages.charts import histogram
from hive_ray.reward.shaping import Feedback, quality_level, quantile_edges
from hive_ray.statistics.measures import effective_sample_size


def described(reward: np.ndarray, shaped: np.ndarray, feedback: Feedback) -> dict[str, Any]:
    """Rewards (N,), what is left of each after its baseline (N,), and what `feedback` makes of them, in numbers.

    Levels and weights go by what is left. `effective_sample_size` says how many equally weighted pairs the weights are
    worth (Kish 1965).
    """
    levels, weights = Counter(quality_level(value, feedback.edges) for value in shaped.tolist()), feedback.weigh(shaped)
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


def in_words(said: Mapping[str, Any]) -> str:
    """What was `described`, in a sentence."""
    reward, weights = said["reward"], said["weights"]
    edges = ", ".join(f"{edge:.3f}" for edge in said["level_edges"])
    counts = ", ".join(map(str, said["levels"].values()))
    return (
        f"mean {reward['mean']:.3f}, deviation {reward['deviation']:.3f} ({said['shaped']['deviation']:.3f} shaped); "
        f"levels begin at {edges} with {counts} pairs; as weights (beta {weights['beta']:g}) worth "
        f"{weights['effective_sample_size']:.0f} of {said['pairs']} pairs"
    )


def draw(shaped: np.ndarray, origins: Sequence[str], feedback: Feedback) -> str:
    """A histogram of what levels and weights go by (N,), by the pairs' origin, with the edges of the levels, as SVG."""
    of = np.array(origins)
    groups = {origin: shaped[of == origin] for origin in sorted(set(origins))}
    across = "reward" if feedback.baseline is None else "reward above what the instruction's words lead to expect"
    return histogram(groups, across, "share of pairs", marks={"level edges": feedback.edges})
