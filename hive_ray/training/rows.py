"""Rows of a table in training order: which rows make a batch, and reading them by place."""

import shutil
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from hive_ray import storage
from hive_ray.artifacts.progress import Progress
from hive_ray.artifacts.selection import Selection
from hive_ray.files import scratch
from hive_ray.schemas import Rows, id_column
from hive_ray.seeds import id_for, seed_for

ROWS_PER_BATCH = 32


def batch_places(images: int, batch_size: int, num_rows: int, seed: int) -> np.ndarray:
    """Places (batch_size,) in 0..num_rows of the batch that follows `images` seen rows.

    Training reads one endless stream: the permutation of epoch 0, of epoch 1, ..., each from (seed, epoch). So the
    count of images seen is the whole state of the data.
    """
    stream = np.arange(images, images + batch_size)
    epochs = stream // num_rows
    order = {epoch: _order(epoch, num_rows, seed) for epoch in np.unique(epochs).tolist()}
    return np.array([order[epoch][place % num_rows] for epoch, place in zip(epochs.tolist(), stream, strict=True)])


@lru_cache(maxsize=2)
def _order(epoch: int, num_rows: int, seed: int) -> np.ndarray:
    """Kept for the steps of an epoch: of a million rows, a batch takes sixty times as long with it drawn again."""
    return np.random.default_rng(seed_for("epoch", seed, epoch)).permutation(num_rows)


class RowStore:
    """Random access to selected rows, in one uncompressed Arrow file of this machine that is mapped, not loaded.

    Parquet reads whole row groups, dozens of pictures for the one wanted; here a shuffled epoch reads each row once.
    """

    def __init__(self, selection: Selection, columns: list[str], *, write: bool):
        """`write`: it is this process that lays the file; the others of its machine wait and open it."""
        self.selection, self.columns, self.file = selection, columns, _cache_file(selection, columns)
        self.num_rows, self.write, self.key = len(selection), write, id_column(selection.schema)

    def write_cache(self, name: str) -> "RowStore":
        """Write the file, where this process does and it is not there yet; `name`: what progress lines begin with."""
        if not self.write:
            return self
        scratch.claim(self.file)
        try:
            if not self.file.exists():
                progress = Progress(f"{name}: rows brought here", self.num_rows, "rows")
                _write_rows(self.selection, self.columns, self.file, progress)
        except BaseException:
            scratch.release(self.file)
            raise
        return self

    def open(self) -> "RowStore":
        """Map the file, once it has been laid."""
        self.source = pa.memory_map(str(self.file))
        self.reader = pa.ipc.open_file(self.source)
        return self

    def close(self) -> None:
        """Let go of the file; the process that wrote it removes it."""
        self.reader = self.source = None
        if self.write:
            self.file.unlink(missing_ok=True)
            scratch.release(self.file)

    def read(self, places: np.ndarray) -> Rows:
        """The rows at these places of the selection, in this order."""
        reader = self.reader
        assert reader is not None, "the file has been closed"
        rows = [reader.get_batch(place // ROWS_PER_BATCH).slice(place % ROWS_PER_BATCH, 1) for place in places.tolist()]
        return pa.Table.from_batches(rows, reader.schema).to_pylist()


def _cache_file(selection: Selection, columns: list[str]) -> Path:
    key = id_for(selection.key(), *columns)
    return storage.cache_folder() / "rows" / f"{key}.arrow"


def _write_rows(selection: Selection, columns: list[str], file: Path, progress: Progress) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    schema = pa.schema([selection.schema.field(name) for name in columns])
    part = scratch.new_folder("rows") / file.name
    try:
        with pa.ipc.new_file(str(part), schema) as writer:
            for start in range(0, len(selection), ROWS_PER_BATCH):
                table = selection.read(start, start + ROWS_PER_BATCH, columns).combine_chunks()
                writer.write_batch(table.replace_schema_metadata(None).to_batches()[0])
                progress.advance(table.num_rows)
        part.replace(file)
    finally:
        shutil.rmtree(part.parent, ignore_errors=True)  # a full disk, say, is not left full
