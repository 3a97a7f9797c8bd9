"""A door to a real S3 server that fails on purpose: 500s and 503 SlowDowns at a rate, or for a while altogether."""

import http.client
import random
import time
from http.server import BaseHTTPRequestHandler
from urllib.parse import urlparse

from local_server import LocalServer

ERROR = b"<?xml version='1.0'?><Error><Code>%s</Code><Message>on purpose</Message></Error>"
FAULTS = ((500, b"InternalError"), (503, b"SlowDown"))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _pass_on(self) -> None:
        server, body = self.server, self._body()
        if fault := server.fault():
            return self._answer(fault[0], {"Content-Type": "application/xml"}, ERROR % fault[1])
        connection = http.client.HTTPConnection(server.behind)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "transfer-encoding"}
        connection.request(self.command, self.path, body, headers | {"Content-Length": str(len(body))})
        answer = connection.getresponse()
        data = answer.read()
        kept = {name: value for name, value in answer.getheaders() if name.lower() not in DROPPED}
        if self.command == "HEAD":
            kept["Content-Length"] = answer.getheader("Content-Length") or "0"
        self._answer(answer.status, kept, data)
        connection.close()

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _answer(self, status: int, headers: dict, data: bytes) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on

    def log_message(self, *args) -> None:
        pass


DROPPED = ("content-length", "transfer-encoding", "connection", "server", "date")


class FaultyS3(LocalServer):
    """Serves while it is entered; `rate` of the requests fail, and all of them for `fail_for` seconds."""

    def __init__(self, behind: str, seed: int = 0) -> None:
        super().__init__(Handler)
        self.behind, self.rate, self.until = urlparse(behind).netloc, 0.0, 0.0
        self.random, self.failed = random.Random(seed), 0

    def fail_for(self, seconds: float) -> None:
        self.until = time.monotonic() + seconds

    def fault(self) -> tuple[int, bytes] | None:
        """What goes wrong with this request, if anything does."""
        with self.lock:
            fails = time.monotonic() < self.until or self.random.random() < self.rate
            self.failed += fails
            return self.random.choice(FAULTS) if fails else None
