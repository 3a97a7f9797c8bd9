"""A run: its folder, its settings, and how a job works in it.

A later round is a run of its own in <run>/rounds/<n>. It starts from the editor of the round before, and finds there or
in the run what all rounds share (SHARED); what it makes lies in its own folder.
"""

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from pydantic import ValidationError

from hive_ray import console, storage
from hive_ray.artifacts.manifest import OnMismatch, fingerprint_of, read_manifest
from hive_ray.artifacts.model_store import is_finished_model, model_digest
from hive_ray.cluster.failures import (
    RESUME_HINT,
    exiting_when_cluster_is_lost,
    exiting_when_start_fails,
    explain_ray_error,
)
from hive_ray.cluster.noise import filtering_known_noise
from hive_ray.cluster.starting import nodes_missing_file, num_nodes, start_ray
from hive_ray.config import Config, Section
from hive_ray.errors import Stopped
from hive_ray.files.owners import unfinished_name
from hive_ray.files.settings_file import describe_errors
from hive_ray.files.storage_check import check_storage
from hive_ray.seeds import seed_for
from jobs.command import ROUND, Command, config_of, for_later_rounds

SHARED = (
    "captions", "imported", "writer", "answers", "instructions", "pairs", "prompts", "latents", "judge_answers",
    "imported_rankings", "editors/sft", "metrics/editors/sft.jsonl",
)  # fmt: skip
"""What is made once, and is the first round's in every round."""
ANSWERS = ("answers", "judge_answers")
"""Folders of a file for each answer, too many to look through in every job: those that write there do."""
CURRENT = "editors/current"
"""The editor that a round starts from: sft, or what the round before made."""
RANKINGS_BY_REWARD = "rankings_by_reward"
"""The table of the reward model's own rankings."""

MADE_BY = {
    "captions": "write_instructions",
    "instructions": "write_instructions",
    "imported": "import_pairs",
    "imported_rankings": "import_rankings",
    "pairs": "make_pairs",
    "prompts": "make_pairs",
    "latents": "encode_latents",
    CURRENT: "train_editor",
    "candidates": "sample_candidates",
    "candidates_unguided": "sample_candidates --arm rejection",
    "spreads": "choose_candidates",
    "chosen": "choose_candidates",
    "rankings": "collect_rankings",
    "reward": "train_reward",
    "reward_blip": "train_reward",
    "reward_measures": "train_reward",
    "denoising_errors": "train_reward",
    "candidate_rewards": "score_candidates --arm nft",
    "candidate_rewards_by_people": "score_candidates --arm nft",
    "candidate_rewards_unguided": "score_candidates --arm rejection",
    "scored_candidates": "score_candidates --arm nft",
    "best_candidates": "score_candidates --arm rejection",
    RANKINGS_BY_REWARD: "score_candidates --arm dpo",
}
"""What a run holds -> the job that makes it, and its flags, where it is not imported."""
MADE_BY_KIND = {
    "editors/": "train_editor --arm {}",
    "evaluation/": "evaluate_editor",
    "curves/": "evaluate_editor",
    "reward_curve/": "reward_curve",
    "scored_pairs_": "score_pairs --arm {}",
    "scored_pairs": "score_pairs",
    "rewards": "score_pairs",
}
"""How other names of what a run holds begin -> the job and its flags; {} is the rest of the name."""
INTERRUPTED = 130
"""Exit status of a job that was stopped by Ctrl-C, as of a shell."""
IN_A_RAY_JOB = re.compile(r"/(runtime_resources|_ray_pkg_\w+)(/|$)")
"""Folders in which Ray unpacks what `ray job submit --working-dir` sent; it removes them once they take much room."""


