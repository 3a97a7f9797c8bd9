"""python -m torch.distributed.run --nproc-per-node 2 tests/plain_training.py <folder>

Trains the editor of <folder>/start on <folder>/pairs into <folder>/plain, with torch.distributed and without Ray.
"""

import sys
from pathlib import Path

import torch
import torch.distributed

from hive_ray import config
from hive_ray.artifacts.selection import Selection, select
from hive_ray.config import Resources, Training
from hive_ray.editor.model import Editor
from hive_ray.editor.objective import EditorObjective
from hive_ray.schemas import PAIRS
from hive_ray.training.job import TrainingJob, Worker
from hive_ray.training.loop import train

COLUMNS = ["pair_id", "instruction", "source_image", "edited_image", "weight"]
SETTINGS = Training(
    total_images=24, batch_size=8, micro_batch_size=2, learning_rate=1e-3, checkpoint_images=16, ema_decay=0.5,
    workers=Resources(num_actors=2, num_gpus=0, num_cpus=1),
)  # fmt: skip


class Objective(EditorObjective):
    """Its pairs are encoded anew in each step."""

    def __init__(self, folder: str):
        start = str(Path(folder) / "start")
        editor = Editor.load(start)
        self.card = editor.card
        super().__init__(editor, config.Editor(start=start, resolution=64, sft=SETTINGS, finetune=SETTINGS))

    def save(self, folder: Path, state: dict[str, torch.Tensor]) -> None:
        super().save(folder, state, self.card)


def pairs(folder: str) -> Selection:
    return select(str(Path(folder) / "pairs"), PAIRS)


def main() -> None:
    folder = sys.argv[1]
    run = str(Path(folder) / "plain")
    job = TrainingJob(
        objective=Objective,
        kwargs={"folder": folder},
        selection=pairs(folder),
        columns=COLUMNS,
        held_out=None,
        preview_columns=(),
        settings=SETTINGS,
        run=run,
        name="editor",
        out=f"{run}/editor",
        fingerprint={},
        checkpoints=f"{run}/checkpoints",
    )
    torch.distributed.init_process_group("gloo")
    failed = train(job, Worker.of_this_process())
    torch.distributed.destroy_process_group()
    with_ray = [name for name in sys.modules if name.split(".")[0] == "ray"]
    assert not failed, failed
    assert not with_ray, with_ray


if __name__ == "__main__":
    main()
