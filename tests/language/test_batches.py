"""The Batch API over real HTTP, with the real client: found again, paid once, what it left out asked for singly."""

import json

import pytest
from llm_server import EDIT, PAGE, REFUSING, USAGE, Chat, ChatHandler, edits, refusal, spoken
from mutate import mutated

from hive_ray.config import Instructions, Spending
from hive_ray.errors import Stopped
from hive_ray.language import batches, endpoint
from hive_ray.language.answer_cache import Budget
from hive_ray.language.batches import BatchResult, answer_in_batches, read_batch_file
from hive_ray.language.endpoint import Endpoint
from hive_ray.language.openai_client import EndpointError
from hive_ray.pairs.instructions import InstructionWriter, build_request
from hive_ray.schemas import Counted

BATCHED = {"batch": True, "prompt_price": 1000.0, "completion_price": 2000.0}


class Handler(ChatHandler):
    def do_POST(self) -> None:
        if self.path == "/v1/files":
            content = self.form()["file"].decode()
            with self.server.lock:
                name = f"file{len(self.server.files)}"
                self.server.files[name] = content
            return self.send_json(200, {"id": name, "object": "file", "purpose": "batch"}, {})
        if self.path == "/v1/batches":
            request = json.loads(self.body())
            with self.server.lock:
                name = f"batch{len(self.server.batches)}"
                batch = {"id": name, "object": "batch", "status": "in_progress"} | request
                self.server.batches[name] = batch
            return self.send_json(200, batch, {})
        return super().do_POST()

    def do_GET(self) -> None:
        server, name = self.server, self.path.split("/")[3].partition("?")[0] if self.path.count("/") > 2 else ""
        if self.path.endswith("/content"):
            data = server.damage(server.files[name].encode())
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            return self.wfile.write(data)
        if name:
            batch = server.batches[name]
            if server.ends:
                output = self._output(batch)
                batch |= {"status": server.ends, "output_file_id": output, "error_file_id": self._errors(batch)}
            return self.send_json(200, batch, {})
        return self.send_json(200, {"object": "list", "data": list(server.batches.values()), "has_more": False}, {})

    def _errors(self, batch: dict) -> str | None:
        """The file of the requests that the model refuses."""
        lines = []
        for line in map(json.loads, self.server.files[batch["input_file_id"]].splitlines()):
            if refused := self._refused(line["body"]):
                response = {"status_code": refused[0], "body": refused[1]}
                lines.append({"custom_id": line["custom_id"], "response": response, "error": None})
        self.server.files[f"errors-of-{batch['id']}"] = "\n".join(map(json.dumps, lines))
        return f"errors-of-{batch['id']}" if lines else None

    def _refused(self, request: dict) -> tuple[int, dict | list] | None:
        status, body, names = REFUSING.get(request["model"], (0, {}, set()))
        refused = (status, body) if names & request.keys() else None
        return refused or self.server.refused.get(request["model"])

    def _output(self, batch: dict) -> str | None:
        if self.server.ends == "failed":
            return None
        lines = []
        for line in map(json.loads, self.server.files[batch["input_file_id"]].splitlines()):
            if self._refused(line["body"]):
                continue
            caption = line["body"]["messages"][-1]["content"]
            choice = {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": self.server.said},
            }
            answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "usage": USAGE}
            response = {"status_code": 500 if caption in self.server.left_out else 200}
            lines.append({"custom_id": line["custom_id"],
                          "response": response | {"body": answer | {"choices": [choice]}}})  # fmt: skip
        if not lines:
            return None
        output = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
        self.server.files[f"output-of-{batch['id']}"] = output
        return f"output-of-{batch['id']}"


class Server(Chat):
    def __init__(self) -> None:
        super().__init__()
        self.RequestHandlerClass = Handler
        self.files, self.batches, self.left_out, self.ends = {}, {}, set(), "completed"
        self.said = edits({})
        self.damage = bytes


@pytest.fixture
def server(monkeypatch):
    with Server().found(monkeypatch) as server:
        monkeypatch.setattr(endpoint, "POLL_S", 0.02)
        monkeypatch.setattr(batches, "BATCH_SIZE", 2)
        yield server


ROWS = [{"caption_id": f"id of {text}", "caption": text} for text in ("an ant", "a bee", "a cat", "a dog", "an eel")]


def settings(llm: str = "m", **spending) -> Instructions:
    return Instructions(writer="openai", llm=llm, spending=Spending(**(BATCHED | spending)))


def answer_all(folder, llm: str = "m", **spending) -> None:
    asked = settings(llm, **spending)
    answer_in_batches(Endpoint(str(folder), asked.spending), [build_request(row, asked, []) for row in ROWS])


