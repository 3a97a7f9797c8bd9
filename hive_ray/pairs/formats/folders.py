"""Read the folders of InstructPix2Pix and HIVE.

Pairs are read one at a time; a missing or unreadable file affects only its own pairs.
"""

from collections.abc import Iterator
from typing import Any

import torch

from hive_ray import storage
from hive_ray.config import Importing
from hive_ray.files.text_files import TextError, parse_json, parse_json_lines
from hive_ray.pairs.formats.imported import (
    EDITED_CAPTION,
    INSTRUCTION,
    SOURCE_CAPTION,
    ImportedPair,
    MissingPicture,
    UnreadablePart,
    finite_or,
    first_value,
    own_values,
    text,
)
from hive_ray.pairs.formats.pictures import MISSING, OUTSIDE, is_within, normalized_path, read_content
from hive_ray.pairs.formats.text_rows import text_rows
from hive_ray.schemas import Row

HIVE_CYCLE = "training_cycle.jsonl"
HIVE_PARTS = ("part_0_blip_prompt_new", "part_1_blip_prompt_new", "instructpix2pix")
"""Folders next to `HIVE_CYCLE` in HIVE's training folder; the last one holds InstructPix2Pix's own pairs."""


def prompt_folders(dataset: str, settings: Importing) -> Iterator[ImportedPair | UnreadablePart]:
    """Yield the pairs <folder>/<seed>_0.jpg and _1.jpg that seeds.json lists.

    Its entries are [folder, seeds] (InstructPix2Pix) or [part, folder, seeds] (HIVE). Raises ValueError if seeds.json
    cannot be read.
    """
    listed = storage.join(dataset, "seeds.json")
    for entry in _entries(listed):
        if not _is_entry(entry):
            problem = f"{listed}: wanted [folder, seeds] or [part, folder, seeds], not {str(entry)[:80]}"
            yield UnreadablePart("entry_unfit", problem)
            continue
        *folder, seeds = entry
        yield from _prompt_folder(dataset, list(map(str, folder)), list(map(str, seeds)))


def _entries(listed: str) -> list[Any]:
    try:
        entries = parse_json(storage.read_bytes(listed).decode("utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{listed} cannot be read ({error}); it lists the folders of the dataset: mend it") from error
    if not isinstance(entries, list):
        raise ValueError(f"{listed} holds a {type(entries).__name__}, and a list of [folder, seeds] is wanted")
    return entries


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, list) or len(entry) not in (2, 3) or not isinstance(entry[-1], list):
        return False
    return all(isinstance(part, str | int) for part in (*entry[:-1], *entry[-1]))


def _prompt_folder(dataset: str, folder: list[str], seeds: list[str]) -> Iterator[ImportedPair | UnreadablePart]:
    place = storage.join(dataset, *folder)
    if not is_within(normalized_path(place), (normalized_path(dataset),)):
        yield UnreadablePart(OUTSIDE, f"{place} leaves the folder of the dataset", len(seeds))
        return
    words = _words(place)
    if isinstance(words, MissingPicture):
        yield UnreadablePart(words.reason, words.detail, len(seeds))
        return
    metadata: dict[str, Row] = {}
    yield from _read_metadata(storage.join(place, "metadata.jsonl"), metadata)
    for seed in seeds:
        number = int(seed) if seed.isdecimal() and len(seed) < 20 and int(seed) < 2**63 else 0
        drawn = shared_attention_for_seed(number) if len(folder) == 1 and 0 < number < 2**32 else 0.0
        yield ImportedPair(
            instruction=first_value(words, INSTRUCTION),
            source_image=_picture(dataset, storage.join(place, f"{seed}_0.jpg")),
            edited_image=_picture(dataset, storage.join(place, f"{seed}_1.jpg")),
            source_caption=first_value(words, SOURCE_CAPTION),
            edited_caption=first_value(words, EDITED_CAPTION),
            split_group=text(first_value(words, SOURCE_CAPTION)) or "/".join(folder),
            place=f"{place}, seed {seed}",
            **{"seed": number, "shared_attention": finite_or(metadata.get(seed, {}).get("p2p_threshold"), drawn)}
            | _origin(words),
        )


def _origin(words: Row) -> Row:
    """Origin and split, if `writing` has stored them; seeds are in the names of the pictures."""
    return {name: value for name, value in own_values(words).items() if name in ("origin", "split")}


def shared_attention_for_seed(seed: int) -> float:
    """The share of the steps, 0.1..0.9, that InstructPix2Pix's generator drew for a seed: its first draw on the CPU
    (generate_img_dataset.py)."""
    drawn = torch.rand((), generator=torch.Generator().manual_seed(seed)).item()
    return 0.1 + drawn * (0.9 - 0.1)


def _words(place: str) -> Row | MissingPicture:
    """The content of prompt.json, or why it has no pairs; an empty instruction if the file is missing."""
    file = storage.join(place, "prompt.json")
    content = read_content(file)
    if isinstance(content, MissingPicture):
        return MissingPicture("prompt_unreadable", content.detail)
    if not content:
        return {INSTRUCTION[0]: ""}
    try:
        words = parse_json(content.decode("utf-8-sig"))
    except ValueError as error:
        return MissingPicture("prompt_unreadable", f"{file} is not JSON ({error})")
    if not isinstance(words, dict) or not words.keys() & set(INSTRUCTION):
        held = ", ".join(words) if isinstance(words, dict) else f"a {type(words).__name__}"
        return MissingPicture(
            "keys_missing",
            f"{file} holds {held}, but the instruction is wanted under edit (InstructPix2Pix) or "
            "instruction (HIVE), and captions under input (or caption) and output; rename the keys",
        )
    return words


def _read_metadata(file: str, metadata: dict[str, Row]) -> Iterator[UnreadablePart]:
    """Add seed -> line of metadata.jsonl to `metadata`, if the file exists, and yield the unreadable lines."""
    content = read_content(file)
    if isinstance(content, MissingPicture):
        yield UnreadablePart("metadata_unreadable", content.detail)
        return
    try:
        for line in parse_json_lines(content or b"", file, objects=True):
            if line.problem:
                yield UnreadablePart("metadata_unreadable", line.sample)
            else:
                metadata[str(line.value.get("seed"))] = line.value
    except TextError as error:
        yield UnreadablePart("metadata_unreadable", str(error))


def _picture(dataset: str, path: str) -> bytes | MissingPicture:
    if not is_within(normalized_path(path), (normalized_path(dataset),)):
        return MissingPicture(OUTSIDE, f"{path} leaves the folder of the dataset")
    content = read_content(path)
    return MissingPicture(MISSING, f"{path} is not there") if content is None else content


def hive_pairs(training: str, settings: Importing) -> Iterator[ImportedPair | UnreadablePart]:
    """Yield the pairs of HIVE's parts, and InstructPix2Pix's pairs if they are next to them."""
    yield from text_rows(storage.join(training, HIVE_CYCLE), training, settings)
    for part in HIVE_PARTS:
        if storage.exists(storage.join(training, part, "seeds.json")):
            yield from prompt_folders(storage.join(training, part), settings)
