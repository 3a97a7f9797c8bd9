"""A door to a real S3 server that fails on purpose: 500s and 503 SlowDowns at a rate, or for a while altogether; and
that refuses what servers other than Amazon's do not know."""

import http.client
import random
import time
from http.server import BaseHTTPRequestHandler
from typing import NamedTuple
from urllib.parse import urlparse

from local_server import LocalServer

ERROR = "<?xml version='1.0' encoding='UTF-8'?><Error><Code>%s</Code><Message>%s</Message></Error>"
FAULTS = ((500, "InternalError"), (503, "SlowDown"))


class Request(NamedTuple):
    """What came to the door."""

    method: str
    path: str
    headers: dict[str, str]
    """By names in lower case."""

    @property
    def is_delete_objects(self) -> bool:
        return self.method == "POST" and urlparse(self.path).query.split("=")[0] == "delete"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _pass_on(self) -> None:
        server, body = self.server, self._body()
        parsed = urlparse(self.path)
        path = parsed.path + (f"?{parsed.query}" if parsed.query else "")  # a proxy is sent whole addresses
        request = Request(self.command, path, {name.lower(): value for name, value in self.headers.items()})
        if fault := server.fault() or server.refusal(request):
            status, code, *message = fault
            answer = ERROR % (code, *(message or ["on purpose"]))
            if server.page:
                answer = server.page
            return self._answer(status, {"Content-Type": "application/xml"}, answer.encode())
        connection = http.client.HTTPConnection(server.behind)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in OF_THE_DOOR}
        if bucket := server.bucket_in_host(request):
            path = f"/{bucket}{path}"
        connection.request(self.command, path, body, headers | {"Content-Length": str(len(body))})
        answer = connection.getresponse()
        data = server.rewrite(answer.read())
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


OF_THE_DOOR = ("transfer-encoding", "host")
DROPPED = ("content-length", "transfer-encoding", "connection", "server", "date")


class FaultyS3(LocalServer):
    """Serves while it is entered; `rate` of the requests fail, and all of them for `fail_for` seconds. `requests` are
    those that came."""

    no_checksums = False
    """Refuse checksums and trailers, as R2 and Ceph do."""
    no_delete_objects: tuple[int, str] | None = None
    """Refuse DeleteObjects by this status and code."""
    wants_md5 = False
    """Refuse a DeleteObjects without Content-MD5, as older MinIO and Ceph do."""
    virtual_only = False
    """Refuse requests that do not name the bucket in the host, as Alibaba's OSS does."""
    answer: tuple[int, str] | None = None
    """Answer all requests, or those of `answered` methods, by this status and code."""
    answered: tuple[str, ...] = ()
    page = ""
    """What stands in refusals in place of S3's XML."""

    def __init__(self, behind: str, seed: int = 0) -> None:
        super().__init__(Handler)
        self.behind, self.rate, self.until = urlparse(behind).netloc, 0.0, 0.0
        self.random, self.failed = random.Random(seed), 0
        self.requests: list[Request] = []

    @property
    def named_address(self) -> str:
        """Its address by a name, which may follow that of a bucket."""
        return f"http://localhost:{self.server_address[1]}"

    def fail_for(self, seconds: float) -> None:
        self.until = time.monotonic() + seconds

    def fault(self) -> tuple[int, str] | None:
        """What goes wrong with this request, if anything does."""
        with self.lock:
            fails = time.monotonic() < self.until or self.random.random() < self.rate
            self.failed += fails
            return self.random.choice(FAULTS) if fails else None

    def refusal(self, request: Request) -> tuple[int, str, str] | tuple[int, str] | None:
        """What this server does not know of a request, if anything."""
        with self.lock:
            self.requests.append(request)
        if self.answer and (not self.answered or request.method in self.answered):
            return self.answer
        if self.no_checksums and any("checksum" in name or "trailer" in name for name in request.headers):
            return 501, "NotImplemented", "Header x-amz-trailer is not implemented"
        if request.is_delete_objects:
            if self.no_delete_objects:
                return self.no_delete_objects
            if self.wants_md5 and "content-md5" not in request.headers:
                return 400, "InvalidRequest", "Missing required header for this request: Content-MD5"
        if self.virtual_only and not self.bucket_in_host(request):
            return 403, "SecondLevelDomainForbidden", "Please use virtual hosted style to access"
        return None

    def bucket_in_host(self, request: Request) -> str:
        """The bucket that a request's host names, or an empty text."""
        host = request.headers["host"].rpartition(":")[0]
        return host.removesuffix(".localhost") if host.endswith(".localhost") else ""

    def rewrite(self, answer: bytes) -> bytes:
        """An answer as it goes out."""
        return answer

    def operations(self) -> list[str]:
        """Methods of the requests that came since the last call."""
        with self.lock:
            methods = ["POST?delete" if request.is_delete_objects else request.method for request in self.requests]
            self.requests.clear()
        return methods
