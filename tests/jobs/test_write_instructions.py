import re
import time
from dataclasses import replace

import pytest
from llm_server import PAGE, USELESS, refusal
from local_server import free_port

from hive_ray import storage
from hive_ray.artifacts.manifest import fingerprint_of, read_manifest
from hive_ray.artifacts.selection import read_rows
from hive_ray.config import Instructions, Resources, Spending
from hive_ray.errors import Stopped
from hive_ray.language import endpoint
from hive_ray.language.openai_client import EndpointError
from hive_ray.presets import shapes
from hive_ray.schemas import CAPTIONS, INSTRUCTIONS
from jobs.run import Run
from jobs.write_instructions import CAPTIONS_STAGE, build, estimate, shown_examples


def run_with(folder, **settings) -> Run:
    instructions = shapes().instructions.model_copy(update={"captions": str(folder / "captions.csv"), **settings})
    return Run(str(folder / "run"), shapes().model_copy(update={"instructions": instructions}))


def test_captions_are_taken_from_a_column_and_drops_are_counted(tmp_path):
    (tmp_path / "captions.csv").write_text("id,text\n1,a cat\n2,\n3,a dog\n4,a cat\n5,a fox\n6,an owl\n")
    run = run_with(tmp_path, caption_column="text", num_captions=3)
    manifest = CAPTIONS_STAGE.make(run)

    assert [row["caption"] for row in read_rows(run.path("captions"), CAPTIONS)] == ["a cat", "a dog", "a fox"]
    assert (manifest.rows_in, manifest.rows_out) == (5, 3)
    assert manifest.dropped == {"duplicate": 1, "empty": 1}
    assert CAPTIONS_STAGE.make(run) == manifest


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
    manifest = CAPTIONS_STAGE.make(run)
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
    CAPTIONS_STAGE.make(run_with(tmp_path))
    (tmp_path / "captions.csv").write_text("caption\na dog\n")
    with pytest.raises(FileExistsError, match=r"input\.content was"):
        CAPTIONS_STAGE.make(run_with(tmp_path))


def test_a_file_of_nothing_is_refused_before_anything_is_written(tmp_path):
    (tmp_path / "captions.csv").write_text("caption,id\n,1\n  ,2\n")
    with pytest.raises(ValueError, match=r"captions\.csv has no captions; it wants one a line, or .* 'caption'"):
        CAPTIONS_STAGE.make(run_with(tmp_path))
    assert not (tmp_path / "run").exists()


@pytest.mark.ray
def test_a_stage_whose_money_is_spent_stops_and_goes_on_with_more_where_it_stood(chat, tmp_path, shared_cluster):
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


def asking(folder, llm: str, count: int = 6, **settings) -> Run:
    """A run whose instructions a model of the stand-in writes."""
    (folder / "captions.csv").write_text("\n".join(["caption", *(f"a cat number {number}" for number in range(count))]))
    return run_with(folder, writer="openai", llm=llm, resources=Resources(num_gpus=0, batch_size=4), **settings)


WORDS = {
    "nomodel400": (400, refusal("Invalid model name passed in model=nomodel400. Call /v1/models to view")),
    "context": (400, refusal("This model's maximum context length is 2048 tokens.", code="context_length_exceeded")),
    "guided400": (400, refusal("Structured outputs are not supported by this backend")),
    "unprocessable": (422, {"detail": [{"loc": ["body", "messages"], "msg": "Field required"}]}),
    "notallowed": (405, PAGE),
    "toolarge": (413, "Request Entity Too Large"),
    "kind": (415, {"detail": "Unsupported media type"}),
    "gone": (404, {"error": {"message": "The model `gone` does not exist", "code": "model_not_found"}}),
    "quota": (429, refusal("You exceeded your current quota", code="insufficient_quota")),
}
SEEN = {
    "unprocessable": "body.messages: Field required",
    "notallowed": "Sign in to the network",
    "toolarge": "Too Large",
    "kind": "Unsupported media type",
}


