"""The command line of every job. It imports no heavy library, so help and errors come at once.

python -m jobs                                      # all jobs, in the order of the pipeline
python -m jobs.make_pairs --help                    # the settings of that job; --help-all shows those of all jobs
python -m jobs.make_pairs shapes --run runs/one --pairs.samples-per-instruction 8
python -m jobs.make_pairs --config runs/one/config.yaml --run runs/one
python -m jobs.export_annotations --run runs/one/rounds/2                 # a later round, with the run's settings
"""

import atexit
import importlib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NoReturn, cast

import tyro
from pydantic import BaseModel, Field, ValidationError, create_model

from hive_ray import storage
from hive_ray.choices import choose_one_of
from hive_ray.cluster.addresses import start_on_loopback
from hive_ray.cluster.noise import quiet_libraries
from hive_ray.config import (
    Annotation,
    Config,
    Dpo,
    EditorFile,
    Nft,
    Preview,
    Recovery,
    Resources,
    Section,
    SingleFile,
    Training,
    Watching,
    split_arm,
)
from hive_ray.console import LogFormat, open_console
from hive_ray.files.settings_file import describe_errors, load_settings
from hive_ray.presets import PRESETS

WRONG_USAGE = 2
"""Exit status for wrong usage, as in argparse."""
ROUND = re.compile(r"(?P<run>.+)/rounds/(?P<number>\d+)")
"""The folder of a later round."""
TRAINED_ARMS = (
    "sft", "control", "finetuned", "conditional", "conditional_sft", "weighted", "level", "dpo", "shuffled", "nft",
    "rejection",
)  # fmt: skip
"""Names of editors that `train_editor` trains; sums of them are named like dpo+rejection."""
HIDDEN_SECTIONS = (EditorFile, Preview, Recovery, SingleFile, Watching)
INNER_SECTIONS = (Dpo, Nft, Resources, Training)
"""Inner sections that help leaves out for jobs that do not train."""


# --- Options ----------------------------------------------------------------------------------------------------------


class ConsoleOptions(Section):
    """How a job prints."""

    quiet: bool = False
    """Print only warnings, errors and the last result."""
    log_format: LogFormat = "text"
    """Output format: text, or one JSON object per line for programs."""


class RunOptions(ConsoleOptions):
    """Options of every job of a run."""

    run: str = "runs/quickstart"
    """Run folder: a local path or an s3:// address."""
    rebuild: bool = False
    """Delete and rebuild what was made with other settings, instead of failing."""


class EstimateOption(Section):
    """Option of jobs with a long or costly stage."""

    estimate: bool = False
    """Time the first rows and print what the stage will take, instead of running it (`write_instructions`,
    `make_pairs`)."""


class ArmOption(Section):
    """Option of jobs for several editors."""

    arm: str = "sft"
    """The editor to train, or to prepare data for: sft, control, finetuned (as `editor.arm` says), conditional,
    weighted, level, conditional_sft (conditional from `editor.start`), dpo, shuffled, nft, rejection, or a sum such as
    dpo+rejection. Without it, `score_pairs` works for finetuned and `score_candidates` for nft."""


class RoundsOption(Section):
    """Option of the pipeline."""

    rounds: int = Field(1, ge=1)
    """Rounds of feedback. Each later round starts with new candidates from the editor of the round before."""


class Command(RunOptions, EstimateOption, ArmOption, RoundsOption, Config):
    """Settings of one run; flags override every section."""


# --- The jobs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A module of this package that is a command."""

    summary: str
    """One line."""
    sections: tuple[str, ...] = ()
    """Sections of `Config` that its help shows: those that decide what it makes, and how."""
    options: tuple[type[Section], ...] = ()
    """Its options in addition to `RunOptions`."""
    example: str = "shapes --run runs/one"
    """Arguments of an example command."""
    hides: tuple[type[Section], ...] = ()
    """Types of inner sections that its help leaves out."""
    settings: str = ""
    """For a job that belongs to no run: the name of its settings in `jobs.own_settings`."""
    package: Literal["jobs", "studies"] = "jobs"
    """The package of its module."""
    function: str = "build"
    """The function of its module to call."""
    only_reads: bool = False
    """Whether it writes nothing into a run: it starts no cluster, and by default uses the run's config.yaml."""


