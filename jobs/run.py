"""A run: its folder, its settings, and the command line that every job shares.

python -m jobs.make_pairs shapes --run runs/one --pairs.samples-per-instruction 8
python -m jobs.make_pairs --config runs/one/config.yaml --run runs/one
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tyro
import yaml
from pydantic import ValidationError

from hive_ray import storage
from hive_ray.config import PRESETS, Config, Section
from hive_ray.distributed.cluster import start_ray
from hive_ray.distributed.models import model_digest
from hive_ray.distributed.tables import OnMismatch
from hive_ray.distributed.tables import fingerprint as fingerprint_of
from hive_ray.schemas import Stopped


@dataclass(frozen=True)
class Run:
    """Where a run's tables and models lie, and the settings that make them."""

    root: str
    config: Config
    on_mismatch: OnMismatch = "refuse"
    estimate: bool = False
    arm: str = "sft"

    def path(self, name: str) -> str:
        """The address of one table, model or file of the run."""
        return storage.join(self.root, name)


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
    """Which editor `train_editor` trains: sft, control, finetuned, conditional, weighted or dpo."""


def fingerprint(section: Section, *addresses: str, **inputs: str) -> dict:
    """The fingerprint of a stage whose `addresses` (settings that name models) count by their content."""
    models = {name: model_digest(getattr(section, name)) for name in addresses}
    return fingerprint_of(section.model_copy(update=dict.fromkeys(addresses, "")), **models, **inputs)


def main(build: Callable[[Run], object], estimate: Callable[[Run], object] | None = None) -> None:
    """Read the command line, write the resolved settings into the run folder, start Ray and build, or estimate."""
    try:
        run = read_command(sys.argv[1:])
        if run.estimate and estimate is None:
            raise ValueError("only write_instructions and make_pairs can estimate what they will take")
        start_ray()
        (estimate if run.estimate else build)(run)
    except (ValueError, OSError, Stopped) as error:  # what a person can mend; bugs keep their traceback
        sys.exit(f"{type(error).__name__}: {error}")


def read_command(arguments: list[str]) -> Run:
    """The run that a command line asks for; its settings are written to <run>/config.yaml."""
    default, flags = _starting_point(arguments)
    program = f"python -m {sys.modules['__main__'].__spec__.name}" if sys.modules["__main__"].__spec__ else None
    command = tyro.cli(Command, args=flags, default=default, prog=program)
    settings = command.model_dump(exclude={"run", "rebuild", "estimate", "arm"})
    root = storage.absolute(command.run)
    storage.write_text(storage.join(root, "config.yaml"), yaml.safe_dump(_plain(settings), sort_keys=False))
    return Run(root, Config(**settings), "rebuild" if command.rebuild else "refuse", command.estimate, command.arm)


def _starting_point(arguments: list[str]) -> tuple[Command, list[str]]:
    """The preset or the settings file that the flags are applied to, and the flags."""
    if "--config" in arguments:
        place = arguments.index("--config")
        path, flags = arguments[place + 1], arguments[:place] + arguments[place + 2 :]
        try:
            return Command(**yaml.safe_load(Path(path).read_text())), flags
        except ValidationError as error:
            raise ValueError(f"{path}: {error}") from error
    if arguments and not arguments[0].startswith("-"):
        if arguments[0] not in PRESETS:
            raise ValueError(f"preset {arguments[0]!r} is unknown; choose one of {', '.join(PRESETS)}")
        return _command(arguments[0]), arguments[1:]
    return _command("shapes"), arguments


def _command(preset: str) -> Command:
    return Command(**PRESETS[preset]().model_dump())


def _plain(value: object) -> object:
    """Tuples as lists, so that any YAML reader can read them."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple) else value
