"""InstructPix2Pix's and HIVE's folders, and JSONL files that name pictures.

Pictures and words are read one pair at a time; a file that is not there makes a pair that cannot be kept, a file
that is not understood a ValueError with its name and, in JSONL, the line.
"""

import json
from collections.abc import Iterator
from typing import Any

import torch

from hive_ray import storage
from hive_ray.config import Importing
from hive_ray.images import ImageError, as_kept
from hive_ray.pairs.formats.found import (
    EDITED_CAPTION,
    EDITED_IMAGE,
    INSTRUCTION,
    SOURCE_CAPTION,
    SOURCE_IMAGE,
    Found,
    first,
    ours,
    text,
)
from hive_ray.pairs.json_lines import read_json_lines
from hive_ray.schemas import Row
from hive_ray.seeds import id_for

HIVE_CYCLE = "training_cycle.jsonl"
HIVE_PARTS = ("part_0_blip_prompt_new", "part_1_blip_prompt_new", "instructpix2pix")
"""Below HIVE's training folder, beside `HIVE_CYCLE`; the last holds InstructPix2Pix's own pairs."""


def prompt_folders(dataset: str, settings: Importing) -> Iterator[Found]:
    """InstructPix2Pix's [folder, seeds] and HIVE's [part, folder, seeds], in <folder>/<seed>_0.jpg and _1.jpg."""
    listed = storage.join(dataset, "seeds.json")
    for entry in json.loads(storage.read_text(listed)):
        if not isinstance(entry, list) or len(entry) not in (2, 3) or not isinstance(entry[-1], list):
            raise ValueError(f"{listed}: wanted [folder, seeds] or [part, folder, seeds], not {str(entry)[:80]}")
        *folder, seeds = entry
        place = storage.join(dataset, *folder)
        words, metadata = _words(place), _metadata(place)
        for seed in map(str, seeds):
            number = int(seed) if seed.isdecimal() else 0
            drawn = shared_attention_of(number) if len(folder) == 1 and 0 < number < 2**32 else 0.0
            yield Found(
                instruction=first(words, INSTRUCTION),
                source_image=_content(storage.join(place, f"{seed}_0.jpg")),
                edited_image=_content(storage.join(place, f"{seed}_1.jpg")),
                source_caption=first(words, SOURCE_CAPTION),
                edited_caption=first(words, EDITED_CAPTION),
                together=text(first(words, SOURCE_CAPTION)) or "/".join(folder),
                **{"seed": number, "shared_attention": metadata.get(seed, {}).get("p2p_threshold", drawn)}
                | ours(words),
            )


def shared_attention_of(seed: int) -> float:
    """The share of the steps, 0.1..0.9, that InstructPix2Pix's generator drew for a seed: its first draw on the CPU
    (method.md 5.4)."""
    drawn = torch.rand((), generator=torch.Generator().manual_seed(seed)).item()
    return 0.1 + drawn * (0.9 - 0.1)


def _words(place: str) -> Row:
    file = storage.join(place, "prompt.json")
    content = _content(file)
    words = json.loads(content) if content else {INSTRUCTION[0]: ""}
    if not isinstance(words, dict) or not words.keys() & set(INSTRUCTION):
        raise ValueError(
            f"{file} holds {', '.join(words)}, but the instruction is wanted under edit (InstructPix2Pix) or "
            "instruction (HIVE), and captions under input (or caption) and output; rename the keys"
        )
    return words


def _metadata(place: str) -> dict[str, Row]:
    """Seed -> its line of metadata.jsonl; nothing where there is no such file."""
    lines = (_content(storage.join(place, "metadata.jsonl")) or b"").decode().splitlines()
    return {str(line["seed"]): line for line in map(json.loads, filter(str.strip, lines))}


def hive(training: str, settings: Importing) -> Iterator[Found]:
    """HIVE's three parts, and InstructPix2Pix's pairs where they lie beside them."""
    yield from json_lines(storage.join(training, HIVE_CYCLE), settings)
    for part in HIVE_PARTS:
        if storage.exists(storage.join(training, part, "seeds.json")):
            yield from prompt_folders(storage.join(training, part), settings)


