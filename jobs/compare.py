"""Two runs side by side: the settings that differ, and what came of each.

config.yaml, summary.json, manifests of tables, cards of models of two run folders -> a table, a page or JSON
"""

from jobs.command import ROUND, run_job

if __name__ == "__main__":
    run_job("compare")

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import hive_ray
from hive_ray import storage
from hive_ray.artifacts.progress import format_duration
from hive_ray.config import Config
from hive_ray.console import tell_result
from hive_ray.evaluation.summary import EvaluationSummary, read_summary
from hive_ray.files.settings_file import SettingsError, load_settings, read_settings
from hive_ray.pages import html
from hive_ray.reward.card import RewardCard, read_reward_card
from jobs.own_settings import Comparison

ABSENT = "-"
PACKAGE = Path(hive_ray.__file__).parent
IN_PACKAGE = re.compile(r"/.*/hive_ray/(.+)")
"""An address in the package of some checkout."""
LONGEST_CELL = 60
"""Characters of a value that a table shows."""
SHOWN_METRICS = ("train/loss", "validation/")
"""How the names of a model's metrics begin that are compared."""

Cells = dict[str, str]
"""What stands in a row -> the value of one run."""


@dataclass(frozen=True)
class RunContents:
    """What is found in one run folder. What a run does not have is left out, and named in `missing`."""

    address: str
    settings: dict[str, Any] = field(default_factory=dict)
    evaluation: Cells = field(default_factory=dict)
    tables: Cells = field(default_factory=dict)
    models: Cells = field(default_factory=dict)
    seconds: float = 0.0
    """What its tables and models took to make."""
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunComparison:
    """Rows (name, value of the first run, value of the second) of each section, and what the runs do not have."""

    runs: tuple[str, str]
    missing: tuple[tuple[str, ...], tuple[str, ...]]
    sections: dict[str, list[tuple[str, str, str]]]


def build(settings: Comparison) -> RunComparison:
    """Compare two run folders, or rounds of a run; nothing is changed in them.

    Raises FileNotFoundError for a folder that holds nothing of a run.
    """
    first, second = (read_run(storage.absolute(run)) for run in settings.runs)
    compared = compare(first, second)
    if settings.html:
        storage.write_text(storage.absolute(settings.html), page(compared))
    tell_result(json.dumps(asdict(compared), indent=2) if settings.as_json else as_text(compared))
    return compared


def compare(first: RunContents, second: RunContents) -> RunComparison:
    """What differs in the settings, and all results of both."""
    names = sorted(first.settings.keys() | second.settings.keys())
    settings = [(name, _setting(name, first), _setting(name, second)) for name in names]
    sections = {
        "settings that differ": [row for row in settings if row[1] != row[2]],
        "evaluation": _side_by_side(first.evaluation, second.evaluation),
        "tables": _side_by_side(first.tables, second.tables),
        "models": _side_by_side(first.models, second.models),
        "time": [("tables and models together", format_duration(first.seconds), format_duration(second.seconds))],
    }
    return RunComparison((first.address, second.address), (first.missing, second.missing), sections)


def read_run(address: str) -> RunContents:
    """What a run folder, on disk or s3://, says of itself. Raises FileNotFoundError where it says nothing."""
    names = [name for name in storage.list_files(address) if not name.startswith("rounds/")]
    settings, missing = _settings(address)
    summary = read_summary(address)
    if summary is None:
        missing.append("evaluation (no summary.json: evaluate_editor has not finished)")
    manifests = _read_all(address, names, "manifest.json")
    made = _read_all(address, names, "made.json")
    if not settings and not manifests and not made:
        raise FileNotFoundError(
            f"{address} holds no config.yaml, no finished table and no model: give the folder of a run, such as "
            "runs/quickstart, or of a later round, runs/quickstart/rounds/2"
        )
    if not manifests:
        missing.append("tables (none is finished)")
    if not made:
        missing.append("models (none is finished)")
    reward = read_reward_card(storage.join(address, "reward"))
    return RunContents(
        address=address,
        settings=settings,
        evaluation=_evaluation(summary or EvaluationSummary()),
        tables=_tables(manifests),
        models=_models(made, reward),
        seconds=sum(one.get("seconds", 0.0) for one in (*manifests.values(), *made.values())),
        missing=tuple(missing),
    )


def as_text(compared: RunComparison) -> str:
    """A table for a terminal: A is the first run, B the second."""
    lines = []
    for letter, address, missing in zip("AB", compared.runs, compared.missing, strict=True):
        lines.append(f"{letter}: {address}")
        lines += [f"   without {words}" for words in missing]
    shown = [(title, [_cut(row) for row in rows]) for title, rows in compared.sections.items()]
    cells = [row for _, rows in shown for row in rows]
    widths = [max([len(row[column]) for row in cells] + [1]) for column in range(2)]
    for title, rows in shown:
        lines += ["", title if rows else f"{title}: none"]
        if rows:
            lines.append(f"  {'':<{widths[0]}}  {'A':<{widths[1]}}  B")
        lines += [f"  {name:<{widths[0]}}  {first:<{widths[1]}}  {second}" for name, first, second in rows]
    return "\n".join(lines)


