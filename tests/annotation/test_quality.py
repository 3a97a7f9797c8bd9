import json
import re

import pytest
from mutate import mutated
from work import hired, prompts

from hive_ray.annotation.database import Database
from hive_ray.annotation.exports import AnswerRecord, csv_lines, ranking_lines, read_answers
from hive_ray.annotation.models import RANK, STUDY
from hive_ray.annotation.overview import overview
from hive_ray.annotation.quality import agreement, annotator_stats, flagged_names
from hive_ray.annotation.task_queue import AssignmentPolicy, TaskQueue
from hive_ray.annotation.tasks import GoldError, Prompt, automatic_gold, load_tasks, read_gold
from hive_ray.annotation.user_study import compare_editors
from hive_ray.config import Annotation
from hive_ray.files.text_files import parse_json_lines

KNOWN = {"better": ["a"], "worse": ["c"]}


def said(task: int, annotator: str, verdict: dict, *, editors=("sft",) * 3, **more) -> AnswerRecord:
    defaults = {
        "kind": RANK, "prompt_id": f"p{task}", "instruction": "make it red", "edit_ids": ("a", "b", "c"),
        "editors": editors, "gold": None, "attempt": 0, "shown": (0, 1, 2), "seconds": 1.0, "at": 0.0, "task_id": task,
        "answer_id": 0,
    }  # fmt: skip
    return AnswerRecord(annotator=annotator, verdict=verdict, **defaults | more)


def ranked(task: int, annotator: str, *ranks: int, **more) -> AnswerRecord:
    return said(task, annotator, {"ranks": list(ranks), "none_acceptable": False}, **more)


def compared(task: int, annotator: str, follows, preserves=None) -> AnswerRecord:
    verdict = {"follows": follows, "preserves": preserves}
    return said(task, annotator, verdict, kind=STUDY, edit_ids=("a", "b"), editors=("sft", "finetuned"))


# --- Agreement --------------------------------------------------------------------------------------------


def test_agreement_is_over_tasks_that_several_people_did_and_leaves_out_the_rest():
    answers = [
        ranked(1, "Ada", 1, 2, 3), ranked(1, "Bea", 1, 2, 3), ranked(1, "Cem", 3, 2, 1),  # tau 1, -1, -1
        ranked(2, "Ada", 1, 2, 3), ranked(2, "Bea", 1, 2, 3),  # tau 1
        ranked(3, "Ada", 1, 2, 3),  # alone
        ranked(2, "Cem", 3, 2, 1, attempt=1),  # a repeat
        ranked(4, "Ada", 1, 2, 3, gold=KNOWN), ranked(4, "Bea", 3, 2, 1, gold=KNOWN),
        said(2, "Dan", {"skipped": "odd"}),
    ]  # fmt: skip
    found = agreement(answers)
    assert found.tau == pytest.approx((-1 / 3 + 1) / 2)
    assert found.tasks == 2


def test_alpha_of_two_people_who_always_agree_is_one_and_of_opposites_is_below_zero():
    assert agreement([ranked(1, "Ada", 1, 2, 3), ranked(1, "Bea", 1, 2, 3)]).alpha == pytest.approx(1)
    assert agreement([ranked(1, "Ada", 1, 2, 3), ranked(1, "Bea", 3, 2, 1)]).alpha < 0


def test_in_a_study_agreement_is_the_share_of_same_answers():
    answers = [
        compared(1, "Ada", 0, 1),
        compared(1, "Bea", 0, None),
        compared(2, "Ada", 1, 1),
        compared(2, "Bea", 1, 1),
    ]
    assert agreement(answers).tau == pytest.approx((0.5 + 1) / 2)


def test_nobody_agrees_with_nobody():
    assert agreement([]).tau is None
    assert agreement([ranked(1, "Ada", 1, 2, 3)]).alpha is None


# --- The study --------------------------------------------------------------------------------------------


