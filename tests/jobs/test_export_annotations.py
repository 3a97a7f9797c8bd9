import itertools

from annotation_site import make_candidates, make_chosen
from work import hired

from hive_ray.annotation.models import RANK
from hive_ray.annotation.task_queue import AssignmentPolicy, TaskQueue
from hive_ray.artifacts.building import write_rows
from hive_ray.artifacts.selection import read_rows
from hive_ray.config import Annotation
from hive_ray.files.text_files import read_json_lines
from hive_ray.presets import shapes
from hive_ray.reward.rankings import join_annotations
from hive_ray.schemas import CANDIDATES
from jobs import export_annotations
from jobs.collect_rankings import PeopleRanker
from jobs.run import Run
from serve.annotate import prepare


def test_what_people_said_becomes_rankings(tmp_path, capsys):
    run = str(tmp_path)
    candidates = make_candidates(run, 8)
    settings = Annotation(least_golds=1, leave_out_flagged=True)
    database, _ = prepare(run, settings)
    desk = TaskQueue(database, AssignmentPolicy(RANK, 60.0, gold_rate=0.5))
    for name, backwards in (("Ada", False), ("Eve", True)):
        person = hired(database, name)
        while (showing := desk.next(person)) is not None:
            ranks = [4 - place if backwards else 1 + place for place in showing.shown]
            desk.submit(person, showing.assignment_id, f"{name} {showing.assignment_id}", {"ranks": ranks}, 1.0)
    database.close()
    path = export_annotations.build(Run(run, shapes().model_copy(update={"annotation": settings})))
    assert "8 rankings by 1 people, without Eve" in capsys.readouterr().out
    rankings = PeopleRanker(said(path, candidates))(candidates)
    assert [(row["prompt_id"], row["annotator"], row["ranks"]) for row in rankings] == [
        (f"p{number}", "Ada", [1, 2, 3, 4]) for number in range(8)
    ]
    assert "Eve" not in (tmp_path / "annotations.csv").read_text()


def test_rounds_that_share_a_database_are_exported_apart(tmp_path, capsys):
    settings = Annotation(database=f"sqlite:///{tmp_path / 'all.sqlite'}", gold="")
    first = Run(str(tmp_path / "one"), shapes().model_copy(update={"annotation": settings}))
    second = first.after()
    rows = make_candidates(first.root, 3)
    write_rows(second.path("candidates"), CANDIDATES, [_by_another_editor(row) for row in rows[:2]], {})
    for run in (first, second):
        database, _ = prepare(run.root, settings)
        desk, person = TaskQueue(database, AssignmentPolicy(RANK, 60.0)), hired(database, f"Ada {run.number}")
        while (showing := desk.next(person)) is not None:
            key = f"{run.number} {showing.assignment_id}"
            desk.submit(person, showing.assignment_id, key, {"ranks": [1, 2, 3, 4]}, 1.0)
        database.close()
    for run, found, others in ((first, 3, 2), (second, 2, 3)):
        path = export_annotations.build(run)
        assert f"{found} rankings by 1 people, without {others} of other rounds" in capsys.readouterr().out
        candidates = list(read_rows(run.path("candidates"), CANDIDATES))
        assert len(PeopleRanker(said(path, candidates))(candidates)) == found


def test_what_an_hour_gave_is_said(tmp_path, capsys):
    settings = Annotation(gold="")
    run = Run(str(tmp_path), shapes().model_copy(update={"annotation": settings}))
    make_candidates(run.root, 8)
    make_chosen(run.root, 3, 1, probability=0.25)
    database, _ = prepare(run.root, settings)
    clock = itertools.count(1000.0, 60.0)
    desk, person = TaskQueue(database, AssignmentPolicy(RANK, 600.0), lambda: next(clock)), hired(database, "Ada")
    while (showing := desk.next(person)) is not None:
        ranks = [2 if place else 1 for place in showing.shown]
        desk.submit(person, showing.assignment_id, f"{showing.assignment_id}", {"ranks": ranks}, 36.0)
    database.close()
    export_annotations.build(run)
    gave = "annotations: 6 preferences in 0.02 hours: 300 an hour; 50% of pairs are ties, an estimated 50% over all"
    assert gave in capsys.readouterr().out


def said(path, candidates):
    edits_of = {row["prompt_id"]: [edit["edit_id"] for edit in row["edits"]] for row in candidates}
    found = join_annotations(read_json_lines(path, objects=True), edits_of)
    assert not found.dropped
    return found.by_prompt


def _by_another_editor(row):
    edits = [edit | {"edit_id": f"new {edit['edit_id']}"} for edit in row["edits"]]
    return row | {"editor": "new", "edits": edits}
