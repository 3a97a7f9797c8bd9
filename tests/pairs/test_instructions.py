"""The writer over real HTTP, with the real client, against a server that misbehaves on purpose."""

import json
import threading
import time
from collections import Counter

import openai
import pytest
from llm_server import JsonHandler, JsonServer

from hive_ray.config import Instructions, Resources
from hive_ray.pairs import instructions
from hive_ray.pairs.instructions import InstructionWriter, parse_answer
from hive_ray.schemas import INSTRUCTIONS, to_table

EDIT = {"instruction": "add a hat", "edited_caption": "a cat with a hat", "inverse_instruction": "lose the hat"}


def edits(*changes: dict) -> str:
    return json.dumps({"edits": [EDIT | change for change in changes]})


class Server(JsonServer):
    """Answers chat completions by what the caption says; the first answers to a caption may be failures."""

    def __init__(self) -> None:
        super().__init__(Handler)
        self.answers: dict[str, str | dict] = {}
        self.failures: dict[str, list] = {}
        self.asked: Counter[str] = Counter()
        self.seen: list[dict] = []
        self.lock = threading.Lock()
        self.at_work = self.most_at_work = 0
        self.delay = 0.0


class Handler(JsonHandler):
    def do_POST(self) -> None:
        server, request = self.server, json.loads(self.body())
        if self.path.endswith("/moderations"):
            results = [
                {"flagged": "rude" in text, "categories": {}, "category_scores": {}} for text in request["input"]
            ]
            return self.send_json(200, {"id": "1", "model": "m", "results": results}, {})
        caption = request["messages"][-1]["content"] if "messages" in request else request["prompt"]
        with server.lock:
            server.asked[caption] += 1
            server.seen.append(request)
            server.at_work += 1
            server.most_at_work = max(server.most_at_work, server.at_work)
            failures = server.failures.get(caption, [])
            failure = failures.pop(0) if failures else None
        try:
            time.sleep(server.delay)
            self._answer(failure, server.answers.get(caption, edits({})))
        finally:
            with server.lock:
                server.at_work -= 1

    def _answer(self, failure, content: str | dict | list[str]) -> None:
        if failure == "cut":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
            self.close_connection = True
        elif failure == "slow":
            time.sleep(1.0)
            self.close_connection = True
        elif failure:
            status, headers = failure
            message = headers.pop("message", "no")
            self.send_json(status, {"error": {"message": message, "type": "test"}}, headers)
        else:
            if "completions" in self.path and "chat" not in self.path:
                choices = [{"index": 0, "finish_reason": "stop", "logprobs": None, "text": text} for text in content]
                body = {"id": "1", "object": "text_completion", "created": 0, "model": "m", "choices": choices}
                return self.send_json(200, body, {})
            choice = {"message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
            choice |= content if isinstance(content, dict) else {}
            self.send_json(200, {"id": "1", "object": "chat.completion", "created": 0, "model": "m",
                             "choices": [{"index": 0, **choice}]}, {})  # fmt: skip


@pytest.fixture
def server(monkeypatch):
    with Server() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.address)
        monkeypatch.setenv("OPENAI_API_KEY", "test")
        yield server


def writer(batch_size: int = 4, **settings) -> InstructionWriter:
    return InstructionWriter(
        Instructions(writer="openai", resources=Resources(num_gpus=0, batch_size=batch_size), **settings)
    )


def captions(*texts: str) -> list[dict]:
    return [{"caption_id": f"id of {text}", "caption": text} for text in texts]


def test_edits_become_rows_of_the_contract_with_their_inverse(server):
    server.answers["a cat"] = edits({}, {"instruction": "make it wink", "edited_caption": "a cat winks"})
    rows = writer(per_caption=2)(captions("a cat"))
    to_table(rows, INSTRUCTIONS)
    assert [row["instruction"] for row in rows] == ["add a hat", "make it wink"]
    assert [row["inverse_instruction"] for row in rows] == ["remove the hat", "lose the hat"]  # by rule, by the model
    assert {row["source_caption"] for row in rows} == {"a cat"}


def test_the_request_says_what_is_wanted(server):
    writer(per_caption=3, llm="tiny")(captions("a cat"))
    request = server.seen[0]
    assert request["model"] == "tiny"
    assert request["response_format"]["json_schema"]["schema"] == instructions.SCHEMA
    assert "write 3 different" in request["messages"][0]["content"]
    writer(per_caption=3)(captions("a cat"))
    assert server.seen[1]["seed"] == request["seed"]
    writer(structure="json_object")(captions("a cat"))
    assert server.seen[2]["response_format"] == {"type": "json_object"}


def test_the_schema_holds_what_the_parser_takes():
    parsed = parse_answer(edits({}))[0]
    required = instructions.SCHEMA["properties"]["edits"]["items"]["required"]
    assert {name: getattr(parsed, name) for name in required} == EDIT


