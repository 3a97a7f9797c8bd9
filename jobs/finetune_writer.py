"""A language model that writes instructions, fine-tuned on what people wrote (InstructPix2Pix's step 1a).

triplets -> writer (the name of a model; `--instructions.llm finetuned` uses it)
"""

from jobs.command import run_job

if __name__ == "__main__":  # before what the work needs is imported, which takes seconds
    run_job("finetune_writer")

import json
import time
from pathlib import Path

from hive_ray.artifacts.model_store import Metrics, build_model, store_model
from hive_ray.console import tell_result
from hive_ray.language.finetuning import finetune
from hive_ray.language.openai_client import check_endpoint
from hive_ray.pairs.triplets import EXAMPLES, read_triplets
from hive_ray.seeds import id_for
from jobs.run import Run, fingerprint


def build(run: Run) -> Metrics:
    settings, path, started = run.config.writer, run.path("writer"), time.monotonic()
    examples = EXAMPLES[settings.form](read_triplets(settings.triplets))
    stage = settings.model_copy(update={"triplets": ""})
    made_from = fingerprint(stage, triplets=id_for(*map(json.dumps, examples)))

    def make() -> None:
        check_endpoint(settings.base, "writer.base")
        job = finetune(examples, settings)
        card = {"model": job.fine_tuned_model, "form": settings.form, "base": settings.base, "job": job.id}
        metrics = {"examples": float(len(examples)), "trained_tokens": float(job.trained_tokens or 0)}
        seconds = round(time.monotonic() - started, 3)

        def save(folder: Path) -> None:
            (folder / "card.json").write_text(json.dumps(card, indent=2))

        store_model(path, save, made_from, metrics, seconds)
        tell_result(f"{job.fine_tuned_model}; use it with --instructions.llm finetuned", stage="writer")

    return build_model("writer", path, made_from, make, on_mismatch=run.on_mismatch)
