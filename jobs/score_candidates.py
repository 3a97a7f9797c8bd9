"""Scores of the editor's own edits, and what they mean for training: an optimality, or which edits are trained on.

candidates, reward (or rankings) -> candidate_rewards -> scored_candidates, for the arm nft
candidates_unguided, reward -> candidate_rewards_unguided -> best_candidates, for the arm rejection
candidates, reward -> candidate_rewards -> rankings_by_reward, for the arm dpo (candidate_scoring.ranked_rate)

python -m jobs.score_candidates shapes --run runs/one --arm nft
"""

from jobs.command import run_job

if __name__ == "__main__":  # before what the work needs is imported, which takes seconds
    run_job("score_candidates")

from typing import Any

from hive_ray.artifacts.manifest import Fingerprint, Manifest, fingerprint_of, table_digest
from hive_ray.artifacts.model_store import model_digest
from hive_ray.artifacts.selection import read_edit_ids, select
from hive_ray.cluster.mapping import MapTable, map_table
from hive_ray.config import Resources
from hive_ray.reward.optimality import mean_rank_rewards
from hive_ray.schemas import CANDIDATE_REWARDS, CANDIDATES, RANKINGS, SCORED_CANDIDATES, Rows
from jobs.actors.scoring import CandidateRanker, CandidateScorer, CandidateShaper
from jobs.run import RANKINGS_BY_REWARD, Run
from jobs.sample_candidates import UNGUIDED
from jobs.stage import TableStage, make_all


def build(run: Run) -> Manifest:
    """Every edit that people may rank, weighted by its optimality."""
    return make_all(run, nft_stages(run))


def best(run: Run) -> Manifest:
    """The best unguided edit of each prompt by the reward model, where it is clearly better than the prompt's mean."""
    return make_all(run, rejection_stages(run))


def rank(run: Run) -> Manifest | None:
    """The reward model's own rankings of the candidates; None where none are wanted."""
    return make_all(run, dpo_stages(run)) if run.config.candidate_scoring.ranked_rate else None


def build_for_arm(run: Run) -> Manifest:
    """The table that the run's arm is trained on."""
    return make_all(run, stages(run))


def stages(run: Run) -> list[TableStage]:
    """The tables for the run's arm; for `nft` if no arm was named."""
    if run.feedback_arm == "dpo" and run.config.candidate_scoring.ranked_rate:
        return dpo_stages(run)
    if run.feedback_arm == "rejection":
        return rejection_stages(run)
    if run.feedback_arm in ("nft", Run.arm):
        return nft_stages(run)
    raise ValueError(
        f"arm {run.feedback_arm!r} has no scored candidates; choose one of nft, rejection, or dpo with a "
        "candidate_scoring.ranked_rate above 0"
    )


def nft_stages(run: Run) -> list[TableStage]:
    """What the arm `nft` needs."""
    settings = run.config.candidate_scoring
    by_people = settings.judge == "people"
    rewards = REWARDS_BY_PEOPLE_STAGE if by_people else REWARDS_STAGE
    return [rewards, _shaping_stage("scored_candidates", "candidates", rewards.name, {"clip": settings.clip})]


def rejection_stages(run: Run) -> list[TableStage]:
    """What the arm `rejection` needs."""
    kept = {"least_advantage": run.config.candidate_scoring.least_advantage}
    rewards = UNGUIDED_REWARDS_STAGE
    return [rewards, _shaping_stage("best_candidates", UNGUIDED, rewards.name, kept)]


def dpo_stages(run: Run) -> list[TableStage]:
    """What the arm `dpo` needs beside people's rankings: nothing where the reward model ranks no prompts."""
    return [REWARDS_STAGE, RANKINGS_BY_REWARD_STAGE] if run.config.candidate_scoring.ranked_rate else []


