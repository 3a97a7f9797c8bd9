"""Simulated annotators: they rank the edits of a prompt by their pictures, with noise, personal taste, and ties.

candidates -> SimulatedAnnotator -> rankings

Published agreement of people who compare pictures that were not selected for their differences:

- One person orders 65.3 % (ImageReward's test set) and 78.1 % (HPD v2's) of the pairs as the others do: HPS v2 (Wu et
  al. 2023, arXiv 2306.09341), "Single Human" in the README's table of preference prediction. Ties are left out.
- Experts agree with users on 68.0 %, where a tie against an order counts half: Pick-a-Pic (Kirstain et al. 2023, arXiv
  2305.01569), abstract; ties as in `calc_score` of PickScore's evaluation.
- 26.5 % of comparisons of edits are ties: HIVE (Zhang et al. 2023, arXiv 2303.09618), user study.

NOISE, JUST_NOTICEABLE and TASTE are fitted on edits of the shipped editor. On random prompts, two simulated people
agree as published by the first two measures (`in_order` and `ties_half` of
`statistics.agreement.preference_agreement`). On the third of the prompts whose edits differ most, which people should
rank, 25 to 35 % of their pairs are ties.
"""

import numpy as np

from hive_ray.schemas import Row, Rows
from hive_ray.seeds import id_for, seed_for, uniform_for
from hive_ray.shapes.judge import Judgement, judge

NOISE = 0.15
"""Standard deviation of the perceived utility of an edit (utility is 0..1)."""
JUST_NOTICEABLE = 0.16
"""Just noticeable difference of two percepts: smaller differences are ties."""
TASTE = 0.3
"""Largest deviation of a person's weight of `followed` from 0.5."""


class SimulatedAnnotator:
    """Ranks the edits of a prompt by Thurstone's model (1927, case V) with a threshold for ties (Glenn and David 1960).

    A person perceives each edit as its utility plus Gaussian noise. Two edits tie if their percepts differ by less than
    the just noticeable difference d. Two edits of equal utility therefore tie with probability erf(d / (2 noise)).

    The utility is `utility` of the judge's verdict. Its weight is the person's taste: uniform within 0.5 +- `taste`,
    drawn from the seed and the name, the same for all prompts. The noise is drawn from the seed, the name, the prompt,
    the edit's seed and the attempt. It does not depend on edit ids, which reveal the editor and change with its
    settings.
    """

    def __init__(
        self,
        index: int = 0,
        *,
        seed: int = 0,
        noise: float = NOISE,
        just_noticeable: float = JUST_NOTICEABLE,
        taste: float = TASTE,
    ) -> None:
        self.name = f"simulated-{index}"
        self.seed = seed
        self.noise = noise
        self.just_noticeable = just_noticeable
        self.followed_weight = 0.5 + taste * (2 * uniform_for("taste", seed, self.name) - 1)
        """Weight of `followed` in this person's utility; `preserved` has the rest to 1."""

    def __call__(self, row: Row, attempt: int = 0) -> list[int]:
        """The ranks of a row of `candidates`, aligned with its edits: 1 is best, equal numbers are ties.

        Another `attempt` draws new noise with the same taste.
        """
        percepts = [self.percept(row, edit, attempt) for edit in row["edits"]]
        return ranks_from_percepts(percepts, self.just_noticeable)

    def percept(self, row: Row, edit: Row, attempt: int = 0) -> float:
        """The perceived utility of an edit for this person in one attempt."""
        verdict = judge(row["source_image"], edit["image"], row["source_caption"], row["edited_caption"])
        seed = seed_for("annotator", self.seed, self.name, row["prompt_id"], edit["seed"], attempt)
        noise = float(np.random.default_rng(seed).standard_normal())
        return utility(verdict, self.followed_weight) + self.noise * noise


def utility(verdict: Judgement, followed_weight: float = 0.5) -> float:
    """Utility of an edit, 0..1: the mean of the weighted geometric and the weighted arithmetic mean of `followed` and
    `preserved`. An edit that only follows, or only preserves, has a low utility."""
    preserved_weight = 1 - followed_weight
    both = verdict.followed**followed_weight * verdict.preserved**preserved_weight
    either = followed_weight * verdict.followed + preserved_weight * verdict.preserved
    return 0.5 * both + 0.5 * either


def ranks_from_percepts(percepts: list[float], just_noticeable: float) -> list[int]:
    """Ranks by descending percept; 1 is the best.

    A percept less than `just_noticeable` below the best of its group shares the rank of the group. The rank of the next
    group is one more.
    """
    ranks = [0] * len(percepts)
    rank = 0
    best = float("inf")
    for index in sorted(range(len(percepts)), key=lambda index: -percepts[index]):
        if best - percepts[index] >= just_noticeable:
            rank += 1
            best = percepts[index]
        ranks[index] = rank
    return ranks


def rank_candidates(rows: Rows, annotators: list[SimulatedAnnotator], per_prompt: int = 0) -> Rows:
    """Rows of `candidates` -> rows of `rankings`: one for each annotator, or for `per_prompt` annotators drawn for
    each prompt."""
    return [
        row
        | {
            "ranking_id": id_for("ranking", row["prompt_id"], row["editor"], annotator.name),
            "annotator": annotator.name,
            "ranks": annotator(row),
        }
        for row in rows
        for annotator in draw_annotators(annotators, row["prompt_id"], per_prompt or len(annotators))
    ]


def draw_annotators(annotators: list[SimulatedAnnotator], prompt_id: str, count: int) -> list[SimulatedAnnotator]:
    """Draw `count` annotators for a prompt, deterministically and in their given order."""

    def place(annotator: SimulatedAnnotator) -> int:
        return seed_for("annotator of", annotator.seed, prompt_id, annotator.name)

    by_chance = sorted(annotators, key=place)
    chosen = {annotator.name for annotator in by_chance[:count]}
    return [annotator for annotator in annotators if annotator.name in chosen]
