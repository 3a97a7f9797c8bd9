"""Somebody else's rankings become a table beside the run's own, whatever columns they come in."""

import csv
import io
import json
import os
from dataclasses import replace
from pathlib import Path

import foreign
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from foreign import picture

from hive_ray import storage
from hive_ray.artifacts.building import write_rows
from hive_ray.artifacts.manifest import fingerprint_of, read_manifest
from hive_ray.artifacts.selection import read_rows
from hive_ray.config import Importing
from hive_ray.errors import Stopped
from hive_ray.presets import shapes
from hive_ray.schemas import RANKINGS
from jobs import import_rankings, pipeline, train_reward
from jobs.run import Run


def run_with(root: str, rankings: str, on_mismatch: str = "refuse", **importing) -> Run:
    settings = Importing(rankings=rankings).model_copy(update=importing)
    return Run(storage.join(root, "run"), shapes().model_copy(update={"importing": settings}), on_mismatch)


def imported(run: Run) -> list[dict]:
    import_rankings.build(run)
    return list(read_rows(run.path("imported_rankings"), RANKINGS))


def dropped(run: Run) -> dict[str, int]:
    return read_manifest(run.path("imported_rankings")).dropped


def pictures_below(root: str, *numbers: int) -> None:
    for number in numbers:
        storage.write_bytes(storage.join(root, f"{number}.png"), picture(number))


def ours(number: int, ranks: list[int], **changed) -> dict:
    """A row of somebody's table of `rankings`."""
    edits = [
        {
            "edit_id": f"e{number}-{place}", "image": picture(100 * number + place), "seed": 7 + place,
            "guidance_scale": 2.0, "image_guidance_scale": 1.5,
        }
        for place in range(len(ranks))
    ]  # fmt: skip
    return {
        "ranking_id": f"r{number}", "prompt_id": f"p{number}", "instruction": f"make {number} red",
        "source_caption": "a circle", "edited_caption": "a red circle", "source_image": picture(9000 + number),
        "split": "rank", "edits": edits, "editor": "theirs", "annotator": "Ada", "ranks": ranks,
    } | changed  # fmt: skip


def answers(rows: list[dict]) -> list[tuple[list[bytes], list[int]]]:
    return [([edit["image"] for edit in row["edits"]], row["ranks"]) for row in rows]


# --- Formats ------------------------------------------------------------------------------------------------------


def test_another_run_s_table_of_rankings_is_taken_as_it_is(root):
    rows = [ours(0, [1, 2, 2]), ours(1, [2, 1])]
    write_rows(storage.join(root, "theirs/rankings"), RANKINGS, rows, fingerprint_of(made="by them"))
    run = run_with(root, storage.join(root, "theirs/rankings"))
    assert imported(run) == rows
    assert dropped(run) == {}


def test_columns_that_a_table_lacks_are_filled_and_ids_come_from_content(tmp_path):
    row = ours(0, [1, 2])
    row = {name: row[name] for name in ("instruction", "source_image", "edits", "ranks")}
    row["edits"] = [{"image": edit["image"]} for edit in row["edits"]]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / name / "rankings.parquet")
    [found] = imported(run_with(str(tmp_path / "one"), str(tmp_path / "one" / "rankings.parquet")))
    assert (found["source_caption"], found["edited_caption"], found["split"]) == ("", "", "rank")
    assert (found["editor"], found["annotator"], found["ranks"]) == ("imported", "imported", [1, 2])
    assert [edit["image"] for edit in found["edits"]] == [picture(0), picture(1)]
    assert {(e["seed"], e["guidance_scale"], e["image_guidance_scale"]) for e in found["edits"]} == {(0, 0.0, 0.0)}
    ids = {found["ranking_id"], found["prompt_id"], *(edit["edit_id"] for edit in found["edits"])}
    assert len(ids) == 4
    assert "" not in ids
    assert imported(run_with(str(tmp_path / "two"), str(tmp_path / "two"))) == [found]


def test_lists_of_paths_and_ranks_are_read_from_json_lines(root):
    pictures_below(storage.join(root, "given/pictures"), 1, 2, 3, 4)
    rows = [
        {
            "instruction": "make it red", "source_image": "1.png", "edits": ["2.png", "3.png", "4.png"],
            "ranks": [2, 1, 1], "annotator": "Ada",
        },
        {"instruction": "make it red", "source_image": "1.png", "edits": ["3.png", "4.png"], "ranks": [1, 2]},
    ]  # fmt: skip
    foreign.json_lines(storage.join(root, "given/rankings.jsonl"), rows)
    found = imported(run_with(root, storage.join(root, "given"), pictures="pictures"))
    assert answers(found) == [([picture(2), picture(3), picture(4)], [2, 1, 1]), ([picture(3), picture(4)], [1, 2])]
    assert [row["annotator"] for row in found] == ["Ada", "imported"]
    assert found[0]["prompt_id"] == found[1]["prompt_id"]  # so that both are held out, or neither


