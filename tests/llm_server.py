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

    def send_json(self, status: int, body: dict, headers: dict) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(data), **headers}.items():
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


class Chat(JsonServer):
    """Answers chat completions by what the caption says; the first answers to a caption may be failures."""

    def __init__(self) -> None:
        super().__init__(ChatHandler)
        self.answers: dict[str, str | dict] = {}
        self.failures: dict[str, list] = {}
        self.asked: Counter[str] = Counter()
        self.seen: list[dict] = []
        self.at_work = self.most_at_work = 0
        self.delay = 0.0


class ChatHandler(JsonHandler):
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
            self.send_json(200, {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "usage": USAGE,
                             "choices": [{"index": 0, **choice}]}, {})  # fmt: skip
