"""The Batch API: many requests in a file, answered within hours at half the price.

requests -> answers in the cache, where `InstructionWriter` finds them; it sends the requests that a batch left out

A batch carries the digest of its requests in its metadata. A restarted job finds the batch by it and waits for it.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from openai import OpenAIError
from openai.types import Batch

from hive_ray import storage
from hive_ray.console import say, tell_result
from hive_ray.files.text_files import JsonLine, TextError, parse_json_lines
from hive_ray.language.answer_cache import Request, request_id, usage_counts
from hive_ray.language.answer_json import is_answer
from hive_ray.language.endpoint import METADATA_KEY, OPTIONAL_ARGUMENTS, Endpoint, require_fields, wait_for_job
from hive_ray.language.openai_client import (
    EndpointError,
    describe_error,
    error_message,
    refused_arguments_in,
    sample_text,
)
from hive_ray.seeds import id_for

BATCH_SIZE = 20_000
"""Requests in one batch; OpenAI allows 50,000 requests and 200 MB."""
NUM_THREADS = 16
"""Threads that read and write cached answers."""
MAX_BATCHES = 4
"""Batches in progress at a time; the budget is checked before each start."""
ENDED = ("completed", "failed", "expired", "cancelled")
NO_CUSTOM_ID, UNKNOWN_ID = "without_custom_id", "of_no_request"
REFUSED, NO_ANSWER = "request_refused", "no_answer"
"""Why a line of a batch's files is left out, besides the problems of `text_files`."""
REASONS_SHOWN = 3


@dataclass
class BatchResult:
    """The answers of a batch, and counts of the lines without one."""

    answers: dict[str, dict] = field(default_factory=dict)
    """Request id -> answer."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Reason -> lines without an answer."""
    samples: dict[str, str] = field(default_factory=dict)
    """Reason -> its first line."""
    refusals: list[Any] = field(default_factory=list)
    """Distinct error bodies of refused requests."""

    def leave_out(self, reason: str, sample: str) -> None:
        """Count a line without an answer."""
        self.left_out[reason] += 1
        self.samples.setdefault(reason, sample)

    @property
    def summary(self) -> str:
        """Counts by reason, most frequent first; "" if nothing was left out."""
        return "; ".join(
            f"{count} {reason}, such as {self.samples[reason]}"
            for reason, count in self.left_out.most_common(REASONS_SHOWN)
        )


def answer_in_batches(endpoint: Endpoint, requests: Iterable[Request]) -> None:
    """Answer all requests that are not in the cache; EndpointError if a batch fails as a whole.

    Batches are cut by position in `requests`, so that a rerun with the same requests finds the batches it started.
    """
    with ThreadPoolExecutor(MAX_BATCHES) as pool:
        at_work = set()
        for chunk in _chunks(requests):
            if len(at_work) == MAX_BATCHES:
                done, at_work = wait(at_work, return_when="FIRST_COMPLETED")
                for batch in done:
                    batch.result()
            at_work.add(pool.submit(_answer, endpoint, chunk))
        for batch in at_work:
            batch.result()


def _chunks(requests: Iterable[Request]) -> Iterator[dict[str, Request]]:
    """Yield batches of requests by their ids."""
    source = iter(requests)
    while chunk := {request_id(request): request for request in islice(source, BATCH_SIZE)}:
        yield chunk


def _answer(endpoint: Endpoint, chunk: dict[str, Request]) -> None:
    digest = id_for(*chunk)
    marker = storage.join(endpoint.answers.path, "batches", f"{digest}.json")
    if storage.exists(marker):
        return
    try:
        ended: set[str] = set()
        refused: set[str] = set()
        while batch := _started(endpoint, digest, ended) or _start(endpoint, digest, chunk):
            batch = wait_for_job("instructions", batch, endpoint.client.batches.retrieve, ENDED)
            account = _kept(endpoint, batch, digest, chunk)
            new = set() if account.answers else _refused_arguments(endpoint, account, chunk) - refused
            if not new:
                break
            ended.add(batch.id)
            refused |= new
        else:
            return
    except OpenAIError as error:
        advice = "an endpoint without a Batch API wants --instructions.spending.no-batch"
        raise EndpointError(
            f"the batch {digest} of {len(chunk)} requests: {describe_error(error)}; {advice}"
        ) from error
    kept = len(account.answers)
    if batch.status in ("failed", "cancelled") or not kept:
        why = "; ".join(filter(None, (_problems(batch), account.summary))) or "no reason was given"
        raise EndpointError(
            f"batch {batch.id} {batch.status}, {kept} answers: {why}; correct that, or ask one by one "
            "(--instructions.spending.no-batch)"
        )
    left_out = dict(account.left_out)
    storage.write_text(marker, json.dumps({"batch": batch.id, "answers": kept, "left_out": left_out}))
    words = f"; left out: {account.summary}" if left_out else ""
    tell_result(f"{batch.id} {batch.status}, {kept} of {len(chunk)} requests answered{words}", stage="instructions")


def _refused_arguments(endpoint: Endpoint, account: BatchResult, chunk: dict[str, Request]) -> set[str]:
    """The optional arguments that the endpoint refused; they are omitted from now on.

    Raises `Stopped` if the refusal applies to every request of the stage.
    """
    request = next(iter(chunk.values()))
    for body in account.refusals:
        details = body.get("error", body) if isinstance(body, dict) else {}
        details = details if isinstance(details, dict) else {}
        endpoint.stop_if_refused_for_all(request, error_message(body), details.get("code"), details.get("param"))
        refused = refused_arguments_in(body, [name for name in OPTIONAL_ARGUMENTS if name in request])
        if refused:
            endpoint.omit(refused, error_message(body))
            return refused
    return set()