def test_lists_in_the_cells_of_a_table_of_text_are_read(tmp_path):
    pictures_below(str(tmp_path), 1, 2, 3)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["instruction", "source_image", "edits", "ranks"])
    writer.writerow(["make it red", "1.png", '["2.png", "3.png"]', "[2, 1]"])
    writer.writerow(["make it blue", "1.png", '["2.png", "3.png"]', "first"])
    (tmp_path / "rankings.csv").write_text(text.getvalue())
    run = run_with(str(tmp_path), str(tmp_path / "rankings.csv"))
    assert answers(imported(run)) == [([picture(2), picture(3)], [2, 1])]
    assert dropped(run) == {"not_an_order": 1}


@pytest.mark.parametrize(
    ("left", "right"), [("left_output_image", "right_output_image"), ("left_image", "right_image")]
)
def test_votes_for_left_or_right_are_read_as_editreward_data_and_genai_bench_have_them(tmp_path, left, right):
    votes = ["leftvote", "rightvote", "tie", "tievote", "bothbad_vote", "skip", None]
    rows = [
        {
            "instruction": f"edit {number}", "source_img": picture(1), left: picture(2), right: picture(3),
            "left_model": "flux", "right_model": "bagel", "left_overall_score": 4.0, "vote_type": vote,
        }
        for number, vote in enumerate(votes)
    ]  # fmt: skip
    foreign.parquet(str(tmp_path / "data" / "train-00000.parquet"), rows)
    foreign.parquet(str(tmp_path / "data" / "test-00000.parquet"), rows[:1])
    run = run_with(str(tmp_path), str(tmp_path / "data"))
    found = imported(run)
    assert [row["ranks"] for row in found] == [[1, 2], [2, 1], [1, 1], [1, 1], [1, 1]]
    assert [row["instruction"] for row in found] == [f"edit {number}" for number in range(5)]
    assert {row["editor"] for row in found} == {"bagel flux"}
    assert dropped(run) == {"vote_unknown": 2}
    [sample, _] = read_manifest(run.path("imported_rankings")).samples["vote_unknown"]
    assert "row 5: vote_type is 'skip'; give one of leftvote, rightvote, tie" in sample


def test_captions_of_genai_bench_are_kept(tmp_path):
    row = {
        "source_prompt": "a cat", "target_prompt": "a dog", "instruct_prompt": "make it a dog",
        "source_image": picture(1), "left_output_image": picture(2), "right_output_image": picture(3),
        "vote_type": "rightvote",
    }  # fmt: skip
    foreign.parquet(str(tmp_path / "train.parquet"), [row])
    [found] = imported(run_with(str(tmp_path), str(tmp_path / "train.parquet")))
    assert (found["instruction"], found["source_caption"], found["edited_caption"]) == (
        "make it a dog",
        "a cat",
        "a dog",
    )


def test_the_first_path_is_preferred_unless_it_is_a_tie_that_stands_there_twice(tmp_path):
    """EditReward's training file: an array, a tie in both orders."""
    pictures_below(str(tmp_path), 1, 2, 3)
    rows = [
        {"prompt": "a", "path_src": "1.png", "path1": "3.png", "path2": "2.png"},
        {"prompt": "b", "path_src": "1.png", "path1": "2.png", "path2": "3.png", "tie_case": False},
        {"prompt": "c", "path_src": "1.png", "path1": "2.png", "path2": "3.png", "tie_case": True},
        {"prompt": "c", "path_src": "1.png", "path1": "3.png", "path2": "2.png", "tie_case": True},
        "no object",
    ]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    run = run_with(str(tmp_path), str(tmp_path / "train.json"))
    assert answers(imported(run)) == [
        ([picture(3), picture(2)], [1, 2]),
        ([picture(2), picture(3)], [1, 2]),
        ([picture(2), picture(3)], [1, 1]),
    ]
    assert dropped(run) == {"duplicate": 1, "not_an_object": 1}


