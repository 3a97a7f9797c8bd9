"""Shaping: from rewards to loss weights, phrases in the instructions, and quality levels.

    pairs + reward -> scored_pairs

HIVE's weighted reward sets `weight`, and its conditional reward rewrites `instruction`. A learned embedding uses the
`quality_level` of the row.
All of them can use the advantage of an edit: its reward minus the reward expected from its instruction
(`WordBaseline`).
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import add

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import lsqr

from hive_ray.config import Scoring
from hive_ray.schemas import Row

LEVEL_WORDS = ("one", "two", "three", "four", "five")
MAX_WEIGHTS = {"none": float("inf"), "mean1": float("inf"), "clip": 5.0}
"""The greatest weight for each value of `scoring.normalize`."""


def reward_weight(reward: np.ndarray, beta: float, normalize: str = "mean1") -> np.ndarray:
    """Loss weights exp(reward / beta) (HIVE's weighted reward), (N,) -> (N,).

    normalize: "none" does not change them, "mean1" scales them to mean 1, so that the learning rate keeps its meaning,
    and "clip" scales them to mean 1 with none above 5. ValueError for rewards that are not finite, and for overflow.
    """
    return _scaled_weight(_finite(reward), beta, weight_scale(reward, beta, normalize), MAX_WEIGHTS[normalize])


def _scaled_weight(reward: np.ndarray, beta: float, scale: float, greatest_weight: float) -> np.ndarray:
    """min(exp(reward / beta + scale), greatest_weight)."""
    with np.errstate(over="ignore"):
        weight = np.minimum(np.exp(reward / beta + scale), greatest_weight)
    if not np.isfinite(weight).all():
        raise ValueError(f"exp(reward / beta) overflows at beta {beta}, reward {np.max(reward)}; raise scoring.beta")
    return weight


def weight_scale(reward: np.ndarray, beta: float, normalize: str) -> float:
    """The logarithm of the factor on exp(reward / beta); 0 for "none"."""
    if normalize == "none":
        return 0.0
    return _mean1_scale(_finite(reward) / beta, MAX_WEIGHTS[normalize])


def _mean1_scale(exponent: np.ndarray, greatest_weight: float) -> float:
    """The scale at which min(exp(exponent + scale), greatest_weight) has mean 1."""
    falling = np.sort(exponent)[::-1]
    rest = np.logaddexp.accumulate(falling[::-1])[::-1]  # rest[m] = log sum of exp(falling[m:])
    limit = np.log(greatest_weight) + 1e-9
    clipped, scale = 0, np.log(len(falling)) - rest[0]
    while falling[clipped] + scale > limit:  # clip one more and distribute its excess among the others
        clipped += 1
        scale = np.log(len(falling) - greatest_weight * clipped) - rest[clipped]
    return float(scale)


def quantile_edges(reward: np.ndarray) -> tuple[float, ...]:
    """The four rewards that divide the rows of a table into five levels of equal size."""
    return tuple(float(edge) for edge in np.quantile(_finite(reward), (0.2, 0.4, 0.6, 0.8)))


def equal_width_edges(reward: np.ndarray) -> tuple[float, ...]:
    """The four rewards that divide the range of a table's rewards into five equal parts."""
    finite = _finite(reward)
    return tuple(float(edge) for edge in np.linspace(finite.min(), finite.max(), 6)[1:-1])


LEVEL_EDGES: dict[str, Callable[[np.ndarray], tuple[float, ...]]] = {
    "quantile": quantile_edges,
    "equal_width": equal_width_edges,
}
"""Edges by the setting `scoring.levels`; `scoring.edges` overrides them."""


def level_edges(reward: np.ndarray, settings: Scoring) -> tuple[float, ...]:
    """The four edges between the quality levels of the rewards (N,) of a table, by the settings."""
    return settings.edges if settings.edges is not None else LEVEL_EDGES[settings.levels](reward)


def quality_level(reward: float, edges: tuple[float, ...]) -> int:
    """The level 1..5 of a reward, 5 is best. A reward on an edge belongs to the level above it."""
    return 1 + bisect_right(edges, reward)


def quality_phrase(level: int, template: str) -> str:
    """The template with `{level}` replaced by a word: one, two, three, four or five. ValueError for other levels."""
    if not 1 <= level <= len(LEVEL_WORDS):
        raise ValueError(f"quality level is {level}; levels are 1 to {len(LEVEL_WORDS)}")
    if "{level}" not in template:
        raise ValueError(f"the quality phrase {template!r} has no {{level}}; put it where the word belongs")
    return template.replace("{level}", LEVEL_WORDS[level - 1])


def instruction_suffix(template: str) -> str:
    """The phrase of the best level, which is appended to instructions at sampling."""
    return quality_phrase(len(LEVEL_WORDS), template)


WORD_RIDGE = 10.0
"""A word that occurs in this many rows has half of its unregularised weight."""


@dataclass(frozen=True)
class WordBaseline:
    """The expected reward of an instruction: ridge regression on the words that occur in it.

    Some kinds of edits are easy, and rewards differ mostly between kinds. Without a baseline the editor learns that
    "five out of five" means an easy kind, such as a change of background, and hard kinds have no good examples.
    """

    mean: float
    words: dict[str, float]
    """The weight of each word."""

    @classmethod
    def fit(cls, instructions: Sequence[str], reward: np.ndarray) -> "WordBaseline":
        """Fit to instructions and rewards (N,): w minimises |reward - mean - occurs w|^2 + RIDGE |w|^2."""
        split = [_words(instruction) for instruction in instructions]
        vocabulary = dict.fromkeys(word for words in split for word in words)
        places = {word: place for place, word in enumerate(vocabulary)}
        columns = [places[word] for words in split for word in words]
        starts = np.cumsum([0, *(len(words) for words in split)])
        occurs = csr_matrix((np.ones(len(columns)), columns, starts), shape=(len(split), len(places)))
        reward = _finite(reward)
        weights = lsqr(occurs, reward - reward.mean(), damp=WORD_RIDGE**0.5, atol=1e-10, btol=1e-10)[0]
        return cls(float(reward.mean()), {word: float(weights[place]) for word, place in places.items()})

    def __call__(self, instruction: str) -> float:
        """The expected reward of an instruction. Unknown words count as 0."""
        return self.mean + sum(self.words.get(word, 0.0) for word in _words(instruction))


def _words(instruction: str) -> list[str]:
    """The distinct words of an instruction, in order."""
    return list(dict.fromkeys(re.findall(r"\w+", instruction.lower())))


@dataclass(frozen=True)
class RewardShaping:
    """The statistics of all rewards of a table that are needed to shape a single row."""

    edges: tuple[float, ...]
    """The four advantages between the five quality levels."""
    beta: float
    scale: float
    """Logarithm of the factor on exp(advantage / beta)."""
    max_weight: float
    phrase: str
    append: Callable[[str, str], str] = add
    """Appends a phrase to an instruction. The function of a text encoder shortens the instruction if necessary."""
    baseline: WordBaseline | None = None

    def advantage(self, instruction: str, reward: float) -> float:
        """The reward minus the expected reward of its instruction; the reward itself without a baseline."""
        return reward if self.baseline is None else reward - self.baseline(instruction)

    def weight(self, instruction: str, reward: float) -> float:
        """The row's loss weight."""
        return float(self.weights(np.asarray(self.advantage(instruction, reward))))

    def weights(self, advantage: np.ndarray) -> np.ndarray:
        """The loss weights of rows with these advantages; ValueError for overflow. (N,) -> (N,)."""
        return _scaled_weight(advantage, self.beta, self.scale, self.max_weight)

    def level(self, instruction: str, reward: float) -> int:
        """The row's quality level, 1..5."""
        return quality_level(self.advantage(instruction, reward), self.edges)


def fit_shaping(
    instructions: Sequence[str], reward: np.ndarray, settings: Scoring, append: Callable[[str, str], str] = add
) -> RewardShaping:
    """The shaping of a table's instructions and rewards (N,), by the settings; `append` as in `RewardShaping`."""
    baseline = WordBaseline.fit(instructions, reward) if settings.baseline == "words" else None
    expected = [baseline(instruction) for instruction in instructions] if baseline else 0.0
    advantage = reward - np.asarray(expected)
    return RewardShaping(
        edges=level_edges(advantage, settings),
        baseline=baseline,
        beta=settings.beta,
        scale=weight_scale(advantage, settings.beta, settings.normalize),
        max_weight=MAX_WEIGHTS[settings.normalize],
        phrase=settings.phrase,
        append=append,
    )


def fill_weight(row: Row, feedback: RewardShaping) -> Row:
    """HIVE's weighted reward: the row, which has a `reward`, with its `weight`."""
    return row | {"weight": feedback.weight(row["instruction"], row["reward"])}


def fill_instruction(row: Row, feedback: RewardShaping) -> Row:
    """HIVE's conditional reward: the row, which has a `quality_level`, with its phrase at the end of `instruction`."""
    phrase = quality_phrase(row["quality_level"], feedback.phrase)
    return row | {"instruction": feedback.append(row["instruction"], phrase)}


def keep_level(row: Row, feedback: RewardShaping) -> Row:
    """The row, which has a `quality_level`, unchanged: the editor reads the level in addition to the instruction."""
    return row


SHAPINGS: dict[str, Callable[[Row, RewardShaping], Row]] = {
    "weighted": fill_weight,
    "conditional": fill_instruction,
    "level": keep_level,
}
"""Functions by the setting `scoring.shaping`. A row has the columns of `pairs`, `reward` and `quality_level`."""


def _finite(reward: np.ndarray) -> np.ndarray:
    """The rewards as float64; ValueError if there are none, or if one is not finite."""
    reward = np.asarray(reward, dtype=np.float64)
    if not len(reward) or not np.isfinite(reward).all():
        wrong = int((~np.isfinite(reward)).sum())
        raise ValueError(f"{len(reward)} rewards, {wrong} of them not finite; score the pairs again")
    return reward
