"""A language model behind the openai client, whose answers are kept and paid for once.

request -> Endpoint.ask -> the answer as JSON, and what it counts; or NoAnswerError, or Stopped
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
"""Times that the client asks again after 429, 5xx or a broken connection, waiting as Retry-After says."""
UNREACHABLE_STATUS = (401, 402, 403, 404, 407, 429, 502, 503, 504)
"""Answers, after all retries, that say more of the endpoint, the key or the quota than of the request."""
OPTIONAL_ARGUMENTS = ("temperature", "seed")
"""Arguments that are left out for a model that refuses them."""
ABOUT_STRUCTURE = re.compile(
    r"response_?format|structured[ _]outputs?|json_schema|json_object|json[ _]mode|guided[ _](?:json|decoding)", re.I
)
"""What a refusal of `response_format` speaks of."""
ABOUT_MODEL = ("model_not_found", "invalid_model", "model_not_available")
"""Codes of refusals that every request of the stage would get."""
TRIAL_ROWS = 8
"""Rows of a stage that are asked for first: where nothing can be used of any, the stage stops."""
ANSWER_IS_ERROR = "answer_is_an_error"
MAX_FAILURES = 8
"""Requests in a row without an answer, each after all retries, after which the stage stops."""
RETRY_WAITS_S = (0.5, 2.0)
"""Waits before a request is sent again whose answer, with status 200, says that a provider behind it failed."""
METADATA_KEY = "hive_ray"
"""Key of the digest in the metadata of what is started at the endpoint: it is found again by it, not paid twice."""
POLL_S = 15.0
MAX_WAIT_S = 3600.0 * 24
"""What has not ended after so long is given up, here only: run again to follow it further."""


class NoAnswerError(ValueError):
    """What came for one request is no answer; `reason` is what manifests count, `sample` what came."""

    def __init__(self, reason: str, sample: str) -> None:
        super().__init__(f"{reason}: {sample}")
        self.reason, self.sample = reason, sample

    @property
    def dropped(self) -> Dropped:
        """The dropped row that says so."""
        return Dropped(self.reason, sample=self.sample)


class Endpoint:
    """OPENAI_BASE_URL and OPENAI_API_KEY say where the model is, `answers` which folder keeps what it answers.

    structure: the setting, by its name, that decides the requests' `response_format`.
    send_seed: whether requests carry their seed; one without is kept under the same name.
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
        """What `act`, which asks, makes of each row, in order; the pool's size is how many are asked at a time.

        Once all have answered, `Stopped` is raised if no more may be spent, else the first error.
        """
        self.budget.exchange()
        futures = [pool.submit(act, row) for row in rows]
        wait(futures)
        self.budget.exchange()
        for error in sorted(filter(None, (future.exception() for future in futures)), key=_goes_on):
            raise error
        return [future.result() for future in futures]

    def flagged(self, texts: list[str]) -> list[bool]:
        """Which texts the endpoint's moderation flags; raises as `ask`."""
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
        """What is sent: the request without what its model refuses."""
        return {name: value for name, value in request.items() if name not in self.omitted}

    def omit(self, names: Collection[str], words: str) -> None:
        """Send these arguments no more, and say so once."""
        with self.lock:
            new = set(names) - self.omitted
            self.omitted |= new
        if new:
            warn(f"the model does not accept {' and '.join(sorted(new))} ({words}); requests leave it out from here on")

    def stop_if_refused_for_all(self, request: Request, words: str, code: Any = None, about: Any = None) -> None:
        """`Stopped` if a refusal, in these words, is one that every request of the stage would get."""
        if "response_format" in request and ABOUT_STRUCTURE.search(words):
            structure = request["response_format"].get("type", "")
            others = " or ".join(kind for kind in ("json_schema", "json_object", "none") if kind != structure)
            raise Stopped(f"the endpoint does not support {structure}: set {self.structure} to {others} ({words})")
        if about == "model" or code in ABOUT_MODEL:
            raise Stopped(f"the endpoint refuses the model {request.get('model')!r}: {words}")

    def _answered(self, request: Request) -> dict:
        """The answer to a request; raises as `_content`, and `NoAnswerError` as `read_answer`."""
        for wait_s in RETRY_WAITS_S:
            try:
                return read_answer(self._content(request))
            except NoAnswerError as error:
                if error.reason != ANSWER_IS_ERROR:
                    raise
            time.sleep(wait_s)
        return read_answer(self._content(request))

    def _content(self, request: Request) -> bytes:
        """What the endpoint answers, once it takes the request's form; InternalServerError if it fails."""
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
        """The body of what the endpoint answers.

        Raises APIStatusError if it refuses this request, and `Stopped` if it is out of reach for all requests, and not
        for this one alone.
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
    """What the endpoint answers; `Stopped` if it is out of reach for all requests, and not for this one alone."""
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
    """`Stopped` if nothing can be used of what came for a stage's first rows, with the reasons and a sample.

    made: what an actor made of them. Rows that moderation flagged say nothing of the answers.
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
    """A job of the endpoint that takes a while: fine-tuning, or a batch."""

    @property
    def id(self) -> str:
        """The endpoint's name for it."""
        ...

    @property
    def status(self) -> str | None:
        """The state of the job; `require_fields` ensures that it is a text."""
        ...


S = TypeVar("S", bound=RemoteJob)


def require_fields(value: R, *names: str) -> R:
    """The value itself, as the client read it; EndpointError if it lacks one of the texts `names` ("id", "status")."""
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

    An endpoint that does not answer for a while is asked again.
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
