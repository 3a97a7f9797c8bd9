"""What the workers of `score_pairs` import: its actors, and no more than these need."""

from functools import partial

from hive_ray.config import Scoring
from hive_ray.distributed.tables import read_rows
from hive_ray.reward.judges import judge_of
from hive_ray.reward.shaping import SHAPINGS, Feedback
from hive_ray.schemas import REWARDS, Rows
from jobs.judging import load_reward


class PairScorer:
    """Pairs -> a judge's rewards alone: another beta or phrase shapes them again without scoring again."""

    def __init__(self, judge: str, settings: Scoring, reward: str, answers: str, device: str = "cpu") -> None:
        load = partial(load_reward, reward, device)
        self.judge = judge_of(judge, settings, reward=load, answers=answers, device=device)

    def __call__(self, rows: Rows) -> Rows:
        return [
            {"pair_id": row["pair_id"], "reward": row["reward"]} if "reward" in row else row for row in self.judge(rows)
        ]


class PairShaper:
    """Pairs -> scored pairs, by the rewards of all of them."""

    def __init__(self, rewards: str, shaping: str, feedback: Feedback, model: str, device: str = "cpu") -> None:
        self.rewards = rewards_of(rewards)
        self.fill, self.feedback, self.model = SHAPINGS[shaping], feedback, model

    def __call__(self, rows: Rows) -> Rows:
        scored = []
        for row in rows:
            if row["pair_id"] not in self.rewards:  # a judge could not say
                scored.append({"dropped": "no_reward"})
                continue
            reward = self.rewards[row["pair_id"]]
            level = self.feedback.level(row["instruction"], reward)
            row = row | {"reward": reward, "quality_level": level, "reward_model": self.model}
            scored.append(self.fill(row, self.feedback))
        return scored


def rewards_of(rewards: str) -> dict[str, float]:
    """The reward of each pair, by pair_id."""
    return {row["pair_id"]: row["reward"] for row in read_rows(rewards, REWARDS)}
