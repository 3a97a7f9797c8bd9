"""Triplets, and the fine-tuning job over real HTTP, with the real client, through refusals and a real kill."""

import json
import multiprocessing
import re
import time
from pathlib import Path

import pytest
from llm_server import JsonHandler, JsonServer
from mutate import mutated

from hive_ray.artifacts.manifest import git_commit
from hive_ray.config import Writer
from hive_ray.language import endpoint
from hive_ray.language.finetuning import finetune
from hive_ray.language.openai_client import EndpointError
from hive_ray.pairs.instructions import parse_answer, parse_delimited
from hive_ray.pairs.triplets import Triplet, chat_examples, delimited_examples, read_triplets
from hive_ray.presets import shapes
from jobs import finetune_writer
from jobs.run import Run
from jobs.write_instructions import writer_settings

INPUTS = Path(__file__).parents[1] / "inputs"
TRIPLETS = [Triplet(f"a cat {n}", "add a hat", f"a cat {n} with a hat") for n in range(9)]
TRIPLETS.append(Triplet("a cat 0", "make it night", "a cat 0 at night"))


def written(path, rows) -> str:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return str(path)


def as_rows(keys=("caption", "instruction", "edited_caption")) -> list[dict]:
    return [dict(zip(keys, vars(one).values(), strict=True)) for one in TRIPLETS]


class Handler(JsonHandler):
    def do_GET(self) -> None:
        jobs = self.server.jobs
        if name := re.fullmatch(r"/v1/fine_tuning/jobs/(\w+)", self.path):
            with self.server.lock:
                failure = self.server.failures.pop(0) if self.server.failures else None
            if failure:
                return self.send_json(failure, {"error": {"message": "no"}}, {})
            job = jobs[name[1]]
            self.server.polls += 1
            if self.server.polls >= self.server.polls_to_end:
                job |= self.server.end
            return self.send_json(200, job, {})
        return self.send_json(200, {"object": "list", "data": list(jobs.values()), "has_more": False}, {})

    def do_POST(self) -> None:
        if self.path == "/v1/files":
            name = f"file{len(self.server.files)}"
            self.server.files[name] = self.form()
            return self.send_json(200, {"id": name, "object": "file", "bytes": 1, "created_at": 0, "filename": "f",
                                        "purpose": "fine-tune", "status": "processed"}, {})  # fmt: skip
        request = json.loads(self.body())
        if request["model"] == "none":
            return self.send_json(404, {"error": {"message": "no such model"}}, {})
        job = {"id": f"job{len(self.server.jobs)}", "object": "fine_tuning.job", "status": "running", "created_at": 0,
               "fine_tuned_model": None, "seed": 0, "result_files": [], "organization_id": "o", "trained_tokens": None,
               "error": None, "finished_at": None} | request  # fmt: skip
        self.server.jobs[job["id"]] = job
        return self.send_json(200, job, {})


class Server(JsonServer):
    def __init__(self) -> None:
        super().__init__(Handler)
        self.files, self.jobs, self.failures, self.polls, self.polls_to_end = {}, {}, [], 0, 2
        self.end = {"status": "succeeded", "fine_tuned_model": "ft:tiny", "trained_tokens": 1234}


@pytest.fixture
def server(monkeypatch):
    with Server().found(monkeypatch) as server:
        monkeypatch.setattr(endpoint, "POLL_S", 0.05)
        yield server


@pytest.mark.parametrize("keys", [("caption", "instruction", "edited_caption"), ("input", "edit", "output")])
def test_triplets_are_read_under_either_name_and_once(tmp_path, keys):
    rows = as_rows(keys)
    assert read_triplets(written(tmp_path / "t.jsonl", [*rows, rows[0], ""])) == TRIPLETS


BAD = [
    ("{", "not JSON (Expecting property name"),
    ("[1]", "a JSON array; write one object a line"),
    (
        {"caption": "a", "instruction": "b"},
        "wanted text under caption, instruction, edited_caption (or input, edit, output)",
    ),
    ({"caption": "a", "instruction": 7, "edited_caption": "b"}, "wanted text under caption"),
    ({"caption": "a", "instruction": " ", "edited_caption": "b"}, "wanted text under caption"),
    ({"caption": "a", "instruction": "b", "edited_caption": "A."}, "caption_unchanged"),
    ("9" * 5000, "not JSON (Exceeds the limit"),
]