def test_a_study_counts_wins_of_the_second_editor_by_prompt_and_by_person():
    answers = [
        compared(1, "Ada", 1, 0), compared(1, "Bea", 0, 0),  # the prompt: half a win
        compared(2, "Ada", 1, None),
        compared(3, "Ada", None, None),
    ]  # fmt: skip
    follows, preserves = compare_editors(answers)
    assert (follows.editor, follows.baseline) == ("finetuned", "sft")
    assert (follows.num_prompts, follows.num_answers) == (3, 4)
    assert follows.by_prompt["win"].value == pytest.approx((0.5 + 1 + 0) / 3)
    assert follows.by_prompt["tie"].value == pytest.approx(1 / 3)
    assert follows.by_prompt["loss"].value == pytest.approx(0.5 / 3)
    assert follows.by_prompt["net"].value == pytest.approx((0 + 1 + 0) / 3)
    assert follows.people == {"Ada": {"win": 2 / 3, "tie": 1 / 3, "loss": 0}, "Bea": {"win": 0, "tie": 0, "loss": 1}}
    assert follows.by_annotator["net"].value == pytest.approx((2 / 3 - 1) / 2)
    assert preserves.by_prompt["win"].value == 0


def test_a_study_without_the_one_who_disagrees():
    answers = [compared(task, name, side) for task in range(5) for name, side in (("Ada", 1), ("Bea", 0))]
    [follows, _] = compare_editors(answers, excluded={"Bea"})
    assert (follows.by_prompt["win"].low, follows.by_prompt["win"].high) == (1, 1)
    assert compare_editors([]) == []


# --- Known tasks ------------------------------------------------------------------------------------------


def test_known_bad_edits_are_the_source_and_another_prompt_in_turns():
    made = list(automatic_gold(prompts(30)))
    assert len(made) == 10
    bad = [one.gold["worse"][0] for one in made]
    assert {name.split(":")[0] for name in bad} == {"unchanged", "another"}
    for one in made:
        [worse] = one.gold["worse"]
        assert worse in one.edit_ids
        assert one.edit_ids[:-1] == tuple(one.gold["better"])
        assert (worse == f"unchanged:{one.prompt_id}") != worse.startswith("another:")
        assert worse != f"another:{one.prompt_id}"


GOLD = {"prompt_id": "p1", "better": "p1e2", "worse": "p1e0"}


def known(*lines: bytes | dict) -> list[Prompt]:
    """The prompts of known answer of a file of these lines, of three prompts."""
    data = b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    return read_gold(parse_json_lines(data, "gold.jsonl", objects=True), "gold.jsonl", prompts(3))


def test_known_answers_come_from_a_file():
    [found] = known(b"\xef\xbb\xbf", GOLD | {"remark": "\u2028"}, b"")
    assert found.gold == {"better": ["p1e2"], "worse": ["p1e0"]}
    assert found.key(RANK) != prompts(2)[1].key(RANK)  # beside the task of the same prompt


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (b"{", "line 2: not JSON"),
        (b"[]", "line 2: a JSON array"),
        (b'{"prompt_id": "\xff"}', "line 2: byte 0xff is not UTF-8"),
        (GOLD | {"prompt_id": "p9"}, "line 2: prompt 'p9' is none of the 3 candidates"),
        (GOLD | {"prompt_id": ["p1"]}, "line 2: prompt_id must be a text"),
        ({"prompt_id": "p1", "better": "p1e1"}, "line 2: worse must be a text"),
        (GOLD | {"worse": "p0e1"}, "line 2: ['p0e1'] are no edits of p1"),
        (GOLD | {"worse": "p1e2"}, "line 2: p1e2 is better and worse"),
        (GOLD, "line 2: p1 is in gold.jsonl, line 1, too, which counts; keep one of them"),
    ],
)
def test_a_bad_line_of_known_answers_is_left_out_and_named(bad, words, capsys):
    other = {"prompt_id": "p2", "better": "p2e0", "worse": "p2e1"}
    found = known(GOLD, bad, other)
    assert [one.prompt_id for one in found] == ["p1", "p2"]
    said = capsys.readouterr().out
    assert said.startswith("known answers gold.jsonl: 1 of 3 lines cannot be used:")
    assert words in said