@pytest.mark.parametrize("llm", WORDS)
@pytest.mark.parametrize("count", [2, 20])
def test_a_model_that_refuses_all_stops_the_stage_on_the_driver_in_its_own_words(
    chat, tmp_path, monkeypatch, llm, count
):
    monkeypatch.setattr(endpoint, "MAX_RETRIES", 0)
    chat.refused |= WORDS
    run = asking(tmp_path, llm, count)
    words = SEEN.get(llm) or WORDS[llm][1]["error"]["message"]
    for on_mismatch in ("refuse", "rebuild"):
        with pytest.raises(Stopped, match=re.escape(words)):
            build(replace(run, on_mismatch=on_mismatch))
    assert read_manifest(run.path("instructions")) is None
    assert len(chat.asked) <= 8


@pytest.mark.parametrize("llm", USELESS)
def test_a_model_whose_answers_are_useless_stops_the_stage_on_the_driver_and_one_is_shown(
    chat, tmp_path, monkeypatch, llm
):
    monkeypatch.setattr(endpoint, "RETRY_WAITS_S", ())
    run = asking(tmp_path, llm, 20)
    reason = USELESS[llm][0]
    with pytest.raises(Stopped, match=rf"none of the first answers is usable \(8 {reason}\).*\n  {reason}: .+"):
        build(run)
    assert read_manifest(run.path("instructions")) is None
    assert len(chat.asked) == 8


def test_an_endpoint_that_is_not_there_stops_the_stage_before_it_begins(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "test")
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{free_port()}/v1")
    run, started = asking(tmp_path, "m"), time.monotonic()
    for act in (build, estimate):
        with pytest.raises(EndpointError, match="nothing listens at http://127"):
            act(run)
    assert time.monotonic() - started < 10
    assert not (tmp_path / "run" / "instructions").exists()


@pytest.mark.ray
def test_what_a_model_can_be_brought_to_say_is_a_table_that_is_made_again_without_the_endpoint(
    chat, tmp_path, shared_cluster, monkeypatch
):
    refused, chatty = tmp_path / "refused", tmp_path / "chatty"
    refused.mkdir()
    chatty.mkdir()
    runs = [asking(refused, "temperature", 40), asking(chatty, "think", 12)]
    made = [build(run) for run in runs]
    assert [(manifest.rows_in, manifest.rows_out, manifest.dropped) for manifest in made] == [
        (40, 40, {}),
        (12, 12, {}),
    ]

    chat.refused["m"] = (400, refusal("This model's maximum context length is 2048 tokens."))
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{free_port()}/v1")
    for run, manifest in zip(runs, made, strict=True):
        storage.remove_tree(run.path("instructions"))
        assert build(run).dropped == manifest.dropped


@pytest.mark.ray
def test_captions_that_are_refused_are_dropped_with_the_words_and_too_many_of_them_stop_the_stage(
    chat, tmp_path, shared_cluster
):
    words = "This model's maximum context length is 2048 tokens."
    chat.failures = {f"a cat number {number}": [(400, {"message": words}) for _ in range(9)] for number in range(2, 7)}
    manifest = build(asking(tmp_path, "m", 10))
    assert (manifest.rows_out, manifest.dropped) == (5, {"request_refused": 5})
    assert manifest.samples["request_refused"][0] == f"Error code: 400 - {words}"
    storage.remove_tree(str(tmp_path / "run" / "instructions"))
    with pytest.raises(Stopped, match=r"5 rows from 10, and at least 60% are wanted \(least_kept\)"):
        build(asking(tmp_path, "m", 10, least_kept=0.6))


def test_settings_that_came_later_leave_old_fingerprints_as_they_were():
    names = {name.removeprefix("instructions.") for name in fingerprint_of(Instructions())}
    assert not names & {"temperature", "send_seed", "least_kept"}
    for temperature in (0.5, None):
        assert fingerprint_of(Instructions(temperature=temperature))["instructions.temperature"] == temperature
