"""A dataset of somebody else becomes a run's pairs and prompts, and leaves it again."""

import json
from pathlib import Path

import foreign
import pytest
from foreign import picture
from tiny_models import tiny_clip

from hive_ray import storage
from hive_ray.artifacts.building import write_rows
from hive_ray.artifacts.manifest import read_manifest, table_digest
from hive_ray.artifacts.selection import read_rows
from hive_ray.config import Exporting, Importing, Resources
from hive_ray.presets import shapes
from hive_ray.schemas import IMPORTED, PAIRS, PROMPTS
from jobs import export_pairs, import_pairs, make_pairs
from jobs.run import Run

pytestmark = pytest.mark.ray

ONE = Resources(num_gpus=0, num_cpus=1, num_actors=1, batch_size=8)
NUM_PAIRS = 40


def run_with(root: Path, on_mismatch: str = "refuse", exporting: Exporting | None = None, **importing) -> Run:
    """A run that imports the dataset below `root`."""
    settings = Importing(
        dataset=str(root / "dataset"), prompts=str(root / "test.jsonl"), clip=str(root / "clip"), rank_rate=0.2,
        test_rate=0.2, drop_swapped=False, resources=ONE,
    ).model_copy(update=importing)  # fmt: skip
    changed = {"importing": settings, "exporting": exporting or Exporting()}
    return Run(str(root / "run"), shapes().model_copy(update=changed), on_mismatch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, shared_cluster) -> Path:
    folder = tmp_path_factory.mktemp("import")
    tiny_clip(folder / "clip")
    rows = [foreign.hq_edit(2 * number) for number in range(NUM_PAIRS)]
    foreign.parquet(str(folder / "dataset" / "train-0.parquet"), [*rows, rows[0]])
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "a.png").write_bytes(picture(999))
    foreign.json_lines(str(folder / "test.jsonl"), [{"instruction": "make it snow", "source_img": "a.png"}])
    import_pairs.build(run_with(folder))
    return folder


def test_train_pairs_have_twins_and_held_out_ones_are_prompts(folder):
    run = run_with(folder)
    pairs, prompts = (list(read_rows(run.path(n), s)) for n, s in (("pairs", PAIRS), ("prompts", PROMPTS)))
    assert read_manifest(run.path("imported")).dropped == {"duplicate": 1}
    assert {row["split"] for row in pairs} == {"train"}
    assert {row["split"] for row in prompts} == {"rank", "test"}
    assert len(pairs) / 2 + len(prompts) - 1 == NUM_PAIRS
    assert sum(row["origin"] == "cycle" for row in pairs) == len(pairs) / 2
    trained = {row["source_image"] for row in pairs} | {row["edited_image"] for row in pairs}
    assert not trained & {row["source_image"] for row in prompts}
    assert (prompts[-1]["instruction"], prompts[-1]["source_image"]) == ("make it snow", picture(999))
    assert len({row["pair_id"] for row in pairs}) == len(pairs)
    assert len({row["prompt_id"] for row in prompts}) == len(prompts)
    assert any(row["clip_direction"] for row in pairs)


def test_a_second_import_keeps_all_and_another_clip_setting_measures_alone(folder, capfd):
    import_pairs.build(run_with(folder))
    printed = capfd.readouterr().out
    assert all(f"{table}: kept" in printed for table in ("imported", "prompts", "pairs"))
    with pytest.raises(FileExistsError, match=r"pairs was made otherwise: importing\.cycle was True, is False"):
        import_pairs.build(run_with(folder, cycle=False))
    assert "imported: kept" in capfd.readouterr().out


def test_a_dataset_that_changed_under_its_name_is_refused(folder):
    more = folder / "dataset" / "train-1.parquet"
    foreign.parquet(str(more), [foreign.hq_edit(1000)])
    try:
        with pytest.raises(FileExistsError, match=r"imported was made otherwise: input\.content was"):
            import_pairs.build(run_with(folder))
    finally:
        more.unlink()


def test_generated_pairs_do_not_take_the_place_of_imported_ones(folder):
    run = run_with(folder)
    storage.write_text(run.path("instructions/manifest.json"), json.dumps(vars(read_manifest(run.path("imported")))))
    digest = table_digest(run.path("pairs"))
    with pytest.raises(FileExistsError, match=r"prompts was made otherwise: .*input\.imported was"):
        make_pairs.build(run)
    assert table_digest(run.path("pairs")) == digest
    storage.remove_tree(run.path("instructions"))


def test_missing_captions_are_said(tmp_path, capfd):
    turns = [foreign.magic_brush(str(session), 1) for session in range(3)]
    foreign.parquet(str(tmp_path / "dataset" / "train.parquet"), turns)
    run = run_with(tmp_path, prompts="")
    import_pairs.build_imported(run)
    assert "3 of 3 pairs have no captions, so their clip_source_text" in capfd.readouterr().out


