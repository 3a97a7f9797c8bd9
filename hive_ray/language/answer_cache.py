"""A cache of a language model's answers by request, so that each answer is paid for once, even after a crash.

<answers>/3f/3f0c...json            one answer, as it came
<answers>/spent/<writer>.json       the dollars that one writer, or one batch, has cost
<answers>/batches/<digest>.json     a batch whose answers are kept
"""

import functools
import json
import math
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from hive_ray import storage
from hive_ray.config import Spending
from hive_ray.errors import Stopped
from hive_ray.files.text_files import parse_json
from hive_ray.language.answer_json import is_answer
from hive_ray.seeds import id_for

P = ParamSpec("P")
R = TypeVar("R")
STORE_INTERVAL_S = 2.0
TOKEN_COUNTS, MAX_TOKENS = ("prompt_tokens", "completion_tokens"), 1 << 40
Request = dict
"""The arguments of `client.chat.completions.create` or `client.completions.create`."""


def request_id(request: Request) -> str:
    """Content id of a request. It does not depend on the endpoint's address, so that a model may move."""
    return id_for(json.dumps(request, sort_keys=True))


def stop_on_os_error(act: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function: raise `Stopped` in place of OSError, since an unavailable cache affects every row."""

    @functools.wraps(act)
    def acted(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return act(*args, **kwargs)
        except OSError as error:
            raise Stopped(f"the folder of answers is out of reach ({error}): mend that and run again") from error

    return acted


class AnswerCache:
    """Answers by request, one file each, in a local or s3:// folder."""

    def __init__(self, path: str) -> None:
        self.path = path

    @stop_on_os_error
    def find(self, request: Request) -> dict | None:
        """The cached answer to a request, {"answer": ..., "batch": ...}; None if there is none.

        Files that are damaged or hold no answer are ignored; older versions stored errors, too.
        """
        try:
            kept = parse_json(storage.read_text(self._address(request_id(request))))
        except (FileNotFoundError, ValueError):
            return None
        if not isinstance(kept, dict) or not is_answer(kept.get("answer")):
            return None
        return {"answer": kept["answer"], "batch": kept.get("batch") is True}

    @stop_on_os_error
    def store(self, name: str, answer: dict, *, batch: bool = False) -> None:
        """Store the answer to the request with this id durably."""
        storage.write_text(self._address(name), json.dumps({"answer": answer, "batch": batch}))

    def _address(self, name: str) -> str:
        return storage.join(self.path, name[:2], f"{name}.json")


def usage_counts(usage: Any, spending: Spending, *, batch: bool = False) -> dict[str, float]:
    """Counts of an answer for the manifest: tokens, and dollars if the prices are known.

    usage: {"prompt_tokens": ..., "completion_tokens": ...} from the answer; other values count as no usage.
    """
    usage = usage if isinstance(usage, dict) else {}
    tokens: dict[str, int] = {name: usage[name] for name in TOKEN_COUNTS if _is_count(usage.get(name))}
    if len(tokens) < len(TOKEN_COUNTS):
        return {"answers_without_usage": 1}
    if not (spending.prompt_price or spending.completion_price):
        return {**tokens}
    price = tokens["prompt_tokens"] * spending.prompt_price + tokens["completion_tokens"] * spending.completion_price
    return tokens | {"dollars": price / 1e6 * (1 - spending.batch_discount if batch else 1)}


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < MAX_TOKENS


class Budget:
    """Dollars spent by a run, over all its writers and restarts, with the limit `spending.most_dollars`.

    Each writer stores its own sum and reads those of the others every STORE_INTERVAL_S. The limit can be exceeded by
    the cost of all requests in such an interval and of requests in flight.
    """

    def __init__(self, path: str, spending: Spending) -> None:
        self.folder, self.name = storage.join(path, "spent"), f"{uuid.uuid4().hex}.json"
        self.most = spending.most_dollars
        self.own = 0.0
        self.others = 0.0
        self.stored = 0.0
        self.exchanged = -STORE_INTERVAL_S
        self.lock = threading.Lock()

    @stop_on_os_error
    def spend(self, dollars: float) -> None:
        """Add the cost of an answer."""
        with self.lock:
            self.own += dollars
            if time.monotonic() - self.exchanged >= STORE_INTERVAL_S:
                self._exchange()

    @stop_on_os_error
    def exchange(self) -> None:
        """Store the sum of this writer, and read those of the others."""
        with self.lock:
            self._exchange()

    def _exchange(self) -> None:
        if self.own != self.stored:
            self.record(self.name, self.own)
            self.stored = self.own
        if self.most is not None:
            files = [name for name in storage.list_files(self.folder) if name.endswith(".json") and name != self.name]
            self.others = sum(_dollars(storage.join(self.folder, name)) for name in files)
        self.exchanged = time.monotonic()

    def record(self, name: str, dollars: float) -> None:
        """Store the cost `dollars` under a name; an earlier value is replaced."""
        storage.write_text(storage.join(self.folder, name), json.dumps(dollars))

    def check(self) -> None:
        """Raise `Stopped` if the limit is reached."""
        spent = self.own + self.others
        if self.most is not None and spent >= self.most:
            raise Stopped(
                f"${spent:.4g} of ${self.most:.4g} are spent (spending.most_dollars); all answers are kept,"
                " run again with a higher limit to go on"
            )


def _dollars(address: str) -> float:
    """The sum in a file; `Stopped` if it is damaged, since the limit could not be enforced."""
    try:
        dollars = float(json.loads(storage.read_text(address)))
        if not 0 <= dollars < math.inf:
            raise ValueError(f"it says {dollars}")
        return dollars
    except (ValueError, TypeError) as error:
        raise Stopped(
            f"{address} does not say what was spent ({error}), so spending.most_dollars cannot hold: write the number "
            "of dollars into it, or remove it to count them as none"
        ) from error
