"""Digests of datasets, which detect changes without reading the rows.

A digest covers names, sizes, and modification times (on S3: ETags) of the files, and of pictures outside the dataset
that its text and Parquet files name. Changes that keep name, size and time are not detected, and neither are changes
of pictures outside the dataset that Arrow files name.
"""

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import pyarrow as pa

from hive_ray import storage
from hive_ray.pairs.formats import text_rows
from hive_ray.pairs.formats.columns import READ_ERRORS, find_columns
from hive_ray.pairs.formats.files import data_files, is_system_file
from hive_ray.pairs.formats.imported import UnreadablePart, first_value
from hive_ray.pairs.formats.pictures import PictureReader, folder_of, is_within, normalized_path, path_in
from hive_ray.pairs.formats.text_rows import EDITED_KEYS, SOURCE_KEYS
from hive_ray.seeds import id_for

BATCH_ROWS = 4096

PathReader = Callable[[str], Iterator[list[str]]]
"""A file -> the picture paths of each of its rows."""


def dataset_digest(dataset: str, pictures: str, read_paths: PathReader | None = None) -> str:
    """Digest of names and sizes, "-", digest of modification times or ETags; `pictures` as `importing.pictures`.

    A folder is listed. For a file, and for a folder whose `pictures` are elsewhere, the files that name pictures are
    read once, and the version of each picture is looked up: on disk one by one, on S3 in one listing of their folder.
    `read_paths` yields the paths that a file names; the default reads those of pairs.

    Raises FileNotFoundError if the dataset does not exist.
    """
    alone = storage.is_file(dataset)
    root = folder_of(dataset) if alone else dataset
    versions = {"": storage.file_version(dataset)} if alone else storage.list_versions(dataset, is_system_file)
    sizes = times = ""
    if alone or pictures not in ("", "."):
        files = [dataset] if alone else [storage.join(dataset, name) for name in data_files(dataset)]
        read_paths = read_paths or _named_pictures
        named = chain.from_iterable(_versions_of_pictures(file, root, pictures, alone, read_paths) for file in files)
    else:
        named = iter(())
    for name, version in chain(versions.items(), named):
        size, _, time = (version or "").partition(" ")
        sizes, times = id_for(sizes, name, size), id_for(times, time)
    return f"{sizes}-{times}"


def legacy_digest(dataset: str) -> str:
    """The digest of older versions: names and sizes of the files only."""
    size = storage.file_size(dataset)
    sizes = storage.list_sizes(dataset) if size is None else {".": size}
    return id_for(*chain.from_iterable(sizes.items()))


def _versions_of_pictures(
    file: str, root: str, folder: str, alone: bool, named_in: PathReader
) -> Iterator[tuple[str, str | None]]:
    """Yield path and version of each picture that a file names.

    Pictures in the dataset's folder are included only if the dataset is a single file (`alone`).
    """
    pictures, listed = PictureReader(file, root, folder), {}
    top = normalized_path(root)
    for path in chain.from_iterable(named_in(file)):
        for place in pictures.candidate_paths(path):
            if not alone and is_within(place, (top,)):
                continue
            version = _version(place, pictures.folders[0], listed)
            if version is not None:
                yield path, version
                break


def _version(place: str, folder: str, listed: dict[str, str]) -> str | None:
    """The version of a file; on S3 the first call lists all files of `folder` into `listed`."""
    if not place.startswith(storage.S3) or not is_within(place, (folder,)):
        return storage.file_version(place)
    if not listed:
        listed |= {"": ""} | storage.list_versions(folder)
    return listed.get(place.removeprefix(f"{folder}/"))


def _named_pictures(file: str) -> Iterator[list[str]]:
    """Yield the picture paths in the rows of a file; nothing for files that cannot be read."""
    if file.lower().endswith(text_rows.ENDINGS):
        for _, row in text_rows.read_values(file):
            if not isinstance(row, UnreadablePart):
                yield _paths(first_value(row, SOURCE_KEYS), first_value(row, EDITED_KEYS))
    elif file.lower().endswith(".parquet"):
        try:
            yield from _named_in_parquet(file)
        except READ_ERRORS as error:
            if "AWS Error" in str(error):
                raise


def _named_in_parquet(file: str) -> Iterator[list[str]]:
    with storage.open_parquet(file) as table:
        known = find_columns(table.schema_arrow.names)
        columns = [path_column(table.schema_arrow, name) for name in known.pictures] if known else []
        columns = [name for name in columns if name]
        for batch in table.iter_batches(BATCH_ROWS, columns=columns) if columns else ():
            for row in batch.to_pylist():
                yield _paths(*row.values())


def path_column(schema: pa.Schema, name: str) -> str:
    """The column that holds picture paths, "" if there is none; for {bytes, path} only the path."""
    kind = schema.field(name).type
    if pa.types.is_struct(kind):
        return f"{name}.path" if "path" in [field.name for field in kind] else ""
    return name if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind) else ""


def _paths(*values: Any) -> list[str]:
    return list(filter(None, map(path_in, values)))