def json_lines(file: str, settings: Importing) -> Iterator[Found]:
    """HIVE's {instruction, source_img, edited_img}, and UltraEdit's {edit_prompt, source_image, edited_image}."""
    for where, row in _lines(file):
        if row.keys() & set(SOURCE_IMAGE) and not row.keys() & set(EDITED_IMAGE):
            raise ValueError(
                f"{where} has a source picture and no {' or '.join(EDITED_IMAGE)}: these are prompts to be edited, as "
                "in HIVE's test.jsonl, and no pairs; give the file as importing.prompts"
            )
        _require(where, row, INSTRUCTION, SOURCE_IMAGE, EDITED_IMAGE)
        source, edited = str(first(row, SOURCE_IMAGE)), str(first(row, EDITED_IMAGE))
        yield Found(
            instruction=first(row, INSTRUCTION),
            source_image=_content(_place(file, settings.pictures, source)),
            edited_image=_content(_place(file, settings.pictures, edited)),
            source_caption=first(row, SOURCE_CAPTION),
            edited_caption=first(row, EDITED_CAPTION),
            together=min(source, edited),  # the same for a pair and its inverse
        )


def read_prompts(settings: Importing) -> Iterator[Row]:
    """Rows of `prompts`, each once and all of the test split, from HIVE's {instruction, source_img} a line.

    {"dropped": reason}: "instruction_missing", "picture_missing", "picture_unreadable", "duplicate". Raises a
    ValueError if nothing can be kept.
    """
    seen: set[str] = set()
    for where, line in _lines(settings.prompts):
        _require(where, line, INSTRUCTION, SOURCE_IMAGE)
        picture = _content(_place(settings.prompts, settings.prompt_pictures, str(first(line, SOURCE_IMAGE))))
        row = _prompt(line, picture)
        if row.get("prompt_id") in seen:
            row = {"dropped": "duplicate"}
        if "dropped" not in row:
            seen.add(row["prompt_id"])
        yield row
    if not seen:
        raise ValueError(
            f"no prompt of {settings.prompts} can be kept: their pictures are looked for from "
            f"importing.prompt_pictures ({settings.prompt_pictures!r}) on; correct that or the file"
        )


def _prompt(line: Row, picture: bytes | None) -> Row:
    instruction = text(first(line, INSTRUCTION))
    if not instruction or not picture:
        return {"dropped": "picture_missing" if instruction else "instruction_missing"}
    try:
        source = as_kept(picture)
    except ImageError:
        return {"dropped": "picture_unreadable"}
    return {
        "prompt_id": id_for("prompt", instruction, source),
        "instruction": instruction,
        "source_caption": text(first(line, SOURCE_CAPTION)),
        "edited_caption": text(first(line, EDITED_CAPTION)),
        "source_image": source,
        "split": "test",
    }


def _lines(file: str) -> Iterator[tuple[str, Row]]:
    """Where a line stands, in words, and its object."""
    for where, line, row in read_json_lines(file, file):
        if not isinstance(row, dict):
            raise ValueError(f"{where}: wanted an object, not {line[:80]!r}")
        yield where, row


def _require(where: str, row: Row, *wanted: tuple[str, ...]) -> None:
    for keys in wanted:
        if not row.keys() & set(keys):
            raise ValueError(f"{where} has no {' or '.join(keys)}, only {', '.join(row) or 'nothing'}; rename its keys")


def _place(file: str, folder: str, picture: str) -> str:
    """The address of a picture that a file names, seen from `folder`, seen from the file."""
    path = storage.join(folder, picture) if folder not in ("", ".") else picture
    if picture.startswith(("/", storage.S3)):
        return picture
    return path if path.startswith(("/", storage.S3)) else storage.join(file.rpartition("/")[0] or ".", path)


def _content(path: str) -> Any:
    """The bytes of a file, or None if it does not exist."""
    try:
        return storage.read_bytes(path)
    except FileNotFoundError:
        return None
