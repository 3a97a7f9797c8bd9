"""Other people's pairs, one after the other, by what their folder or file looks like.

InstructPix2Pix and HIVE folders, JSONL, Hugging Face columns, WebDataset shards -> imported

Everything is read as a stream, on disk or s3://. PNG and JPEG pictures stay the bytes that they are.
"""

import json
import tarfile
from collections.abc import Callable, Iterator
from itertools import chain, groupby
from operator import itemgetter

from hive_ray import storage
from hive_ray.config import Importing
from hive_ray.pairs.formats.columns import hugging_face, split_files
from hive_ray.pairs.formats.folders import HIVE_CYCLE, hive, json_lines, prompt_folders
from hive_ray.pairs.formats.found import EDITED_CAPTION, INSTRUCTION, SOURCE_CAPTION, Found, first, ours
from hive_ray.seeds import id_for


def read_pairs(settings: Importing) -> Iterator[Found]:
    """Every pair of a dataset, in its order.

    Raises FileNotFoundError if nothing is there, and ValueError, with what was found and what to do, if it is in no
    known layout.
    """
    return READERS[_layout(settings.dataset)](settings.dataset, settings)


def dataset_digest(address: str) -> str:
    """Names a dataset by its files' names and sizes, since it may change under its name."""
    size = storage.file_size(address)
    sizes = storage.list_sizes(address) if size is None else {".": size}
    return id_for(*chain.from_iterable(sizes.items()))


def _layout(dataset: str) -> str:
    """The key of `READERS` for a dataset."""
    if not dataset:
        raise ValueError("importing.dataset is empty: name the folder or file to import")
    if storage.is_file(dataset):
        names = [dataset]
    elif storage.exists(storage.join(dataset, HIVE_CYCLE)):
        return "hive"
    elif storage.exists(storage.join(dataset, "seeds.json")):
        return "instruct_pix2pix"
    else:
        names = storage.list_files(dataset)
    for ending, layout in ENDINGS.items():
        if any(name.endswith(ending) for name in names):
            return layout
    if any(name.endswith("/prompt.json") for name in names):
        raise ValueError(
            f"{dataset} has prompt folders but no seeds.json, which lists them: its making was not finished; run "
            "InstructPix2Pix's prepare_dataset.py on it first"
        )
    raise ValueError(
        f"{dataset} is in no known layout: wanted seeds.json, {HIVE_CYCLE} or files that end with "
        f"{', '.join(ENDINGS)}; found {', '.join(names[:5]) or 'nothing'}"
    )


def _web_dataset(dataset: str, settings: Importing) -> Iterator[Found]:
    """Shards of <key>.source.png (or .jpg), <key>.edited.png and <key>.json."""
    for file in split_files(dataset, (".tar",), settings.split_name):
        for key, members in groupby(_members(file), key=itemgetter(0)):
            fields = {field.split(".")[0]: content for _, field, content in members}
            if not {"source", "edited", "json"} <= fields.keys():
                raise ValueError(
                    f"{file}, key {key} has {', '.join(sorted(fields))}; wanted {key}.source.png, {key}.edited.png "
                    f"(or .jpg) and {key}.json"
                )
            words = json.loads(fields["json"])
            yield Found(
                instruction=first(words, INSTRUCTION),
                source_image=fields["source"],
                edited_image=fields["edited"],
                source_caption=first(words, SOURCE_CAPTION),
                edited_caption=first(words, EDITED_CAPTION),
                **ours(words),
            )


def _members(file: str) -> Iterator[tuple[str, str, bytes]]:
    """Key, field and content of each file of a shard."""
    files, inside = storage.filesystem(file)
    with (
        files.open_input_stream(inside, compression=None) as stream,
        tarfile.open(fileobj=stream, mode="r|*") as shard,
    ):
        for member in shard:
            if member.isfile():
                folder, slash, name = member.name.rpartition("/")
                key, _, field = name.partition(".")
                yield folder + slash + key, field, shard.extractfile(member).read()


ENDINGS = {".parquet": "hugging_face", ".arrow": "hugging_face", ".tar": "webdataset", ".jsonl": "jsonl"}
"""How the files of a layout end."""
READERS: dict[str, Callable[[str, Importing], Iterator[Found]]] = {
    "instruct_pix2pix": prompt_folders,
    "hive": hive,
    "jsonl": json_lines,
    "hugging_face": hugging_face,
    "webdataset": _web_dataset,
}
"""By layout."""
