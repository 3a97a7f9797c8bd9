"""One editor from several of a run: the mean of their weights (this job), or all that they changed of their start.

editors/<a>, editors/<b>, ... -> editors/<averaging.name>

python -m jobs.average_editors shapes --run runs/one --averaging.editors dpo nft --averaging.name average
"""

from jobs.command import run_job

if __name__ == "__main__":  # before what the work needs is imported, which takes seconds
    run_job("average_editors")

import time
from collections.abc import Callable, Sequence

from hive_ray.artifacts.manifest import Fingerprint, fingerprint_of
from hive_ray.artifacts.model_store import Metrics, model_digest, store_model
from hive_ray.console import tell_result
from hive_ray.editor.averaging import add_changes, average_editors
from hive_ray.editor.model import Editor
from jobs.run import Run
from jobs.stage import ModelStage, make_all


def build(run: Run) -> Metrics:
    """The editor <run>/editors/<averaging.name>; it is kept where the same editors made it."""
    return make_all(run, stages(run))


def stages(run: Run) -> list[ModelStage]:
    """The averaged editor. ValueError if fewer than two editors are named, or its own name is among them."""
    settings = run.config.averaging
    if len(settings.editors) < 2 or settings.name in settings.editors:
        raise ValueError(
            f"averaging.editors is {' '.join(settings.editors) or 'empty'} and averaging.name {settings.name!r}: name "
            "two editors or more of the run, and another name for their mean"
        )
    names = [f"editors/{name}" for name in settings.editors]
    words = f"the mean of {', '.join(settings.editors)}"
    return [_merging_stage(settings.name, names, words, average_editors)]


def sum_stage(name: str, start: str, arms: Sequence[str]) -> ModelStage:
    """The editor editors/<name>: the one named `start`, with all that the editors of these arms, which were trained
    from it, changed."""
    words = f"the sum of what {' and '.join(arms)} changed of their start"
    names = [start, *(f"editors/{arm}" for arm in arms)]
    return _merging_stage(name, names, words, lambda folders: add_changes(folders[0], folders[1:]))


def _merging_stage(
    name: str, editors: Sequence[str], words: str, merge: Callable[[Sequence[str]], Editor]
) -> ModelStage:
    def compute_fingerprint(run: Run) -> Fingerprint:
        digests = [model_digest(run.path(editor)) for editor in editors]
        return fingerprint_of(**{f"editor.{place}": digest for place, digest in enumerate(digests)})

    def store(run: Run, made_from: Fingerprint) -> None:
        started = time.monotonic()
        path = run.path(f"editors/{name}")
        editor = merge([run.path(editor) for editor in editors])
        store_model(path, lambda to: editor.save(to, editor.card), made_from, {}, time.monotonic() - started)
        tell_result(f"editors/{name}: {words}, saved to {path}")

    return ModelStage(name=f"editors/{name}", reads=tuple(editors), fingerprint=compute_fingerprint, store=store)
