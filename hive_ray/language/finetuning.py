"""A fine-tuning job of an OpenAI-compatible endpoint, followed to its end through interruptions.

examples -> the name of a fine-tuned model

The endpoint itself remembers what was started: a job carries the digest of its examples and settings, so whoever asks
again, after whatever was killed, finds it and follows it; nothing is paid twice.
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
"""How long the endpoint may take to answer: it looks through the examples that it is sent."""


def finetune(examples: list[dict], settings: Writer) -> FineTuningJob:
    """The succeeded job of these examples and settings: found, or started; EndpointError where it has not succeeded.

    OPENAI_BASE_URL and OPENAI_API_KEY say where and whose it is.
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
        # Sent once: whether a lost reply has started it shows when the next run looks for it.
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
    """The job of this digest that runs or has succeeded."""
    page = client.fine_tuning.jobs.list(limit=100)
    if isinstance(page, str):
        raise EndpointError(f"the endpoint answers {sample_text(page)!r}, and no list of fine-tuning jobs")
    for job in map(require_fields, page):
        marks = job.metadata if isinstance(job.metadata, dict) else {}
        if marks.get(METADATA_KEY) == digest and job.status not in ("failed", "cancelled"):
            return job
    return None


def _followed(client: OpenAI, job: FineTuningJob) -> FineTuningJob:
    """The job once it has succeeded."""
    job = wait_for_job("writer", job, client.fine_tuning.jobs.retrieve, ENDED)
    if job.status != "succeeded" or not job.fine_tuned_model:
        why = error_message(getattr(job.error, "message", None)) or "no reason was given"
        raise EndpointError(f"fine-tuning {job.id} {job.status}: {why}")
    return job