def _started(endpoint: Endpoint, digest: str, but: Collection[str]) -> Batch | None:
    """The batch of this digest that is in progress or has answers; batches with an id in `but` are skipped."""
    for batch in _listed(endpoint):
        fruitless = batch.status in ("failed", "cancelled") or (batch.status in ENDED and not batch.output_file_id)
        marks = batch.metadata if isinstance(batch.metadata, dict) else {}
        if marks.get(METADATA_KEY) == digest and not fruitless and batch.id not in but:
            say(f"following {batch.id}, which was started before ({batch.status})", stage="instructions")
            return batch
    return None


def _listed(endpoint: Endpoint) -> Iterator[Batch]:
    """Yield all batches of the endpoint."""
    page = endpoint.client.batches.list(limit=100)
    if isinstance(page, str):
        raise EndpointError(f"the endpoint answers {sample_text(page)!r}, and no list of batches")
    yield from map(require_fields, page)


def _start(endpoint: Endpoint, digest: str, chunk: dict[str, Request]) -> Batch | None:
    """Start a batch of the requests without an answer; None if all have one. `Stopped` if the budget is spent."""
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        kept = list(pool.map(endpoint.answers.find, chunk.values()))
    unanswered = {name: request for (name, request), answer in zip(chunk.items(), kept, strict=True) if answer is None}
    if not unanswered:
        return None
    endpoint.budget.exchange()
    endpoint.budget.check()
    url = "/v1/chat/completions" if "messages" in next(iter(unanswered.values())) else "/v1/completions"
    lines = "".join(
        json.dumps({"custom_id": name, "method": "POST", "url": url, "body": endpoint.request_body(request)}) + "\n"
        for name, request in unanswered.items()
    )
    file = endpoint.client.files.create(file=(f"{METADATA_KEY}-{digest}.jsonl", lines.encode()), purpose="batch")
    require_fields(file, "id")
    # Not retried: if the response is lost, the next run finds the batch by its digest.
    batch = endpoint.client.with_options(max_retries=0).batches.create(
        input_file_id=file.id, endpoint=url, completion_window="24h", metadata={METADATA_KEY: digest}
    )
    require_fields(batch)
    say(f"started {batch.id} on {len(unanswered)} requests", stage="instructions")
    return batch


def _kept(endpoint: Endpoint, batch: Batch, digest: str, chunk: dict[str, Request]) -> BatchResult:
    """Store the answers of a batch and their cost, and return its result."""
    account = BatchResult()
    for file in (batch.output_file_id, batch.error_file_id):
        if isinstance(file, str) and file:
            read_batch_file(endpoint.client.files.content(file).content, f"{batch.id}'s {file}", chunk.keys(), account)

    def keep(name: str) -> float:
        answer = account.answers[name]
        endpoint.answers.store(name, answer, batch=True)
        return usage_counts(answer.get("usage"), endpoint.spending, batch=True).get("dollars", 0.0)

    if account.answers:
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            dollars = sum(pool.map(keep, account.answers))
        endpoint.budget.record(f"batch-{id_for(digest, batch.id)}.json", dollars)
    return account


def read_batch_file(content: bytes, name: str, request_ids: Iterable[str], account: BatchResult) -> None:
    """Add the lines of a batch's file of answers or errors to `account`.

    A line without an answer to one of `request_ids` is left out and counted by its reason; the others are kept.
    """
    known = set(request_ids)
    text = content.replace(b"\0", "\ufffd".encode())  # a zero byte in the first line would make the file unreadable
    try:
        for line in parse_json_lines(text, name, objects=True):
            _take(line, known, account)
    except TextError as error:
        account.leave_out("not_text", str(error))


def _take(line: JsonLine, known: set[str], account: BatchResult) -> None:
    if line.problem:
        return account.leave_out(line.problem, line.sample)
    custom_id, response = line.value.get("custom_id"), line.value.get("response")
    if not isinstance(custom_id, str):
        return account.leave_out(NO_CUSTOM_ID, line.sample)
    if custom_id not in known:
        return account.leave_out(UNKNOWN_ID, f"{line.place}: {custom_id[:80]!r}")
    response = response if isinstance(response, dict) else {}
    body, status = response.get("body"), response.get("status_code", 200)
    if is_answer(body) and (status == 200 or not isinstance(status, int)):
        account.answers[custom_id] = body
        return None
    refusal = body or line.value.get("error")
    words = error_message(refusal)
    if not words or (status == 200 and not line.value.get("error")):
        return account.leave_out(NO_ANSWER, line.sample)
    if refusal not in account.refusals and len(account.refusals) < REASONS_SHOWN:
        account.refusals.append(refusal)
    return account.leave_out(REFUSED, f"{line.place}: {words}")


def _problems(batch: Batch) -> str:
    """The errors of the batch as a whole."""
    data = getattr(batch.errors, "data", None)
    messages = [getattr(problem, "message", None) for problem in data] if isinstance(data, list) else []
    return "; ".join(error_message(message) for message in messages[:REASONS_SHOWN] if message)
