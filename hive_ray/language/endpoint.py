"""Requests to a language model by the openai client, with a cache of answers and a budget.

request -> Endpoint.ask -> the answer as JSON and its usage counts; or NoAnswerError, or Stopped
"""

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, Protocol, TypeVar

from openai import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    InternalServerError,
    RateLimitError,
)

from hive_ray.config import Spending
from hive_ray.console import say, warn
from hive_ray.errors import Stopped
from hive_ray.files.text_files import parse_json
from hive_ray.language import openai_client
from hive_ray.language.answer_cache import AnswerCache, Budget, Request, request_id, usage_counts
from hive_ray.language.answer_json import SAMPLE_LENGTH, is_answer
from hive_ray.language.openai_client import EndpointError, describe_error, error_message, refused_arguments, sample_text
from hive_ray.schemas import Counted, Dropped, Result, Row, Rows

R = TypeVar("R")
TIMEOUT_S = 60.0
MAX_RETRIES = 5
"""How often the client retries after 429, 5xx or a broken connection; it waits as Retry-After says."""
UNREACHABLE_STATUS = (401, 402, 403, 404, 407, 429, 502, 503, 504)
"""Status codes, after all retries, that concern the endpoint, the key or the quota rather than the request."""
OPTIONAL_ARGUMENTS = ("temperature", "seed")
"""Arguments that are omitted if the model refuses them."""
ABOUT_STRUCTURE = re.compile(
    r"response_?format|structured[ _]outputs?|json_schema|json_object|json[ _]mode|guided[ _](?:json|decoding)", re.I
)
"""Words in a refusal of `response_format`."""
ABOUT_MODEL = ("model_not_found", "invalid_model", "model_not_available")
"""Error codes that every request of the stage would get."""
TRIAL_ROWS = 8
"""First rows of a stage, sent as a trial: if no answer is usable, the stage stops."""
ANSWER_IS_ERROR = "answer_is_an_error"
MAX_FAILURES = 8
"""Consecutive requests that fail after all retries before the stage stops."""
RETRY_WAITS_S = (0.5, 2.0)
"""Waits before retrying a request whose response has status 200 but reports an error of a provider."""
METADATA_KEY = "hive_ray"
"""Metadata key of the digest of a job at the endpoint, by which a later run finds it instead of paying twice."""
POLL_S = 15.0
MAX_WAIT_S = 3600.0 * 24
"""How long to wait for a job; the job itself continues, and a new run waits for it again."""


class NoAnswerError(ValueError):
    """The response to one request is not an answer. `reason` is counted in manifests; `sample` shows the response."""

    def __init__(self, reason: str, sample: str) -> None:
        super().__init__(f"{reason}: {sample}")
        self.reason, self.sample = reason, sample

    @property
    def dropped(self) -> Dropped:
        """The dropped dropped row for this request."""
        return Dropped(self.reason, sample=self.sample)