JOBS = {
    "finetune_writer": Job("have a language model fine-tuned on triplets that people wrote", ("writer",)),
    "write_instructions": Job(
        "captions -> edit instructions, by a language model", ("instructions", "writer"), (EstimateOption,)
    ),
    "make_pairs": Job(
        "instructions -> pairs of pictures, by Prompt-to-Prompt", ("pairs",), (EstimateOption,),
        "shapes --run runs/one --pairs.samples-per-instruction 8",
    ),
    "import_pairs": Job(
        "somebody else's dataset -> pairs, in place of the two jobs above", ("importing",),
        example="sd15 --run runs/one --importing.dataset /data/MagicBrush",
    ),
    "inspect_pairs": Job("pairs -> a page that shows what was kept and dropped", ("pairs",)),
    "export_pairs": Job("pairs -> a dataset that others open", ("exporting",)),
    "encode_latents": Job("pairs -> their latents, encoded once", ("editor",), hides=INNER_SECTIONS),
    "train_editor": Job(
        "pairs, rankings or scored candidates -> an editor", ("editor",), (ArmOption,),
        "shapes --run runs/one --arm dpo --editor.dpo.beta 1000", function="build_for_arm", hides=(Nft, Resources),
    ),
    "export_editor": Job(
        "a training's newest checkpoint -> an editor", ("editor",), (ArmOption,), "shapes --run runs/one --arm sft",
        hides=INNER_SECTIONS,
    ),
    "convert_editor": Job(
        "a released checkpoint -> an editor", example="--checkpoint editor.ckpt --folder runs/one/editors/released",
        settings="Conversion",
    ),
    "sample_candidates": Job(
        "prompts -> several edits each, for people to rank", ("candidates",), (ArmOption,),
        "shapes --run runs/one --candidates.num-edits 4", function="build_for_arm",
    ),
    "choose_candidates": Job(
        "candidates -> which prompts people rank, and in which order", ("choosing",)
    ),
    "export_annotations": Job("the annotation app's answers -> a file of rankings", ("annotation",)),
    "collect_rankings": Job("candidates and people's answers -> rankings", ("rankings",)),
    "import_rankings": Job(
        "somebody else's rankings -> rankings to learn from", ("importing",),
        example="shapes --run runs/one --importing.rankings theirs.csv",
    ),
    "train_reward": Job("rankings -> a reward model", ("reward",), hides=(Resources,)),
    "reward_curve": Job(
        "whether more rankings would make a better reward model", ("reward",), hides=(Resources,)
    ),
    "score_pairs": Job(
        "pairs -> pairs with weights, phrases or levels by their rewards", ("scoring",), (ArmOption,),
        "shapes --run runs/one --arm weighted", function="build_for_arm",
    ),
    "score_candidates": Job(
        "candidates -> candidates with their rewards", ("candidate_scoring",), (ArmOption,),
        "shapes --run runs/one --arm rejection", function="build_for_arm",
    ),
    "average_editors": Job(
        "editors -> one with the mean of their weights", ("averaging",),
        example="shapes --run runs/one --averaging.editors dpo weighted",
    ),
    "evaluate_editor": Job(
        "editors -> how good their edits of held-out prompts are", ("evaluation",)
    ),
    "pipeline": Job(
        "all of the above that the settings ask for, in order", tuple(Config.model_fields), (RoundsOption,),
        "shapes --run runs/one --rounds 2",
    ),
    "status": Job(
        "how far a run is, what is stale and why, and the next command", example="--run runs/one", only_reads=True
    ),
    "compare": Job(
        "two runs -> settings that differ and results, side by side", example="runs/one runs/two",
        settings="Comparison", only_reads=True,
    ),
    "study": Job(
        "compare all ways to learn from feedback on shapes", example="--seeds 102 --parts feedback", settings="Study",
        package="studies", function="main",
    ),
    "rank_shapes": Job(
        "make the rankings that come with shapes", example="", settings="ShippedRankings", package="studies",
        function="main",
    ),
    "pretrain_shapes": Job(
        "make the models that come with shapes", example="", settings="Pretraining", package="studies", function="main",
    ),
}  # fmt: skip
"""By the names of their modules, in the order of the pipeline."""