@pytest.mark.parametrize(("bad", "words"), BAD)
def test_a_line_that_is_no_triplet_is_left_out_and_named(tmp_path, capsys, bad, words):
    rows = as_rows()
    rows.insert(3, bad)
    path = written(tmp_path / "t.jsonl", rows)
    assert read_triplets(path) == TRIPLETS
    said = capsys.readouterr().out
    assert f"triplets {path}: 1 of 11 lines cannot be used:\n  {path}, line 4: {words}" in said
    assert "They are left out; 10 triplets are taken" in said


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["{"] * 12, r"12 of 12 lines cannot be used:(\n.*line \d: not JSON.*){5}\n  \(and 7 more\)"),
        ([*as_rows(), *["{"] * 11], "11 of 21 lines cannot be used"),
        (as_rows()[:9], "has 9 different ones; at least 10 are wanted$"),
        (
            [*as_rows()[:9], "{"],
            r"has 9 different ones; at least 10 are wanted. 1 of 10 lines cannot be used:\n.*line 10",
        ),
    ],
)
def test_too_few_triplets_are_refused_with_the_lines_that_are_none(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        read_triplets(written(tmp_path / "t.jsonl", rows))


def test_as_many_bad_lines_as_triplets_are_left_out(tmp_path):
    assert read_triplets(written(tmp_path / "t.jsonl", [*as_rows(), *["{"] * 10])) == TRIPLETS


def test_triplets_with_line_separators_marks_and_half_an_emoji_are_read(tmp_path):
    found = read_triplets(str(INPUTS / "triplets_line_separator.jsonl"))
    assert len(found) == 12
    assert found[3].caption == "a red circle on a table"
    lines = [
        json.dumps({"input": "a\x85cat", "edit": "add\u2029a hat", "output": "a cat \ud83d"}),
        *map(json.dumps, as_rows()),
    ]
    (tmp_path / "t.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert read_triplets(str(tmp_path / "t.jsonl")) == [Triplet("a cat", "add a hat", "a cat \ufffd"), *TRIPLETS]
    (tmp_path / "t.jsonl").write_bytes("\n".join(lines).encode("utf-16"))
    with pytest.raises(ValueError, match=r"t\.jsonl is UTF-16 text, and UTF-8 is wanted"):
        read_triplets(str(tmp_path / "t.jsonl"))


def test_triplets_in_mutated_files_are_taken_named_or_the_file_is(tmp_path, capsys):
    good = "\n".join(map(json.dumps, as_rows())).encode()
    taken, refused = 0, []
    for content in mutated([good, (INPUTS / "triplets_line_separator.jsonl").read_bytes()]):
        (tmp_path / "t.jsonl").write_bytes(content)
        try:
            found = read_triplets(str(tmp_path / "t.jsonl"), least=1)
        except ValueError as error:
            refused.append(str(error))
            continue
        taken += 1
        said = capsys.readouterr().out
        bad = int(re.search(r"(\d+) of \d+ lines cannot be used", said)[1]) if said else 0
        lines = sum(bool(line.strip()) for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n"))
        assert len(found) + bad <= lines
        for triplet in found:
            "".join(vars(triplet).values()).encode()
    assert taken > len(refused)
    assert all(str(tmp_path / "t.jsonl") in words for words in refused)


def test_a_conversation_answers_what_the_writer_will_ask():
    example = chat_examples(TRIPLETS)[0]["messages"]
    assert "write 2 different" in example[0]["content"]
    assert example[1] == {"role": "user", "content": "a cat 0"}
    edits = parse_answer(example[2]["content"])
    assert [edit.instruction for edit in edits] == ["add a hat", "make it night"]
    assert [edit.inverse_instruction for edit in edits] == ["remove the hat", ""]


def test_delimiters_are_those_of_instruct_pix2pix():
    example = delimited_examples(TRIPLETS)[0]
    assert example == {"prompt": "a cat 0\n##\n", "completion": "add a hat\n%%\na cat 0 with a hat\nEND"}
    assert parse_delimited(example["completion"]).edited_caption == "a cat 0 with a hat"


def test_a_job_is_started_followed_and_its_model_named(server):
    job = finetune(delimited_examples(TRIPLETS), Writer(base="tiny", num_epochs=2, seed=5))
    assert job.fine_tuned_model == "ft:tiny"
    started = server.jobs["job0"]
    assert (started["model"], started["hyperparameters"], started["seed"]) == ("tiny", {"n_epochs": 2}, 5)
    sent = server.files[started["training_file"]]
    assert sent["purpose"] == b"fine-tune"
    assert [json.loads(line) for line in sent["file"].splitlines()] == delimited_examples(TRIPLETS)


def test_what_was_started_before_is_followed_and_not_paid_again(server):
    first = finetune(chat_examples(TRIPLETS), Writer())
    assert finetune(chat_examples(TRIPLETS), Writer()).id == first.id
    assert len(server.jobs) == len(server.files) == 1
    assert finetune(chat_examples(TRIPLETS), Writer(num_epochs=2)).id != first.id


def test_an_endpoint_that_is_away_for_a_while_is_asked_again(server, monkeypatch):
    monkeypatch.setattr(endpoint, "MAX_RETRIES", 0)
    server.failures = [500, 503, 429]
    assert finetune(chat_examples(TRIPLETS), Writer()).status == "succeeded"


def test_a_job_that_failed_says_why_and_may_be_started_again(server):
    server.end = {"status": "failed", "error": {"code": "x", "message": "too few examples", "param": None}}
    with pytest.raises(EndpointError, match="job0 failed: too few examples"):
        finetune(chat_examples(TRIPLETS), Writer())
    server.end = {"status": "succeeded", "fine_tuned_model": "ft:tiny"}
    assert finetune(chat_examples(TRIPLETS), Writer()).id == "job1"


def test_a_wait_without_end_has_one(server, monkeypatch):
    monkeypatch.setattr(endpoint, "MAX_WAIT_S", 0.2)
    server.polls_to_end = 10**6
    with pytest.raises(EndpointError, match=r"is running after .* run again to follow it on"):
        finetune(chat_examples(TRIPLETS), Writer())


def test_a_model_that_is_not_there_is_said_so(server):
    with pytest.raises(EndpointError, match=r"fine-tuning 'none': .*no such model"):
        finetune(chat_examples(TRIPLETS), Writer(base="none"))


def run_in(folder) -> Run:
    writer = Writer(triplets=str(folder / "t.jsonl"), form="delimited")
    instructions = shapes().instructions.model_copy(update={"writer": "openai", "llm": "finetuned"})
    settings = shapes().model_copy(update={"writer": writer, "instructions": instructions})
    return Run(str(folder / "run"), settings)


def follow(run: Run) -> None:
    endpoint.POLL_S = 0.05
    finetune_writer.build(run)


def test_a_killed_run_goes_on_with_the_same_job_and_the_next_stage_finds_the_model(server, tmp_path):
    written(tmp_path / "t.jsonl", as_rows())
    run = run_in(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"run jobs\.finetune_writer"):
        writer_settings(run)
    server.polls_to_end = 10**6
    process = multiprocessing.get_context("spawn").Process(target=follow, args=(run,))
    process.start()
    for _ in range(600):
        if server.polls > 2:
            break
        time.sleep(0.1)
    process.kill()
    process.join()
    assert process.exitcode == -9
    server.polls_to_end = 0
    metrics = finetune_writer.build(run)

    assert metrics == {"examples": 10, "trained_tokens": 1234}
    assert len(server.jobs) == 1
    settings = writer_settings(run)
    assert (settings.llm, settings.form) == ("ft:tiny", "delimited")
    made = json.loads((tmp_path / "run" / "writer" / "made.json").read_text())
    assert made["git_commit"] == git_commit()
    polls = server.polls
    assert finetune_writer.build(run) == metrics
    assert server.polls == polls


@pytest.mark.parametrize(("change", "message"), [
    ({"OPENAI_API_KEY": ""}, "OPENAI_API_KEY is empty"), ({"OPENAI_BASE_URL": "localhost/v1"}, "without http://"),
    ({"OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}, r"nothing listens at http://127\.0\.0\.1:9/v1"),
])  # fmt: skip
def test_an_endpoint_that_cannot_be_asked_is_said_before_anything_is_started(
    server, tmp_path, monkeypatch, change, message
):
    written(tmp_path / "t.jsonl", as_rows())
    for name, value in change.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(EndpointError, match=message):
        finetune_writer.build(run_in(tmp_path))
    assert not server.files


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"model": "m"}', "\xff"])
def test_a_damaged_card_of_a_writer_is_named(tmp_path, content):
    card = tmp_path / "run" / "writer" / "card.json"
    card.parent.mkdir(parents=True)
    card.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"card\.json does not name a model .*: run jobs\.finetune_writer"):
        writer_settings(run_in(tmp_path))


@pytest.mark.parametrize("answer", ["<!doctype html>Sign in", {"error": {"message": "no"}}, [1], {}])
def test_an_endpoint_that_does_not_fine_tune_is_said_so(server, answer):
    class NoFineTuning(Handler):
        def do_POST(self) -> None:
            self.body()
            self.send_json(200, answer, {})

    server.RequestHandlerClass = NoFineTuning
    with pytest.raises(EndpointError, match="it may not implement this part of OpenAI's API"):
        finetune(chat_examples(TRIPLETS), Writer())
