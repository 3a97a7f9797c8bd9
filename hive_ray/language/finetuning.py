"""Run a fine-tuning job at an OpenAI-compatible endpoint, across interruptions.

examples -> the name of a fine-tuned model

A job carries the digest of its examples and settings in its metadata. A restarted process finds the job by it and waits
for it, so that nothing is paid twice.
"""

import json

from openai import OpenAI, OpenAIError
from openai.types.fine_tuning import FineTuningJob

from hive_ray.config import Writer
from hive_ray.console import say
from hive_ray.language import endpoint, openai_client
from hive_ray.language.endpoint import METADATA_KEY, require_fields, wait_for_job
from hive_ray.language.openai_client import EndpointError, describe_error, error_message, sample_text
from hive_ray.seeds import id_for

ENDED = ("succeeded", "failed", "cancelled")
UPLOAD_TIMEOUT_S = 600.0
"""Timeout of a request; the endpoint validates the uploaded examples."""


def finetune(examples: list[dict], settings: Writer) -> FineTuningJob:
    """Find or start the job for these examples and settings, and return it after it succeeded.

    OPENAI_BASE_URL and OPENAI_API_KEY configure the endpoint. Raises EndpointError if the job does not succeed.
    """
    try:
        client = openai_client.client(timeout=UPLOAD_TIMEOUT_S, max_retries=endpoint.MAX_RETRIES)
        return _finetune(client, examples, settings)
    except OpenAIError as error:
        raise EndpointError(f"fine-tuning {settings.base!r}: {describe_error(error)}") from error


def _finetune(client: OpenAI, examples: list[dict], settings: Writer) -> FineTuningJob:
    lines = "".join(json.dumps(example, ensure_ascii=False) + "\n" for example in examples)
    digest = id_for(lines, settings.base, settings.num_epochs, settings.seed)
    job = _started(client, digest)
    if job:
        say(f"following {job.id}, which was started before ({job.status})", stage="writer")
    else:
        file = client.files.create(file=(f"{METADATA_KEY}-{digest}.jsonl", lines.encode()), purpose="fine-tune")
        require_fields(file, "id")
        # Not retried: if the response is lost, the next run finds the job by its digest.
        job = client.with_options(max_retries=0).fine_tuning.jobs.create(
            model=settings.base,
            training_file=file.id,
            hyperparameters={"n_epochs": settings.num_epochs},
            seed=settings.seed,
            metadata={METADATA_KEY: digest},
        )
        require_fields(job)
        say(f"started {job.id} on {len(examples)} examples", stage="writer")
    return _followed(client, job)


def _started(client: OpenAI, digest: str) -> FineTuningJob | None:
    """The job of this digest that is in progress or has succeeded."""
    page = client.fine_tuning.jobs.list(limit=100)
    if isinstance(page, str):
        raise EndpointError(f"the endpoint answers {sample_text(page)!r}, and no list of fine-tuning jobs")
    for job in map(require_fields, page):
        marks = job.metadata if isinstance(job.metadata, dict) else {}
        if marks.get(METADATA_KEY) == digest and job.status not in ("failed", "cancelled"):
            return job
    return None


def _followed(client: OpenAI, job: FineTuningJob) -> FineTuningJob:
    """Wait for the job; EndpointError if it does not succeed."""
    job = wait_for_job("writer", job, client.fine_tuning.jobs.retrieve, ENDED)
    if job.status != "succeeded" or not job.fine_tuned_model:
        why = error_message(getattr(job.error, "message", None)) or "no reason was given"
        raise EndpointError(f"fine-tuning {job.id} {job.status}: {why}")
    return job
