"""The summary of an evaluation, as <run>/summary.json holds it."""

from typing import Any

from pydantic import BaseModel, Field

from hive_ray import storage
from hive_ray.files.versioned import FORMAT_VERSION, Versioned, read_versioned
from hive_ray.statistics.intervals import Interval


class EditorSummary(BaseModel):
    """The means of one editor over prompts."""

    editor: str
    num_prompts: int | None = None
    num_edits: int | None = None
    """Edits of all these prompts. Early summaries have neither number."""
    metrics: dict[str, Interval]
    """Metric -> its mean with its interval."""


class EvaluationSummary(Versioned):
    """What an evaluation finds."""

    baseline: str = ""
    """The editor that the others are compared with."""
    editors: list[EditorSummary] = Field(default_factory=list)
    differences: dict[str, dict[str, Interval]] = Field(default_factory=dict)
    """Editor -> metric -> paired difference from the baseline."""


def to_json(summary: dict[str, Any]) -> dict[str, Any]:
    """The content of summary.json: the summary and the version. Raises ValidationError if it cannot be read back."""
    EvaluationSummary.model_validate(summary)
    return summary | {"format_version": FORMAT_VERSION}


def read_summary(folder: str) -> EvaluationSummary | None:
    """The summary in a run folder; None if the evaluation is not finished.

    Raises ValueError if the file is not a summary, or is of a later version.
    """
    address = storage.join(folder, "summary.json")
    return read_versioned(address, EvaluationSummary, called="a summary", remedy="run evaluate_editor again")
