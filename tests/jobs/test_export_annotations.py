from annotation_site import make_candidates
from work import hired

from hive_ray.annotation.handing import Desk, Plan
from hive_ray.annotation.models import RANK
from hive_ray.config import Annotation, Rankings, shapes
from jobs import export_annotations
from jobs.collect_rankings import People
from jobs.run import Run
from serve.annotate import prepare


def test_what_people_said_becomes_rankings(tmp_path, capsys):
    run = str(tmp_path)
    candidates = make_candidates(run, 8)
    settings = Annotation(least_golds=1, leave_out_flagged=True)
    database, _ = prepare(run, settings)
    desk = Desk(database, Plan(RANK, 60.0, gold_rate=0.5))
    for name, backwards in (("Ada", False), ("Eve", True)):
        person = hired(database, name)
        while (showing := desk.next(person)) is not None:
            ranks = [4 - place if backwards else 1 + place for place in showing.shown]
            desk.submit(person, showing.assignment_id, f"{name} {showing.assignment_id}", {"ranks": ranks}, 1.0)
    database.close()
    path = export_annotations.build(Run(run, shapes().model_copy(update={"annotation": settings})))
    assert "8 rankings by 1 people, without Eve" in capsys.readouterr().out
    rankings = People(Rankings(annotations=path))(candidates)
    assert [(row["prompt_id"], row["annotator"], row["ranks"]) for row in rankings] == [
        (f"p{number}", "Ada", [1, 2, 3, 4]) for number in range(8)
    ]
    assert "Eve" not in (tmp_path / "annotations.csv").read_text()
