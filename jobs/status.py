"""How far a run is: which tables and models are finished, stale, begun or missing, and the next command.

<run> -> a table on the terminal

hive-ray status runs/one
hive-ray status shapes --run runs/one --pairs.seed 3      # what these settings would make again
"""

from jobs.command import run_job

if __name__ == "__main__":  # before what the work needs is imported, which takes seconds
    run_job("status")

from collections.abc import Iterable, Sequence

from hive_ray import storage
from hive_ray.artifacts.progress import format_duration
from hive_ray.console import tell_result
from jobs import pipeline
from jobs.run import CURRENT, Run, round_of
from jobs.stage import Stage, StageStatus, State

COLUMNS = ("", "state", "rows", "dropped", "time", "on disk")
KILO = 1000


def build(run: Run) -> list[StageStatus]:
    """Print how far the stages of the pipeline are, of this run and its later rounds, and what comes next."""
    statuses: list[StageStatus] = []
    for each in _rounds(run):
        found = statuses_of(each)
        tell_result(f"{each.root}\n\n{table(each, found)}\n\nnext:  {next_command(each, found)}\n")
        statuses += found
    return statuses


def _rounds(run: Run) -> list[Run]:
    """The run, and its later rounds that are begun."""
    rounds = [run]
    while storage.exists(storage.join(rounds[-1].after().root, "config.yaml")):
        rounds.append(round_of(run, rounds[-1].number + 1))
    return rounds


def statuses_of(run: Run) -> list[StageStatus]:
    """How far each stage is, in the order of the pipeline. What reads something stale is stale, too."""
    statuses: list[StageStatus] = []
    stale: set[str] = set()
    for stage in _each_once(pipeline.declared(run)):
        status = stage.status(run, stale)
        if status.state != State.FINISHED:
            stale |= _names(stage)
        statuses.append(status)
    return statuses


def _each_once(stages: Iterable[Stage]) -> list[Stage]:
    return list({stage.name: stage for stage in stages}.values())


def _names(stage: Stage) -> set[str]:
    """What others call what this stage writes."""
    return {stage.name, CURRENT} if stage.name == "editors/sft" else {stage.name}


def table(run: Run, statuses: Sequence[StageStatus]) -> str:
    """One line for each stage; why it is stale stands below it."""
    rows = [COLUMNS, *(_cells(run, status) for status in statuses)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(COLUMNS))]
    lines = []
    for number, row in enumerate(rows):
        cells = []
        for column, (cell, width) in enumerate(zip(row, widths, strict=True)):
            cells.append(cell.ljust(width) if column < 2 else cell.rjust(width))
        lines.append("  ".join(cells).rstrip())
        reason = statuses[number - 1].reason if number else ""
        if reason:
            lines.append(f"    {reason}")
    return "\n".join(lines)


def _cells(run: Run, status: StageStatus) -> tuple[str, ...]:
    name, finished = status.stage.name, status.finished
    if status.state == State.MISSING:
        return name, status.state, "", "", "", ""
    size = _size(sum(storage.list_sizes(run.path(name)).values()))
    if finished is None:
        return name, status.state, "", "", "", size
    rows = "" if finished.rows is None else f"{finished.rows:,}"
    dropped = "" if finished.dropped is None else f"{finished.dropped:,}"
    seconds = "" if finished.seconds is None else format_duration(finished.seconds)
    return name, status.state, rows, dropped, seconds, size


def _size(num_bytes: float) -> str:
    """`640 kB`, `1.2 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < KILO:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= KILO
    return f"{num_bytes:.3g} TB"


def next_command(run: Run, statuses: Sequence[StageStatus]) -> str:
    """What to type for the first stage that is not finished; to serve the editor where all are."""
    for status in statuses:
        if status.state == State.STALE:
            return f"{run.command_for(status.stage.name)} --rebuild"
        if status.state != State.FINISHED:
            return run.command_for(status.stage.name)
    return f"make serve EDITOR_FOLDER={run.path('editors/finetuned')}"
