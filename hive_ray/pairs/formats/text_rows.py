"""Read pairs and prompts from JSONL, CSV and TSV files that name pictures, compressed ones too.

These are HIVE's {instruction, source_img, edited_img}, UltraEdit's {edit_prompt, source_image, edited_image}, and the
metadata files of Hugging Face's ImageFolder, whose columns of pictures may end with _file_name.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from hive_ray import storage
from hive_ray.config import Importing
from hive_ray.files.delimited_files import TableRow, read_table
from hive_ray.files.text_files import JsonLine, TextError, read_json_lines
from hive_ray.pairs.formats.imported import (
    EDITED_CAPTION,
    EDITED_IMAGE,
    FILE_NAME,
    INSTRUCTION,
    SOURCE_CAPTION,
    SOURCE_IMAGE,
    ImportedPair,
    MissingPicture,
    UnreadablePart,
    first_value,
    own_values,
    require_enough_rows,
    stored_picture,
    text,
    texts,
)
from hive_ray.pairs.formats.pictures import PictureReader, folder_of
from hive_ray.schemas import Dropped, Row
from hive_ray.seeds import id_for

SOURCE_KEYS = (*SOURCE_IMAGE, *(f"{name}{FILE_NAME}" for name in SOURCE_IMAGE), "file_name")
EDITED_KEYS = (*EDITED_IMAGE, *(f"{name}{FILE_NAME}" for name in EDITED_IMAGE))
COMPRESSED = (".gz", ".bz2", ".zst")
JSON_LINES = (".jsonl", ".ndjson")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
ENDINGS = tuple(kind + packed for kind in (*JSON_LINES, *DELIMITERS) for packed in ("", *COMPRESSED))
"""Endings of the files that this module reads."""


def text_rows(file: str, root: str, settings: Importing) -> Iterator[ImportedPair | UnreadablePart]:
    """Yield the pairs of a file of the dataset folder `root`; lines without the keys have the reason "keys_missing"."""
    pictures = PictureReader(file, root, settings.pictures)
    below = folder_of(file).removeprefix(root).strip("/")  # sub-folders may use the same names for other pictures
    for place, row in read_values(file):
        if isinstance(row, UnreadablePart):
            yield row
        elif problem := _lacks(row, INSTRUCTION, SOURCE_KEYS, EDITED_KEYS):
            yield UnreadablePart("keys_missing", f"{place} {problem}")
        else:
            source, edited = first_value(row, SOURCE_KEYS), first_value(row, EDITED_KEYS)
            together = min(str(source), str(edited))  # the same for a pair and its inverse
            yield ImportedPair(
                instruction=first_value(row, INSTRUCTION),
                source_image=pictures.read(source),
                edited_image=pictures.read(edited),
                source_caption=first_value(row, SOURCE_CAPTION),
                edited_caption=first_value(row, EDITED_CAPTION),
                split_group=storage.join(below, together) if below else together,
                place=place,
                **own_values(row),
            )


def read_values(file: str) -> Iterator[tuple[str, Row | UnreadablePart]]:
    """Yield the place of each line, and its values by key or why it is unreadable.

    If the rest of a file cannot be read, the last item says why. Raises FileNotFoundError.
    """
    try:
        for line in _lines(file):
            values = line.value if isinstance(line, JsonLine) else line.values
            if line.problem or values is None:
                yield line.place, UnreadablePart(line.problem, line.sample)
            else:
                yield line.place, values
    except TextError as error:
        yield file, UnreadablePart("file_unreadable", str(error))


def _lines(file: str) -> Iterator[JsonLine | TableRow]:
    name = file
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    delimiter = next((delimiter for ending, delimiter in DELIMITERS.items() if name.endswith(ending)), None)
    return read_json_lines(file, objects=True) if delimiter is None else read_table(file, delimiter)[1]


def read_prompts(settings: Importing) -> Iterator[Row | Dropped]:
    """Yield distinct rows of `prompts` in the test split, from lines {instruction, source_img} as in HIVE.

    Also `Dropped` with a sample as `imported.imported_rows`. Raises a ValueError if nothing can be kept.
    """
    file, prompt_ids = settings.prompts, set()
    dropped: Counter[str] = Counter()
    samples: dict[str, str] = {}
    pictures = PictureReader(file, folder_of(file), settings.prompt_pictures)
    for place, line in read_values(file):
        for row in _prompts(place, line, pictures):
            if not isinstance(row, Dropped) and row["prompt_id"] in prompt_ids:
                row = Dropped("duplicate", sample=f"{place}: {row['instruction']!r} of its picture came before")
            if isinstance(row, Dropped):
                dropped[row.reason] += 1
                samples.setdefault(row.reason, row.sample or "")
            else:
                prompt_ids.add(row["prompt_id"])
            yield row
    require_enough_rows(f"prompts of {file}", len(prompt_ids), dropped, samples, settings.least_kept)


def _prompts(place: str, line: Row | UnreadablePart, pictures: PictureReader) -> Iterator[Row | Dropped]:
    """Yield a row for each instruction of a line, or a dropped row."""
    if isinstance(line, UnreadablePart):
        yield Dropped(line.reason, sample=line.sample)
        return
    if problem := _lacks(line, INSTRUCTION, SOURCE_KEYS):
        yield Dropped("keys_missing", sample=f"{place} {problem}")
        return
    instructions = texts(first_value(line, INSTRUCTION))
    if not instructions:
        yield Dropped("instruction_missing", sample=f"{place}: no text")
        return
    source = stored_picture(pictures.read(first_value(line, SOURCE_KEYS)), "source")
    if isinstance(source, MissingPicture):
        yield Dropped(source.reason, sample=f"{place}: {source.detail}")
        return
    for instruction in instructions:
        yield {
            "prompt_id": id_for("prompt", instruction, source),
            "instruction": instruction,
            "source_caption": text(first_value(line, SOURCE_CAPTION)),
            "edited_caption": text(first_value(line, EDITED_CAPTION)),
            "source_image": source,
            "split": "test",
        }


def _lacks(row: dict[str, Any], *kinds: tuple[str, ...]) -> str:
    """The message for a line with missing keys; "" if it has a key of each kind."""
    if EDITED_KEYS in kinds and row.keys() & set(SOURCE_KEYS) and not row.keys() & set(EDITED_KEYS):
        return (
            f"has a source picture and no {' or '.join(EDITED_KEYS)}: these are prompts to be edited, as in HIVE's "
            "test.jsonl, and no pairs; give the file as importing.prompts"
        )
    for keys in kinds:
        if not row.keys() & set(keys):
            return f"has no {' or '.join(keys)}, only {', '.join(map(str, row)) or 'nothing'}; rename its keys"
    return ""
