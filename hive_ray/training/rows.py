"""Which rows of a table make a batch, and a local cache that reads rows by place."""

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
"""Rows of a record batch in the cache file."""


def batch_places(images: int, batch_size: int, num_rows: int, seed: int) -> np.ndarray:
    """Places (batch_size,), each in [0, num_rows), of the batch after `images` seen rows.

    Training reads one endless stream: a permutation for epoch 0, one for epoch 1, and so on, each seeded from
    (seed, epoch). So the number of images seen is the complete state of the data.
    """
    stream = np.arange(images, images + batch_size)
    epochs = stream // num_rows
    order = {epoch: _order(epoch, num_rows, seed) for epoch in np.unique(epochs).tolist()}
    return np.array([order[epoch][place % num_rows] for epoch, place in zip(epochs.tolist(), stream, strict=True)])


@lru_cache(maxsize=2)
def _order(epoch: int, num_rows: int, seed: int) -> np.ndarray:
    """The permutation of an epoch. It is cached, since drawing it for every step is slow for large tables."""
    return np.random.default_rng(seed_for("epoch", seed, epoch)).permutation(num_rows)


class RowStore:
    """Random access to selected rows through an uncompressed Arrow file on this machine, which is memory-mapped.

    Parquet would read a full row group for each row. With this file a shuffled epoch reads each row once.
    """

    def __init__(self, selection: Selection, columns: list[str], *, write: bool):
        """`write`: this process writes the file. The other processes of the machine only open it."""
        self.selection = selection
        self.columns = columns
        self.file = _cache_file(selection, columns)
        self.num_rows = len(selection)
        self.write = write
        self.key = id_column(selection.schema)

    def write_cache(self, name: str) -> "RowStore":
        """Write the file if this process has to and it does not exist. Progress lines begin with `name`."""
        if not self.write:
            return self
        scratch.claim(self.file)
        try:
            if not self.file.exists():
                progress = Progress(f"{name}: rows cached", self.num_rows, "rows")
                _write_rows(self.selection, self.columns, self.file, progress)
        except BaseException:
            scratch.release(self.file)
            raise
        return self

    def open(self) -> "RowStore":
        """Map the file. It must have been written."""
        self.source = pa.memory_map(str(self.file))
        self.reader = pa.ipc.open_file(self.source)
        return self

    def close(self) -> None:
        """Close the file. The process that wrote it also removes it."""
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
        shutil.rmtree(part.parent, ignore_errors=True)  # also after an error, such as a full disk
