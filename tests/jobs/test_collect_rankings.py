"""Rankings that nobody simulates: thumbs of a served page, and people who are still at work."""

import pytest
from annotation_site import make_candidates, picture

from hive_ray.annotation.database import Database
from hive_ray.annotation.feedback import record
from hive_ray.distributed.tables import read_manifest, read_rows
from hive_ray.presets import shapes
from hive_ray.schemas import RANKINGS, Stopped
from jobs import collect_rankings
from jobs.collect_rankings import take_thumbs
from jobs.run import Run

SETTINGS = {"seed": 7, "guidance_scale": 2.0, "image_guidance_scale": 1.5, "num_inference_steps": 10}


@pytest.fixture
def database(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'feedback.sqlite'}")
    database.migrate()
    yield database
    database.close()


@pytest.fixture
def run(tmp_path, database):
    return told(Run(str(tmp_path / "one"), shapes()), thumbs=database.address)


def told(run: Run, **rankings) -> Run:
    """The run with other settings of its rankings."""
    config = run.config.model_copy(update={"rankings": run.config.rankings.model_copy(update=rankings)})
    return Run(run.root, config, run.on_mismatch)


def press(database, source: int, edited: int, liked: bool, words: str = "make it red", **changed) -> None:
    """Somebody's thumb for one edit; pictures by number."""
    thumb = {
        "key": f"{words} {source} {edited} {liked} {changed}", "editor": "abc", "instruction": words, "liked": liked,
        "settings": SETTINGS, "source_image": picture(source), "edited_image": picture(edited),
    }  # fmt: skip
    assert record(database, **thumb | changed)


def test_edits_of_one_picture_by_the_same_words_are_ranked_and_other_thumbs_are_counted(database, run, capsys):
    press(database, 1, 10, liked=False)
    press(database, 1, 11, liked=True)
    press(database, 1, 12, liked=False, editor="def", settings=dict.fromkeys(SETTINGS))
    press(database, 1, 13, liked=True)
    press(database, 1, 13, liked=False)  # as many up as down
    press(database, 1, 14, liked=True, words="make it blue")  # other words
    press(database, 2, 15, liked=False)  # another picture
    press(database, 2, 15, liked=False, key="again")
    take_thumbs(run)
    [row] = read_rows(run.path("thumbs"), RANKINGS)
    assert [edit["image"] for edit in row["edits"]] == [picture(number) for number in (11, 10, 12)]
    assert row["ranks"] == [1, 2, 2]
    assert (row["annotator"], row["instruction"], row["editor"]) == ("thumbs", "make it red", "abc def")
    assert (row["source_caption"], row["edited_caption"], row["source_image"]) == ("", "", picture(1))
    assert (row["edits"][0]["seed"], row["edits"][0]["guidance_scale"]) == (7, 2.0)
    assert (row["edits"][2]["seed"], row["edits"][2]["guidance_scale"]) == (0, 0.0)  # nobody knows
    assert read_manifest(run.path("thumbs")).dropped == {"nothing_to_compare_with": 3, "as_many_up_as_down": 2}
    assert "thumbs: 8 make 1 rankings; 5 could not be compared" in capsys.readouterr().out


def test_the_name_of_a_prompt_is_its_picture_and_words(database, run, tmp_path):
    for edited in (10, 11):
        press(database, 1, edited, liked=edited == 10)
        press(database, 1, edited + 10, liked=edited == 10, words="make it blue")
    take_thumbs(run)
    first = {row["instruction"]: row["prompt_id"] for row in read_rows(run.path("thumbs"), RANKINGS)}
    assert len(set(first.values())) == 2
    press(database, 1, 30, liked=True)
    take_thumbs(run.after())
    later = {row["instruction"]: row["prompt_id"] for row in read_rows(run.after().path("thumbs"), RANKINGS)}
    assert first == later


def test_as_many_edits_are_ranked_as_people_rank_the_newest(database, run):
    for number in range(12):
        press(database, 1, 10 + number, liked=number % 2 == 0)
    take_thumbs(run)
    [row] = read_rows(run.path("thumbs"), RANKINGS)
    wanted = [12, 14, 16, 18, 20, 15, 17, 19, 21]
    assert [edit["image"] for edit in row["edits"]] == [picture(number) for number in wanted]
    assert row["ranks"] == [1] * 5 + [2] * 4
    assert read_manifest(run.path("thumbs")).dropped == {"too_many_edits": 3}


def test_a_round_keeps_the_thumbs_that_it_took_and_the_next_takes_all(database, run, capsys):
    press(database, 1, 10, liked=True)
    press(database, 1, 11, liked=False)
    take_thumbs(run)
    press(database, 2, 10, liked=True)
    press(database, 2, 11, liked=False)
    take_thumbs(run)
    assert "thumbs: kept" in capsys.readouterr().out
    assert read_manifest(run.path("thumbs")).rows_out == 1
    second = run.after()
    assert second.rankings_so_far() == [run.path("rankings"), second.path("rankings"), run.path("thumbs")]
    take_thumbs(second)
    assert read_manifest(second.path("thumbs")).rows_out == 2
    assert second.rankings_so_far()[2:] == [second.path("thumbs")]
    take_thumbs(Run(run.root, run.config, "rebuild"))
    assert read_manifest(run.path("thumbs")).rows_out == 2


def test_a_database_that_is_not_there_is_named_and_not_made(run, tmp_path):
    missing = tmp_path / "typing_mistake.sqlite"
    with pytest.raises(FileNotFoundError, match=r"typing_mistake.*is no database"):
        take_thumbs(told(run, thumbs=f"sqlite:///{missing}"))
    assert not missing.exists()


def test_a_later_round_waits_for_people_and_says_what_to_do(run):
    second = told(run, annotator="people", annotations="first.jsonl", thumbs="").after()
    make_candidates(second.root, 2)
    with pytest.raises(Stopped) as stopped:
        collect_rankings.build(second)
    said = str(stopped.value)
    assert f"round 2 waits for people to rank {second.root}/candidates" in said
    assert f"make annotate RUN={second.root}" in said
    assert f"jobs.export_annotations --config {second.root}/config.yaml --run {second.root}" in said
    assert "first.jsonl" not in said


def test_a_file_that_somebody_named_wrongly_can_be_corrected_or_left_out(run):
    named = told(run, annotator="people", annotations="mistyped.jsonl", thumbs="")
    make_candidates(named.root, 2)
    with pytest.raises(Stopped, match=r"mistyped\.jsonl is not there") as stopped:
        collect_rankings.build(named)
    said = f"Correct rankings.annotations, or set it to '' for {named.path('annotations.jsonl')}."
    assert said in str(stopped.value)
