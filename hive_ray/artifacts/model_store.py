"""Trained models as portable folders. Like a table, a model folder is finished or absent.

objective.save -> store_model -> <model folder>

<model folder>/...          the objective's files, which load without a cluster and without DeepSpeed
<model folder>/made.json    fingerprint, metrics, git commit, seconds
<model folder>/card.json    the objective's card, copied last
"""

import json
from collections.abc import Callable
from pathlib import Path

from hive_ray import storage
from hive_ray.artifacts.manifest import Fingerprint, OnMismatch, describe_differences, git_commit, mismatch_error
from hive_ray.console import say, tell_result
from hive_ray.files import scratch
from hive_ray.seeds import id_for

Metrics = dict[str, float]


def store_model(
    path: str, save: Callable[[Path], None], fingerprint: Fingerprint, metrics: Metrics, seconds: float
) -> None:
    """Write a model folder at `path`: the files that `save` writes, and made.json.

    seconds: what the training took. Raises FileNotFoundError if `save` writes no card.json.
    """
    with scratch.temporary_folder("model") as folder:
        save(folder)
        if not (folder / "card.json").is_file():
            raise FileNotFoundError(
                f"{path}: the objective saved no card.json, which marks a model as finished: save one"
            )
        made = {
            "fingerprint": fingerprint,
            "metrics": metrics,
            "git_commit": git_commit(),
            "seconds": seconds,
        }
        (folder / "made.json").write_text(json.dumps(made, indent=2))
        storage.store_folder(folder, path)


def build_model(
    name: str,
    path: str,
    fingerprint: Fingerprint,
    make: Callable[[], None],
    *,
    on_mismatch: OnMismatch = "refuse",
) -> Metrics:
    """Run `make`, which ends in `store_model`, or keep a model of the same fingerprint. Returns the model's metrics.

    Also deletes unfinished files of killed processes in the folder and in this machine's scratch. Raises
    FileExistsError for another fingerprint under "refuse".
    """
    storage.remove_unfinished(path)
    scratch.remove_abandoned()
    if is_finished_model(path):
        made = storage.read_json(storage.join(path, "made.json")) or {"fingerprint": {}}
        if made["fingerprint"] == fingerprint:
            tell_result("kept (nothing changed)", stage=name)
            return made["metrics"]
        if on_mismatch == "refuse":
            raise mismatch_error(path, made["fingerprint"], fingerprint)
        say(f"made again, since {describe_differences(made['fingerprint'], fingerprint)}", stage=name)
        storage.remove_tree(path)
    make()
    return json.loads(storage.read_text(storage.join(path, "made.json")))["metrics"]


def is_finished_model(model: str) -> bool:
    """Whether a model folder is finished. Its card.json is written last, and is valid JSON."""
    return storage.read_json(storage.join(model, "card.json")) is not None


def model_digest(model: str) -> str:
    """An id of a model.

    It is made from the fingerprint of a model that was made here, or from the content of any other folder or file. A
    name on the hub stands for itself.
    """
    made = storage.read_json(storage.join(model, "made.json"))
    if made is not None:
        return id_for(json.dumps(made["fingerprint"], sort_keys=True))
    if not storage.exists(model):
        return model
    return storage.file_digest(model) if storage.is_file(model) else storage.folder_digest(model)
