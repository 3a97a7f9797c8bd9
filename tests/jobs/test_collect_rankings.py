"""Rankings that nobody simulates: thumbs of a served page, and people who are still at work."""

import json
from pathlib import Path

import pytest
from annotation_site import make_candidates, picture

from hive_ray.annotation.database import Database
from hive_ray.annotation.feedback import store_feedback
from hive_ray.artifacts.building import write_rows
from hive_ray.artifacts.manifest import read_manifest
from hive_ray.artifacts.selection import read_rows
from hive_ray.errors import Stopped
from hive_ray.presets import shapes
from hive_ray.schemas import RANKINGS, Dropped
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
    return told(Run(str(tmp_path / "one"), shapes()), thumbs=database.connection_url)


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
    assert store_feedback(database, **thumb | changed)


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
    assert second.ranking_tables() == [run.path("rankings"), second.path("rankings"), run.path("thumbs")]
    take_thumbs(second)
    assert read_manifest(second.path("thumbs")).rows_out == 2
    assert second.ranking_tables()[2:] == [second.path("thumbs")]
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


# --- People's files that do not fit -----------------------------------------------------------------------


def annotated(run: Run, *lines: str | bytes, **rankings) -> Run:
    """The run with ten candidates and a file of these lines."""
    make_candidates(run.root, 10)
    data = b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines)
    path = Path(run.root, "annotations.jsonl")
    path.write_bytes(data)
    return told(run, annotator="people", thumbs="", **rankings)


def ranked(number: int, annotator: str = "Ada", **more) -> str:
    """A good line on a prompt of `make_candidates`."""
    return json.dumps({"prompt_id": f"p{number}", "annotator": annotator, "ranks": [1, 2, 3, 4]} | more)


OTHER_RUN = [ranked(900 + number) for number in range(10)]


def refusal(run: Run) -> str:
    with pytest.raises(Stopped) as stopped:
        collect_rankings.build(run)
    assert not Path(run.path("rankings")).exists()
    return str(stopped.value)


def test_a_file_of_another_run_stops_the_stage_with_examples_and_what_to_do(run):
    words = refusal(annotated(run, *OTHER_RUN))
    path = run.path("annotations.jsonl")
    assert words.startswith(f"annotations {path}: 0 of 10 lines fit the candidates; left out: 10 unknown_prompt\n")
    for number in range(3):
        place = f"  unknown_prompt: {path}, line {number + 1}: prompt 'p90{number}' is none of the 10 candidates"
        assert place in words
    assert f"Give the file of what people said of {run.path('candidates')} (rankings.annotations)" in words


def test_a_file_of_which_less_than_half_fits_stops_the_stage(run):
    words = refusal(annotated(run, *OTHER_RUN, *map(ranked, range(9))))
    assert "9 of 19 lines fit the candidates; left out: 10 unknown_prompt" in words
    assert "At least 50% must (rankings.least_kept)" in words


def test_a_file_of_bad_lines_stops_the_stage_with_the_first(run):
    lines = [ranked(number, ranks=[1, 2, 3, 9]) for number in range(5)]
    words = refusal(annotated(run, *lines))
    assert "0 of 5 lines fit the candidates; left out: 5 not_an_order" in words
    assert "line 1: prompt p0: ranks [1, 2, 3, 9] leave gaps; the best is 1: write [1, 2, 3, 4]" in words


def test_a_json_array_is_named_as_one(run):
    assert "line 1: a JSON array; write one object a line" in refusal(annotated(run, f"[{ranked(1)}]"))


def test_an_empty_file_waits_for_people(run):
    assert f"waits for people to rank {run.path('candidates')}" in refusal(annotated(run, "", ""))


def test_a_file_in_another_encoding_is_named(run):
    with pytest.raises(ValueError, match=r"annotations\.jsonl is UTF-16 text, and UTF-8 is wanted; save it as UTF-8"):
        collect_rankings.build(annotated(run, ranked(1).encode("utf-16")))


def test_a_wrong_file_deletes_no_older_table(run):
    wrong = annotated(run, *OTHER_RUN)
    write_rows(run.path("rankings"), RANKINGS, [Dropped("before")], {}, may_be_empty=True)
    with pytest.raises(Stopped):
        collect_rankings.build(Run(wrong.root, wrong.config, "rebuild"))
    assert read_manifest(run.path("rankings")).dropped == {"before": 1}


def test_thumbs_none_of_which_can_be_compared_stop_nothing(database, run):
    press(database, 1, 10, liked=True)
    take_thumbs(run)
    manifest = read_manifest(run.path("thumbs"))
    assert (manifest.rows_out, manifest.dropped) == (0, {"nothing_to_compare_with": 1})