def test_what_moderation_flags_is_dropped_before_anything_is_asked_of_it(server):
    rude = {"instruction": "be rude", "edited_caption": "a rude dog"}
    server.answers["a dog"] = edits(rude, {"instruction": "add a bow", "edited_caption": "a dog with a bow"})
    rows = writer(moderation=True, per_caption=2)(captions("a rude cat", "a dog"))
    assert [row.get("dropped") or row["instruction"] for row in rows] == [
        "caption_flagged",
        "add a bow",
        "edit_flagged",
    ]
    assert server.asked == {"a dog": 1}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("I would rather not", "answer_is_not_of_the_form"),
        ("", "answer_is_not_of_the_form"),
        ('{"edits": [{"instruction": "add', "answer_is_not_of_the_form"),
        ('{"edits": [{"instruction": "add a hat"}]}', "answer_is_not_of_the_form"),
        ('{"edits": []}', "answer_is_empty"),
        (edits({"instruction": " "}), "empty_edit"),
        (edits({"edited_caption": "A cat."}), "caption_unchanged"),
        ({"message": {"role": "assistant", "content": None, "refusal": "I cannot"}}, "model_refused"),
        ({"message": {"role": "assistant", "content": '{"edits": ['}, "finish_reason": "length"}, "answer_cut_off"),
    ],
)
def test_an_answer_that_is_no_edit_is_dropped_with_its_reason(server, answer, reason):
    server.answers["a cat"] = answer
    rows = writer()(captions("a cat", "a dog"))
    assert rows[0] == {"dropped": reason}
    assert rows[1]["source_caption"] == "a dog"


def test_completions_are_asked_for_with_delimiters_as_instruct_pix2pix_does(server):
    server.answers["a cat\n##\n"] = ["add a hat\n%%\na cat with a hat", "make it wink\n%%\na cat winks\nEND"]
    rows = writer(per_caption=2, form="delimited")(captions("a cat"))
    assert [(row["instruction"], row["edited_caption"]) for row in rows] == [
        ("add a hat", "a cat with a hat"),
        ("make it wink", "a cat winks"),
    ]
    asked = server.seen[0]
    wanted = {"n": 2, "stop": "\nEND", "temperature": 0.7, "max_tokens": 256, "frequency_penalty": 0.1}
    assert {name: asked[name] for name in wanted} == wanted
    server.answers["a dog\n##\n"] = ["add a hat"]
    assert writer(form="delimited")(captions("a dog")) == [{"dropped": "answer_is_not_of_the_form"}]


def test_one_completion_that_is_not_of_the_form_costs_no_other(server):
    server.answers["a cat\n##\n"] = ["add a hat", "make it wink\n%%\na cat winks"]
    rows = writer(per_caption=2, form="delimited")(captions("a cat"))
    assert [row.get("instruction") or row["dropped"] for row in rows] == ["make it wink", "answer_is_not_of_the_form"]


def test_the_same_edit_twice_is_kept_once(server):
    server.answers["a cat"] = edits({}, {})
    rows = writer(per_caption=2)(captions("a cat"))
    assert [row.get("dropped") for row in rows] == [None, "duplicate"]


@pytest.mark.parametrize("failure", [(429, {"Retry-After": "0.3"}), (429, {}), (500, {}), (503, {}), "cut", "slow"])
def test_what_fails_for_a_while_is_asked_again_and_nothing_is_lost(server, monkeypatch, failure):
    monkeypatch.setattr(instructions, "TIMEOUT_S", 0.5)
    server.failures["a cat"] = [failure, failure]
    started = time.monotonic()
    rows = writer()(captions("a cat", "a dog"))
    assert [row["source_caption"] for row in rows] == ["a cat", "a dog"]
    assert server.asked == {"a cat": 3, "a dog": 1}
    if failure[1] == {"Retry-After": "0.3"}:
        assert time.monotonic() - started >= 0.6


def test_a_request_that_the_server_refuses_is_dropped_and_not_asked_again(server):
    server.failures["a cat"] = [(400, {})]
    rows = writer()(captions("a cat", "a dog"))
    assert rows[0] == {"dropped": "request_refused"}
    assert server.asked["a cat"] == 1


def test_an_endpoint_without_schemas_is_not_taken_for_a_refused_caption(server):
    server.failures["a cat"] = [(400, {"message": "unsupported response_format"})]
    with pytest.raises(ValueError, match=r"knows no json_schema: set instructions\.structure"):
        writer()(captions("a cat"))


def test_one_caption_that_fails_for_good_costs_no_other_answer(server, monkeypatch):
    monkeypatch.setattr(instructions, "MAX_RETRIES", 0)
    server.failures["a cat"] = [(500, {})] * 2
    write, rows = writer(), captions("an ant", "a cat", "a dog")
    with pytest.raises(openai.InternalServerError):
        write(rows)
    assert [row["source_caption"] for row in write([rows[0]]) + write([rows[2]])] == ["an ant", "a dog"]
    with pytest.raises(openai.InternalServerError):
        write([rows[1]])
    assert server.asked == {"an ant": 1, "a cat": 2, "a dog": 1}


def test_as_many_requests_are_in_flight_as_a_batch_has_rows(server):
    server.delay = 0.2
    names = [f"cat {number}" for number in range(8)]
    rows = writer(batch_size=4)(captions(*names))
    assert [row["source_caption"] for row in rows] == names
    assert server.most_at_work == 4


def test_a_key_that_is_missing_is_said_so(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(openai.OpenAIError, match="OPENAI_API_KEY"):
        writer()