@dataclass(frozen=True)
class Run:
    """Where the tables and models of a run, or of a later round of it, lie, and the settings that make them."""

    root: str
    config: Config
    on_mismatch: OnMismatch = "refuse"
    estimate: bool = False
    arm: str = "sft"
    num_rounds: int = 1
    before: "Run | None" = None
    """The round before this one; None of the first."""
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    """Names that others made -> where they lie."""

    def path(self, name: str) -> str:
        """The address of one table, model or file; `editors/current` is the editor that this round starts from."""
        for made, address in self.elsewhere.items():
            if name == made or name.startswith(f"{made}/"):
                return address + name.removeprefix(made)
        return self.path("editors/sft") if name == CURRENT else storage.join(self.root, name)

    def command(self, job: str) -> str:
        """What to type to have a job work in this run, or round, with its settings."""
        return f"python -m jobs.{job} --config {self.path('config.yaml')} --run {self.root}"

    def command_for(self, name: str) -> str:
        """What to type to have a table or model made: "editors/current" is the editor that this round starts from.

        KeyError for what no job makes.
        """
        if name == CURRENT and self.before:
            return f"{self.before.command('train_editor')} --arm finetuned"
        if name in ("pairs", "prompts") and self.config.importing.dataset:
            return self.command("import_pairs")
        if name in ("pairs", "prompts") and read_manifest(self.path("imported")):
            return f"{self.command('import_pairs')} --importing.dataset <the dataset that was imported>"
        job, _, flags = job_that_makes(name).partition(" ")
        return f"{self.command(job)} {flags}".rstrip()

    @property
    def feedback_arm(self) -> str:
        """The arm that `--arm` names; `finetuned` is what `editor.arm` says. ValueError for several that are added
        up: each has a table of its own."""
        arm = self.config.editor.arm if self.arm == "finetuned" else self.arm
        if "+" in arm:
            raise ValueError(f"{arm} is several arms, each trained on its own: name one, --arm {arm.partition('+')[0]}")
        return arm

    @property
    def number(self) -> int:
        """Which round it is, from 1."""
        return len(self.rounds)

    @property
    def rounds(self) -> "list[Run]":
        """All rounds up to this one, the first one first."""
        return [*(self.before.rounds if self.before else []), self]

    def ranking_tables(self) -> list[str]:
        """The tables of rankings that this round learns from: imported ones, those of all rounds up to it, and the last
        that thumbs made, who say again what they said before."""
        imported = [self.path("imported_rankings")] if read_manifest(self.path("imported_rankings")) else []
        taken = [one.path("thumbs") for one in self.rounds if read_manifest(one.path("thumbs"))]
        return imported + [one.path("rankings") for one in self.rounds] + taken[-1:]

    def dpo_ranking_tables(self) -> list[str]:
        """The tables of rankings that an editor learns from directly: in a later round, and without
        `editor.dpo.imported_rankings`, those of its own edits alone. What people said of another editor's edits tells
        little of the present one's. The reward model's own rankings are the last, where it makes some."""
        only_own = self.before or not self.config.editor.dpo.imported_rankings
        by_people = [self.path("rankings")] if only_own else self.ranking_tables()
        return by_people + ([self.path(RANKINGS_BY_REWARD)] if self.config.candidate_scoring.ranked_rate else [])

    def after(self, editor: str = "finetuned") -> "Run":
        """The next round, which starts from this one's `editor`."""
        first, number = self.rounds[0], self.number + 1
        current = {
            CURRENT: self.path(f"editors/{editor}"),
            "metrics/editors/current.jsonl": self.path(f"metrics/editors/{editor}.jsonl"),
        }
        return replace(
            self,
            root=storage.join(first.root, "rounds", str(number)),
            config=reseeded(for_later_rounds(first.config), number),
            before=self,
            elsewhere={name: first.path(name) for name in SHARED} | current,
        )


def job_that_makes(name: str) -> str:
    """The job, and its flags, for a table or model of a run. KeyError for what no job makes."""
    if name in MADE_BY:
        return MADE_BY[name]
    for start, job in MADE_BY_KIND.items():
        if name.startswith(start):
            return job.format(name.removeprefix(start))
    raise KeyError(name)


