"""Rewards of the training pairs, and what they mean for training: a weight, or a quality phrase.

pairs, reward -> rewards -> scored_pairs
"""

from functools import partial

import numpy as np

from hive_ray.config import Editor, Resources, Scoring
from hive_ray.distributed.mapping import map_table
from hive_ray.distributed.models import model_digest
from hive_ray.distributed.tables import Manifest, build_table, read_rows, table_digest
from hive_ray.distributed.tables import fingerprint as fingerprint_of
from hive_ray.editor.model import append_suffix, load_tokenizer
from hive_ray.measures import effective_sample_size
from hive_ray.reward.model import RewardScorer
from hive_ray.reward.shaping import SHAPINGS, Feedback, feedback
from hive_ray.schemas import PAIRS, REWARDS, SCORED_PAIRS, Rows
from jobs.run import Run, fingerprint, main


class PairScorer(RewardScorer):
    """Pairs -> their rewards alone: another beta or phrase shapes them again without scoring again."""

    def __call__(self, rows: Rows) -> Rows:
        return [{"pair_id": row["pair_id"], "reward": row["reward"]} for row in super().__call__(rows)]


class PairShaper:
    """Pairs -> scored pairs, by the rewards of all of them."""

    def __init__(self, rewards: str, shaping: str, feedback: Feedback, model: str, device: str = "cpu") -> None:
        self.rewards = rewards_of(rewards)
        self.fill, self.feedback, self.model = SHAPINGS[shaping], feedback, model

    def __call__(self, rows: Rows) -> Rows:
        scored = []
        for row in rows:
            reward = self.rewards[row["pair_id"]]
            level = self.feedback.level(row["instruction"], reward)
            row = row | {"reward": reward, "quality_level": level, "reward_model": self.model}
            scored.append(self.fill(row, self.feedback))
        return scored


def rewards_of(rewards: str) -> dict[str, float]:
    """The reward of each pair, by pair_id."""
    return {row["pair_id"]: row["reward"] for row in read_rows(rewards, REWARDS)}


def build(run: Run, shaping: str | None = None) -> Manifest:
    """The table of `scoring.shaping`, or scored_pairs_<shaping> of another one to compare it with."""
    settings, pairs, reward = run.config.scoring, run.path("pairs"), run.path("reward")
    rewards, model, editor = run.path("rewards"), model_digest(reward), run.config.editor

    def score():
        return map_table(
            pairs,
            PAIRS,
            PairScorer,
            produces=REWARDS,
            resources=settings.resources,
            reward=reward,
            rows_per_shard=256,
        )

    made_from = fingerprint_of(pairs=table_digest(pairs), reward=model)
    build_table(rewards, REWARDS, made_from, score, on_mismatch=run.on_mismatch)
    if shaping:
        settings = settings.model_copy(update={"shaping": shaping})
    shaped = _feedback(pairs, rewards, settings, editor)

    def shape():
        return map_table(
            pairs, PAIRS, PairShaper, produces=SCORED_PAIRS, resources=Resources(num_gpus=0), rows_per_shard=256,
            rewards=rewards, shaping=settings.shaping, feedback=shaped, model=model,
        )  # fmt: skip

    made_from = fingerprint(settings, rewards=table_digest(rewards), editor=model_digest(editor.start))
    name = f"scored_pairs_{shaping}" if shaping else "scored_pairs"
    return build_table(run.path(name), SCORED_PAIRS, made_from, shape, on_mismatch=run.on_mismatch)


def _feedback(pairs: str, rewards: str, settings: Scoring, editor: Editor) -> Feedback:
    """What all rewards say together; the tokenizer of what `editor` starts from makes room for the phrase.

    Their distribution is said in a line, so that a reward model that says nothing is seen on the day.
    """
    reward_of = rewards_of(rewards)
    rows = list(read_rows(pairs, PAIRS, ["pair_id", "instruction"]))
    instructions, values = [row["instruction"] for row in rows], np.array([reward_of[row["pair_id"]] for row in rows])
    tokenizer = load_tokenizer(editor.start, editor.single_file)
    shaped = feedback(instructions, values, settings, partial(append_suffix, tokenizer))
    advantages = [shaped.advantage(*row) for row in zip(instructions, values, strict=True)]
    weights = np.array([shaped.weight(*row) for row in zip(instructions, values, strict=True)])
    worth = effective_sample_size(weights.mean(), np.square(weights).mean(), len(weights))
    print(
        f"rewards: mean {values.mean():.3f}, deviation {values.std():.3f} ({np.std(advantages):.3f} shaped), "
        f"level edges {', '.join(f'{edge:.3f}' for edge in shaped.edges)}; as weights worth "
        f"{worth:.0f} of {len(values)} pairs",
        flush=True,
    )
    return shaped


if __name__ == "__main__":
    main(build)