def test_labels_are_read_as_pick_a_pic_has_them(tmp_path):
    labels = [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (0.0, 0.0)]
    rows = [
        {"instruction": f"{number}", "source_image": picture(1), "jpg_0": picture(2), "jpg_1": picture(3)}
        | {"label_0": first, "label_1": second}
        for number, (first, second) in enumerate(labels)
    ]
    foreign.parquet(str(tmp_path / "a.parquet"), rows)
    run = run_with(str(tmp_path), str(tmp_path / "a.parquet"))
    assert [row["ranks"] for row in imported(run)] == [[1, 2], [2, 1], [1, 1]]
    assert dropped(run) == {"vote_unknown": 1}


# --- Bad rows -----------------------------------------------------------------------------------------------------


def test_each_bad_row_is_left_out_by_itself_with_its_reason(tmp_path):
    pictures_below(str(tmp_path), 1, 2, 3)
    (tmp_path / "broken.png").write_bytes(picture(4)[:-30])
    good = {"instruction": "a", "source_image": "1.png", "edits": ["2.png", "3.png"], "ranks": [1, 2]}
    bad = {
        "edit broken": {"edits": ["2.png", "broken.png"]},
        "source broken": {"source_image": "broken.png"},
        "edit missing": {"edits": ["2.png", "no.png"]},
        "address": {"edits": ["2.png", "https://a.org/b.png"]},
        "more ranks": {"ranks": [1, 2, 3]},
        "gaps": {"ranks": [1, 3]},
        "words": {"ranks": ["first", "second"]},
        "one edit": {"edits": ["2.png"], "ranks": [1]},
        "too many": {"edits": ["2.png"] * 128, "ranks": [1] * 128},
        "no list": {"edits": "2.png"},
        "equal": {"edits": ["2.png", "2.png"]},
        "no words": {"instruction": " "},
    }
    lines = [json.dumps(good), *(json.dumps(good | {"instruction": name} | row) for name, row in bad.items())]
    lines += ["{", "[1]", json.dumps({"instruction": "a", "edits": [], "ranks": []}), json.dumps(good)]
    lines += [json.dumps({"instruction": "a", "source_image": "1.png", "edit": "2.png"})]
    (tmp_path / "rankings.jsonl").write_text("\n".join(lines))
    run = run_with(str(tmp_path), str(tmp_path / "rankings.jsonl"))
    assert [row["instruction"] for row in imported(run)] == ["a"]
    assert dropped(run) == {
        "picture_unreadable": 2, "picture_missing": 1, "picture_is_address": 1, "other_number_of_ranks": 1,
        "not_an_order": 2, "nothing_to_compare": 1, "too_many_edits": 1, "edits_missing": 1, "pictures_are_equal": 1,
        "instruction_missing": 1, "not_json": 1, "not_an_object": 1, "keys_missing": 2, "duplicate": 1,
    }  # fmt: skip
    samples = read_manifest(run.path("imported_rankings")).samples
    assert "line 2: edit 2's picture: " in samples["picture_unreadable"][0]
    assert "line 6: 3 ranks for 2 edits; give each its own" in samples["other_number_of_ranks"][0]
    assert "only instruction, source_image, edit; rename its keys" in samples["keys_missing"][1]


def test_edits_that_are_one_picture_may_tie(tmp_path):
    pictures_below(str(tmp_path), 1, 2, 3)
    row = {"instruction": "a", "source_image": "1.png", "edits": ["2.png", "2.png", "3.png"], "ranks": [1, 1, 2]}
    foreign.json_lines(str(tmp_path / "a.jsonl"), [row])
    [found] = imported(run_with(str(tmp_path), str(tmp_path / "a.jsonl")))
    assert found["ranks"] == [1, 1, 2]


def test_pictures_that_are_not_plain_become_png(tmp_path):
    (tmp_path / "1.webp").write_bytes(picture(1, "WEBP"))
    pictures_below(str(tmp_path), 2, 3)
    row = {"instruction": "a", "source_image": "1.webp", "edits": ["2.png", "3.png"], "ranks": [1, 2]}
    foreign.json_lines(str(tmp_path / "a.jsonl"), [row])
    [found] = imported(run_with(str(tmp_path), str(tmp_path / "a.jsonl")))
    assert found["source_image"].startswith(b"\x89PNG")
    assert found["edits"][0]["image"] == picture(2)


