"""A server that speaks JSON over a real socket, for tests that talk to it with the real client."""

import json
import time
from collections import Counter
from contextlib import contextmanager
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler

import pytest
from local_server import LocalServer


class JsonHandler(BaseHTTPRequestHandler):
    """Answers in JSON, and writes no log."""

    protocol_version = "HTTP/1.1"

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def form(self) -> dict[str, bytes]:
        """The fields of an uploaded form, by name."""
        header = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        parts = BytesParser().parsebytes(header + self.body()).get_payload()
        return {part.get_param("name", header="content-disposition"): part.get_payload(decode=True) for part in parts}

    def send_json(self, status: int, body: dict | str | bytes, headers: dict) -> None:
        """Answer with JSON, or with a page or bytes that are meant to be JSON and are not."""
        kind = "text/html" if isinstance(body, str) else "application/json"
        body = json.dumps(body) if not isinstance(body, str | bytes) else body
        data = body if isinstance(body, bytes) else body.encode()
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": len(data), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args) -> None:
        pass


class JsonServer(LocalServer):
    """Serves at the address that an openai client is given."""

    @contextmanager
    def found(self, patch: pytest.MonkeyPatch):
        """Serves while clients that are made in this environment find it."""
        with self:
            patch.setenv("OPENAI_BASE_URL", self.address)
            patch.setenv("OPENAI_API_KEY", "test")
            yield self

    @property
    def address(self) -> str:
        return f"{super().address}/v1"


USAGE = {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150}
"""Of every chat answer."""
EDIT = {"instruction": "add a hat", "edited_caption": "a cat with a hat", "inverse_instruction": "lose the hat"}


def edits(*changes: dict) -> str:
    return json.dumps({"edits": [EDIT | change for change in changes]})


