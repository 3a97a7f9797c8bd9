"""The summary of an evaluation, as <run>/summary.json holds it."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hive_ray import storage
from hive_ray.statistics.intervals import Interval

FORMAT_VERSION = 1


class EditorSummary(BaseModel):
    """The means of one editor over prompts."""

    editor: str
    num_prompts: int | None = None
    num_edits: int | None = None
    """Edits of all these prompts. Early summaries have neither number."""
    metrics: dict[str, Interval]
    """Metric -> its mean with its interval."""


class EvaluationSummary(BaseModel):
    """What an evaluation finds. Keys that are not named here are kept as they are."""

    model_config = ConfigDict(frozen=True, extra="allow")

    format_version: int = FORMAT_VERSION
    """Summaries of earlier programs have none. They are read as version 1."""
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
    content = storage.read_json(address)
    if content is None:
        return None
    try:
        summary = EvaluationSummary.model_validate(content)
    except ValidationError as error:
        raise ValueError(f"{address} is not a summary: {error}; run evaluate_editor again") from error
    if summary.format_version > FORMAT_VERSION:
        raise ValueError(
            f"{address} has format_version {summary.format_version}, this program reads up to {FORMAT_VERSION}: use "
            "the program that wrote it, or run evaluate_editor again"
        )
    return summary