def test_a_file_of_known_answers_that_does_not_fit_is_refused():
    with pytest.raises(GoldError, match=r"gold\.jsonl: 2 of 3 lines .*\n.*'p8'.*\n.*'p9'.*Give prompt_id \(of a cand"):
        known(GOLD, GOLD | {"prompt_id": "p8"}, GOLD | {"prompt_id": "p9"})


def test_mutated_files_of_known_answers_are_taken_named_or_refused(capsys):
    lines = [
        json.dumps({"prompt_id": f"p{number}", "better": f"p{number}e0", "worse": f"p{number}e1"})
        for number in range(3)
    ]
    taken = 0
    for content in mutated(["\n".join(lines).encode()]):
        try:
            found = known(content)
        except ValueError as error:
            assert "gold.jsonl" in str(error)  # noqa: PT017
            continue
        taken += 1
        said = capsys.readouterr().out
        bad = int(re.search(r"(\d+) of \d+ lines", said)[1]) if said else 0
        total = sum(bool(line.strip()) for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n"))
        assert len(found) + bad == total
    assert taken > 0


# --- People -----------------------------------------------------------------------------------------------


@pytest.fixture
def worked(database: Database) -> Database:
    """Ada answers by the book (p0e0 best), Eve the other way round; both do tasks, known ones and repeats."""
    work = prompts(12)
    load_tasks(database, RANK, [*work, *automatic_gold(work)], people_per_task=2)
    desk = TaskQueue(database, AssignmentPolicy(RANK, 600.0, gold_rate=0.3, repeat_rate=0.3, repeat_after=2))
    for name, backwards in (("Ada", False), ("Eve", True)):
        person = hired(database, name)
        while (showing := desk.next(person)) is not None:
            ranks = [4 - place if backwards else place + 1 for place in showing.shown]
            desk.submit(person, showing.assignment_id, f"{name} {showing.assignment_id}", {"ranks": ranks}, 3.0)
    return database


def test_who_fails_known_tasks_is_flagged_and_can_be_left_out(worked):
    settings = Annotation(least_golds=2)
    ada, eve = annotator_stats(worked, settings)
    assert ada.known_right == ada.known_answers >= 2
    assert eve.known_right == 0
    assert flagged_names([ada, eve]) == {"Eve"}
    assert eve.flag == f"0 of {eve.known_answers} known tasks right, below 70%"
    assert (ada.with_others, ada.with_self) == (pytest.approx(-1), pytest.approx(1))
    answers = read_answers(worked)
    everybody = [json.loads(line) for line in ranking_lines(answers)]
    without = [json.loads(line) for line in ranking_lines(answers, {"Eve"})]
    assert len(everybody) == 24
    assert {one["annotator"] for one in without} == {"Ada"}
    assert not any("unchanged:" in line or "another:" in line for line in ranking_lines(answers))
    assert sum(1 for line in csv_lines(answers, {"Eve"})) == 1 + sum(one.annotator == "Ada" for one in answers)


def test_few_known_tasks_flag_nobody(worked):
    assert flagged_names(annotator_stats(worked, Annotation(least_golds=100))) == set()


def test_the_overview_shows_agreement_with_and_without_flagged_people(worked):
    page = overview(worked, Annotation(least_golds=2))
    assert "24 of 24 answers are in (100%); 12 of 12 tasks are finished. 1 of 2 annotators is flagged." in page
    assert "-1.00" in page
    assert page.count("<svg") == 3
    assert "below 70%" in page


def test_names_cannot_bring_markup_into_the_overview(database):
    load_tasks(database, RANK, prompts(1), people_per_task=1)
    desk, person = TaskQueue(database, AssignmentPolicy(RANK, 600.0)), hired(database, "Ada")
    showing = desk.next(person)
    desk.submit(person, showing.assignment_id, "the key", {"skipped": "<script>"}, 1.0)
    desk.mark_broken(showing.task.id, "<script>alert(1)</script>")
    assert "<script" not in overview(database, Annotation())
