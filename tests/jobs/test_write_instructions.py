import pytest

from hive_ray.config import shapes
from hive_ray.distributed.tables import read_rows
from hive_ray.schemas import CAPTIONS
from jobs.run import Run
from jobs.write_instructions import take_captions


def run_with(folder, **settings) -> Run:
    instructions = shapes().instructions.model_copy(update={"captions": str(folder / "captions.csv"), **settings})
    return Run(str(folder / "run"), shapes().model_copy(update={"instructions": instructions}))


def test_captions_are_taken_from_a_column_and_drops_are_counted(tmp_path):
    (tmp_path / "captions.csv").write_text("id,text\n1,a cat\n2,\n3,a dog\n4,a cat\n5,a fox\n6,an owl\n")
    run = run_with(tmp_path, caption_column="text", num_captions=3)
    manifest = take_captions(run)

    assert [row["caption"] for row in read_rows(run.path("captions"), CAPTIONS)] == ["a cat", "a dog", "a fox"]
    assert (manifest.rows_in, manifest.rows_out) == (5, 3)
    assert manifest.dropped == {"duplicate": 1, "empty": 1}
    assert take_captions(run) == manifest


def test_a_file_that_changed_under_its_name_is_refused(tmp_path):
    (tmp_path / "captions.csv").write_text("caption\na cat\n")
    take_captions(run_with(tmp_path))
    (tmp_path / "captions.csv").write_text("caption\na dog\n")
    with pytest.raises(FileExistsError, match=r"input\.content was"):
        take_captions(run_with(tmp_path))


def test_a_file_of_nothing_is_refused_before_anything_is_written(tmp_path):
    (tmp_path / "captions.csv").write_text("caption,id\n,1\n  ,2\n")
    with pytest.raises(ValueError, match=r"captions\.csv has no captions; it wants one a line, or .* 'caption'"):
        take_captions(run_with(tmp_path))
    assert not (tmp_path / "run").exists()
