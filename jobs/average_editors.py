"""The mean of the weights of several editors of a run: what trainings on different feedback learned, in one editor.

editors/<a>, editors/<b>, ... -> editors/<averaging.name>

python -m jobs.average_editors shapes --run runs/one --averaging.editors dpo nft --averaging.name average
"""

import time

from hive_ray.distributed.models import Metrics, build_model, is_whole, model_digest, store_model
from hive_ray.distributed.tables import fingerprint
from hive_ray.editor.averaging import average_editors
from jobs.run import Run, main


def build(run: Run) -> Metrics:
    """The editor <run>/editors/<averaging.name>; it is kept where the same editors made it."""
    settings = run.config.averaging
    if len(settings.editors) < 2 or settings.name in settings.editors:
        raise ValueError(
            f"averaging.editors is {' '.join(settings.editors) or 'empty'} and averaging.name {settings.name!r}: name "
            "two editors or more of the run, and another name for their mean"
        )
    folders = [run.path(f"editors/{name}") for name in settings.editors]
    missing = [folder for folder in folders if not is_whole(folder)]
    if missing:
        raise FileNotFoundError(f"{missing[0]} is no finished editor: train it first, with jobs.train_editor")
    made_from = fingerprint(**{f"editor.{place}": model_digest(folder) for place, folder in enumerate(folders)})
    path = run.path(f"editors/{settings.name}")

    def make() -> None:
        started = time.monotonic()
        editor = average_editors(folders)
        store_model(path, lambda to: editor.save(to, editor.card), made_from, {}, time.monotonic() - started)
        print(f"editors/{settings.name}: the mean of {', '.join(settings.editors)}, saved to {path}", flush=True)

    return build_model(f"editors/{settings.name}", path, made_from, make, on_mismatch=run.on_mismatch)


if __name__ == "__main__":
    main(build)
