"""Read pairs from other people's datasets; the layout decides the reader.

InstructPix2Pix and HIVE folders, JSONL and CSV, Hugging Face columns and ImageFolder, WebDataset shards -> imported

Datasets are read as streams, from disk or s3://. The bytes of PNG and JPEG pictures stay unchanged. A part that cannot
be read (a line, a row, a picture, a row group, the rest of a file) is reported and counted as an
`imported.UnreadablePart`; the other parts are read.
"""

from collections.abc import Callable, Iterator

from hive_ray import storage
from hive_ray.config import Importing
from hive_ray.pairs.formats import shards, text_rows
from hive_ray.pairs.formats.columns import arrow_rows, parquet_rows
from hive_ray.pairs.formats.files import data_files, select_split
from hive_ray.pairs.formats.folders import HIVE_CYCLE, hive_pairs, prompt_folders
from hive_ray.pairs.formats.imported import ImportedPair, UnreadablePart
from hive_ray.pairs.formats.pictures import folder_of

METADATA = tuple(f"metadata{ending}" for ending in (*text_rows.ENDINGS, ".parquet"))
"""Metadata files of Hugging Face's ImageFolder."""
PACKED = (".zip", ".7z", ".rar", *shards.ENDINGS)


def read_pairs(settings: Importing) -> Iterator[ImportedPair | UnreadablePart]:
    """Yield every pair of a dataset in order, and an `UnreadablePart` for each part that cannot be read.

    Raises FileNotFoundError if the dataset does not exist, and ValueError if its layout is unknown.
    """
    dataset = settings.dataset.rstrip("/") or settings.dataset
    if not dataset:
        raise ValueError("importing.dataset is empty: name the folder or file to import")
    if storage.is_file(dataset):
        yield from _files(dataset, [dataset], folder_of(dataset), settings)
    elif storage.exists(storage.join(dataset, HIVE_CYCLE)):
        yield from hive_pairs(dataset, settings)
    elif storage.exists(storage.join(dataset, "seeds.json")):
        yield from prompt_folders(dataset, settings)
    else:
        yield from _files(dataset, _chosen(dataset, data_files(dataset), settings.split_name), dataset, settings)


def _chosen(dataset: str, names: list[str], split_name: str) -> list[str]:
    """The files of a folder that hold its rows."""
    if any(name.endswith("/prompt.json") for name in names):
        raise ValueError(
            f"{dataset} has prompt folders but no seeds.json, which lists them: its making was not finished; run "
            "InstructPix2Pix's prepare_dataset.py on it first"
        )
    described = [name for name in names if name.rpartition("/")[2].lower() in METADATA]
    others = [name for name in names if name not in set(described)]
    for ending in (".parquet", ".arrow"):
        if files := _ending(others, (ending,)):
            return select_split(dataset, files, split_name)
    if files := _ending(names, shards.ENDINGS):
        return select_split(dataset, files, split_name)
    if described:
        return select_split(dataset, described, split_name, may_have_none=True)
    if files := _ending(others, text_rows.ENDINGS):
        return select_split(dataset, files, split_name, may_have_none=True)
    raise _unknown(dataset, names)


def _ending(names: list[str], endings: tuple[str, ...]) -> list[str]:
    return [name for name in names if name.lower().endswith(endings)]


def _files(dataset: str, files: list[str], root: str, settings: Importing) -> Iterator[ImportedPair | UnreadablePart]:
    for file in files:
        reader = next((read for endings, read in READERS.items() if file.lower().endswith(endings)), None)
        if reader is None:
            raise _unknown(dataset, [file])
        yield from reader(file, root, settings)


def _unknown(dataset: str, names: list[str]) -> ValueError:
    if _ending(names, PACKED):
        return ValueError(
            f"{dataset} is in no known layout: {', '.join(_ending(names, PACKED)[:3])} is an archive; unpack it and "
            "give the folder (of archives, tar shards of WebDataset are read)"
        )
    known = ", ".join(ending for endings in READERS for ending in endings)
    return ValueError(
        f"{dataset} is in no known layout: wanted seeds.json, {HIVE_CYCLE} or files that end with {known}; found "
        f"{', '.join(names[:5]) or 'nothing'}"
    )


READERS: dict[tuple[str, ...], Callable[[str, str, Importing], Iterator[ImportedPair | UnreadablePart]]] = {
    (".parquet",): parquet_rows,
    (".arrow",): arrow_rows,
    shards.ENDINGS: shards.shard_rows,
    text_rows.ENDINGS: text_rows.text_rows,
}
"""File endings -> the reader, which takes a file, the dataset folder and the settings."""