def list_jobs(program: str) -> str:
    """All jobs with a line each."""
    width = max(len(name) for name in JOBS)
    return "\n".join([
        f"usage: {program} JOB [PRESET] [--run RUN] [flags]      one job; {program} JOB --help shows its flags",
        "",
        *(f"  {name.replace('_', '-'):<{width}}  {job.summary}" for name, job in JOBS.items()),
        "",
        f"presets: {', '.join(PRESETS)}",
    ])  # fmt: skip


def module_of(name: str) -> str:
    """The module of a job, as `python -m` takes it: "jobs.make_pairs"."""
    return f"{JOBS[name].package}.{name}"


def run_job(name: str, arguments: Sequence[str] | None = None, program: str = "") -> NoReturn:
    """Do what a command line asks of one job, and end the process. `arguments` are sys.argv's where none are given."""
    arguments = sys.argv[1:] if arguments is None else arguments
    job, program = JOBS[name], program or f"python -m {module_of(name)}"
    settings, shown = read_arguments(job, list(arguments), program)
    with open_console(quiet=shown.quiet, log_format=shown.log_format, stage=name, ends_process=True):
        if job.only_reads:
            _read(job, name, settings)
        else:
            _work(job, name, settings)
    raise SystemExit


def _work(job: Job, name: str, settings: Any) -> None:
    start_on_loopback()
    quiet_libraries(starts_cluster=not os.environ.get("RAY_ADDRESS"))  # before they are imported
    from jobs.run import run_command  # and with it all that a job works with, which takes seconds

    # Once Ray ends its processes, another Ctrl-C would leave some of them.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    module = importlib.import_module(module_of(name))
    run_command(getattr(module, job.function), settings, module)


