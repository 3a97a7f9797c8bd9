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

from hive_ray.artifacts.model_store import model_digest
from hive_ray.artifacts.tables import (
    Manifest,
    build_table,
    read_edit_ids,
    select,
    table_digest,
    write_rows,
)
from hive_ray.artifacts.tables import fingerprint as fingerprint_of
from hive_ray.cluster.mapping import MapTable, map_table
from hive_ray.config import Resources
from hive_ray.reward.optimality import mean_ranks
from hive_ray.schemas import CANDIDATE_REWARDS, CANDIDATES, RANKINGS, SCORED_CANDIDATES, Rows
from jobs.actors.scoring import CandidateRanker, CandidateScorer, CandidateShaper
from jobs.run import RANKINGS_BY_REWARD, Run, check_inputs
from jobs.sample_candidates import UNGUIDED


def build(run: Run) -> Manifest:
    """Every edit that people may rank, weighted by its optimality."""
    settings = run.config.candidate_scoring
    check_inputs(run, ["candidates"])
    if settings.judge == "people":
        judge, rewards = "people", run.path("candidate_rewards_by_people")
        _rewards_by_people(run, rewards)
    else:
        check_inputs(run, ["reward"])
        judge, rewards = model_digest(run.path("reward")), run.path("candidate_rewards")
        _rewards_by_model(run, "candidates", rewards, judge)
    return _shape(run, "candidates", rewards, "scored_candidates", judge, {"clip": settings.clip})


def best(run: Run) -> Manifest:
    """The best unguided edit of each prompt by the reward model, where it is clearly better than the prompt's mean."""
    settings, rewards = run.config.candidate_scoring, run.path("candidate_rewards_unguided")
    check_inputs(run, [UNGUIDED, "reward"])
    judge = model_digest(run.path("reward"))
    _rewards_by_model(run, UNGUIDED, rewards, judge)
    kept = {"least_advantage": settings.least_advantage}
    return _shape(run, UNGUIDED, rewards, "best_candidates", judge, kept)


def rank(run: Run) -> Manifest | None:
    """The reward model's own rankings of the candidates; None where none are wanted."""
    rate, rewards = run.config.candidate_scoring.ranked_rate, run.path("candidate_rewards")
    if not rate:
        return None
    candidates = run.path("candidates")
    check_inputs(run, ["candidates", "reward"])
    judge = model_digest(run.path("reward"))
    _rewards_by_model(run, "candidates", rewards, judge)

    def make() -> MapTable:
        return map_table(
            candidates, CANDIDATES, CandidateRanker, produces=RANKINGS, resources=Resources(num_gpus=0),
            rewards=rewards, model=judge, rate=rate,
        )  # fmt: skip

    made_from = fingerprint_of(rewards=table_digest(rewards)) | {"candidate_scoring.ranked_rate": rate}
    return build_table(run.path(RANKINGS_BY_REWARD), RANKINGS, made_from, make, on_mismatch=run.on_mismatch)


def for_arm(run: Run) -> Manifest | None:
    """The table that the run's arm is trained on; where no arm was named, that of `nft`."""
    if run.feedback_arm == "dpo" and run.config.candidate_scoring.ranked_rate:
        return rank(run)
    if run.feedback_arm == "rejection":
        return best(run)
    if run.feedback_arm in ("nft", Run.arm):
        return build(run)
    raise ValueError(
        f"arm {run.feedback_arm!r} has no scored candidates; choose one of nft, rejection, or dpo with a "
        "candidate_scoring.ranked_rate above 0"
    )


def _rewards_by_model(run: Run, table: str, rewards: str, judge: str) -> Manifest:
    candidates, settings = run.path(table), run.config.candidate_scoring

    def score() -> MapTable:
        return map_table(
            candidates, CANDIDATES, CandidateScorer, produces=CANDIDATE_REWARDS, resources=settings.resources,
            reward=run.path("reward"),
        )  # fmt: skip

    made_from = fingerprint_of(candidates=table_digest(candidates), reward=judge)
    return build_table(
        rewards, CANDIDATE_REWARDS, made_from, score, on_mismatch=run.on_mismatch, least_kept=settings.least_kept
    )


def _rewards_by_people(run: Run, rewards: str) -> Manifest:
    """Minus the mean rank of each edit that somebody ranked."""
    rankings = run.path("rankings")
    check_inputs(run, ["rankings"])
    made_from = fingerprint_of(candidates=table_digest(run.path("candidates")), rankings=table_digest(rankings))
    return write_rows(rewards, CANDIDATE_REWARDS, _ranked(rankings), made_from, on_mismatch=run.on_mismatch)


def _ranked(rankings: str) -> Rows:
    read = [row for file in select(rankings, RANKINGS).files for row in read_edit_ids(file, "prompt_id", "ranks")]
    said = [([edit["edit_id"] for edit in row["edits"]], row["ranks"]) for row in read]
    prompt_of = {edit["edit_id"]: row["prompt_id"] for row in read for edit in row["edits"]}
    return [
        {"edit_id": edit_id, "prompt_id": prompt_of[edit_id], "reward": reward}
        for edit_id, reward in mean_ranks(said).items()
    ]


def _shape(run: Run, table: str, rewards: str, name: str, judge: str, shaping: dict[str, Any]) -> Manifest:
    """The table `name` of the edits of `table`; `shaping` are the settings that decide what is kept and its weight."""
    candidates = run.path(table)

    def shape() -> MapTable:
        return map_table(
            candidates, CANDIDATES, CandidateShaper, produces=SCORED_CANDIDATES, resources=Resources(num_gpus=0),
            rewards=rewards, model=judge, **shaping,
        )  # fmt: skip

    made_from = fingerprint_of(rewards=table_digest(rewards))
    made_from |= {f"candidate_scoring.{setting}": value for setting, value in shaping.items()}
    return build_table(run.path(name), SCORED_CANDIDATES, made_from, shape, on_mismatch=run.on_mismatch)
