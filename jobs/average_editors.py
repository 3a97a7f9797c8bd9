"""One editor from several of a run: the mean of their weights (this job), or all that they changed of their start.

editors/<a>, editors/<b>, ... -> editors/<averaging.name>

python -m jobs.average_editors shapes --run runs/one --averaging.editors dpo nft --averaging.name average
"""

from jobs.command import run_job

if __name__ == "__main__":  # before what the work needs is imported, which takes seconds
    run_job("average_editors")

import time
from collections.abc import Callable, Sequence

from hive_ray.artifacts.model_store import Metrics, build_model, is_whole, model_digest, store_model
from hive_ray.artifacts.tables import fingerprint
from hive_ray.console import tell_result
from hive_ray.editor.averaging import add_changes, average_editors
from hive_ray.editor.model import Editor
from jobs.run import Run


def build(run: Run) -> Metrics:
    """The editor <run>/editors/<averaging.name>; it is kept where the same editors made it."""
    settings = run.config.averaging
    if len(settings.editors) < 2 or settings.name in settings.editors:
        raise ValueError(
            f"averaging.editors is {' '.join(settings.editors) or 'empty'} and averaging.name {settings.name!r}: name "
            "two editors or more of the run, and another name for their mean"
        )
    folders = [run.path(f"editors/{name}") for name in settings.editors]
    return _merged(run, settings.name, folders, f"the mean of {', '.join(settings.editors)}", average_editors)


def add_up(run: Run, name: str, start: str, editors: Sequence[str]) -> Metrics:
    """The editor <run>/editors/<name>: the one at the address `start`, with all that these editors of the run, which
    were trained from it, changed. It is kept where the same editors made it."""
    folders = [start, *(run.path(f"editors/{editor}") for editor in editors)]
    words = f"the sum of what {' and '.join(editors)} changed of their start"
    return _merged(run, name, folders, words, lambda folders: add_changes(folders[0], folders[1:]))


def _merged(
    run: Run, name: str, folders: Sequence[str], words: str, merge: Callable[[Sequence[str]], Editor]
) -> Metrics:
    missing = [folder for folder in folders if not is_whole(folder)]
    if missing:
        raise FileNotFoundError(f"{missing[0]} is no finished editor: train it first, with jobs.train_editor")
    made_from = fingerprint(**{f"editor.{place}": model_digest(folder) for place, folder in enumerate(folders)})
    path = run.path(f"editors/{name}")

    def make() -> None:
        started = time.monotonic()
        editor = merge(folders)
        store_model(path, lambda to: editor.save(to, editor.card), made_from, {}, time.monotonic() - started)
        tell_result(f"editors/{name}: {words}, saved to {path}")

    return build_model(f"editors/{name}", path, made_from, make, on_mismatch=run.on_mismatch)
