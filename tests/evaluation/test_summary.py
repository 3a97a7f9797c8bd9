"""summary.json, as this program and earlier ones write it."""

import json

import pytest
from pydantic import ValidationError

from hive_ray.evaluation.summary import read_summary, to_json
from hive_ray.statistics.intervals import Interval

BOUNDS = {"value": 0.5, "low": 0.25, "high": 0.75}
EDITOR = {"editor": "sft", "num_prompts": 4, "num_edits": 8, "metrics": {"right": BOUNDS}}
SUMMARY = {"baseline": "sft", "editors": [EDITOR], "differences": {"dpo": {"right": BOUNDS}}, "warnings": ["few"]}


def test_what_is_written_is_read(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps(to_json(SUMMARY)))
    summary = read_summary(str(tmp_path))
    assert to_json(SUMMARY) == SUMMARY | {"format_version": 1}
    assert summary.editors[0].metrics == {"right": Interval(0.5, 0.25, 0.75)}
    assert summary.differences["dpo"]["right"].excludes_zero
    assert summary.warnings == ["few"]


def test_a_summary_that_could_not_be_read_back_is_not_written():
    with pytest.raises(ValidationError, match="metrics"):
        to_json(SUMMARY | {"editors": [{"editor": "sft"}]})


def test_early_summaries_are_read(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps({"editors": [{"editor": "sft", "metrics": {}}]}))
    summary = read_summary(str(tmp_path))
    assert (summary.format_version, summary.editors[0].num_edits) == (1, None)


def test_a_run_without_a_summary_has_none(tmp_path):
    assert read_summary(str(tmp_path)) is None


@pytest.mark.parametrize(
    ("content", "words"),
    [({"format_version": 2}, "format_version 2, this program reads up to 1"), ({"editors": 3}, "is not a summary")],
)
def test_other_summaries_are_refused_in_words(tmp_path, content, words):
    (tmp_path / "summary.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=words):
        read_summary(str(tmp_path))