def test_a_writer_finds_what_batches_answered_at_the_price_of_a_batch(server, tmp_path):
    answer_all(tmp_path)
    rows = InstructionWriter(settings(), str(tmp_path))(ROWS)
    assert [row["source_caption"] for row in rows if isinstance(row, dict)] == [row["caption"] for row in ROWS]
    assert [row.values["dollars"] for row in rows if isinstance(row, Counted)] == pytest.approx([0.1] * 5)
    assert (len(server.batches), sum(server.asked.values())) == (3, 0)
    answer_all(tmp_path)
    assert len(server.batches) == 3


def test_what_a_batch_left_out_is_asked_for_singly(server, tmp_path):
    server.left_out = {"a cat"}
    answer_all(tmp_path)
    InstructionWriter(settings(), str(tmp_path))(ROWS)
    assert server.asked == {"a cat": 1}
    answer_all(tmp_path)
    assert len(server.batches) == 3


def test_a_batch_that_runs_already_is_followed_and_not_started_twice(server, tmp_path, monkeypatch):
    server.ends = ""
    with monkeypatch.context() as patch:
        patch.setattr(endpoint, "MAX_WAIT_S", 0.1)
        with pytest.raises(EndpointError, match=r"batch\d is in_progress after 0\.0 h; run again to follow it on"):
            answer_all(tmp_path)
    server.ends = "completed"
    answer_all(tmp_path)
    assert len(server.batches) == 3


def test_a_batch_that_fails_says_why_and_is_started_anew_by_the_next_run(server, tmp_path):
    server.ends = "failed"
    with pytest.raises(EndpointError, match=r"batch\d failed, 0 answers: no reason was given"):
        answer_all(tmp_path)
    failed, server.ends = len(server.batches), "completed"
    answer_all(tmp_path)
    assert len(server.batches) == failed + 3


def test_what_a_cancelled_batch_answered_is_kept_and_not_paid_twice(server, tmp_path):
    server.ends, server.left_out = "cancelled", {"a bee", "a dog"}
    with pytest.raises(EndpointError, match=r"batch\d cancelled, 1 answers"):
        answer_all(tmp_path)
    first, server.ends, server.left_out = len(server.batches), "completed", set()
    answer_all(tmp_path)
    asked = [len(server.files[batch["input_file_id"]].splitlines()) for batch in server.batches.values()]
    assert sum(asked[first:]) == 5 - 3


def test_a_batch_that_answers_nothing_is_no_reason_to_ask_for_all_of_it_singly(server, tmp_path):
    server.left_out = {row["caption"] for row in ROWS}
    with pytest.raises(EndpointError, match=r"batch\d completed, 0 answers"):
        answer_all(tmp_path)
    assert not server.asked


def test_no_batch_is_started_once_the_money_is_spent(server, tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "MAX_BATCHES", 1)
    with pytest.raises(Stopped, match=r"\$0\.2 of \$0\.15"):
        answer_all(tmp_path, most_dollars=0.15)
    assert len(server.batches) == 1


def dollars(folder) -> float:
    budget = Budget(str(folder), settings(most_dollars=100.0).spending)
    budget.exchange()
    return budget.others


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x0b\x1c"])
def test_an_answer_with_any_line_separator_is_one_line(server, tmp_path, character):
    server.said = json.dumps(
        {"edits": [EDIT | {"instruction": f"add a hat{character}and a scarf"}]}, ensure_ascii=False
    )
    if character != "\x0b\x1c":  # which JSON wants escaped
        server.damage = lambda data: data.replace(json.dumps(character)[1:-1].encode(), character.encode())
    answer_all(tmp_path)
    rows = InstructionWriter(settings(), str(tmp_path))(ROWS)
    assert [row["instruction"] for row in rows if isinstance(row, dict)] == [f"add a hat{character}and a scarf"] * 5
    assert dollars(tmp_path) == pytest.approx(0.5)
    assert sum(server.asked.values()) == 0


def test_an_answer_without_a_status_is_one(server, tmp_path):
    server.damage = lambda data: data.replace(b'"status_code": 200, ', b"")
    answer_all(tmp_path)
    assert sum(isinstance(row, dict) for row in InstructionWriter(settings(), str(tmp_path))(ROWS)) == 5
    assert sum(server.asked.values()) == 0


def first_line(change):
    def damage(data: bytes) -> bytes:
        first, newline, others = data.partition(b"\n")
        return change(first) + newline + others

    return damage


