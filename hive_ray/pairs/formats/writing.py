"""Write pairs in formats of other programs: Hugging Face Parquet, InstructPix2Pix folders, WebDataset shards.

pairs or scored_pairs -> a folder

About one shard of rows is in memory at a time. Each writer writes the list of its files last.
"""

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby

import pyarrow as pa
import pyarrow.parquet as pq

from hive_ray import storage
from hive_ray.images import decode, encode_jpeg, image_format
from hive_ray.schemas import Row, Rows

PICTURE_COLUMNS = ("source_image", "edited_image")
DIFFUSERS_NAMES = {"source_image": "input_image", "instruction": "edit_prompt", "edited_image": "edited_image"}
"""Our columns -> the default columns of diffusers' train_instruct_pix2pix.py, in its order."""
ROWS_PER_GROUP = 32
README = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*.parquet
---
Pairs for instruction-based image editing, made by hive_ray: `edit_prompt` turns `input_image` into `edited_image`.

    accelerate launch train_instruct_pix2pix.py --dataset_name <this folder> --pretrained_model_name_or_path <model>
"""


def write_parquet(folder: str, rows: Iterable[Row], schema: pa.Schema, most_bytes: int) -> int:
    """Write data/train-00000.parquet, ... and README.md, which names the split; returns the number of rows.

    Pictures are copied byte for byte as Hugging Face image features, and all other columns are kept.
    """
    written, target = 0, parquet_schema(schema)
    for number, shard in enumerate(_shards(rows, most_bytes)):
        table = pa.Table.from_pylist([_diffusers(row) for row in shard], schema=target)
        buffer = io.BytesIO()
        pq.write_table(table, buffer, row_group_size=ROWS_PER_GROUP)
        storage.write_bytes(storage.join(folder, "data", f"train-{number:05d}.parquet"), buffer.getvalue())
        written += len(shard)
    storage.write_text(storage.join(folder, "README.md"), README)
    return written


def parquet_schema(schema: pa.Schema) -> pa.Schema:
    """The schema of one of our tables with diffusers' column names and Hugging Face's picture type."""
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    ordered = [*DIFFUSERS_NAMES, *(name for name in schema.names if name not in DIFFUSERS_NAMES)]
    fields = [
        (DIFFUSERS_NAMES.get(name, name), picture if name in PICTURE_COLUMNS else schema.field(name).type)
        for name in ordered
    ]
    renamed = {DIFFUSERS_NAMES.get(name, name): features[name] for name in ordered}
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": renamed}})})


def _diffusers(row: Row) -> Row:
    pictures = {
        name: {"bytes": row[name], "path": f"{row['pair_id']}.{image_format(row[name])}"} for name in PICTURE_COLUMNS
    }
    return {DIFFUSERS_NAMES.get(name, name): value for name, value in (row | pictures).items()}


def write_folders(folder: str, rows: Iterable[Row], schema: pa.Schema, most_bytes: int) -> int:
    """Write InstructPix2Pix's folders, and return the number of rows.

    These are 0000000/prompt.json, metadata.jsonl, <seed>_0.jpg, <seed>_1.jpg, ..., and seeds.json last. JPEG pictures
    are copied, and others are encoded as JPEG at quality 100.
    """
    listed: list[tuple[str, list[str]]] = []
    for number, alike in enumerate(_alike(rows)):
        name = f"{number:07d}"
        place = storage.join(folder, name)
        words = alike[0]
        lines = []
        for row in alike:
            for which, picture in enumerate(PICTURE_COLUMNS):
                storage.write_bytes(storage.join(place, f"{row['seed']}_{which}.jpg"), _jpeg(row[picture]))
            lines.append(json.dumps({theirs: row[ours] for ours, theirs in METADATA_KEYS.items()}) + "\n")
        prompt = {theirs: words[ours] for ours, theirs in PROMPT_KEYS.items()}
        storage.write_text(storage.join(place, "prompt.json"), json.dumps(prompt, ensure_ascii=False))
        storage.write_text(storage.join(place, "metadata.jsonl"), "".join(lines))
        listed.append((name, [str(row["seed"]) for row in alike]))
    storage.write_text(storage.join(folder, "seeds.json"), json.dumps(listed))
    return sum(len(seeds) for _, seeds in listed)


PROMPT_KEYS = {
    "source_caption": "input", "instruction": "edit", "edited_caption": "output", "origin": "origin", "split": "split",
}  # fmt: skip
"""Our columns -> the keys of prompt.json; InstructPix2Pix does not have the last two."""
METADATA_KEYS = {
    "seed": "seed", "shared_attention": "p2p_threshold", "clip_source_text": "clip_sim_0",
    "clip_edited_text": "clip_sim_1", "clip_direction": "clip_sim_dir", "clip_image": "clip_sim_image",
}  # fmt: skip
"""Our columns -> the keys of metadata.jsonl."""


def _alike(rows: Iterable[Row]) -> Iterator[Rows]:
    """Yield groups of consecutive rows that differ only in pictures and seed.

    A repeated seed (imported pairs may have none) starts a new group.
    """
    for _, neighbours in groupby(rows, key=lambda row: (row["instruction_id"], *(row[name] for name in PROMPT_KEYS))):
        alike: dict[int, Row] = {}
        for row in neighbours:
            if row["seed"] in alike:
                yield list(alike.values())
                alike = {}
            alike[row["seed"]] = row
        yield list(alike.values())


def _jpeg(picture: bytes) -> bytes:
    return picture if image_format(picture) == "jpg" else encode_jpeg(decode(picture))


def write_shards(folder: str, rows: Iterable[Row], schema: pa.Schema, most_bytes: int) -> int:
    """Write WebDataset shards train-00000.tar, ..., and return the number of rows.

    A row is <pair_id>.source.png (or .jpg), .edited.png and .json; pictures are copied byte for byte.

    Raises ValueError if the source or the edited pictures have different formats: readers expect the same file endings
    for all keys, and would lose the others.
    """
    written, kinds = 0, {}
    for number, shard in enumerate(_shards(rows, most_bytes)):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for row in shard:
                kinds_of_row = {name: image_format(row[name]) for name in PICTURE_COLUMNS}
                kinds = kinds or kinds_of_row
                if kinds_of_row != kinds:
                    raise ValueError(
                        f"pair {row['pair_id']} has {kinds_of_row}, those before it {kinds}, and WebDataset readers "
                        "want one kind of file; export parquet instead"
                    )
                words = {name: value for name, value in row.items() if name not in PICTURE_COLUMNS}
                _add(tar, f"{row['pair_id']}.source.{kinds['source_image']}", row["source_image"])
                _add(tar, f"{row['pair_id']}.edited.{kinds['edited_image']}", row["edited_image"])
                _add(tar, f"{row['pair_id']}.json", json.dumps(words, ensure_ascii=False).encode())
        storage.write_bytes(storage.join(folder, f"train-{number:05d}.tar"), buffer.getvalue())
        written += len(shard)
    return written


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _shards(rows: Iterable[Row], most_bytes: int) -> Iterator[Rows]:
    """Yield lists of rows whose pictures have at most `most_bytes`, or a single larger row."""
    shard: Rows = []
    size = 0
    for row in rows:
        more = sum(len(row[name]) for name in PICTURE_COLUMNS)
        if shard and size + more > most_bytes:
            yield shard
            shard, size = [], 0
        shard.append(row)
        size += more
    if shard:
        yield shard


WRITERS: dict[str, Callable[[str, Iterable[Row], pa.Schema, int], int]] = {
    "parquet": write_parquet,
    "instruct_pix2pix": write_folders,
    "webdataset": write_shards,
}
"""By the setting `exporting.format`."""