def reseeded(config: Config, number: int) -> Config:
    """What a round's stages are told: other seeds for whatever is drawn again from the same prompts or pairs, and the
    editor that it starts from among those that are compared."""

    def another(seed: int) -> int:
        return seed_for("round", number, seed)

    editor, evaluation = config.editor, config.evaluation
    finetune, dpo, nft = (
        training.model_copy(update={"seed": another(training.seed)})
        for training in (editor.finetune, editor.dpo.training, editor.nft.training)
    )
    learning = {
        "finetune": finetune,
        "dpo": editor.dpo.model_copy(update={"training": dpo}),
        "nft": editor.nft.model_copy(update={"training": nft}),
    }
    return config.changed({
        "candidates": {"seed": another(config.candidates.seed)},
        "choosing": {"seed": another(config.choosing.seed)},
        "rankings": {"seed": another(config.rankings.seed)},
        "editor": learning,
        "evaluation": {"editors": ("current", *evaluation.editors)},
    })  # fmt: skip


def fingerprint(section: Section, *addresses: str, **inputs: str) -> dict:
    """The fingerprint of a stage whose `addresses` (settings that name models) count by their content."""
    models = {name: model_digest(getattr(section, name)) for name in addresses}
    return fingerprint_of(section.model_copy(update=dict.fromkeys(addresses, "")), **models, **inputs)


def run_command(
    act: Callable[[Any], object],
    settings: Any,
    module: ModuleType | None = None,
) -> None:
    """Do a job, for a command line. `settings`: those of a run (`Command`), or of a job that belongs to none.

    module: the job's, where an `estimate` and `WORKERS_IMPORT` (what its workers are forked with, see `start_ray`) are
    looked for. reads: what has to be finished before (`check_inputs`).
    """
    if not isinstance(settings, Command):
        exit_on_error(lambda: act(settings))
        return
    estimate = getattr(module, "estimate", None)
    workers_import = getattr(module, "WORKERS_IMPORT", ())
    exit_on_error(lambda: _start(act, settings, estimate, workers_import, module))


def exit_on_error(act: Callable[[], object]) -> None:
    """Act, for a command line: what a person can mend ends the process with one sentence and status 1, Ctrl-C with 130;
    bugs keep their traceback."""
    with filtering_known_noise():
        try:
            act()
        except ValidationError as error:
            ended = f"ValueError: {describe_errors(error)}"
        except (ValueError, OSError, Stopped) as error:
            ended = explain_ray_error(error) or f"{type(error).__name__}: {error}"
        except Exception as error:
            ended = explain_ray_error(error)
            if ended is None:
                raise
        except KeyboardInterrupt:
            stopped = f"Stopped by Ctrl-C. {RESUME_HINT}"
            console.fail(stopped)
            print(f"\n{stopped}", file=sys.stderr, flush=True)
            ended = INTERRUPTED
        else:
            return
    if ended == INTERRUPTED:
        _hush()
    sys.exit(ended)


