"""Small datasets laid out as the published ones are."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from hive_ray import storage


def picture(seed: int, kind: str = "PNG") -> bytes:
    """A smooth picture of 16 x 16 that no other seed gives."""
    small = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize((16, 16), Image.Resampling.BICUBIC).save(buffer, format=kind)
    return buffer.getvalue()


def prompt_folder(root: str, name: str, prompt: dict, seeds: list[str], metadata: list[dict] = ()) -> None:
    """<root>/<name>/prompt.json, <seed>_0.jpg, <seed>_1.jpg and, if there is some, metadata.jsonl."""
    place = storage.join(root, name)
    storage.write_text(storage.join(place, "prompt.json"), json.dumps(prompt))
    for seed in seeds:
        for which in (0, 1):
            storage.write_bytes(storage.join(place, f"{seed}_{which}.jpg"), picture(hash_of(name, seed, which), "JPEG"))
    if metadata:
        storage.write_text(storage.join(place, "metadata.jsonl"), "".join(json.dumps(one) + "\n" for one in metadata))


def hash_of(*parts: object) -> int:
    return int.from_bytes("/".join(map(str, parts)).encode()[-8:], "big")


def json_lines(address: str, rows: list[dict]) -> None:
    storage.write_text(address, "".join(json.dumps(row) + "\n" for row in rows))


def parquet(address: str, rows: list[dict]) -> None:
    """As `push_to_hub` writes: pictures are {bytes, path}."""
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([embedded(row) for row in rows]), buffer, row_group_size=2)
    storage.write_bytes(address, buffer.getvalue())


def arrow(address: str, rows: list[dict]) -> None:
    """As `save_to_disk` writes: an IPC stream."""
    table, buffer = pa.Table.from_pylist([embedded(row) for row in rows]), io.BytesIO()
    with pa.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_table(table)
    storage.write_bytes(address, buffer.getvalue())


def embedded(row: dict) -> dict:
    return {name: {"bytes": v, "path": None} if isinstance(v, bytes) else v for name, v in row.items()}


def clip_filtered(seed: int, **changed) -> dict:
    return {
        "original_prompt": f"a cat {seed}", "original_image": picture(seed), "edit_prompt": "make it a dog",
        "edited_prompt": f"a dog {seed}", "edited_image": picture(seed + 1),
    } | changed  # fmt: skip


def magic_brush(img_id: str, turn: int) -> dict:
    """Turn 2 starts where turn 1 ended."""
    first = hash_of(img_id)
    return {
        "img_id": img_id, "turn_index": turn, "source_img": picture(first + turn), "mask_img": picture(first + 50),
        "instruction": f"edit {turn} of {img_id}", "target_img": picture(first + turn + 1),
    }  # fmt: skip


def hq_edit(seed: int) -> dict:
    return {
        "input": f"a market {seed}", "input_image": picture(seed), "edit": "Add futuristic elements",
        "inverse_edit": "Remove futuristic elements", "output": f"a futuristic market {seed}",
        "output_image": picture(seed + 1),
    }  # fmt: skip


def ultra_edit(seed: int) -> dict:
    return {
        "clip_sim_source": 0.2, "clip_sim_target": 0.2, "clip_sim_dir": 0.2, "clip_sim_image": 0.8, "dinov2_sim": 0.9,
        "ssim": 0.5, "source_caption": f"a horse {seed}", "target_caption": f"a horse with a hat {seed}", "idx": seed,
        "edit_prompt": "give it a hat", "edit_object": None, "source_image": picture(seed),
        "edited_image": picture(seed + 1), "mask_image": None,
    }  # fmt: skip