def test_a_broken_parquet_file_costs_itself_and_a_row_group_its_rows(tmp_path):
    rows = [ours(number, [1, 2] if number < 59 else [1, 3]) for number in range(60)]
    columns = [field.name for field in RANKINGS]
    table = pa.Table.from_pylist([{name: row[name] for name in columns} for row in rows], schema=RANKINGS)
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=20, compression="none", use_dictionary=False)
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    place = pq.read_metadata(tmp_path / "a.parquet").row_group(1).column(0).data_page_offset
    data[place : place + 40] = bytes(40)
    (tmp_path / "a.parquet").write_bytes(data)
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "c.parquet")
    run = run_with(str(tmp_path), str(tmp_path))
    found = {row["ranking_id"] for row in imported(run)}
    assert found == {f"r{number}" for number in (*range(20), *range(40, 59))}
    assert dropped(run) == {
        "row_group_unreadable": 1, "not_an_order": 1, "file_unreadable": 1, "columns_unknown": 1,
    }  # fmt: skip
    assert read_manifest(run.path("imported_rankings")).counts == {"rows_not_read": 19}
    [sample] = read_manifest(run.path("imported_rankings")).samples["not_an_order"]
    assert "a.parquet, row 59: " in sample


def test_too_few_good_rows_stop_the_import(tmp_path):
    pictures_below(str(tmp_path), 1, 2, 3)
    good = {"instruction": "a", "source_image": "1.png", "edits": ["2.png", "3.png"], "ranks": [1, 2]}
    foreign.json_lines(str(tmp_path / "a.jsonl"), [good, good | {"ranks": [3, 4]}, good | {"ranks": [1]}])
    with pytest.raises(Stopped, match=r"1 of the rankings of .*a\.jsonl can be kept, a smaller share"):
        imported(run_with(str(tmp_path), str(tmp_path / "a.jsonl"), least_kept=0.5))
    foreign.json_lines(str(tmp_path / "b.jsonl"), [good | {"ranks": [1]}])
    with pytest.raises(ValueError, match=r"none of the rankings of .*b\.jsonl can be kept: 1 other_number_of_ranks"):
        imported(run_with(str(tmp_path), str(tmp_path / "b.jsonl")))


# --- What is imported, and whether it is still that -----------------------------------------------------------------


@pytest.mark.parametrize("layout", ["file", "folder"])
def test_a_table_is_kept_until_words_or_pictures_change(root, layout, capsys):
    folder = storage.join(root, "given")
    for number in (1, 2, 3):
        storage.write_bytes(storage.join(folder, f"{number}.png"), picture(number) + bytes(500))
    row = {"instruction": "make it red", "source_image": "1.png", "edits": ["2.png", "3.png"], "ranks": [1, 2]}
    foreign.json_lines(storage.join(folder, "a.jsonl"), [row])
    dataset = storage.join(folder, "a.jsonl") if layout == "file" else folder
    before = imported(run_with(root, dataset))
    assert imported(run_with(root, dataset)) == before
    assert "rankings: kept, 1 rows" in capsys.readouterr().out
    with pytest.raises(FileExistsError, match=r"importing\.split_name was train, is test"):
        imported(run_with(root, dataset, split_name="test"))
    other = picture(4)
    longer = len(picture(3)) + 500 - len(other)
    storage.write_bytes(storage.join(folder, "3.png"), other + bytes(longer))  # of the same size
    with pytest.raises(FileExistsError, match=r"has changed since imported_rankings was made of it"):
        imported(run_with(root, dataset))
    [after] = imported(run_with(root, dataset, "rebuild"))
    assert after["edits"][1]["image"].startswith(other)
    assert after["ranking_id"] != before[0]["ranking_id"]


def test_an_import_that_was_killed_begins_anew(tmp_path):
    write_rows(str(tmp_path / "theirs"), RANKINGS, [ours(0, [1, 2])], fingerprint_of(made="by them"))
    run = run_with(str(tmp_path), str(tmp_path / "theirs"))
    before = imported(run)
    Path(run.path("imported_rankings"), "manifest.json").unlink()
    Path(run.path("imported_rankings"), "building.json").write_text('{"fingerprint": {"input.content": "other"}}')
    assert imported(run) == before


def test_a_table_that_is_not_finished_is_not_imported(tmp_path):
    write_rows(str(tmp_path / "theirs"), RANKINGS, [ours(0, [1, 2])], fingerprint_of(made="by them"))
    (tmp_path / "theirs" / "manifest.json").unlink()
    (tmp_path / "theirs" / "building.json").write_text("{}")
    with pytest.raises(ValueError, match=r"theirs is a table that is not finished"):
        imported(run_with(str(tmp_path), str(tmp_path / "theirs")))


