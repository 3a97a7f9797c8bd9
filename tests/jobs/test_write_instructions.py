import pytest
import ray

from hive_ray.config import Resources, Spending
from hive_ray.distributed.cluster import start_ray
from hive_ray.distributed.tables import read_manifest, read_rows
from hive_ray.presets import shapes
from hive_ray.schemas import CAPTIONS, INSTRUCTIONS, Stopped
from jobs.run import Run
from jobs.write_instructions import build, shown_examples, take_captions


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


def test_bad_lines_of_captions_are_in_the_manifest_with_samples(tmp_path, capsys):
    lines = [
        '{"text": "a cat"}',
        '{"text": "a d',
        '{"text": "a smiling dog \\ud83d"}',
        "[",
        '{"text": "a\u2028fox"}',
        "{}",
    ]
    (tmp_path / "captions.jsonl").write_text("\n".join([*lines, '{"text": 7}', '{"text": "a dog"}']))
    run = run_with(tmp_path, captions=str(tmp_path / "captions.jsonl"), caption_column="text")
    manifest = take_captions(run)
    captions = [row["caption"] for row in read_rows(run.path("captions"), CAPTIONS)]
    assert captions == ["a cat", "a smiling dog \ufffd", "a fox", "a dog"]
    assert (manifest.rows_in, manifest.rows_out) == (8, 4)
    assert manifest.dropped == {"not_json": 2, "column_missing": 1, "not_text": 1}
    path = tmp_path / "captions.jsonl"
    assert manifest.samples["not_json"][0].startswith(f"{path}, line 2: not JSON (Unterminated string")
    assert manifest.samples["column_missing"][0].startswith(f"{path}, line 6 has no column 'text', only none")
    assert manifest.samples["not_text"] == [f"{path}: 7 is a int, and no text"]
    assert read_manifest(run.path("captions")) == manifest
    assert f"captions: not_json, such as {path}, line 2" in capsys.readouterr().out


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


@pytest.fixture
def cluster(chat):
    start_ray(num_cpus=2)
    yield
    ray.shutdown()


@pytest.mark.ray
def test_a_stage_whose_money_is_spent_stops_and_goes_on_with_more_where_it_stood(chat, tmp_path, cluster):
    names = [f"a cat {number}" for number in range(80)]
    (tmp_path / "captions.csv").write_text("\n".join(["caption", *names]))

    def run(most_dollars: float) -> Run:
        spending = Spending(
            prompt_price=1000.0, completion_price=2000.0, most_dollars=most_dollars
        )  # 20 cents an answer
        return run_with(
            tmp_path, writer="openai", spending=spending, resources=Resources(num_gpus=0, num_actors=2, batch_size=4)
        )

    with pytest.raises(Stopped, match=r"of \$4 are spent \(spending.most_dollars\); all answers are kept"):
        build(run(4.0))
    assert read_manifest(run(4.0).path("instructions")) is None
    assert 20 <= sum(chat.asked.values()) <= 20 + 2 * 4

    manifest = build(run(100.0))
    assert chat.asked == dict.fromkeys(names, 1)
    assert manifest.counts == pytest.approx({"prompt_tokens": 8000, "completion_tokens": 4000, "dollars": 16.0})
    rows = read_rows(run(100.0).path("instructions"), INSTRUCTIONS)
    assert [row["source_caption"] for row in rows] == names


def test_examples_are_shown_in_the_form_that_is_asked_for(tmp_path):
    triplet = '{"input": "a cat %d", "edit": "add a hat", "output": "a cat %d with a hat"}'
    (tmp_path / "triplets.jsonl").write_text("\n".join(triplet % (number, number) for number in range(3)))

    def shown(**settings) -> list[dict]:
        return shown_examples(
            run_with(tmp_path, examples=str(tmp_path / "triplets.jsonl"), **settings).config.instructions
        )

    chat, delimited = shown(num_examples=2), shown(form="delimited")
    assert [example["messages"][1]["content"] for example in chat] == ["a cat 0", "a cat 1"]
    assert delimited[2] == {"prompt": "a cat 2\n##\n", "completion": "add a hat\n%%\na cat 2 with a hat\nEND"}
