"""A fine-tuning job of an OpenAI-compatible endpoint, followed to its end through interruptions.

examples -> the name of a fine-tuned model

The endpoint itself remembers what was started: a job carries the digest of its examples and settings, so whoever asks
again, after whatever was killed, finds it and follows it; nothing is paid twice.
"""

import json
import time

from openai import APIConnectionError, InternalServerError, OpenAI, OpenAIError, RateLimitError
from openai.types.fine_tuning import FineTuningJob

from hive_ray.config import Writer
from hive_ray.pairs.instructions import MAX_RETRIES
from hive_ray.seeds import id_for

MARK = "hive_ray"
"""Key of the digest in a job's metadata."""
ENDED = ("succeeded", "failed", "cancelled")
POLL_S = 15.0
PATIENCE_S = 3600.0 * 24
"""A job that has not ended after so long is given up, here only: run again to follow it further."""


class FinetuningError(OSError):
    """The endpoint refused, ended the job without a model, or took too long."""


def finetune(examples: list[dict], settings: Writer) -> FineTuningJob:
    """The succeeded job of these examples and settings: found, or started; FinetuningError where it has not succeeded.

    OPENAI_BASE_URL and OPENAI_API_KEY say where and whose it is.
    """
    try:
        return _finetune(OpenAI(max_retries=MAX_RETRIES), examples, settings)
    except OpenAIError as error:
        raise FinetuningError(f"fine-tuning {settings.base!r}: {error}") from error


def _finetune(client: OpenAI, examples: list[dict], settings: Writer) -> FineTuningJob:
    lines = "".join(json.dumps(example, ensure_ascii=False) + "\n" for example in examples)
    digest = id_for(lines, settings.base, settings.num_epochs, settings.seed)
    job = _started(client, digest)
    if job:
        print(f"writer: following {job.id}, which was started before ({job.status})", flush=True)
    else:
        file = client.files.create(file=(f"{MARK}-{digest}.jsonl", lines.encode()), purpose="fine-tune")
        job = client.fine_tuning.jobs.create(
            model=settings.base,
            training_file=file.id,
            hyperparameters={"n_epochs": settings.num_epochs},
            seed=settings.seed,
            metadata={MARK: digest},
        )
        print(f"writer: started {job.id} on {len(examples)} examples", flush=True)
    return _followed(client, job)


def _started(client: OpenAI, digest: str) -> FineTuningJob | None:
    """The job of this digest that runs or has succeeded."""
    for job in client.fine_tuning.jobs.list(limit=100):
        if (job.metadata or {}).get(MARK) == digest and job.status not in ("failed", "cancelled"):
            return job
    return None


def _followed(client: OpenAI, job: FineTuningJob) -> FineTuningJob:
    """The job once it has succeeded; an endpoint that does not answer for a while is asked again."""
    started, said = time.monotonic(), job.status
    while job.status not in ENDED:
        waited = time.monotonic() - started
        if waited > PATIENCE_S:
            raise FinetuningError(f"{job.id} is {job.status} after {waited / 3600:.1f} h; run again to follow it on")
        time.sleep(POLL_S)
        try:
            job = client.fine_tuning.jobs.retrieve(job.id)
        except (APIConnectionError, InternalServerError, RateLimitError) as error:
            print(f"writer: no answer about {job.id} ({error}), asking again", flush=True)
        if job.status != said:
            said = job.status
            print(f"writer: {job.id} is {said} after {time.monotonic() - started:.0f} s", flush=True)
    if job.status != "succeeded" or not job.fine_tuned_model:
        why = job.error.message if job.error and job.error.message else "no reason was given"
        raise FinetuningError(f"fine-tuning {job.id} {job.status}: {why}")
    return job