@pytest.mark.parametrize(("change", "reason"), [
    (lambda line: line[:-9], "not_json"), (lambda line: b"\0" + line, "not_json"),
    (lambda line: b"[]", "not_an_object"), (lambda line: b"\xff" + line, "not_utf8"),
    (lambda line: line.replace(b"custom_id", b"id"), "without_custom_id"),
    (lambda line: line.replace(b'"custom_id": "', b'"custom_id": "x'), "of_no_request"),
    (lambda line: line.replace(b'"custom_id": "', b'"custom_id": "../../x'), "of_no_request"),
    (lambda line: line.replace(b'"choices"', b'"choice"').replace(b'"usage"', b'"use"'), "no_answer"),
    (lambda line: line.replace(b'"status_code": 200', b'"status_code": 302'), "request_refused"),
    (lambda line: line.replace(b'"response": {', b'"response": null, "x": {'), "no_answer"),
    (lambda line: b'{"custom_id": "%s", "error": {"message": "too long"}}' % line.split(b'"')[3], "request_refused"),
])  # fmt: skip
def test_a_line_that_holds_no_answer_is_named_and_costs_no_other(server, tmp_path, capsys, monkeypatch, change, reason):
    monkeypatch.setattr(batches, "BATCH_SIZE", 5)
    server.damage = first_line(change)
    answer_all(tmp_path)
    assert f"4 of 5 requests answered; left out: 1 {reason}, such as batch0" in capsys.readouterr().out
    rows = InstructionWriter(settings(), str(tmp_path))(ROWS)
    assert sum(isinstance(row, dict) for row in rows) == 5
    assert server.asked == {"an ant": 1}


def test_a_batch_whose_lines_cannot_be_read_is_found_again_and_not_paid_twice(server, tmp_path):
    server.damage = lambda data: data.replace(b"{", b"(")
    with pytest.raises(EndpointError, match=r"completed, 0 answers: \d not_json, such as batch\d's output"):
        answer_all(tmp_path)
    server.damage = bytes
    started = len(server.batches)
    answer_all(tmp_path)
    assert len(server.batches) == 3 >= started


@pytest.mark.parametrize("model", REFUSING)
def test_what_a_model_refuses_is_left_out_of_the_next_batch(server, tmp_path, capsys, monkeypatch, model):
    monkeypatch.setattr(batches, "MAX_BATCHES", 1)
    answer_all(tmp_path, model)
    assert "leave it out from here on" in capsys.readouterr().out
    rows = InstructionWriter(settings(model), str(tmp_path))(ROWS)
    assert sum(isinstance(row, dict) for row in rows) == 5
    assert (len(server.batches), sum(server.asked.values())) == (4, 0)
    answer_all(tmp_path, model)
    assert len(server.batches) == 4


def test_requests_that_a_batch_refuses_for_all_stop_in_the_endpoints_words(server, tmp_path):
    words = "This model's maximum context length is 2048 tokens"
    server.refused["m"] = (400, refusal(words))
    with pytest.raises(EndpointError, match=rf"completed, 0 answers: \d request_refused, such as .*{words}.*no-batch"):
        answer_all(tmp_path)
    server.refused["m"] = (400, refusal("Structured outputs are not supported by this backend"))
    with pytest.raises(Stopped, match=r"does not support json_schema: set instructions\.structure"):
        answer_all(tmp_path)
    server.refused["m"] = (400, refusal("no such model", code="model_not_found"))
    with pytest.raises(Stopped, match="refuses the model 'm': no such model"):
        answer_all(tmp_path)


def test_the_dollars_of_a_batch_that_was_cancelled_stay_beside_those_of_the_next(server, tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "MAX_BATCHES", 1)
    server.ends, server.left_out = "cancelled", {"a bee", "a dog"}
    with pytest.raises(EndpointError):
        answer_all(tmp_path)
    assert dollars(tmp_path) == pytest.approx(0.1)
    server.ends, server.left_out = "completed", set()
    answer_all(tmp_path)
    assert dollars(tmp_path) == pytest.approx(0.5)


@pytest.mark.parametrize("answer", [PAGE, {"error": {"message": "no"}}, [1], {}])
def test_an_endpoint_without_batches_is_said_so(server, tmp_path, answer):
    class NoBatches(Handler):
        def do_POST(self) -> None:
            self.body()
            self.send_json(200, answer, {})

    server.RequestHandlerClass = NoBatches
    with pytest.raises(EndpointError, match="it may not implement this part of OpenAI's API"):
        answer_all(tmp_path)


def test_mutated_batch_files_lose_no_line_that_can_be_read():
    ids = [f"{number:016x}" for number in range(4)]
    lines = [
        {"id": "x", "custom_id": name, "response": {"status_code": 200, "body": spoken(edits({}))}, "error": None}
        for name in ids
    ]
    lines[3]["response"] = {"status_code": 400, "body": refusal("too long")}
    good = "\n".join(json.dumps(line) for line in lines).encode()
    kept = left_out = files = 0
    for data in mutated([good, good + b"\n", good.replace(b"\n", b"\r\n")]):
        account = BatchResult()
        read_batch_file(data, "output", ids, account)
        files += 1
        untouched = sum(line in data.replace(b"\r", b"").split(b"\n") for line in good.split(b"\n")[:3])
        assert len(account.answers) >= untouched or "not_text" in account.left_out
        assert account.answers or account.left_out or not data.strip()
        assert account.left_out.keys() == account.samples.keys()
        kept, left_out = kept + len(account.answers), left_out + account.left_out.total()
        str(account.summary).encode()
    print(f"{files} files: {kept} answers, {left_out} lines named")
    assert kept > left_out / 2
