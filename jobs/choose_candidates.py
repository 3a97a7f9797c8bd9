"""The prompts that people rank, chosen from the candidates: those whose edits can be told apart, and a random share.

candidates, editors/current -> spreads (what is measured of each prompt's edits) -> chosen

The cluster looks at the pictures; the driver sees numbers, ids and instructions. Runs that were ranked before there was
this stage are left as they are.
"""

from jobs.command import run_job

if __name__ == "__main__":  # before what the work needs is imported, which takes seconds
    run_job("choose_candidates")

from collections.abc import Iterator
from functools import partial

from hive_ray import storage
from hive_ray.artifacts.manifest import Fingerprint, Manifest, fingerprint_of, read_manifest, table_digest
from hive_ray.artifacts.model_store import is_finished_model, model_digest
from hive_ray.artifacts.selection import read_rows
from hive_ray.cluster.mapping import MapTable, map_table
from hive_ray.console import say
from hive_ray.reward.model import is_reward_model
from hive_ray.reward.objective import is_held_out
from hive_ray.schemas import CANDIDATES, CHOSEN, SPREADS, Dropped, Result
from hive_ray.statistics.prompt_choice import RANDOM, MeasuredPrompt, choose_prompts
from jobs.actors.candidate_measures import CandidateMeasurer
from jobs.run import CURRENT, Run, fingerprint
from jobs.stage import TableStage, make_all

NEEDS_REWARD_MODEL = ("disagreement", "both")
"""Values of `choosing.by` that ask a reward model."""


def build(run: Run) -> Manifest | None:
    """The table `chosen`; None for a run that was ranked without it."""
    if _was_ranked_without(run):
        say("not made, the rankings are there; --rebuild chooses and ranks again", stage="chosen")
        return None
    return make_all(run, stages(run))


def stages(run: Run) -> list[TableStage]:
    """The tables that this job makes. Nothing is measured where all are chosen at random."""
    if run.config.choosing.by == RANDOM:
        return [_chosen_stage("candidates")]
    return [SPREADS_STAGE, _chosen_stage("candidates", "spreads")]


def _chosen_stage(*reads: str) -> TableStage:
    def compute_fingerprint(run: Run) -> Fingerprint:
        inputs = {name: table_digest(run.path(name)) for name in reads}
        return fingerprint(run.config.choosing, held_out_rate=f"{run.config.reward.held_out_rate:g}", **inputs)

    return TableStage(name="chosen", schema=CHOSEN, reads=reads, fingerprint=compute_fingerprint, rows=_rows)


def _spreads_fingerprint(run: Run) -> Fingerprint:
    reward = _reward_model(run)
    inputs = {"candidates": table_digest(run.path("candidates")), "editor": model_digest(run.path(CURRENT))}
    if reward:
        inputs |= {"reward": model_digest(reward), "temperature": f"{run.config.reward.temperature:g}"}
    return fingerprint_of(**inputs)


def _measure_spreads(run: Run) -> MapTable:
    """By as many actors as sample the candidates."""
    return map_table(
        run.path("candidates"), CANDIDATES, CandidateMeasurer, produces=SPREADS,
        resources=run.config.candidates.resources, editor=run.path(CURRENT), reward=_reward_model(run),
        temperature=run.config.reward.temperature,
    )  # fmt: skip


SPREADS_STAGE = TableStage(
    name="spreads",
    schema=SPREADS,
    reads=("candidates", CURRENT),
    fingerprint=_spreads_fingerprint,
    plan=_measure_spreads,
)


def _was_ranked_without(run: Run) -> bool:
    """Whether the rankings are finished, nothing was chosen for them, and nobody wants them made again."""
    finished = read_manifest(run.path("rankings")) is not None
    return finished and read_manifest(run.path("chosen")) is None and run.on_mismatch == "refuse"


def _reward_model(run: Run) -> str:
    """The address of the reward model that this round starts with, or "" if it is not asked.

    ValueError if it is asked and there is none.
    """
    by = run.config.choosing.by
    if by not in NEEDS_REWARD_MODEL:
        return ""
    if run.before:
        address = run.before.path("reward")
        found = is_finished_model(address)
    else:
        address = run.config.reward.start
        found = is_reward_model(storage.fetch_model(address))
    if not found:
        raise ValueError(
            f"choosing.by is {by!r}, which asks a reward model, but {address!r} is none: set choosing.by to 'spread', "
            "or reward.start to the folder of a reward model"
        )
    return address


def _rows(run: Run) -> Iterator[Result]:
    """The rows of `chosen` in their order, and a drop for each prompt that was not chosen."""
    held_out_rate = run.config.reward.held_out_rate
    prompts = _measured_prompts(run)
    chosen = choose_prompts(
        prompts,
        run.config.choosing,
        held_out_rate=held_out_rate,
        is_held_out=partial(is_held_out, rate=held_out_rate),
    )
    for place, choice in enumerate(chosen):
        yield {
            "prompt_id": choice.prompt.prompt_id,
            "place": place,
            "spread": choice.prompt.spread,
            "disagreement": choice.prompt.disagreement,
            "chosen_by": choice.chosen_by,
            "probability": choice.probability,
        }
    for _ in range(len(prompts) - len(chosen)):
        yield Dropped("not_chosen")


def _measured_prompts(run: Run) -> list[MeasuredPrompt]:
    """The candidates' prompts with their measures; without those whose edits could not be measured."""
    prompts = read_rows(run.path("candidates"), CANDIDATES, ["prompt_id", "instruction"])
    if run.config.choosing.by == RANDOM:
        return [MeasuredPrompt(**row) for row in prompts]
    measures = {row["prompt_id"]: row for row in read_rows(run.path("spreads"), SPREADS)}
    return [MeasuredPrompt(**row | measures[row["prompt_id"]]) for row in prompts if row["prompt_id"] in measures]
