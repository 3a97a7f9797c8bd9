"""The Batch API over real HTTP, with the real client: found again, paid once, what it left out asked for singly."""

import json

import pytest
from llm_server import USAGE, Chat, ChatHandler, edits

from hive_ray import endpoint
from hive_ray.config import Instructions, Spending
from hive_ray.endpoint import Endpoint, EndpointError
from hive_ray.pairs import batches
from hive_ray.pairs.batches import answer_in_batches
from hive_ray.pairs.instructions import InstructionWriter, request_of
from hive_ray.schemas import Stopped

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
            data = server.files[name].encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            return self.wfile.write(data)
        if name:
            batch = server.batches[name]
            if server.ends:
                batch |= {"status": server.ends, "output_file_id": self._output(batch)}
            return self.send_json(200, batch, {})
        return self.send_json(200, {"object": "list", "data": list(server.batches.values()), "has_more": False}, {})

    def _output(self, batch: dict) -> str | None:
        if self.server.ends == "failed":
            return None
        lines = []
        for line in map(json.loads, self.server.files[batch["input_file_id"]].splitlines()):
            caption = line["body"]["messages"][-1]["content"]
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": edits({})}}
            answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "usage": USAGE}
            response = {"status_code": 500 if caption in self.server.left_out else 200}
            lines.append({"custom_id": line["custom_id"],
                          "response": response | {"body": answer | {"choices": [choice]}}})  # fmt: skip
        self.server.files[f"output-of-{batch['id']}"] = "\n".join(map(json.dumps, lines))
        return f"output-of-{batch['id']}"


class Server(Chat):
    def __init__(self) -> None:
        super().__init__()
        self.RequestHandlerClass = Handler
        self.files, self.batches, self.left_out, self.ends = {}, {}, set(), "completed"


@pytest.fixture
def server(monkeypatch):
    with Server().found(monkeypatch) as server:
        monkeypatch.setattr(endpoint, "POLL_S", 0.02)
        monkeypatch.setattr(batches, "REQUESTS", 2)
        yield server


ROWS = [{"caption_id": f"id of {text}", "caption": text} for text in ("an ant", "a bee", "a cat", "a dog", "an eel")]


def settings(**spending) -> Instructions:
    return Instructions(writer="openai", spending=Spending(**(BATCHED | spending)))


def answer_all(folder, **spending) -> None:
    asked = settings(**spending)
    answer_in_batches(Endpoint(str(folder), asked.spending), [request_of(row, asked, []) for row in ROWS])


def test_a_writer_finds_what_batches_answered_at_the_price_of_a_batch(server, tmp_path):
    answer_all(tmp_path)
    rows = InstructionWriter(settings(), str(tmp_path))(ROWS)
    assert [row["source_caption"] for row in rows if "source_caption" in row] == [row["caption"] for row in ROWS]
    assert [row["counted"]["dollars"] for row in rows if row.keys() == {"counted"}] == pytest.approx([0.1] * 5)
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
        patch.setattr(endpoint, "PATIENCE_S", 0.1)
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
    monkeypatch.setattr(batches, "AT_ONCE", 1)
    with pytest.raises(Stopped, match=r"\$0\.2 of \$0\.15"):
        answer_all(tmp_path, most_dollars=0.15)
    assert len(server.batches) == 1