def _hush() -> None:
    """Leave out what Ray's processes, which Ctrl-C reaches too, say as they end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.dup2(nowhere, sys.stderr.fileno())


def _start(
    build: Callable[[Run], object],
    command: Command,
    estimate: Callable[[Run], object] | None,
    workers_import: tuple[str, ...],
    module: ModuleType | None,
) -> None:
    run = run_of(command)
    if run.estimate and estimate is None:
        raise ValueError("only write_instructions and make_pairs can estimate what they will take")
    check_run_folder(run.root)
    if run.root.startswith(storage.S3):
        check_storage(run.root)
    try:
        check_inputs(run, inputs_of(module, run))
    except FileNotFoundError:  # it names a command with these settings
        write_settings(run.root, config_of(command))
        raise
    with exiting_when_start_fails():
        start_ray(workers_import=workers_import)
    check_nodes_see(run.root)
    try:
        write_settings(run.root, config_of(command))
    except OSError as error:
        raise OSError(f"the run folder {run.root} cannot be written: {error}") from error
    with exiting_when_cluster_is_lost():
        if run.estimate and estimate is not None:
            estimate(run)
        else:
            build(run)
    storage.remove_unfinished(run.root, skipped=ANSWERS, uploads_older_than_s=storage.ABANDONED_UPLOAD_S)


def check_run_folder(root: str) -> None:
    """Raise, before Ray is started and anything is made, where a run cannot be kept at this address."""
    if root.startswith(storage.S3):
        return
    if IN_A_RAY_JOB.search(root):
        raise ValueError(
            f"the run folder {root} lies among the files that Ray keeps of a job, and goes with them: give --run "
            "s3://bucket/runs/one, or the whole path of a folder that all nodes of the cluster share"
        )
    folder = _nearest(root)
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise OSError(
            f"the run folder {root} cannot be written: {folder} is "
            f"{'read-only for you' if folder.is_dir() else 'no folder'}; give another --run"
        )


def inputs_of(module: ModuleType | None, run: Run) -> list[str]:
    """Names of the tables and models that a job needs: what its stages read and do not make themselves.

    module: the job's. Its `stages` declares them; READS names what a job reads that declares no stage.
    """
    stages = module.stages(run) if module is not None and hasattr(module, "stages") else []
    made = {stage.name for stage in stages}
    read = [name for stage in stages for name in stage.reads if name not in made]
    return list(dict.fromkeys([*getattr(module, "READS", ()), *read]))


def check_inputs(run: Run, names: Sequence[str]) -> None:
    """FileNotFoundError, with the command that makes it, where one of these tables or editors is not finished."""
    for name in names:
        address = run.path(name)
        if not is_finished(address):
            raise FileNotFoundError(f"{address} is not finished; this makes it: {run.command_for(name)}")


def is_finished(address: str) -> bool:
    """Whether there is a finished table or model."""
    return read_manifest(address) is not None or is_finished_model(address)


def check_nodes_see(root: str) -> None:
    """Raise, before anything is made, where the cluster has nodes that do not see this run folder. Nodes that an
    autoscaler adds later are asked by the stages."""
    if root.startswith(storage.S3) or num_nodes() < 2:
        return
    probe = _nearest(root) / unfinished_name("probe")
    probe.touch()
    try:
        blind = nodes_missing_file(str(probe))
    finally:
        probe.unlink()
    if blind:
        raise ValueError(
            f"the run folder {root} is seen by this machine, and not by {', '.join(blind)} of the cluster, whose "
            "workers read and write the run's tables: give --run s3://bucket/runs/one, or the whole path of a folder "
            "that all nodes share"
        )


def _nearest(path: str) -> Path:
    """What there is at the path already, or above it."""
    found = Path(path)
    while not found.exists():
        found = found.parent
    return found


def run_of(command: Command) -> Run:
    """The run, or later round of one, that a command line asks for."""
    later, config = ROUND.fullmatch(command.run), config_of(command)
    run = Run(
        later["run"] if later else command.run,
        config,
        "rebuild" if command.rebuild else "refuse",
        command.estimate,
        command.arm,
        command.rounds,
    )
    if not later:
        return run
    run = round_of(run, int(later["number"]))
    return replace(run, config=reseeded(config, run.number))


def round_of(run: Run, number: int) -> Run:
    """The round of that number; ValueError for one that is not later than `run`."""
    if number <= run.number:
        raise ValueError(f"round {number} has no folder of its own: round {run.number} is the run folder {run.root}")
    while run.number < number:
        run = run.after()
    return run


def write_settings(root: str, config: Config) -> None:
    """Write what a run, or a round of one, was told to <run>/config.yaml; a round's seeds follow from it."""
    text = yaml.safe_dump(_plain(config.model_dump()), sort_keys=False)
    storage.write_text(storage.join(root, "config.yaml"), text)


def _plain(value: object) -> object:
    """Tuples as lists, so that any YAML reader can read them."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple) else value
