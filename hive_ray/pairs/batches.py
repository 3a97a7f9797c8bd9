"""Answers through the endpoint's Batch API: many requests a file, answered within hours at half the price.

requests -> kept answers, where `InstructionWriter` finds them; it asks by itself for those that a batch left out

A batch carries the digest of its requests, so whoever asks again, after whatever was killed, finds and follows it.
"""

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import islice

from openai import OpenAIError
from openai.types import Batch

from hive_ray import storage
from hive_ray.answers import Request, counts_of, request_id
from hive_ray.endpoint import MARK, Endpoint, EndpointError, follow, read_answer
from hive_ray.seeds import id_for

REQUESTS = 20_000
"""In one batch; OpenAI takes 50,000, and no file above 200 MB."""
FILES_AT_ONCE = 16
"""Kept answers that are read or written at one time."""
AT_ONCE = 4
"""Batches at the endpoint at one time; the budget is looked at before each is started."""
ENDED = ("completed", "failed", "expired", "cancelled")


def answer_in_batches(endpoint: Endpoint, requests: Iterable[Request]) -> None:
    """Have all requests answered that are not yet; EndpointError where a batch fails as a whole.

    Batches are cut by place in `requests`, so a rerun over the same ones finds what was started.
    """
    with ThreadPoolExecutor(AT_ONCE) as pool:
        at_work = set()
        for chunk in _chunks(requests):
            if len(at_work) == AT_ONCE:
                done, at_work = wait(at_work, return_when="FIRST_COMPLETED")
                for one in done:
                    one.result()
            at_work.add(pool.submit(_answer, endpoint, chunk))
        for one in at_work:
            one.result()


def _chunks(requests: Iterable[Request]) -> Iterator[dict[str, Request]]:
    """Requests by their ids."""
    source = iter(requests)
    while chunk := {request_id(request): request for request in islice(source, REQUESTS)}:
        yield chunk


def _answer(endpoint: Endpoint, chunk: dict[str, Request]) -> None:
    digest = id_for(*chunk)
    marker = storage.join(endpoint.answers.path, "batches", f"{digest}.json")
    if storage.exists(marker):
        return
    try:
        batch = _started(endpoint, digest) or _start(endpoint, digest, chunk)
        if batch is None:
            return
        batch = follow("instructions", batch, endpoint.client.batches.retrieve, ENDED)
        kept = _keep(endpoint, batch, digest)
        if batch.status in ("failed", "cancelled") or not kept:
            raise EndpointError(f"batch {batch.id} {batch.status}, {kept} answers: {_why(endpoint, batch)}")
    except OpenAIError as error:
        raise EndpointError(f"the batch {digest} of {len(chunk)} requests: {error}") from error
    storage.write_text(marker, json.dumps({"batch": batch.id, "answers": kept}))
    print(f"instructions: {batch.id} {batch.status}, {kept} of {len(chunk)} requests answered", flush=True)


def _started(endpoint: Endpoint, digest: str) -> Batch | None:
    """The batch of this digest that runs or has ended with answers."""
    for batch in endpoint.client.batches.list(limit=100):
        fruitless = batch.status in ("failed", "cancelled") or (batch.status in ENDED and not batch.output_file_id)
        if (batch.metadata or {}).get(MARK) == digest and not fruitless:
            print(f"instructions: following {batch.id}, which was started before ({batch.status})", flush=True)
            return batch
    return None


def _start(endpoint: Endpoint, digest: str, chunk: dict[str, Request]) -> Batch | None:
    """A new batch of what has no answer; None if all have one. `Stopped` if no more may be spent."""
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        kept = list(pool.map(endpoint.answers.find, chunk.values()))
    asked = {name: request for (name, request), one in zip(chunk.items(), kept, strict=True) if one is None}
    if not asked:
        return None
    endpoint.budget.exchange()
    endpoint.budget.check()
    url = "/v1/chat/completions" if "messages" in next(iter(asked.values())) else "/v1/completions"
    lines = "".join(
        json.dumps({"custom_id": name, "method": "POST", "url": url, "body": request}, ensure_ascii=False) + "\n"
        for name, request in asked.items()
    )
    file = endpoint.client.files.create(file=(f"{MARK}-{digest}.jsonl", lines.encode()), purpose="batch")
    # Sent once: whether a lost reply has started it shows when the next run looks for it.
    batch = endpoint.client.with_options(max_retries=0).batches.create(
        input_file_id=file.id, endpoint=url, completion_window="24h", metadata={MARK: digest}
    )
    print(f"instructions: started {batch.id} on {len(asked)} requests", flush=True)
    return batch


def _keep(endpoint: Endpoint, batch: Batch, digest: str) -> int:
    """Store a batch's answers; how many there are. Requests that failed are in another file, and left out."""
    if not batch.output_file_id:
        return 0
    lines = endpoint.client.files.content(batch.output_file_id).text.splitlines()
    answered = [line for line in map(json.loads, lines) if (line.get("response") or {}).get("status_code") == 200]

    def keep(line: dict) -> float:
        answer = line["response"]["body"]
        endpoint.answers.keep(line["custom_id"], answer, batch=True)
        return counts_of(read_answer(answer).usage, endpoint.spending, batch=True).get("dollars", 0.0)

    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        dollars = sum(pool.map(keep, answered))
    endpoint.budget.record(f"batch-{digest}.json", dollars)
    return len(answered)


def _why(endpoint: Endpoint, batch: Batch) -> str:
    problems = [problem.message for problem in (batch.errors and batch.errors.data) or [] if problem.message]
    if not problems and batch.error_file_id:
        problems = [line[:200] for line in endpoint.client.files.content(batch.error_file_id).text.splitlines()]
    return "; ".join(problems[:3]) or "no reason was given"