def _read(job: Job, name: str, settings: Any) -> None:
    of_run = isinstance(settings, Command)
    if of_run:
        quiet_libraries(starts_cluster=not os.environ.get("RAY_ADDRESS"))
    module = importlib.import_module(module_of(name))
    try:
        if of_run:
            from jobs.run import run_of

            settings = run_of(settings)
        getattr(module, job.function)(settings)
    except (ValueError, OSError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error


# --- Reading a command line -------------------------------------------------------------------------------------------


def read_arguments(job: Job, arguments: list[str], program: str) -> tuple[Any, ConsoleOptions]:
    """The settings that a command line names (a `Command`, or the job's own), and how the job says what it says.

    Raises SystemExit: 0 after help, 2 with a message where it cannot be understood.
    """
    try:
        if job.settings:
            return _own_settings(job, arguments, program)
        if {"-h", "--help", "--help-all"} & {*arguments}:
            _show_help(job, arguments, program)
        command = read_command(_with_settings_of_run(arguments) if job.only_reads else arguments, program)
        return command, command
    except ValidationError as error:
        message = describe_errors(error)
    except (ValueError, OSError) as error:
        message = str(error)
    print(f"{program}: {message}\nsee {program} --help", file=sys.stderr)
    raise SystemExit(WRONG_USAGE)


def read_command(arguments: list[str], program: str = "job") -> Command:
    """The settings of a run, or of a later round of one, whose `run` is its whole address.

    Raises ValueError, OSError and pydantic's ValidationError for what cannot be understood, or read.
    """
    default, flags = _defaults_and_flags(arguments)
    command = _parsed(flags, default, program)
    root = storage.absolute(command.run)
    later = ROUND.fullmatch(root)
    if later:  # it has its run's settings, unless others are named
        names_settings = flags != arguments
        settings = default if names_settings else load_settings(storage.join(later["run"], "config.yaml"), Command)
        command = _parsed(flags, _command(for_later_rounds(config_of(settings))), program)
    split_arm(command.arm, TRAINED_ARMS)
    return command.model_copy(update={"run": root})


def _with_settings_of_run(arguments: list[str]) -> list[str]:
    """The arguments with the settings file of the run that they name, where they name no settings; the run may be
    named without --run."""
    if arguments and not arguments[0].startswith("-") and arguments[0] not in PRESETS:
        arguments = ["--run", *arguments]
    default, flags = _defaults_and_flags(arguments)
    if flags != arguments:
        return arguments
    root = storage.absolute(_parsed(flags, default, "job").run)
    file = storage.join(ROUND.sub(r"\g<run>", root), "config.yaml")
    if not storage.exists(file):
        raise FileNotFoundError(f"{file} is not there: name the folder of a run with --run")
    return ["--config", file, *arguments]


def for_later_rounds(config: Config) -> Config:
    """A run's settings without what they say of the first round's own edits: who said what of them."""
    gold = config.annotation.gold and Annotation().gold
    return config.changed({"rankings": {"annotations": ""}, "annotation": {"gold": gold}})


def config_of(command: Command) -> Config:
    """The settings of a run, without what else a job is asked."""
    return Config(**command.model_dump(include=set(Config.model_fields)))


def _command(config: Config) -> Command:
    return Command(**config.model_dump())


def _defaults_and_flags(arguments: list[str]) -> tuple[Command, list[str]]:
    """The preset or the settings file that the flags are applied to, and the flags."""
    for place, argument in enumerate(arguments):
        if argument.startswith("--config="):
            path, others = argument.removeprefix("--config="), arguments[place + 1 :]
        elif argument == "--config":
            path, others = "".join(arguments[place + 1 : place + 2]), arguments[place + 2 :]
        else:
            continue
        if not path or path.startswith("--"):
            raise ValueError("--config has no file after it: name a settings file, such as runs/one/config.yaml")
        return load_settings(path, Command), arguments[:place] + others
    if arguments and not arguments[0].startswith("-"):
        if arguments[0] not in PRESETS:
            raise ValueError(f"preset {arguments[0]!r} is unknown; {choose_one_of(PRESETS, arguments[0])}")
        return _command(PRESETS[arguments[0]]()), arguments[1:]
    return _command(PRESETS["shapes"]()), arguments


def _parsed(flags: list[str], default: Command, program: str) -> Command:
    return tyro.cli(Command, args=flags, default=default, prog=program)


def _own_settings(job: Job, arguments: list[str], program: str) -> tuple[Any, ConsoleOptions]:
    kind = getattr(importlib.import_module("jobs.own_settings"), job.settings)
    unnamed = tyro.conf.arg(name="")
    both = tuple[Annotated[kind, unnamed], Annotated[ConsoleOptions, unnamed]]
    return tyro.cli(both, args=arguments, prog=program, description=_description(job, program))


# --- Help -------------------------------------------------------------------------------------------------------------


def _show_help(job: Job, arguments: list[str], program: str) -> NoReturn:
    """Print the settings of a job, or of all, with the defaults of the preset that is named. Raises SystemExit."""
    asked = [argument for argument in arguments if argument not in ("-h", "--help", "--help-all")]
    default, _ = _defaults_and_flags(asked)
    everything = "--help-all" in arguments
    kind = Command if everything else _settings_of(job, default)
    defaults = default if everything else kind(**default.model_dump(include={*kind.model_fields}))
    show: Callable[..., NoReturn] = cast(Any, tyro.cli)  # with --help it ends by SystemExit
    show(kind, args=["--help"], default=defaults, prog=program, description=_description(job, program))


def _description(job: Job, program: str) -> str:
    lines = [f"{job.summary[0].upper()}{job.summary[1:]}.", "", f"  {program} {job.example}".rstrip()]
    if not job.settings:
        lines += [
            "",
            f"Settings are a preset's ({', '.join(PRESETS)}; shapes where none is named first), or those of --config "
            "FILE, and what flags say.",
            "--help-all shows the flags of all jobs, and those that are left out here.",
        ]
    return "\n".join(lines)


def _settings_of(job: Job, default: Command) -> type[BaseModel]:
    """A model of what one job is asked, in which settings that came before are not shown again."""
    seen: set[type] = {*HIDDEN_SECTIONS, *job.hides}
    fields: dict[str, Any] = {name: _shown(getattr(default, name), seen) for name in job.sections}
    return create_model("Settings", __base__=(RunOptions, *job.options), **fields)


def _shown(section: Section, seen: set[type]) -> tuple[Any, Section]:
    """A section as a field of a model: what its kind has in common with one before it is hidden from help."""
    fields: dict[str, Any] = {}
    for name, inner in _inner_sections(section):
        if type(inner) in seen:
            fields[name] = (Annotated[type(inner), tyro.conf.Suppress], inner)
        else:
            seen.add(type(inner))
            fields[name] = _shown(inner, seen)
    kind = create_model(type(section).__name__, __base__=type(section), **fields)
    kind.__doc__ = type(section).__doc__
    return kind, kind(**section.model_dump())


def _inner_sections(section: Section) -> Iterator[tuple[str, Section]]:
    for name, value in section:
        if isinstance(value, Section):
            yield name, value