def _rewards_stage(name: str, table: str) -> TableStage:
    """The reward model's rewards of the edits of a table of candidates."""

    def compute_fingerprint(run: Run) -> Fingerprint:
        return fingerprint_of(candidates=table_digest(run.path(table)), reward=model_digest(run.path("reward")))

    def plan(run: Run) -> MapTable:
        return map_table(
            run.path(table), CANDIDATES, CandidateScorer, produces=CANDIDATE_REWARDS,
            resources=run.config.candidate_scoring.resources, reward=run.path("reward"),
        )  # fmt: skip

    return TableStage(
        name=name, schema=CANDIDATE_REWARDS, reads=(table, "reward"), fingerprint=compute_fingerprint, plan=plan,
        least_kept=lambda run: run.config.candidate_scoring.least_kept,
    )  # fmt: skip


def _rewards_by_people_fingerprint(run: Run) -> Fingerprint:
    return fingerprint_of(candidates=table_digest(run.path("candidates")), rankings=table_digest(run.path("rankings")))


def _rewards_by_people(run: Run) -> Rows:
    """Minus the mean rank of each edit that somebody ranked."""
    files = select(run.path("rankings"), RANKINGS).files
    rankings = [row for file in files for row in read_edit_ids(file, "prompt_id", "ranks")]
    orders = [([edit["edit_id"] for edit in row["edits"]], row["ranks"]) for row in rankings]
    prompt_of = {edit["edit_id"]: row["prompt_id"] for row in rankings for edit in row["edits"]}
    return [
        {"edit_id": edit_id, "prompt_id": prompt_of[edit_id], "reward": reward}
        for edit_id, reward in mean_rank_rewards(orders).items()
    ]


def _shaping_stage(name: str, table: str, rewards: str, shaping: dict[str, Any]) -> TableStage:
    """The edits of `table`, with a weight; `shaping` are the settings that decide what is kept and its weight."""

    def compute_fingerprint(run: Run) -> Fingerprint:
        settings = {f"candidate_scoring.{setting}": value for setting, value in shaping.items()}
        return fingerprint_of(rewards=table_digest(run.path(rewards))) | settings

    def plan(run: Run) -> MapTable:
        by_people = rewards == REWARDS_BY_PEOPLE_STAGE.name
        return map_table(
            run.path(table), CANDIDATES, CandidateShaper, produces=SCORED_CANDIDATES, resources=Resources(num_gpus=0),
            rewards=run.path(rewards), model="people" if by_people else model_digest(run.path("reward")), **shaping,
        )  # fmt: skip

    return TableStage(
        name=name, schema=SCORED_CANDIDATES, reads=(table, rewards), fingerprint=compute_fingerprint, plan=plan
    )


def _ranking_fingerprint(run: Run) -> Fingerprint:
    rate = run.config.candidate_scoring.ranked_rate
    return fingerprint_of(rewards=table_digest(run.path(REWARDS_STAGE.name))) | {"candidate_scoring.ranked_rate": rate}


def _plan_ranking(run: Run) -> MapTable:
    return map_table(
        run.path("candidates"), CANDIDATES, CandidateRanker, produces=RANKINGS, resources=Resources(num_gpus=0),
        rewards=run.path(REWARDS_STAGE.name), model=model_digest(run.path("reward")),
        rate=run.config.candidate_scoring.ranked_rate,
    )  # fmt: skip


REWARDS_STAGE = _rewards_stage("candidate_rewards", "candidates")
UNGUIDED_REWARDS_STAGE = _rewards_stage("candidate_rewards_unguided", UNGUIDED)
REWARDS_BY_PEOPLE_STAGE = TableStage(
    name="candidate_rewards_by_people",
    schema=CANDIDATE_REWARDS,
    reads=("candidates", "rankings"),
    fingerprint=_rewards_by_people_fingerprint,
    rows=_rewards_by_people,
)
RANKINGS_BY_REWARD_STAGE = TableStage(
    name=RANKINGS_BY_REWARD,
    schema=RANKINGS,
    reads=("candidates", REWARDS_STAGE.name),
    fingerprint=_ranking_fingerprint,
    plan=_plan_ranking,
)