def test_what_cannot_be_rankings_is_said(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"importing\.rankings is empty"):
        imported(run_with(str(tmp_path), ""))
    with pytest.raises(FileNotFoundError, match=r"nothing does not exist; correct the path"):
        imported(run_with(str(tmp_path), str(tmp_path / "nothing")))
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "a.txt").write_text("a")
    with pytest.raises(ValueError, match=r"given holds no rankings: wanted files .* found a\.txt"):
        imported(run_with(str(tmp_path), str(tmp_path / "given")))
    with pytest.raises(ValueError, match=r"a\.txt holds no rankings: wanted a file that ends with \.parquet, \.jsonl"):
        imported(run_with(str(tmp_path), str(tmp_path / "given" / "a.txt")))
    monkeypatch.setitem(import_rankings.SHIPPED, "shapes", tmp_path / "shipped")
    with pytest.raises(FileNotFoundError, match=r"importing\.rankings is 'shapes', whose rankings belong in .*shipped"):
        imported(run_with(str(tmp_path), "shapes"))


def test_the_domain_s_name_stands_for_its_folder(tmp_path, monkeypatch):
    assert import_rankings.SHIPPED["shapes"].parts[-3:] == ("hive_ray", "shapes", "rankings")
    monkeypatch.setitem(import_rankings.SHIPPED, "shapes", tmp_path / "shipped")
    write_rows(str(tmp_path / "shipped"), RANKINGS, [ours(0, [1, 2])], fingerprint_of(made="by us"))
    assert imported(run_with(str(tmp_path), "shapes")) == [ours(0, [1, 2])]


# --- In a run -----------------------------------------------------------------------------------------------------


def test_every_round_learns_from_imported_rankings_first(tmp_path):
    write_rows(str(tmp_path / "theirs"), RANKINGS, [ours(0, [1, 2])], fingerprint_of(made="by them"))
    run = run_with(str(tmp_path), str(tmp_path / "theirs"))
    second = run.after()
    assert second.ranking_tables() == [run.path("rankings"), second.path("rankings")]
    import_rankings.build(run)
    assert run.ranking_tables() == [run.path("imported_rankings"), run.path("rankings")]
    expected = [run.path("imported_rankings"), run.path("rankings"), second.path("rankings")]
    assert second.ranking_tables() == expected


@pytest.mark.parametrize("taken", [True, False])
def test_dpo_may_leave_out_what_people_said_of_other_editors_edits(tmp_path, taken):
    write_rows(str(tmp_path / "theirs"), RANKINGS, [ours(0, [1, 2])], fingerprint_of(made="by them"))
    run = run_with(str(tmp_path), str(tmp_path / "theirs"))
    dpo = run.config.editor.dpo.model_copy(update={"imported_rankings": taken})
    run = replace(run, config=run.config.changed({"editor": {"dpo": dpo}, "candidate_scoring": {"ranked_rate": 0.0}}))
    import_rankings.build(run)
    assert run.dpo_ranking_tables() == [run.path("imported_rankings")] * taken + [run.path("rankings")]
    assert run.ranking_tables() == [run.path("imported_rankings"), run.path("rankings")]  # for the reward model


def test_the_pipeline_imports_rankings_once_before_it_learns_from_them(tmp_path):
    run = run_with(str(tmp_path), "given")
    stages = pipeline.stages_of(run)
    assert stages.count(import_rankings.build) == 1
    assert stages.index(import_rankings.build) < stages.index(train_reward.build)
    without = pipeline.stages_of(run_with(str(tmp_path), ""))
    assert [stage for stage in stages if stage is not import_rankings.build] == list(without)
    assert import_rankings.build not in (*pipeline.FEEDBACK, *pipeline.learning(run))


def test_the_new_setting_changes_no_fingerprint_where_it_is_empty():
    assert "importing.rankings" not in fingerprint_of(Importing(dataset="given"))
    assert fingerprint_of(Importing(rankings="given"))["importing.rankings"] == "given"


def test_shipped_rankings_are_named_by_what_they_hold_wherever_and_whenever_they_were_installed(tmp_path, monkeypatch):
    def content(folder: str, data: bytes, time: int) -> str:
        file = tmp_path / folder / "rankings.parquet"
        file.parent.mkdir()
        file.write_bytes(data)
        os.utime(file, (time, time))
        monkeypatch.setitem(import_rankings.SHIPPED, "shapes", file.parent)
        return import_rankings.content_of(Importing(rankings="shapes"))

    here, there, other = content("here", b"abc", 1), content("there", b"abc", 2), content("other", b"abd", 1)
    assert here == there != other
