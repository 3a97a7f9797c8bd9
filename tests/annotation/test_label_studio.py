"""What comes back from Label Studio: good answers are stored, bad ones named, files of others refused."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutate import mutated
from work import prompts

from hive_ray.annotation.exports import read_answers
from hive_ray.annotation.label_studio import ImportResult, LabelStudioError, export_tasks, import_answers
from hive_ray.annotation.models import RANK
from hive_ray.annotation.tasks import load_tasks, project_name
from hive_ray.files.text_files import parse_json

NOW = 1000.0
SQLITE = pytest.mark.parametrize("url", ["sqlite"], indirect=True)
"""For what no engine sees."""


@pytest.fixture
def exported(database) -> list[dict]:
    """Six tasks as they were exported, without an answer."""
    load_tasks(database, RANK, prompts(6), people_per_task=3)
    return json.loads("".join(export_tasks(database, project_name(database), lambda *_: "http://x", [])))


def answer(row: dict, who=1, **more) -> dict:
    """An answer as Label Studio writes it: the edits in their order."""
    buckets = {f"rank_{rank}": [edit["id"]] for rank, edit in enumerate(row["data"]["edits"], 1)}
    return {"completed_by": who, "result": [{"type": "ranker", "value": {"ranker": buckets}}]} | more


def ranker(**buckets) -> dict:
    return {"result": [{"type": "ranker", "value": {"ranker": buckets}}]}


def taken(database, rows) -> ImportResult:
    return import_answers(database, project_name(database), rows, NOW)


@SQLITE
@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (ranker(rank_1=["p0e0"]), "the edits ['p0e0'] are ranked, and the task has"),
        (ranker(rank_1=["p0e0", "p0e1", "p0e2", "p0e3"], rank_2=["p0e0"]), "put each of them into one bucket"),
        (ranker(rank_1=["p0e0", "p0e1", "p0e2", "x"]), "put each of them into one bucket"),
        (ranker(rank_1=["p0e0", 1, None, {}]), "is not as Label Studio writes it"),
        ({"result": "x"}, "is not as Label Studio writes it"),
        ({"result": [{"type": "ranker", "value": {}}]}, "is not as Label Studio writes it: KeyError"),
        ({"result": []}, "the edits [] are ranked"),
        ({"result": [{"type": "ranker", "value": {"ranker": {"rank_" + "9" * 5000: ["p0e0"]}}}]}, "Exceeds the limit"),
        *(({"lead_time": value}, "wanted 0 to 1e+09 seconds") for value in ("long", -1, float("nan"), 10**400, True)),
        *(
            ({"completed_by": value}, "it names no person")
            for value in (None, "", " ", True, -1, 10**30, {}, [], "x" * 300, "a\0b", {"email": ["x"]}, 1.5)
        ),
    ],
)
def test_a_bad_answer_costs_itself(database, exported, bad, words):
    first = exported[0]
    first["annotations"] = [answer(first, 1), answer(first, 2) | bad, answer(first, 3)]
    found = taken(database, exported)
    assert (found.new, found.known, len(found.left_out)) == (2, 0, 1)
    assert found.left_out[0].startswith("task 0 (p0), annotation 1")
    assert words in found.left_out[0]
    assert [one.annotator for one in read_answers(database)] == ["Label Studio 1", "Label Studio 3"]
    again = taken(database, exported)
    assert (again.new, again.known, again.left_out) == (0, 2, found.left_out)


@SQLITE
@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("x", "task 6 has no data"),
        ({"image": "x.png"}, "task 6 has no data; export the tasks as JSON (not JSON-MIN)"),
        ({"data": {"hive_ray_project": "other"}, "annotations": []}, "task 6 is of the project 'other'"),
        ({"data": {}}, "task 6 is of the project None"),
        ({"task": "x" * 16}, "task 6 is 'xxxxxxxxxxxxxxxx', which is unknown here"),
        ({"task": "\0"}, "which is unknown here"),
        ({"task": {"a": 1}}, "which is unknown here"),
        ({"annotations": 5}, "annotations is a int; wanted a list"),
        ({"annotations": ["x"]}, "task 6 (p1), annotation 0 is not as Label Studio writes it"),
    ],
)
def test_a_bad_task_costs_itself(database, exported, bad, words):
    exported[0]["annotations"] = [answer(exported[0])]
    if isinstance(bad, dict) and "task" in bad:
        bad = {"data": {"hive_ray_project": project_name(database), "hive_ray_task": bad["task"]}}
    elif isinstance(bad, dict) and set(bad) == {"annotations"}:
        bad = exported[1] | bad
    found = taken(database, [*exported, bad])
    assert (found.new, found.known, len(found.left_out)) == (1, 0, 1)
    assert words in found.left_out[0]


def test_a_file_of_which_most_cannot_be_used_changes_nothing(database, exported):
    for row in exported:
        row["annotations"] = [answer(row)]
    other = [row | {"data": row["data"] | {"hive_ray_project": "other"}} for row in exported]
    with pytest.raises(LabelStudioError, match=r"6 of 6 answers and tasks .* task 0 is of the project 'other'"):
        taken(database, other)
    with pytest.raises(LabelStudioError, match=r"6 of 11 answers and tasks cannot be used, and nothing is taken in"):
        taken(database, [*exported[:5], *other])
    assert read_answers(database) == []
    assert taken(database, [*exported, *other]).new == 6


@SQLITE
@pytest.mark.parametrize("given", [{"a": 1}, "text", None, 5])
def test_a_file_that_holds_no_list_is_refused(database, exported, given):
    with pytest.raises(LabelStudioError, match="export the tasks as JSON, which is a list"):
        taken(database, given)


@SQLITE
def test_a_file_that_is_nested_without_end_is_refused(database, exported):
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(LabelStudioError, match="nested too deeply"):
        taken(database, [*exported, deep])


def test_texts_and_numbers_that_no_database_holds_cost_their_answers(database, exported):
    row = exported[0]
    row["annotations"] = [
        answer(row, {"email": "ann\ud83d@example.org"}),
        answer(row, "a\0b"),
        answer(row, 10**30),
        *(answer(row, import_id=value) for value in (10**30, -1, True, "1", 7)),  # by the same person
    ]
    nowhere = {"data": row["data"] | {"hive_ray_task": "\0"}}
    found = taken(database, [*exported, nowhere])
    assert (found.new, found.known, len(found.left_out)) == (2, 4, 3)
    assert [one.annotator for one in read_answers(database)] == ["ann\ufffd@example.org", "Label Studio 1"]


def accounted(database, rows) -> None:
    """Every answer is stored, known or named, or the file is refused by name and changes nothing."""
    before = len(read_answers(database))
    try:
        found = taken(database, rows)
    except LabelStudioError:
        assert len(read_answers(database)) == before
        return
    assert len(read_answers(database)) == before + found.new
    per_row = [row.get("annotations") if isinstance(row, dict) else None for row in rows]
    most = sum(max(1, len(answers)) if isinstance(answers, list) else 1 for answers in per_row)
    least = sum(len(answers) if isinstance(answers, list) else 0 for answers in per_row)
    assert least <= found.new + found.known + len(found.left_out) <= most
    for words in found.left_out:
        words.encode()


@SQLITE
def test_mutated_files_of_label_studio_are_taken_named_or_refused(database, exported):
    for number, row in enumerate(exported):
        row["annotations"] = [answer(row, who, lead_time=2.5) for who in (number, {"email": "a@example.org"})]
    tried = 0
    for content in mutated([json.dumps(exported).encode()]):
        try:
            rows = parse_json(content.decode(errors="surrogateescape"))
        except ValueError:
            continue  # the page says so
        tried += 1
        accounted(database, rows)
    assert tried > 0


ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(st.characters()), st.just("p0e0")),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=6,
)
KEYS = st.sampled_from(["completed_by", "lead_time", "was_cancelled", "result", "import_id"])


@SQLITE
@settings(
    derandomize=True, deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.dictionaries(KEYS, ANYTHING), max_size=3), st.lists(ANYTHING, max_size=2))
def test_any_answer_is_stored_or_named(database, exported, changes, others):
    row = exported[0] | {"annotations": [answer(exported[0]) | change for change in changes]}
    accounted(database, [row, *others])