def page(compared: RunComparison) -> str:
    """The same as an HTML page that stands alone."""
    head = ("", "A", "B")
    sections = [
        (title, html.table(head, [[escape(cell) for cell in row] for row in rows], "words"))
        for title, rows in compared.sections.items()
        if rows
    ]
    runs = [f"{letter}: {address}" for letter, address in zip("AB", compared.runs, strict=True)]
    missing = [
        f"{letter} is without {words}"
        for letter, all_words in zip("AB", compared.missing, strict=True)
        for words in all_words
    ]
    return html.page("Two runs", runs[0], sections, [runs[1], *missing])


def _settings(address: str) -> tuple[dict[str, Any], list[str]]:
    """The settings by their names, with what an older file leaves out; and what cannot be told."""
    file = storage.join(address, "config.yaml")
    if not storage.exists(file):
        return {}, ["settings (no config.yaml)"]
    try:
        settings = load_settings(file, Config).model_dump(mode="json")
    except SettingsError:  # of another version
        settings = read_settings(file)
    root = ROUND.sub(r"\g<run>", address)
    return {name: _relative(value, root) for name, value in _flat(settings)}, []


def _relative(value: Any, root: str) -> Any:
    """A setting without where the run folder `root` and the package were: both may differ in every checkout."""
    if isinstance(value, list):
        return [_relative(inner, root) for inner in value]
    if not isinstance(value, str):
        return value
    if value == root or value.startswith(f"{root}/"):
        return f"<run>{value.removeprefix(root)}"
    shipped = IN_PACKAGE.fullmatch(value)
    return f"<package>/{shipped[1]}" if shipped and (PACKAGE / shipped[1]).exists() else value


def _flat(values: Mapping[str, Any], start: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{start}{name}.")
        else:
            yield f"{start}{name}", value


def _setting(name: str, run: RunContents) -> str:
    return json.dumps(run.settings[name], ensure_ascii=False) if name in run.settings else ABSENT


def _read_all(address: str, names: Iterable[str], file: str) -> dict[str, dict[str, Any]]:
    """The JSON of each file of this name -> by the folder that it lies in."""
    found = {}
    for name in names:
        folder, _, last = name.rpartition("/")
        if last == file and folder:
            content = storage.read_json(storage.join(address, name))
            if isinstance(content, dict):
                found[folder] = content
    return found


def _evaluation(summary: EvaluationSummary) -> Cells:
    """Every measure of every editor, and how far it is from the baseline's."""
    found = {}
    for editor in summary.editors:
        name = editor.editor
        edits, prompts = (ABSENT if count is None else count for count in (editor.num_edits, editor.num_prompts))
        found[f"{name}: edits of prompts"] = f"{edits} of {prompts}"
        gaps = summary.differences.get(name, {})
        for metric, measured in editor.metrics.items():
            gap = f"; {gaps[metric].value:+.3f} from {summary.baseline}" if metric in gaps else ""
            found[f"{name}: {metric}"] = f"{measured:.3f}{gap}"
    return found


def _tables(manifests: Mapping[str, Mapping[str, Any]]) -> Cells:
    """Rows and time of every table, and a row for each reason for which rows were dropped."""
    found = {}
    for name, manifest in manifests.items():
        took = format_duration(manifest.get("seconds", 0.0))
        found[name] = f"{manifest['rows_out']} rows from {manifest['rows_in']} in {took}"
        for reason, count in manifest.get("dropped", {}).items():
            found[f"{name}: dropped, {reason}"] = str(count)
    return found


def _models(made: Mapping[str, Mapping[str, Any]], reward: RewardCard | None) -> Cells:
    """Time and last measures of every model."""
    found = {}
    for name, one in made.items():
        found[name] = f"made in {format_duration(one.get('seconds', 0.0))}"
        for metric, value in one.get("metrics", {}).items():
            if metric.startswith(SHOWN_METRICS):
                found[f"{name}: {metric}"] = f"{value:.4f}"
    accuracy = reward.held_out.get("reward/accuracy") if reward else None
    if accuracy is not None:
        found["reward: accuracy on held-out preferences"] = f"{accuracy:.3f}"
    return found


def _side_by_side(first: Cells, second: Cells) -> list[tuple[str, str, str]]:
    """All rows of the first, and then those that only the second has."""
    names = list(dict.fromkeys([*first, *second]))
    return [(name, first.get(name, ABSENT), second.get(name, ABSENT)) for name in names]


def _cut(row: Iterable[str]) -> list[str]:
    return [cell if len(cell) <= LONGEST_CELL else f"{cell[: LONGEST_CELL - 1]}…" for cell in row]
