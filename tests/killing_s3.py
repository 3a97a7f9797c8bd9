"""A door to a real S3 server that kills who asks: at the n-th request that changes something, before it is done or,
every other time, after it is."""

import os
import signal
from contextlib import suppress
from urllib.parse import parse_qs, urlparse

from faulty_s3 import FaultyS3, Handler

CHANGES = {"PUT", "POST", "DELETE"}


class KillingHandler(Handler):
    due = False
    """Whether the request at hand is the one to kill at."""

    def _pass_on(self) -> None:
        server: KillingS3 = self.server
        address = urlparse(self.path)
        if address.path == "/kill":
            return self._answer(200, {}, str(server.told(parse_qs(address.query))).encode())
        self.due = self.command in CHANGES and server.counts()
        if self.due and server.at % 2:
            return server.kill()
        super()._pass_on()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on

    def _answer(self, status: int, headers: dict, data: bytes) -> None:
        if self.due:  # it is done: killed before the answer comes, since whoever has the last answer may end first
            return self.server.kill()
        with suppress(BrokenPipeError, ConnectionResetError):  # of one that was killed
            super()._answer(status, headers, data)


class KillingS3(FaultyS3):
    """Serves while it is entered; GET /kill?at=3&process=4711 arms it and at=-1 asks how many requests there were."""

    def __init__(self, behind: str) -> None:
        super().__init__(behind)
        self.RequestHandlerClass = KillingHandler
        self.at = self.changes = self.process = 0

    def told(self, asked: dict[str, list[str]]) -> int:
        """Arm for a process, or with at=-1 leave it as it is; the requests so far."""
        with self.lock:
            so_far, at = self.changes, int(asked["at"][0])
            if at >= 0:
                self.at, self.process, self.changes = at, int(asked["process"][0]), 0
            return so_far

    def counts(self) -> bool:
        """Count a request; whether it is the one to kill at."""
        with self.lock:
            self.changes += 1
            return self.changes == self.at

    def kill(self) -> None:
        """End the process that asks."""
        os.kill(self.process, signal.SIGKILL)