def spoken(content, *, usage: dict | None = USAGE, **more) -> dict:
    """A chat answer with this content, and more in its message."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content, **more}}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "usage": usage, "choices": [choice]}


def refusal(message: str, **more) -> dict:
    return {"error": {"message": message, "type": "invalid_request_error", **more}}


PAGE = "<!doctype html><title>Sign in</title><p>Sign in to the network"
MISTRAL = [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted", "input": 1}]
TEMPERATURE = "Unsupported value: 'temperature' does not support 0.7 with this model. Only the default (1) value"
CHATTY = {
    "think": lambda good: spoken(f"<think>\nThe user wants one edit. A hat is simple.\n</think>\n\n{good}"),
    "draft": lambda good: spoken(f'<think>{{"edits": [{{"instruction": "no", "edited_caption": "x"}}]}}</think>{good}'),
    "unclosed": lambda good: spoken(f"<think>\nA hat {{is}} [simple].\n{good}"),
    "mistralthink": lambda good: spoken([{"type": "thinking", "thinking": []}, {"type": "text", "text": good}]),
    "fence": lambda good: spoken(f"```\n{good}\n```"),
    "fencejson": lambda good: spoken(f"```json\n{good}\n```"),
    "fenceJSON": lambda good: spoken(f"~~~ JSON\n{good}\n~~~"),
    "preamble": lambda good: spoken(f"Here is the JSON:\n```json\n{good}\n```\nLet me know if you need {{more}}!"),
    "barelist": lambda good: spoken(json.dumps(json.loads(good)["edits"])),
    "single": lambda good: spoken(json.dumps(json.loads(good)["edits"][0])),
    "othername": lambda good: spoken(json.dumps({"instructions": json.loads(good)["edits"]})),
    "reasoningonly": lambda good: spoken(None, reasoning_content=f"thinking ... {good}"),
    "reasoning": lambda good: spoken("", reasoning=f"thinking ... {good}"),
    "trailingcomma": lambda good: spoken(good[:-2] + ",]}"),
    "commas": lambda good: spoken('Say "yes, ]": ' + good.replace('"}]}', '",\n}, ] , }')),
    "linebreak": lambda good: spoken(good.replace("add a hat", "add a hat ").replace("with a hat", "with\na hat")),
    "template": lambda good: spoken(f'{good}\nas {{"edits": [{{"instruction": "...", "edited_caption": "..."}}]}}'),
    "surrogate": lambda good: spoken(good.replace("add a hat", "add a hat \\ud83d")),
}
"""Models that speak around their JSON -> their answer, whose edit is to be read, by the good one."""
USELESS = {
    "emptychoices": ("answer_is_empty", lambda: spoken("") | {"choices": [], "usage": None}),
    "paidforempty": ("answer_is_empty", lambda: spoken("") | {"choices": []}),
    "nomessage": ("answer_is_empty", lambda: spoken("") | {"choices": [{"index": 0}]}),
    "nothing": ("answer_is_empty", lambda: spoken(None)),
    "prose": ("answer_is_not_of_the_form", lambda: spoken("I'd add a hat [a red one] to {the cat}.")),
    "numbers": ("empty_edit", lambda: spoken(edits({"instruction": None, "edited_caption": 7}))),
    "filtered": ("model_refused", lambda: spoken("") | {"choices": [{"finish_reason": "content_filter"}]}),
    "html": ("answer_is_not_json", lambda: PAGE),
    "broken": ("answer_is_not_json", lambda: b'{"id": "1", "choices": ['),
    "error200": ("answer_is_an_error", lambda: {"error": {"message": "Provider returned error", "code": 429}}),
    "number": ("answer_has_no_choices", lambda: b"17"),
}
"""Models without an edit in their answers -> the reason of the drop, and the answer with status 200."""
REFUSING = {
    "temperature": (400, refusal(TEMPERATURE, param="temperature", code="unsupported_value"), {"temperature"}),
    "temperature422": (422, {"detail": [{"loc": ["body", "temperature"], "msg": "not permitted"}]}, {"temperature"}),
    "seed422": (422, {"object": "error", "message": {"detail": MISTRAL}, "param": None}, {"seed"}),
    "seedgemini": (400, [refusal('Unknown name "seed": Cannot find field.')], {"seed"}),
    "bothrefused": (400, refusal("seed and temperature are not supported"), {"temperature", "seed"}),
}
"""Models that refuse arguments -> status, body, and which."""


class Chat(JsonServer):
    """Answers chat completions by the model's name, or else by what the caption says; the first answers to a caption
    may be failures."""

    def __init__(self) -> None:
        super().__init__(ChatHandler)
        self.answers: dict[str, str | dict] = {}
        self.failures: dict[str, list] = {}
        self.refused: dict[str, tuple[int, dict | str]] = {}
        self.moderated: dict | str | None = None
        self.models: tuple[int, dict | str] = (200, {"object": "list", "data": []})
        self.asked: Counter[str] = Counter()
        self.seen: list[dict] = []
        self.at_work = self.most_at_work = 0
        self.delay = 0.0


class ChatHandler(JsonHandler):
    def do_GET(self) -> None:
        self.send_json(*self.server.models, {})

    def do_POST(self) -> None:
        server, request = self.server, json.loads(self.body())
        if self.path.endswith("/moderations"):
            if server.moderated is not None:
                return self.send_json(200, server.moderated, {})
            results = [
                {"flagged": "rude" in text, "categories": {}, "category_scores": {}} for text in request["input"]
            ]
            return self.send_json(200, {"id": "1", "model": "m", "results": results}, {})
        caption = request["messages"][-1]["content"] if "messages" in request else request["prompt"]
        caption = caption if isinstance(caption, str) else caption[0]["text"]  # what a vision model is shown
        with server.lock:
            server.asked[caption] += 1
            server.seen.append(request)
            server.at_work += 1
            server.most_at_work = max(server.most_at_work, server.at_work)
            failures = server.failures.get(caption, [])
            failure = failures.pop(0) if failures else None
        try:
            time.sleep(server.delay)
            if answer := self._by_model(request, caption):
                return self.send_json(*answer, {})
            self._answer(failure, server.answers.get(caption, edits({})))
        finally:
            with server.lock:
                server.at_work -= 1

    def _by_model(self, request: dict, caption: str) -> tuple[int, dict | str | bytes] | None:
        """The status and the answer of a model that behaves in its own way."""
        model, good = request["model"], edits({"edited_caption": f"{caption} with a hat"})
        if model in self.server.refused:
            return self.server.refused[model]
        if model in REFUSING:
            status, body, names = REFUSING[model]
            return (status, body) if names & request.keys() else (200, spoken(good))
        if model in CHATTY:
            return 200, CHATTY[model](good)
        if model in USELESS:
            return 200, USELESS[model][1]()
        return None

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
            self.send_json(200, {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "usage": USAGE,
                             "choices": [{"index": 0, **choice}]}, {})  # fmt: skip