@pytest.mark.parametrize("format", ["parquet", "instruct_pix2pix", "webdataset"])
def test_an_export_is_kept_and_comes_back_as_the_same_pairs(folder, tmp_path, capfd, format):
    exporting = Exporting(format=format, folder=str(tmp_path / "dataset"))
    run = run_with(folder, exporting=exporting)
    done = export_pairs.build(run)
    assert done["rows"] == read_manifest(run.path("pairs")).rows_out
    files = {name: (tmp_path / "dataset" / name).stat().st_mtime_ns for name in storage.list_files(exporting.folder)}
    assert "card.json" in files
    assert "exporting.json" not in files
    assert export_pairs.build(run) == done
    assert files == {name: (tmp_path / "dataset" / name).stat().st_mtime_ns for name in files}
    assert "kept" in capfd.readouterr().out

    again = run_with(tmp_path, prompts="")
    import_pairs.build_imported(again)
    words = ("instruction", "source_caption", "edited_caption", "split")
    ours, theirs = read_rows(run.path("pairs"), PAIRS), read_rows(again.path("imported"), IMPORTED)
    assert [[row[n] for n in words] for row in ours] == [[row[n] for n in words] for row in theirs]


def test_an_export_that_was_killed_is_unfinished_and_written_again(folder, tmp_path):
    run = run_with(folder, exporting=Exporting(folder=str(tmp_path / "out")))
    export_pairs.build(run)
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    (tmp_path / "out" / "card.json").unlink()
    (tmp_path / "out" / "exporting.json").write_text(json.dumps({n: card[n] for n in ("format", "fingerprint")}))
    (tmp_path / "out" / "data" / "train-00009.parquet").write_text("remains")
    assert export_pairs.build(run) == card
    assert not (tmp_path / "out" / "data" / "train-00009.parquet").exists()


def test_another_export_is_refused_and_what_is_no_export_is_never_removed(folder, tmp_path):
    run = run_with(folder, exporting=Exporting(folder=str(tmp_path / "out")))
    export_pairs.build(run)
    other = run_with(folder, exporting=Exporting(folder=str(tmp_path / "out"), shard_megabytes=1))
    with pytest.raises(FileExistsError, match=r"exporting\.shard_megabytes was 256, is 1"):
        export_pairs.build(other)
    model = tmp_path / "model"
    model.mkdir()
    (model / "card.json").write_text('{"resolution": 64}')
    with pytest.raises(FileExistsError, match=r"model holds files that no export wrote"):
        export_pairs.build(run_with(folder, "rebuild", Exporting(folder=str(model))))
    assert (model / "card.json").exists()


def test_a_run_anywhere_imports_from_and_exports_to_anywhere(folder, root):
    """Without its pairs, which Ray's workers write: they do not see this test's S3 server."""
    pairs = list(read_rows(run_with(folder).path("pairs"), PAIRS))
    run = Run(storage.join(root, "run"), run_with(folder).config)
    write_rows(run.path("pairs"), PAIRS, pairs, {})
    export_pairs.build(run)
    settings = Importing(dataset=run.path("exports/parquet"))
    again = Run(storage.join(root, "again"), run.config.model_copy(update={"importing": settings}))
    import_pairs.build_imported(again)
    import_pairs.PROMPTS_STAGE.make(again)
    back = list(read_rows(again.path("imported"), IMPORTED))
    assert [row["source_image"] for row in back] == [row["source_image"] for row in pairs]
    assert read_manifest(again.path("prompts")).rows_out == 0  # all of them were for training, and stay so


def test_pairs_are_made_again_of_a_dataset_that_changed_in_place(folder, tmp_path):
    """The workers' pairs too have the new words, and the old ones are kept until --rebuild."""
    rows = [foreign.hq_edit(2 * number) for number in range(NUM_PAIRS)]
    foreign.parquet(str(tmp_path / "dataset" / "train-0.parquet"), rows)
    again = {"prompts": "", "clip": str(folder / "clip")}
    import_pairs.build(run_with(tmp_path, **again))
    mended = [row | {"edit": row["edit"].replace("futuristic", "antiquated")} for row in rows]
    foreign.parquet(str(tmp_path / "dataset" / "train-0.parquet"), mended)
    with pytest.raises(FileExistsError, match=r"dataset has changed since imported was made of it"):
        import_pairs.build(run_with(tmp_path, **again))
    run = run_with(tmp_path, "rebuild", **again)
    for _ in range(2):
        import_pairs.build(run)
        words = {row["instruction"] for row in read_rows(run.path("pairs"), PAIRS) if row["origin"] == "imported"}
        assert words == {"Add antiquated elements"}
