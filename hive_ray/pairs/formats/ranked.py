"""Read rankings of edits from other people's datasets; the columns of a row decide its format.

tables of `rankings`, EditReward-Data, GenAI-Bench, lists of paths and ranks -> imported_rankings

A row has an instruction, a source picture, edits and an answer, in one of these columns:

- `edits` (paths, pictures, or the structs of a table of `rankings`) and `ranks`; 1 is the best
- `left_output_image`, `right_output_image` (or `left_image`, `right_image`) and `vote_type`, which is one of VOTES:
  EditReward-Data and GenAI-Bench
- `path1`, which is preferred to `path2`, unless `tie_case` is true: EditReward's training files
- `jpg_0`, `jpg_1`, `label_0`, `label_1`; the greater label is preferred: as Pick-a-Pic has it

Files are Parquet, JSON lines, CSV, TSV, or a JSON array. Parts that cannot be read are reported, as in `pair_reader`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa

from hive_ray import storage
from hive_ray.config import Importing
from hive_ray.files.text_files import parse_json
from hive_ray.images import map_in_threads
from hive_ray.pairs.formats import text_rows
from hive_ray.pairs.formats.columns import parquet_values, unique_names
from hive_ray.pairs.formats.digests import path_column
from hive_ray.pairs.formats.files import data_files, select_split
from hive_ray.pairs.formats.imported import (
    EDITED_CAPTION,
    INSTRUCTION,
    ROWS_NOT_READ,
    SOURCE_CAPTION,
    MissingPicture,
    UnreadablePart,
    finite_or,
    first_value,
    require_enough_rows,
    stored_picture,
    text,
)
from hive_ray.pairs.formats.pictures import PictureReader, folder_of, path_in
from hive_ray.schemas import SPLITS, Counted, Dropped, Result, Row
from hive_ray.seeds import id_for
from hive_ray.statistics.agreement import RankingError, check_ranks

INSTRUCTION_KEYS = (*INSTRUCTION, "instruct_prompt", "prompt")
SOURCE_KEYS = (*text_rows.SOURCE_KEYS, "path_src")
SOURCE_CAPTION_KEYS = (*SOURCE_CAPTION, "source_prompt")
EDITED_CAPTION_KEYS = (*EDITED_CAPTION, "target_prompt")
PAIR_COLUMNS = (
    ("left_output_image", "right_output_image"),
    ("left_image", "right_image"),
    ("path1", "path2"),
    ("jpg_0", "jpg_1"),
)
VOTES = {
    "leftvote": [1, 2],
    "rightvote": [2, 1],
    "tie": [1, 1],
    "tievote": [1, 1],
    "bothbad_vote": [1, 1],
}
MODEL_KEYS = ("left_model", "right_model", "model1", "model2", "model_0", "model_1")
PICTURE_KEYS = (*SOURCE_KEYS, *(key for keys in PAIR_COLUMNS for key in keys), "edits")
COLUMNS = (
    *INSTRUCTION_KEYS, *PICTURE_KEYS, *SOURCE_CAPTION_KEYS, *EDITED_CAPTION_KEYS, *MODEL_KEYS, "ranks", "vote_type",
    "tie_case", "label_0", "label_1", "ranking_id", "prompt_id", "annotator", "editor", "split",
)  # fmt: skip
"""All columns that are read."""
PARQUET = ".parquet"
JSON_ARRAY = ".json"
ENDINGS = (PARQUET, *text_rows.ENDINGS, JSON_ARRAY)
"""Endings of the files that this module reads."""
MAX_EDITS = 127
"""A table holds ranks as int8."""
UNNAMED = "imported"
"""The annotator and the editor of rows that do not name them."""
BATCH_RANKINGS = 8
"""Rankings whose pictures are decoded and held in memory at a time."""


@dataclass(frozen=True)
class ImportedRanking:
    """A ranking of a dataset: its row, its pictures, and the checked ranks of its edits."""

    row: Row
    instruction: str
    source_image: bytes | MissingPicture
    edits: tuple[bytes | MissingPicture, ...]
    ranks: list[int]
    place: str
    """File and row, for messages."""


def read_rankings(dataset: str, settings: Importing) -> Iterator[ImportedRanking | UnreadablePart]:
    """Yield the rankings of a dataset (a folder or a file) in order, and an `UnreadablePart` for each other part.

    `settings` give the base folder of picture paths, and the split whose files are read. Raises FileNotFoundError if
    the dataset does not exist, and ValueError if no file has a known format or a table is not finished.
    """
    alone = storage.is_file(dataset)
    root = folder_of(dataset) if alone else dataset
    for file in [dataset] if alone else _files(dataset, settings.split_name):
        pictures = PictureReader(file, root, settings.pictures)
        for place, row in _values(file):
            yield row if isinstance(row, UnreadablePart) else _ranked(row, pictures, place)


def ranking_rows(
    rankings: Iterable[ImportedRanking | UnreadablePart], dataset: str, least_kept: float
) -> Iterator[Result]:
    """Yield rows of `rankings` without duplicates, and `Dropped` with a sample for other rankings.

    Ids that a row has are kept. Otherwise they are made from the content, so equal rankings of the same edits by the
    same person are duplicates. Reasons, besides those of `UnreadablePart` and `MissingPicture`: "keys_missing",
    "instruction_missing", "edits_missing", "nothing_to_compare", "too_many_edits", "other_number_of_ranks",
    "not_an_order", "vote_unknown", "pictures_are_equal" (two edits with equal pictures and different ranks),
    "duplicate".

    Raises a ValueError if nothing can be kept, and `Stopped` if it is a smaller share than `least_kept`.
    """
    ranking_ids: set[str] = set()
    dropped: Counter[str] = Counter()
    samples: dict[str, str] = {}
    source = iter(rankings)
    while batch := list(islice(source, BATCH_RANKINGS)):
        for ranking, row in zip(batch, map_in_threads(_row, batch), strict=True):
            if not isinstance(row, Dropped) and row["ranking_id"] in ranking_ids:
                row = Dropped("duplicate", sample=f"ranking {row['ranking_id']} came before")
            if isinstance(row, Dropped):
                dropped[row.reason] += 1
                samples.setdefault(row.reason, row.sample or "")
            else:
                ranking_ids.add(row["ranking_id"])
            yield row
            if isinstance(ranking, UnreadablePart) and ranking.rows > 1:
                dropped[ROWS_NOT_READ] += ranking.rows - 1
                yield Counted({ROWS_NOT_READ: ranking.rows - 1})
    require_enough_rows(f"rankings of {dataset}", len(ranking_ids), dropped, samples, least_kept)


def ranking_picture_paths(file: str) -> Iterator[list[str]]:
    """The paths of pictures in the rows of a file of rankings, for `digests.dataset_digest`."""
    rows = _values(file, of_paths=True) if file.lower().endswith(ENDINGS) else ()
    for _, row in rows:
        if not isinstance(row, UnreadablePart):
            pictures = [row.get(key) for key in PICTURE_KEYS if key != "edits"]
            edits = _as_list(row.get("edits"))
            pictures += map(_picture, edits if isinstance(edits, list) else [])
            yield list(filter(None, map(path_in, pictures)))


def _files(dataset: str, split_name: str) -> list[str]:
    names = data_files(dataset)
    if "building.json" in names and "manifest.json" not in names:
        raise ValueError(f"{dataset} is a table that is not finished: finish the job that makes it, and import it then")
    for endings in ((PARQUET,), text_rows.ENDINGS, (JSON_ARRAY,)):
        files = [name for name in names if name.lower().endswith(endings)]
        if files:
            return select_split(dataset, files, split_name, may_have_none=True)
    raise ValueError(
        f"{dataset} holds no rankings: wanted files that end with {', '.join(ENDINGS)}; "
        f"found {', '.join(names[:5]) or 'nothing'}"
    )


def _values(file: str, *, of_paths: bool = False) -> Iterator[tuple[str, Row | UnreadablePart]]:
    """Yield the place of each row of a file, and its values. `of_paths` reads only path columns of Parquet files."""
    name = file.lower()
    if name.endswith(PARQUET):
        yield from parquet_values(file, _columns_of_paths if of_paths else _columns)
    elif name.endswith(text_rows.ENDINGS):
        yield from text_rows.read_values(file)
    elif name.endswith(JSON_ARRAY):
        yield from _json_values(file)
    else:
        raise ValueError(f"{file} holds no rankings: wanted a file that ends with {', '.join(ENDINGS)}")


def _columns(schema: pa.Schema) -> list[str]:
    return [name for name in unique_names(schema.names) if name in COLUMNS]


def _columns_of_paths(schema: pa.Schema) -> list[str]:
    columns = [path_column(schema, name) for name in unique_names(schema.names) if name in PICTURE_KEYS]
    if "edits" in schema.names:
        kind = schema.field("edits").type
        if pa.types.is_list(kind) and pa.types.is_string(kind.value_type):
            columns.append("edits")
    return list(filter(None, columns))


def _json_values(file: str) -> Iterator[tuple[str, Row | UnreadablePart]]:
    try:
        rows = parse_json(storage.read_text(file))
    except ValueError as error:
        yield file, UnreadablePart("file_unreadable", f"{file} is not JSON: {error}")
        return
    if not isinstance(rows, list):
        yield file, UnreadablePart("file_unreadable", f"{file} holds a {type(rows).__name__}; give an array of objects")
        return
    for number, row in enumerate(rows):
        place = f"{file}, row {number}"
        if isinstance(row, dict):
            yield place, row
        else:
            yield place, UnreadablePart("not_an_object", f"{place} is a {type(row).__name__}; give an array of objects")


def _ranked(row: Row, pictures: PictureReader, place: str) -> ImportedRanking | UnreadablePart:
    for keys in (INSTRUCTION_KEYS, SOURCE_KEYS):
        if not row.keys() & set(keys):
            return UnreadablePart(
                "keys_missing", f"{place} has no {' or '.join(keys)}, only {_names(row)}; rename its keys"
            )
    instruction = text(first_value(row, INSTRUCTION_KEYS))
    if not instruction:
        return UnreadablePart("instruction_missing", f"{place}: no text")
    try:
        edits, ranks = _judged(row)
    except RankingError as error:
        return UnreadablePart(error.reason, f"{place}: {error}")
    return ImportedRanking(
        row=row,
        instruction=instruction,
        source_image=pictures.read(first_value(row, SOURCE_KEYS)),
        edits=tuple(pictures.read(_picture(edit)) for edit in edits),
        ranks=ranks,
        place=place,
    )


def _judged(row: Row) -> tuple[list[Any], list[int]]:
    """The edits of a row and their ranks; RankingError if the row has no ranking."""
    if row.keys() >= {"edits", "ranks"}:
        return _listed(row)
    for left, right in PAIR_COLUMNS:
        if row.keys() >= {left, right}:
            return [row[left], row[right]], _vote(row, left)
    known = "; ".join(" and ".join(keys) for keys in (("edits", "ranks"), *PAIR_COLUMNS))
    raise RankingError(f"it has no edits ({known}), only {_names(row)}; rename its keys", "keys_missing")


def _listed(row: Row) -> tuple[list[Any], list[int]]:
    edits, ranks = _as_list(row["edits"]), _as_list(row["ranks"])
    if not isinstance(edits, list):
        raise RankingError(f"edits is {str(edits)[:40]!r}; give a list of paths or pictures", "edits_missing")
    if not isinstance(ranks, list):
        raise RankingError(f"ranks is {str(ranks)[:40]!r}; give a list of whole numbers, 1 is the best")
    if len(edits) < 2:
        raise RankingError(f"it has {len(edits)} edits; give two or more", "nothing_to_compare")
    if len(edits) > MAX_EDITS:
        raise RankingError(f"it has {len(edits)} edits; at most {MAX_EDITS} are taken", "too_many_edits")
    if len(edits) != len(ranks):
        raise RankingError(f"{len(ranks)} ranks for {len(edits)} edits; give each its own", "other_number_of_ranks")
    check_ranks(ranks, len(edits))
    return edits, ranks


def _vote(row: Row, left: str) -> list[int]:
    """The ranks of two edits; `left` is the column of the first edit."""
    if left == "path1":
        tied = str(row.get("tie_case")).strip().lower() in ("true", "1", "1.0")
        return [1, 1] if tied else [1, 2]
    if left == "jpg_0":
        return _labelled(row)
    vote = str(row.get("vote_type")).strip().lower()
    if vote not in VOTES:
        raise RankingError(f"vote_type is {vote[:40]!r}; give one of {', '.join(VOTES)}", "vote_unknown")
    return list(VOTES[vote])


def _labelled(row: Row) -> list[int]:
    labels: list[Any] = [row.get("label_0"), row.get("label_1")]
    try:
        first_label, second_label = map(float, labels)
    except (TypeError, ValueError) as error:
        raise RankingError(f"label_0 and label_1 are {labels}; give two numbers", "vote_unknown") from error
    if not first_label + second_label > 0:
        raise RankingError(f"label_0 and label_1 are {labels}: nobody chose", "vote_unknown")
    return [1 + (first_label < second_label), 1 + (second_label < first_label)]


def _row(ranking: ImportedRanking | UnreadablePart) -> Row | Dropped:
    """A row of `rankings`, or {"dropped": reason} with a sample."""
    if isinstance(ranking, UnreadablePart):
        return Dropped(ranking.reason, sample=ranking.sample)
    names = ["source", *(f"edit {number}'s" for number in range(1, 1 + len(ranking.edits)))]
    pictures: list[bytes] = []
    for name, encoded in zip(names, (ranking.source_image, *ranking.edits), strict=True):
        picture = stored_picture(encoded, name)
        if isinstance(picture, MissingPicture):
            return Dropped(picture.reason, sample=f"{ranking.place}: {picture.detail}")
        pictures.append(picture)
    source, *edits = pictures
    rank_of = dict(zip(edits, ranking.ranks, strict=True))
    if any(rank_of[edit] != rank for edit, rank in zip(edits, ranking.ranks, strict=True)):
        return Dropped("pictures_are_equal", sample=f"{ranking.place}: two edits are one picture, ranked apart")
    row, annotator = ranking.row, text(ranking.row.get("annotator")) or UNNAMED
    prompt_id = text(row.get("prompt_id")) or id_for("prompt", ranking.instruction, source)
    rows_of_edits = _edits(row, prompt_id, edits)
    ranked_edits = zip(rows_of_edits, ranking.ranks, strict=True)
    edits_and_ranks = sorted(f"{edit['edit_id']} {rank}" for edit, rank in ranked_edits)
    return {
        "ranking_id": text(row.get("ranking_id")) or id_for("ranking", prompt_id, annotator, *edits_and_ranks),
        "prompt_id": prompt_id,
        "instruction": ranking.instruction,
        "source_caption": text(first_value(row, SOURCE_CAPTION_KEYS)),
        "edited_caption": text(first_value(row, EDITED_CAPTION_KEYS)),
        "source_image": source,
        "split": row["split"] if row.get("split") in SPLITS else "rank",
        "edits": rows_of_edits,
        "editor": _editor(row),
        "annotator": annotator,
        "ranks": ranking.ranks,
    }


def _edits(row: Row, prompt_id: str, pictures: list[bytes]) -> list[Row]:
    """The edits of a row of `rankings`; unknown seeds and scales are 0."""
    listed = _as_list(row.get("edits"))
    known = [edit if isinstance(edit, dict) else {} for edit in listed] if isinstance(listed, list) else []
    known = known or [{}] * len(pictures)
    return [
        {
            "edit_id": text(edit.get("edit_id")) or id_for("edit", prompt_id, picture),
            "image": picture,
            "seed": _seed(edit.get("seed")),
            "guidance_scale": finite_or(edit.get("guidance_scale"), 0.0),
            "image_guidance_scale": finite_or(edit.get("image_guidance_scale"), 0.0),
        }
        for edit, picture in zip(known, pictures, strict=True)
    ]


def _picture(edit: Any) -> Any:
    """The picture of an edit: the edit itself, or its `image` if it is a struct of a table."""
    return edit["image"] if isinstance(edit, dict) and "image" in edit else edit


def _seed(value: Any) -> int:
    return int(value) if isinstance(value, int) and -(2**63) <= value < 2**63 else 0


def _editor(row: Row) -> str:
    models = sorted({text(row.get(name)) for name in MODEL_KEYS} - {""})
    return text(row.get("editor")) or " ".join(models) or UNNAMED


def _as_list(value: Any) -> Any:
    """Parse a JSON list in a cell of a CSV file; other values are returned unchanged."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return parse_json(value)
        except ValueError:
            return value
    return value


def _names(row: Row) -> str:
    return ", ".join(map(str, row)) or "nothing"