class Endpoint:
    """An OpenAI-compatible endpoint, configured by OPENAI_BASE_URL and OPENAI_API_KEY.

    answers: folder of the cache of answers, local or s3://.
    structure: name of the setting that decides `response_format`, for messages.
    send_seed: whether requests are sent with their seed. The cache key contains the seed in both cases.
    """

    def __init__(
        self, answers: str, spending: Spending, *, structure: str = "instructions.structure", send_seed: bool = True
    ) -> None:
        self.client = openai_client.client(timeout=TIMEOUT_S, max_retries=MAX_RETRIES)
        self.spending = spending
        self.answers = AnswerCache(answers)
        self.budget = Budget(answers, spending)
        self.structure = structure
        self.omitted: set[str] = set() if send_seed else {"seed"}
        self.failures = 0
        self.lock = threading.Lock()

    def ask(self, request: Request) -> tuple[dict, dict[str, float]]:
        """The answer to a request, from the cache or the endpoint, and its usage counts.

        Raises `NoAnswerError` if the endpoint refuses this request or returns something that is not an answer. Raises
        `Stopped` if the budget is spent, the endpoint is unreachable, or it refuses what all requests ask for.
        """
        kept = self.answers.find(request)
        if kept:
            return kept["answer"], usage_counts(kept["answer"].get("usage"), self.spending, batch=kept["batch"])
        self.budget.check()
        answer = self._answered(request)
        self.answers.store(request_id(request), answer)
        counts = usage_counts(answer.get("usage"), self.spending)
        if "prompt_tokens" not in counts and self.spending.most_dollars is not None:
            raise Stopped("the endpoint does not say what answers use, so spending.most_dollars cannot hold: unset it")
        self.budget.spend(counts.get("dollars", 0.0))
        return answer, counts

    def apply_to_rows(self, pool: ThreadPoolExecutor, act: Callable[[Row], R], rows: Rows) -> list[R]:
        """Apply `act`, which sends requests, to each row in threads of `pool`; results are in order.

        Errors are raised after all rows are done: `Stopped` first, otherwise the first error.
        """
        self.budget.exchange()
        futures = [pool.submit(act, row) for row in rows]
        wait(futures)
        self.budget.exchange()
        for error in sorted(filter(None, (future.exception() for future in futures)), key=_goes_on):
            raise error
        return [future.result() for future in futures]

    def flagged(self, texts: list[str]) -> list[bool]:
        """Whether the endpoint's moderation flags each text; raises as `ask`."""
        content = self._sent(lambda: self.client.moderations.with_raw_response.create(input=texts))
        try:
            flags = [result["flagged"] for result in parse_json(content.decode(errors="replace"))["results"]]
        except (ValueError, KeyError, TypeError):
            flags = []
        if len(flags) != len(texts) or not all(isinstance(flag, bool) for flag in flags):
            raise Stopped(
                f"the moderation endpoint returned {sample_text(content)!r}, which does not say which of "
                f"{len(texts)} texts it flags: unset instructions.moderation if there is no moderation"
            )
        return flags

    def request_body(self, request: Request) -> Request:
        """The request to send, without the omitted arguments."""
        return {name: value for name, value in request.items() if name not in self.omitted}

    def omit(self, names: Collection[str], words: str) -> None:
        """Omit these arguments from now on, with one warning."""
        with self.lock:
            new = set(names) - self.omitted
            self.omitted |= new
        if new:
            warn(f"the model does not accept {' and '.join(sorted(new))} ({words}); requests leave it out from here on")

    def stop_if_refused_for_all(self, request: Request, words: str, code: Any = None, about: Any = None) -> None:
        """Raise `Stopped` if every request of the stage would get this refusal."""
        if "response_format" in request and ABOUT_STRUCTURE.search(words):
            structure = request["response_format"].get("type", "")
            others = " or ".join(kind for kind in ("json_schema", "json_object", "none") if kind != structure)
            raise Stopped(f"the endpoint does not support {structure}: set {self.structure} to {others} ({words})")
        if about == "model" or code in ABOUT_MODEL:
            raise Stopped(f"the endpoint refuses the model {request.get('model')!r}: {words}")

    def _answered(self, request: Request) -> dict:
        """Send a request, with retries, and parse the answer. Raises as `_content` and `read_answer`."""
        for wait_s in RETRY_WAITS_S:
            try:
                return read_answer(self._content(request))
            except NoAnswerError as error:
                if error.reason != ANSWER_IS_ERROR:
                    raise
            time.sleep(wait_s)
        return read_answer(self._content(request))

    def _content(self, request: Request) -> bytes:
        """The response to a request, without refused optional arguments; InternalServerError if the endpoint fails."""
        ask = self.client.chat.completions if "messages" in request else self.client.completions
        body, first = self.request_body(request), None
        while True:
            try:
                content = self._sent(lambda: ask.with_raw_response.create(**body))  # noqa: B023
                break
            except APIStatusError as error:
                if error.status_code >= 500:
                    raise
                first = first or error
                refused = refused_arguments(error, [name for name in OPTIONAL_ARGUMENTS if name in body])
                if not refused:
                    self._refuse(request, first)
                body = {name: value for name, value in body.items() if name not in refused}
        if first is not None:
            self.omit(request.keys() - body.keys(), describe_error(first))
        return content

    def _refuse(self, request: Request, error: APIStatusError) -> None:
        words = describe_error(error)
        details = error.body if isinstance(error.body, dict) else {}
        self.stop_if_refused_for_all(request, words, details.get("code"), details.get("param"))
        raise NoAnswerError("request_refused", words) from error

    def _sent(self, ask: Callable[[], Any]) -> bytes:
        """The body of the response.

        Raises APIStatusError if the endpoint refuses this request, and `Stopped` if no request can succeed.
        """
        try:
            content = call_endpoint(ask).http_response.content
        except (APITimeoutError, InternalServerError) as error:
            with self.lock:
                self.failures += 1
                lasting = self.failures >= MAX_FAILURES
            if lasting:
                raise Stopped(_out_of_reach(f"{describe_error(error)}, {MAX_FAILURES} times in a row")) from error
            raise
        except APIStatusError:
            self.failures = 0
            raise
        self.failures = 0
        return content


