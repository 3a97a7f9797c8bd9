"""A language model behind the openai client, whose answers are kept and paid for once."""

import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Protocol, TypeVar

from openai import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    InternalServerError,
    OpenAI,
    RateLimitError,
)
from openai.types import Completion
from openai.types.chat import ChatCompletion

from hive_ray.answers import Answers, Budget, Request, counts_of, request_id
from hive_ray.config import Spending
from hive_ray.schemas import Row, Rows, Stopped

R = TypeVar("R")
TIMEOUT_S = 60.0
MAX_RETRIES = 5
"""Times that the client asks again after 429, 5xx or a broken connection, waiting as Retry-After says."""
OUT_OF_REACH = (401, 403, 404, 429, 503)
"""Answers, after all retries, that say more of the endpoint, the key or the quota than of the request."""
MARK = "hive_ray"
"""Key of the digest in the metadata of what is started at the endpoint: it is found again by it, not paid twice."""
POLL_S = 15.0
PATIENCE_S = 3600.0 * 24
"""What has not ended after so long is given up, here only: run again to follow it further."""


class EndpointError(OSError):
    """The endpoint refused, ended without a result, or took too long."""


class Endpoint:
    """OPENAI_BASE_URL and OPENAI_API_KEY say where the model is, `answers` which folder keeps what it answers."""

    def __init__(self, answers: str, spending: Spending) -> None:
        self.client = OpenAI(max_retries=MAX_RETRIES, timeout=TIMEOUT_S)
        self.spending, self.answers, self.budget = spending, Answers(answers), Budget(answers, spending)

    def ask(self, request: Request) -> tuple[ChatCompletion | Completion, dict[str, float]]:
        """The answer and what it counts, kept or asked for; `Stopped` if no more may be spent, or can be asked."""
        kept = self.answers.find(request)
        if kept:
            answer = read_answer(kept["answer"])
            return answer, counts_of(answer.usage, self.spending, batch=kept["batch"])
        self.budget.check()
        ask = self.client.chat.completions if "messages" in request else self.client.completions
        answer = reached(lambda: ask.create(**request))
        self.answers.keep(request_id(request), answer.model_dump(mode="json", exclude_unset=True))
        if answer.usage is None and self.spending.most_dollars is not None:
            raise Stopped("the endpoint does not say what answers use, so spending.most_dollars cannot hold: unset it")
        counts = counts_of(answer.usage, self.spending)
        self.budget.spend(counts.get("dollars", 0.0))
        return answer, counts

    def each(self, pool: ThreadPoolExecutor, act: Callable[[Row], R], rows: Rows) -> list[R]:
        """What `act`, which asks, makes of each row, in order; the pool's size is how many are asked at a time.

        Once all have answered, `Stopped` is raised if no more may be spent, else the first error.
        """
        self.budget.exchange()
        asked = [pool.submit(act, row) for row in rows]
        wait(asked)
        self.budget.exchange()
        for error in sorted(filter(None, (one.exception() for one in asked)), key=_goes_on):
            raise error
        return [one.result() for one in asked]

    def flagged(self, texts: list[str]) -> list[bool]:
        """Which texts the endpoint's moderation flags."""
        return [one.flagged for one in reached(lambda: self.client.moderations.create(input=texts)).results]


def _goes_on(error: BaseException) -> bool:
    return not isinstance(error, Stopped)


def read_answer(answer: dict) -> ChatCompletion | Completion:
    """An answer as it was kept or as a batch has it."""
    is_chat = any("message" in choice for choice in answer.get("choices", []))
    return ChatCompletion.construct(**answer) if is_chat else Completion.construct(**answer)


def reached(ask: Callable[[], R]) -> R:
    """What the endpoint answers; `Stopped` if it is out of reach for all requests, and not for this one alone."""
    try:
        return ask()
    except APITimeoutError:
        raise
    except (APIConnectionError, APIStatusError) as error:
        if isinstance(error, APIStatusError) and error.status_code not in OUT_OF_REACH:
            raise
        raise Stopped(
            f"the language model is out of reach ({error}); what it answered is kept: run again to go on"
        ) from error


class Started(Protocol):
    """What runs at the endpoint for a while: a fine-tuning job, a batch."""

    id: str
    status: str


S = TypeVar("S", bound=Started)


def follow(name: str, one: S, look: Callable[[str], S], ended: Collection[str]) -> S:
    """What was started, once its status is one of `ended`; EndpointError after PATIENCE_S.

    An endpoint that does not answer for a while is asked again.
    """
    started, said = time.monotonic(), one.status
    while one.status not in ended:
        waited = time.monotonic() - started
        if waited > PATIENCE_S:
            raise EndpointError(f"{one.id} is {one.status} after {waited / 3600:.1f} h; run again to follow it on")
        time.sleep(POLL_S)
        try:
            one = look(one.id)
        except (APIConnectionError, InternalServerError, RateLimitError) as error:
            print(f"{name}: no answer about {one.id} ({error}), asking again", flush=True)
        if one.status != said:
            said = one.status
            print(f"{name}: {one.id} is {said} after {time.monotonic() - started:.0f} s", flush=True)
    return one
