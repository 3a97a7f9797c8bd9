"""A run: its folder, its settings, and the command line that every job shares.

python -m jobs.make_pairs shapes --run runs/one --pairs.samples-per-instruction 8
python -m jobs.make_pairs --config runs/one/config.yaml --run runs/one
python -m jobs.export_annotations --run runs/one/rounds/2                 # a later round, with the run's settings

A later round is a run of its own in <run>/rounds/<n>. It starts from the editor of the round before, and finds there or
in the run what all rounds share (SHARED); what it makes lies in its own folder.
"""

import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import tyro
import yaml
from pydantic import Field, ValidationError

from hive_ray import storage
from hive_ray.config import Annotation, Config, Section
from hive_ray.distributed.cluster import nodes_without, num_nodes, start_ray
from hive_ray.distributed.lost import ending_in_words, in_words, starting_in_words
from hive_ray.distributed.models import model_digest
from hive_ray.distributed.noise import without_known_noise
from hive_ray.distributed.tables import OnMismatch, read_manifest
from hive_ray.distributed.tables import fingerprint as fingerprint_of
from hive_ray.owners import unfinished
from hive_ray.presets import PRESETS
from hive_ray.schemas import Stopped
from hive_ray.seeds import seed_for
from hive_ray.settings_file import load_settings, wrong_settings

SHARED = (
    "captions", "imported", "writer", "answers", "instructions", "pairs", "prompts", "latents", "judge_answers",
    "imported_rankings", "editors/sft", "metrics/editors/sft.jsonl",
)  # fmt: skip
"""What is made once, and is the first round's in every round."""
ANSWERS = ("answers", "judge_answers")
"""Folders of a file for each answer, too many to look through in every job: those that write there do."""
RANKINGS_BY_REWARD = "rankings_by_reward"
"""The table of the reward model's own rankings."""

ROUND = re.compile(r"(?P<run>.+)/rounds/(?P<number>\d+)")
"""The folder of a later round."""
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
    rounds: int = 1
    before: "Run | None" = None
    """The round before this one; None of the first."""
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    """Names that others made -> where they lie."""

    def path(self, name: str) -> str:
        """The address of one table, model or file; `editors/current` is the editor that this round starts from."""
        for made, address in self.elsewhere.items():
            if name == made or name.startswith(f"{made}/"):
                return address + name.removeprefix(made)
        return self.path("editors/sft") if name == "editors/current" else storage.join(self.root, name)

    def command(self, job: str) -> str:
        """What to type to have a job work in this run, or round, with its settings."""
        return f"python -m jobs.{job} --config {self.path('config.yaml')} --run {self.root}"

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
        return len(self.so_far)

    @property
    def so_far(self) -> "list[Run]":
        """All rounds up to this one, the first one first."""
        return [*(self.before.so_far if self.before else []), self]

    def rankings_so_far(self) -> list[str]:
        """The tables of rankings that this round learns from: imported ones, those of all rounds up to it, and the last
        that thumbs made, who say again what they said before."""
        imported = [self.path("imported_rankings")] if read_manifest(self.path("imported_rankings")) else []
        taken = [one.path("thumbs") for one in self.so_far if read_manifest(one.path("thumbs"))]
        return imported + [one.path("rankings") for one in self.so_far] + taken[-1:]

    def rankings_for_dpo(self) -> list[str]:
        """The tables of rankings that an editor learns from directly: in a later round, and without
        `editor.dpo.imported_rankings`, those of its own edits alone. What people said of another editor's edits tells
        little of the present one's. The reward model's own rankings are the last, where it makes some."""
        only_own = self.before or not self.config.editor.dpo.imported_rankings
        by_people = [self.path("rankings")] if only_own else self.rankings_so_far()
        return by_people + ([self.path(RANKINGS_BY_REWARD)] if self.config.candidate_scoring.ranked_rate else [])

    def after(self, editor: str = "finetuned") -> "Run":
        """The next round, which starts from this one's `editor`."""
        first, number = self.so_far[0], self.number + 1
        current = {
            "editors/current": self.path(f"editors/{editor}"),
            "metrics/editors/current.jsonl": self.path(f"metrics/editors/{editor}.jsonl"),
        }
        return replace(
            self,
            root=storage.join(first.root, "rounds", str(number)),
            config=drawn_anew(again(first.config), number),
            before=self,
            elsewhere={name: first.path(name) for name in SHARED} | current,
        )


def again(config: Config) -> Config:
    """A run's settings without what they say of the first round's own edits: who said what of them."""
    gold = config.annotation.gold and Annotation().gold
    return config.changed({"rankings": {"annotations": ""}, "annotation": {"gold": gold}})


def drawn_anew(config: Config, number: int) -> Config:
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


class Command(Config):
    """Settings of one run; every section may be overridden by its flags."""

    run: str = "runs/quickstart"
    """Run folder: a local path or an s3:// address."""
    rebuild: bool = False
    """Delete and make again what other settings made, instead of refusing."""
    estimate: bool = False
    """Map the first rows by the clock and say what the stage will take, in place of it (`write_instructions`,
    `make_pairs`)."""
    arm: str = "sft"
    """Which editor `train_editor` trains: sft, control, finetuned (as `editor.arm` says), conditional, weighted,
    level, conditional_sft (conditional from the first start), dpo, shuffled, nft or rejection, or adds up:
    dpo+rejection. `score_pairs` makes what finetuned, conditional, weighted and level are trained on; where none is
    named, finetuned's. `score_candidates` does so for nft (where none is named) and rejection, and `sample_candidates`
    draws rejection's edits."""
    rounds: int = Field(1, ge=1)
    """How often `pipeline` goes round: again from new candidates of the editor that the last round made."""