def _goes_on(error: BaseException) -> bool:
    return not isinstance(error, Stopped)


def read_answer(content: bytes) -> dict:
    """Parse a response with status 200 as an answer.

    Raises `NoAnswerError` if it is not one: an HTML page, an error, or an unknown format.
    """
    try:
        answer = parse_json(content.decode(errors="replace"))
    except ValueError as error:
        raise NoAnswerError("answer_is_not_json", sample_text(content)[:SAMPLE_LENGTH]) from error
    if is_answer(answer):
        return answer
    if isinstance(answer, dict) and answer.get("error"):
        raise NoAnswerError(ANSWER_IS_ERROR, error_message(answer))
    if isinstance(answer, dict) and "choices" in answer:
        raise NoAnswerError("answer_is_empty", sample_text(content)[:SAMPLE_LENGTH])
    raise NoAnswerError("answer_has_no_choices", sample_text(content)[:SAMPLE_LENGTH])


def call_endpoint(ask: Callable[[], R]) -> R:
    """The response of the endpoint; `Stopped` if no request can succeed, not only this one."""
    try:
        return ask()
    except APITimeoutError:
        raise
    except (APIConnectionError, APIStatusError) as error:
        details = error.body if isinstance(error.body, dict) else {}
        no_money = details.get("code") == "insufficient_quota"
        if isinstance(error, APIStatusError) and error.status_code not in UNREACHABLE_STATUS and not no_money:
            raise
        raise Stopped(_out_of_reach(describe_error(error))) from error


def _out_of_reach(words: str) -> str:
    return f"the language model is out of reach ({words}); what it answered is kept: run again to go on"


def stop_if_unusable(stage: str, made: Sequence[Result], advice: str) -> None:
    """Raise `Stopped`, with reasons and samples, if no answer to the first rows of a stage is usable.

    made: the rows that an actor made of them. The check is skipped if moderation flagged any of them.
    """
    dropped = [result for result in made if isinstance(result, Dropped)]
    has_rows = any(not isinstance(result, Dropped | Counted) for result in made)
    if has_rows or not dropped or any(drop.reason.endswith("_flagged") for drop in dropped):
        return
    reasons = Counter(drop.reason for drop in dropped)
    counted = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    samples = {drop.reason: drop.sample for drop in reversed(dropped) if drop.sample}
    shown = "".join(f"\n  {reason}: {json.dumps(sample, ensure_ascii=False)}" for reason, sample in samples.items())
    raise Stopped(
        f"{stage}: none of the first answers is usable ({counted}), so no more requests are sent; answers are kept. "
        f"{advice}{shown}"
    )


class RemoteJob(Protocol):
    """A job at the endpoint: fine-tuning or a batch."""

    @property
    def id(self) -> str:
        """The id at the endpoint."""
        ...

    @property
    def status(self) -> str | None:
        """The state of the job; `require_fields` ensures that it is a string."""
        ...


S = TypeVar("S", bound=RemoteJob)


def require_fields(value: R, *names: str) -> R:
    """Return the value if it has the string attributes `names` (default: id and status); otherwise EndpointError."""
    for name in names or ("id", "status"):
        if not isinstance(getattr(value, name, None), str):
            text = value if isinstance(value, str) else repr(value)
            raise EndpointError(
                f"the endpoint returned {sample_text(text)[:SAMPLE_LENGTH]!r}, without {name!r}: it may not implement "
                "this part of OpenAI's API, or a proxy may answer in its place"
            )
    return value


def wait_for_job(name: str, job: S, look: Callable[[str], S], ended: Collection[str]) -> S:
    """Poll a job of the endpoint until its status is one of `ended`; EndpointError after MAX_WAIT_S.

    Connection errors, server errors and rate limits are retried.
    """
    began = time.monotonic()
    status = job.status
    while job.status not in ended:
        waited = time.monotonic() - began
        if waited > MAX_WAIT_S:
            raise EndpointError(f"{job.id} is {job.status} after {waited / 3600:.1f} h; run again to follow it on")
        time.sleep(POLL_S)
        try:
            job = require_fields(look(job.id))
        except (APIConnectionError, InternalServerError, RateLimitError) as error:
            warn(f"no answer about {job.id} ({describe_error(error)}), asking again", stage=name)
        if job.status != status:
            status = job.status
            say(f"{job.id} is {status} after {time.monotonic() - began:.0f} s", stage=name)
    return job
