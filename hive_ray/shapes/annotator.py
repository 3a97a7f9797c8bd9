"""People of this domain: they rank the edits of a prompt by what they see, with noise of their own, and with ties.

candidates -> SimulatedAnnotator -> rankings
"""

import numpy as np

from hive_ray.schemas import Row, Rows
from hive_ray.seeds import id_for, seed_for
from hive_ray.shapes.judge import Verdict, judge


class SimulatedAnnotator:
    """Ranks the edits of a prompt as a person might: by the verdict, with noise of their own, and with ties.

    The utility of an edit is 0.5 sqrt(followed * preserved) + 0.25 followed + 0.25 preserved, 0..1, plus
    Gaussian noise of the standard deviation `noise`, drawn from (seed, annotator, prompt, the edit's seed) alone: names
    of edits tell which editor made them, and change with every setting on the way to it.
    """

    def __init__(self, index: int = 0, *, seed: int = 0, noise: float = 0.08, tie_within: float = 0.03):
        self.name, self.seed, self.noise, self.tie_within = f"simulated-{index}", seed, noise, tie_within

    def __call__(self, row: Row) -> list[int]:
        """The ranks of a row of `candidates`, aligned with its edits: 1 is best, equal numbers are ties."""
        return ranks_of([self.utility(row, edit) for edit in row["edits"]], self.tie_within)

    def utility(self, row: Row, edit: Row) -> float:
        """What this annotator thinks of one edit."""
        verdict = judge(row["source_image"], edit["image"], row["source_caption"], row["edited_caption"])
        seed = seed_for("annotator", self.seed, self.name, row["prompt_id"], edit["seed"])
        return preference(verdict) + self.noise * float(np.random.default_rng(seed).standard_normal())


def preference(verdict: Verdict) -> float:
    """0.5 sqrt(followed * preserved) + 0.25 followed + 0.25 preserved: both matter, and one without the
    other little."""
    both = (verdict.followed * verdict.preserved) ** 0.5
    return 0.5 * both + 0.25 * (verdict.followed + verdict.preserved)


def ranks_of(utilities: list[float], tie_within: float) -> list[int]:
    """Ranks, 1 for the greatest utility; one within `tie_within` of the best of its group shares that rank,
    and the next group's rank is one more."""
    ranks, rank, best = [0] * len(utilities), 0, float("inf")
    for index in sorted(range(len(utilities)), key=lambda index: -utilities[index]):
        if best - utilities[index] > tie_within:
            rank, best = rank + 1, utilities[index]
        ranks[index] = rank
    return ranks


def rank_candidates(rows: Rows, annotators: list[SimulatedAnnotator]) -> Rows:
    """Rows of `candidates` -> rows of `rankings`, one for each annotator."""
    return [
        row
        | {
            "ranking_id": id_for("ranking", row["prompt_id"], row["editor"], annotator.name),
            "annotator": annotator.name,
            "ranks": annotator(row),
        }
        for row in rows
        for annotator in annotators
    ]