def fingerprint(section: Section, *addresses: str, **inputs: str) -> dict:
    """The fingerprint of a stage whose `addresses` (settings that name models) count by their content."""
    models = {name: model_digest(getattr(section, name)) for name in addresses}
    return fingerprint_of(section.model_copy(update=dict.fromkeys(addresses, "")), **models, **inputs)


def main(
    build: Callable[[Run], object],
    estimate: Callable[[Run], object] | None = None,
    *,
    workers_import: tuple[str, ...] = (),
) -> None:
    """Read the command line, write the resolved settings into the run folder, start Ray and build, or estimate.

    workers_import: what the workers of many stages are forked with, see `start_ray`.
    """
    in_one_line(lambda: _start(build, estimate, workers_import))


def in_one_line(act: Callable[[], object]) -> None:
    """Act, for a command line: what a person can mend ends the process with one sentence; bugs keep their traceback."""
    with without_known_noise():
        try:
            act()
        except ValidationError as error:
            ended = f"ValueError: {wrong_settings(error)}"
        except (ValueError, OSError, Stopped) as error:
            ended = in_words(error) or f"{type(error).__name__}: {error}"
        except Exception as error:
            ended = in_words(error)
            if ended is None:
                raise
        else:
            return
    sys.exit(ended)


def _start(
    build: Callable[[Run], object], estimate: Callable[[Run], object] | None, workers_import: tuple[str, ...]
) -> None:
    run, settings = parse_command(sys.argv[1:])
    if run.estimate and estimate is None:
        raise ValueError("only write_instructions and make_pairs can estimate what they will take")
    check_run_folder(run.root)
    if run.root.startswith(storage.S3):
        storage.check_storage(run.root)
    with starting_in_words():
        start_ray(workers_import=workers_import)
    check_nodes_see(run.root)
    try:
        write_settings(run.root, settings)
    except OSError as error:
        raise OSError(f"the run folder {run.root} cannot be written: {error}") from error
    with ending_in_words():
        (estimate if run.estimate else build)(run)
    storage.sweep(run.root, but=ANSWERS, uploads_older_than_s=storage.OTHERS_UPLOADS_S)


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


def check_nodes_see(root: str) -> None:
    """Raise, before anything is made, where the cluster has nodes that do not see this run folder. Nodes that an
    autoscaler adds later are asked by the stages."""
    if root.startswith(storage.S3) or num_nodes() < 2:
        return
    probe = _nearest(root) / unfinished("probe")
    probe.touch()
    try:
        blind = nodes_without(str(probe))
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


def read_command(arguments: list[str]) -> Run:
    """The run, or later round of one, that a command line asks for; its settings are written to <run>/config.yaml."""
    run, settings = parse_command(arguments)
    write_settings(run.root, settings)
    return run


def parse_command(arguments: list[str]) -> tuple[Run, Config]:
    """The run, or later round of one, that a command line asks for, and what its config.yaml is to say."""
    default, flags = _starting_point(arguments)
    command = _parsed(flags, default)
    root = storage.absolute(command.run)
    later = ROUND.fullmatch(root)
    if later:  # it has its run's settings, unless others are named
        default = default if flags != arguments else load_settings(storage.join(later["run"], "config.yaml"), Command)
        command = _parsed(flags, _command(again(_config(default))))
    run = Run(
        later["run"] if later else root,
        _config(command),
        "rebuild" if command.rebuild else "refuse",
        command.estimate,
        command.arm,
        command.rounds,
    )
    if later:
        run = round_of(run, int(later["number"]))
        run = replace(run, config=drawn_anew(_config(command), run.number))
    return run, _config(command)


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


def _starting_point(arguments: list[str]) -> tuple[Command, list[str]]:
    """The preset or the settings file that the flags are applied to, and the flags."""
    for place, argument in enumerate(arguments):
        if argument.startswith("--config="):
            path, others = argument.removeprefix("--config="), arguments[place + 1 :]
        elif argument == "--config":
            path, others = "".join(arguments[place + 1 : place + 2]), arguments[place + 2 :]
        else:
            continue
        if not path or path.startswith("--"):
            raise ValueError("--config wants a settings file after it, such as runs/one/config.yaml")
        return load_settings(path, Command), arguments[:place] + others
    if arguments and not arguments[0].startswith("-"):
        if arguments[0] not in PRESETS:
            raise ValueError(f"preset {arguments[0]!r} is unknown; choose one of {', '.join(PRESETS)}")
        return _command(PRESETS[arguments[0]]()), arguments[1:]
    return _command(PRESETS["shapes"]()), arguments


def _parsed(flags: list[str], default: Command) -> Command:
    program = f"python -m {sys.modules['__main__'].__spec__.name}" if sys.modules["__main__"].__spec__ else None
    return tyro.cli(Command, args=flags, default=default, prog=program)


def _command(config: Config) -> Command:
    return Command(**config.model_dump())


def _config(command: Command) -> Config:
    return Config(**command.model_dump(include=set(Config.model_fields)))


def _plain(value: object) -> object:
    """Tuples as lists, so that any YAML reader can read them."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple) else value
