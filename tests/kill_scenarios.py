"""Work that leaves files, in one process without a cluster, to be killed between any two of its calls and done again.

Each scenario takes the root, a folder or an s3:// address, and is the same command however often it is given.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from hive_ray import storage
from hive_ray.artifacts.building import Mapped, Shard, build_table, write_rows, write_shard
from hive_ray.artifacts.model_store import build_model, store_model
from hive_ray.images import encode
from hive_ray.language.answer_cache import AnswerCache, request_id
from hive_ray.presets import shapes
from hive_ray.schemas import PAIRS, Dropped
from hive_ray.training.checkpoints import Checkpoints, TrainingState
from jobs import export_pairs
from jobs.run import Run

FIELDS = [
    pa.field("word_id", pa.string(), nullable=False),
    pa.field("picture", pa.large_binary(), nullable=False),
]
WORDS = pa.schema(FIELDS, metadata={"table": "words", "id": "word_id"})
LAST_IMAGE = 32


def words(seed: int, start: int, stop: int) -> list[dict]:
    return [{"word_id": f"w{seed}-{number}", "picture": bytes([number]) * 64} for number in range(start, stop)]


class InThisProcess:
    """A plan of four shards of three rows, the last of which is dropped with what it was."""

    rows_in, rows_per_shard = 12, 3

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def run(self, path: str, shards: list[int]) -> Iterator[Shard]:
        for number in shards:
            *kept, last = words(self.seed, 3 * number, 3 * number + 3)
            rows = [*kept, Dropped("last", row=last)]
            yield write_shard(path, number, Mapped.of(rows), WORDS, rows_in=3)


def rows_table(root: str, seed: int = 1) -> None:
    path = storage.join(root, "words")
    write_rows(path, WORDS, words(seed, 0, 8), {"seed": seed}, rows_per_file=3, on_mismatch="rebuild")


def mapped_table(root: str, seed: int = 1) -> None:
    plan = InThisProcess(seed)
    build_table(storage.join(root, "words"), WORDS, {"seed": seed}, lambda: plan, on_mismatch="rebuild")


def model(root: str, seed: int = 1) -> None:
    path = storage.join(root, "editors/sft")

    def make() -> None:
        store_model(path, lambda folder: _save(folder, seed), {"seed": seed}, {"loss": 1.0}, seconds=1.0)

    build_model("editors/sft", path, {"seed": seed}, make, on_mismatch="rebuild")


def _save(folder: Path, seed: int) -> None:
    (folder / "unet").mkdir()
    (folder / "unet" / "weights.safetensors").write_bytes(bytes([seed]) * 1000)
    (folder / "card.json").write_text('{"resolution": 64}')


class Engine:
    """Stands for DeepSpeed's, whose files need a process group: it writes what it is, as that does."""

    def __init__(self, images: int) -> None:
        self.images = images

    def save_checkpoint(self, folder: str, tag: str, **_: object) -> None:
        target = Path(folder, tag)
        target.mkdir()
        (target / "mp_rank_00_model_states.pt").write_bytes(bytes([self.images]) * 500)


def training(root: str, seed: int = 1) -> None:
    """Checkpoints of a training that goes on from the newest, the model in the end, and what is removed then."""
    path, folder = storage.join(root, "editors/sft"), storage.join(root, f"checkpoints/sft-{seed}")

    def make() -> None:
        checkpoints = Checkpoints(folder, keep_last=1)
        newest = checkpoints.newest()
        seen = newest.images if newest else 0
        checkpoints.remove_after(seen if newest else -1)
        for images in range(seen + 8, LAST_IMAGE + 1, 8):
            checkpoints.save(Engine(images), None, TrainingState(images=images, last={"train/loss": 1.0}, world=1))
            checkpoints.wait()
        store_model(path, lambda to: _save(to, seed), {"seed": seed}, {"loss": 1.0}, seconds=1.0)

    build_model("editors/sft", path, {"seed": seed}, make, on_mismatch="rebuild")
    storage.remove_tree(folder)


def answers(root: str, seed: int = 1) -> None:
    kept = AnswerCache(storage.join(root, "answers"))
    for number in range(3):
        request = {"model": "m", "seed": seed, "number": number}
        if kept.find(request) is None:
            kept.store(request_id(request), {"choices": [], "number": number})
    storage.remove_unfinished(kept.path)


def pairs(root: str, seed: int = 1) -> None:
    rows = [_pair(seed, number) for number in range(4)]
    write_rows(storage.join(root, "pairs"), PAIRS, rows, {"seed": seed}, on_mismatch="rebuild")


def _pair(seed: int, number: int) -> dict:
    texts = {"instruction": "make it red", "source_caption": "a sky", "edited_caption": "a red sky"}
    numbers = {"weight": 1.0, "seed": number, "shared_attention": 0.5}
    clip = dict.fromkeys(("clip_image", "clip_source_text", "clip_edited_text", "clip_direction"), 0.5)
    pictures = {
        name: encode(np.full((8, 8, 3), 10 * number + place + seed, np.uint8))
        for place, name in enumerate(("source_image", "edited_image"))
    }
    ids = {"pair_id": f"p{seed}-{number}", "instruction_id": f"i{number}"}
    return ids | texts | pictures | numbers | clip | {"origin": "imported", "split": "train"}


def _export(kind: str) -> Callable[[str, int], None]:
    def export(root: str, seed: int = 1) -> None:
        pairs(root, seed)
        config = shapes()
        exporting = config.exporting.model_copy(update={"format": kind})
        export_pairs.build(Run(root, config.model_copy(update={"exporting": exporting}), "rebuild"))

    return export


SCENARIOS: dict[str, Callable[..., None]] = {
    "rows_table": rows_table,
    "mapped_table": mapped_table,
    "model": model,
    "training": training,
    "answers": answers,
    "export_parquet": _export("parquet"),
    "export_folders": _export("instruct_pix2pix"),
    "export_shards": _export("webdataset"),
}


def digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()
