"""What the scoring job does to rows, with no cluster; the cluster's side is in test_pipeline.py."""

import numpy as np
import pytest

from hive_ray.config import Scoring
from hive_ray.distributed.tables import write_rows
from hive_ray.presets import sd15
from hive_ray.reward.shaping import feedback
from hive_ray.schemas import REWARDS
from jobs.run import Run
from jobs.score_pairs import for_arm, rewards_name
from jobs.scoring import PairScorer, PairShaper

ROWS = [{"pair_id": name, "instruction": f"add {name}", "weight": 1.0} for name in ("a", "b", "c")]


def lengths(rows):
    """A judge of one's own."""
    return [len(row["pair_id"]) for row in rows]


def test_a_callable_scores_pairs_and_its_rewards_alone_are_kept():
    scorer = PairScorer(f"{__name__}:lengths", Scoring(), reward="", answers="")
    assert scorer(ROWS) == [{"pair_id": name, "reward": 1.0} for name in ("a", "b", "c")]


def test_what_a_judge_dropped_or_counted_is_handed_on():
    scorer = PairScorer(f"{__name__}:lengths", Scoring(), reward="", answers="")
    scorer.judge = lambda rows: [{"dropped": "score_out_of_range"}, {"counted": {"dollars": 0.1}}]
    assert scorer(ROWS[:1]) == [{"dropped": "score_out_of_range"}, {"counted": {"dollars": 0.1}}]


def test_a_pair_that_no_judge_could_score_is_dropped_and_the_others_shaped(tmp_path):
    write_rows(
        str(tmp_path / "rewards"), REWARDS, [{"pair_id": "a", "reward": 1.0}, {"pair_id": "c", "reward": 0.0}], {}
    )
    said = feedback(["add a", "add c"], np.array([1.0, 0.0]), Scoring(shaping="weighted"))
    shaped = PairShaper(str(tmp_path / "rewards"), "weighted", said, "judge")(ROWS)
    assert [row.get("dropped") for row in shaped] == [None, "no_reward", None]
    assert shaped[0]["weight"] == pytest.approx(2 * np.e / (np.e + 1))
    assert shaped[0]["reward_model"] == "judge"


def test_each_judge_has_a_table_of_its_own():
    judges = [("model",), ("clip",), ("my.judges:strict",), ("model", "clip")]
    assert [rewards_name(one) for one in judges] == [
        "rewards", "rewards_clip", "rewards_my_judges_strict", "rewards_combined",
    ]  # fmt: skip


def test_an_arm_that_is_trained_on_no_scored_pairs_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"arm 'dpo' has no scored pairs; choose one of finetuned, weighted, cond"):
        for_arm(Run(str(tmp_path), sd15(), arm="dpo"))
