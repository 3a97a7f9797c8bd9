"""What the workers of `score_pairs` and `score_candidates` import: their actors, and no more than these need."""

from functools import partial

from hive_ray.artifacts.selection import read_rows
from hive_ray.config import Scoring
from hive_ray.reward.judges import make_judge
from hive_ray.reward.model import RewardScorer
from hive_ray.reward.optimality import best_and_worst_ranks, compare_within_prompts, widest_prompts
from hive_ray.reward.shaping import SHAPINGS, RewardShaping
from hive_ray.schemas import CANDIDATE_REWARDS, REWARDS, Dropped, Result, Row, Rows
from hive_ray.seeds import id_for
from jobs.actors.judging import load_reward

REWARD_MODEL = "reward model"
"""The annotator of rankings by the reward model."""


class PairScorer:
    """Pairs -> a judge's rewards alone: another beta or phrase shapes them again without scoring again."""

    def __init__(self, judge: str, settings: Scoring, reward: str, answers: str, device: str = "cpu") -> None:
        load = partial(load_reward, reward, device)
        self.judge = make_judge(judge, settings, load_model=load, answers_folder=answers, device=device)

    def __call__(self, rows: Rows) -> list[Result]:
        return [
            {"pair_id": result["pair_id"], "reward": result["reward"]} if isinstance(result, dict) else result
            for result in self.judge(rows)
        ]


class PairShaper:
    """Pairs -> scored pairs, by the rewards of all of them."""

    def __init__(self, rewards: str, shaping: str, feedback: RewardShaping, model: str, device: str = "cpu") -> None:
        self.rewards = rewards_of(rewards)
        self.fill, self.feedback, self.model = SHAPINGS[shaping], feedback, model

    def __call__(self, rows: Rows) -> list[Result]:
        scored: list[Result] = []
        for row in rows:
            if row["pair_id"] not in self.rewards:  # a judge could not say
                scored.append(Dropped("no_reward"))
                continue
            reward = self.rewards[row["pair_id"]]
            level = self.feedback.level(row["instruction"], reward)
            row = row | {"reward": reward, "quality_level": level, "reward_model": self.model}
            scored.append(self.fill(row, self.feedback))
        return scored


def rewards_of(rewards: str) -> dict[str, float]:
    """The reward of each pair, by pair_id."""
    return {row["pair_id"]: row["reward"] for row in read_rows(rewards, REWARDS)}


class CandidateScorer:
    """Candidates -> the reward of each edit by the reward model."""

    def __init__(self, reward: str, device: str = "cpu") -> None:
        self.scorer = RewardScorer(load_reward(reward, device))

    def __call__(self, rows: Rows) -> Rows:
        scored = self.scorer([edit for row in rows for edit in edits_of(row)])
        return [{"edit_id": row["pair_id"], "prompt_id": row["prompt_id"], "reward": row["reward"]} for row in scored]


class CandidateShaper:
    """Candidates -> scored candidates, by the rewards of all of them.

    Without `least_advantage` each edit is kept and its weight is its optimality. With it only the best edit of a prompt
    is kept, if its advantage is at least that, and its weight is 1.
    """

    def __init__(
        self, rewards: str, model: str, clip: float = 1.0, least_advantage: float | None = None, device: str = "cpu"
    ) -> None:
        scored = list(read_rows(rewards, CANDIDATE_REWARDS))
        standing = compare_within_prompts([row["reward"] for row in scored], [row["prompt_id"] for row in scored], clip)
        self.reward_of = {row["edit_id"]: row["reward"] for row in scored}
        self.place_of = {row["edit_id"]: place for place, row in enumerate(scored)}
        self.standing, self.model, self.least_advantage = standing, model, least_advantage

    def __call__(self, rows: Rows) -> list[Result]:
        return [self._shaped(edit) for row in rows for edit in edits_of(row)]

    def _shaped(self, edit: Row) -> Row | Dropped:
        if edit["pair_id"] not in self.place_of:
            return Dropped("no_reward")
        place = self.place_of[edit["pair_id"]]
        weight = float(self.standing.optimality[place])
        if self.least_advantage is not None:
            if not self.standing.is_best[place]:
                return Dropped("not_the_best")
            if self.standing.advantage[place] < self.least_advantage:
                return Dropped("not_clearly_better")
            weight = 1.0
        return edit | {"weight": weight, "reward": self.reward_of[edit["pair_id"]], "reward_model": self.model}


class CandidateRanker:
    """Candidates -> rankings by the reward model, of the prompts on which its rewards differ most."""

    def __init__(self, rewards: str, model: str, rate: float, device: str = "cpu") -> None:
        scored = list(read_rows(rewards, CANDIDATE_REWARDS))
        of_prompt: dict[str, list[float]] = {}
        for row in scored:
            of_prompt.setdefault(row["prompt_id"], []).append(row["reward"])
        self.reward_of = {row["edit_id"]: row["reward"] for row in scored}
        self.ranked = widest_prompts(of_prompt, rate)
        self.model = model

    def __call__(self, rows: Rows) -> list[Result]:
        return [self._ranked(row) for row in rows]

    def _ranked(self, row: Row) -> Row | Dropped:
        if not all(edit["edit_id"] in self.reward_of for edit in row["edits"]):
            return Dropped("no_reward")
        if row["prompt_id"] not in self.ranked:
            return Dropped("alike")
        return row | {
            "ranking_id": id_for("ranking by reward", row["prompt_id"], self.model),
            "annotator": REWARD_MODEL,
            "ranks": best_and_worst_ranks([self.reward_of[edit["edit_id"]] for edit in row["edits"]]),
        }


def edits_of(candidate: Row) -> Rows:
    """The edits of a candidates row, as rows of pairs."""
    kept = ("prompt_id", "instruction", "source_caption", "edited_caption", "source_image", "split")
    shared = {name: candidate[name] for name in kept}
    return [shared | {"pair_id": edit["edit_id"], "edited_image": edit["image"]} for edit in candidate["edits"]]
