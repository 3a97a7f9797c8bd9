"""The contracts between stages: one Arrow schema for each table, and `to_table`, which checks rows against it.

Every column is non-null. Pictures are encoded bytes (PNG or JPEG). A row holds everything that the next stage needs.

The `huggingface` metadata holds the features that `datasets` needs to show pictures: `load_dataset("parquet", ...,
features=...)`. By itself, `datasets` infers an `Image` only from {bytes, path}, which is what `export_pairs` writes.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from hive_ray.errors import ContractError
from hive_ray.seeds import id_for

Row = dict[str, Any]
Rows = list[Row]


@dataclass(frozen=True)
class Dropped:
    """A row that does not reach the table. The manifest counts it by its reason."""

    reason: str
    row: Row | None = None
    """The dropped row, with all columns of the table. `artifacts/dropped.py` keeps it for inspection."""
    sample: str | None = None
    """What the row looked like, in words. The manifest keeps the first samples of each reason."""


@dataclass(frozen=True)
class Counted:
    """Numbers to be added up over all rows of a stage, such as tokens and dollars. The manifest holds their sums."""

    values: Mapping[str, float]


Result = Row | Dropped | Counted
"""What a stage makes of its input: a row of the table, a row that is dropped, or a count."""


@dataclass(frozen=True, kw_only=True)
class AnnotationRecord:
    """A line of annotations.jsonl: how one person ranks the edits of one prompt."""

    prompt_id: str
    annotator: str
    ranks: list[int]
    """Aligned with `edit_ids`. 1 is best, and ties share a rank."""
    edit_ids: list[str]
    none_acceptable: bool
    """Whether the person says that no edit is acceptable."""
    seconds: float
    """Time from showing the task to its answer."""


SPLITS = ("train", "rank", "test")
ORIGINS = ("generated", "cycle", "imported")


def to_table(rows: Rows, schema: pa.Schema) -> pa.Table:
    """Rows as an Arrow table of exactly this schema. Raises ContractError, which names the difference."""
    name, wanted = table_name(schema), set(schema.names)
    for index, row in enumerate(rows):
        missing, extra = sorted(wanted - row.keys()), sorted(row.keys() - wanted)
        nulls = sorted(column for column in wanted & row.keys() if row[column] is None)
        if missing or extra or nulls:
            raise ContractError(f"table {name!r}, row {index}: missing {missing}, unexpected {extra}, null {nulls}")
    try:
        return pa.Table.from_pylist(rows, schema=schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ContractError(f"table {name!r}: {error}") from error


def table_name(schema: pa.Schema) -> str:
    """The name of the table that a schema is for."""
    return schema.metadata[b"table"].decode()


def id_column(schema: pa.Schema) -> str:
    """The column that identifies a row. Its values are unique in the table."""
    return schema.metadata[b"id"].decode()


_TEXT, _IMAGE, _F32, _I64 = pa.string(), pa.large_binary(), pa.float32(), pa.int64()

_EDIT = pa.struct(
    [
        pa.field("edit_id", _TEXT, nullable=False),
        pa.field("image", _IMAGE, nullable=False),
        pa.field("seed", _I64, nullable=False),
        pa.field("guidance_scale", _F32, nullable=False),
        pa.field("image_guidance_scale", _F32, nullable=False),
    ]
)

_DRAW = pa.struct(
    [
        pa.field("seed", _I64, nullable=False),
        *(
            pa.field(measure, _F32, nullable=False)
            for measure in ("clip_image", "clip_direction", "reward", "followed", "preserved")
        ),
    ]
)


def _feature(kind: pa.DataType) -> Any:
    """The Hugging Face `datasets` feature of an Arrow type. Pictures are the only large binaries."""
    if pa.types.is_large_binary(kind):
        return {"_type": "Image"}
    if pa.types.is_struct(kind):
        return {field.name: _feature(field.type) for field in kind}
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "List"}
    names = {pa.float32(): "float32"}  # str() gives "float"
    return {"dtype": names.get(kind, str(kind)), "_type": "Value"}


def _schema(table: str, key: str, **columns: pa.DataType) -> pa.Schema:
    fields = [pa.field(name, kind, nullable=False) for name, kind in columns.items()]
    features = {name: _feature(kind) for name, kind in columns.items()}
    return pa.schema(
        fields,
        metadata={"table": table, "id": key, "huggingface": json.dumps({"info": {"features": features}})},
    )


CAPTIONS = _schema("captions", "caption_id", caption_id=_TEXT, caption=_TEXT)

INSTRUCTIONS = _schema(
    "instructions",
    "instruction_id",
    instruction_id=_TEXT,
    caption_id=_TEXT,
    source_caption=_TEXT,
    instruction=_TEXT,
    edited_caption=_TEXT,
    inverse_instruction=_TEXT,  # "" where the edit has no inverse
    writer=_TEXT,
    split=_TEXT,
)

_PAIR_COLUMNS = dict(
    pair_id=_TEXT,
    instruction_id=_TEXT,
    instruction=_TEXT,
    source_caption=_TEXT,
    edited_caption=_TEXT,
    source_image=_IMAGE,
    edited_image=_IMAGE,
    weight=_F32,
    seed=_I64,
    shared_attention=_F32,
    clip_image=_F32,
    clip_source_text=_F32,
    clip_edited_text=_F32,
    clip_direction=_F32,
    origin=_TEXT,
    split=_TEXT,
)
PAIRS = _schema("pairs", "pair_id", **_PAIR_COLUMNS)
IMPORTED = _schema(
    "imported",
    "pair_id",
    pair_id=_TEXT,
    instruction_id=_TEXT,
    instruction=_TEXT,
    source_caption=_TEXT,  # "" where the dataset has none
    edited_caption=_TEXT,
    inverse_instruction=_TEXT,  # "" where the dataset has none
    source_image=_IMAGE,
    edited_image=_IMAGE,
    seed=_I64,  # 0 if unknown, and so is shared_attention
    shared_attention=_F32,
    origin=_TEXT,
    split=_TEXT,
)
REWARDS = _schema("rewards", "pair_id", pair_id=_TEXT, reward=_F32)
SCORED_PAIRS = _schema(
    "scored_pairs", "pair_id", **_PAIR_COLUMNS, reward=_F32, quality_level=pa.int8(), reward_model=_TEXT
)
LATENTS = _schema(
    "latents",
    "pair_id",
    pair_id=_TEXT,
    latents=pa.binary(),  # layout: hive_ray/editor/latents.py
)
RANKING_LATENTS = _schema("ranking_latents", "ranking_id", ranking_id=_TEXT, latents=pa.binary())

_PROMPT_COLUMNS = dict(
    prompt_id=_TEXT,
    instruction=_TEXT,
    source_caption=_TEXT,
    edited_caption=_TEXT,
    source_image=_IMAGE,
    split=_TEXT,
)
PROMPTS = _schema("prompts", "prompt_id", **_PROMPT_COLUMNS)

_CANDIDATE_COLUMNS = dict(**_PROMPT_COLUMNS, edits=pa.list_(_EDIT), editor=_TEXT)
CANDIDATES = _schema("candidates", "prompt_id", **_CANDIDATE_COLUMNS)
CANDIDATE_REWARDS = _schema("candidate_rewards", "edit_id", edit_id=_TEXT, prompt_id=_TEXT, reward=_F32)
SCORED_CANDIDATES = _schema(
    "scored_candidates",
    "pair_id",
    pair_id=_TEXT,  # the edit's edit_id
    prompt_id=_TEXT,
    instruction=_TEXT,
    source_caption=_TEXT,
    edited_caption=_TEXT,
    source_image=_IMAGE,
    edited_image=_IMAGE,
    weight=_F32,
    reward=_F32,
    reward_model=_TEXT,
    split=_TEXT,
)
SPREADS = _schema("spreads", "prompt_id", prompt_id=_TEXT, spread=_F32, disagreement=_F32)
"""For the edits of each prompt: mean squared difference of their latents, and entropy of their order in bits. Both are
NaN if not measured."""
CHOSEN = _schema(
    "chosen",
    "prompt_id",
    prompt_id=_TEXT,
    place=_I64,  # 0 is ranked first
    spread=_F32,  # NaN if not measured, and so is disagreement
    disagreement=_F32,
    chosen_by=_TEXT,  # "random", or the measure
    probability=_F32,  # inclusion probability: hive_ray/statistics/prompt_choice.py
)
RANKINGS = _schema(
    "rankings",
    "ranking_id",
    ranking_id=_TEXT,
    **_CANDIDATE_COLUMNS,
    annotator=_TEXT,
    ranks=pa.list_(pa.int8()),
)

DENOISING_ERRORS = _schema(
    "denoising_errors",
    "edit_id",
    edit_id=_TEXT,
    prompt_id=_TEXT,
    features=pa.list_(_F32),  # names: hive_ray/editor/denoising_errors.py
)
EDIT_MEASURES = _schema(
    "edit_measures",
    "edit_id",
    edit_id=_TEXT,
    prompt_id=_TEXT,
    blip=_F32,  # NaN without a BLIP model
    clip_direction=_F32,
    clip_image=_F32,
)

EVALUATION = _schema(
    "evaluation",
    "evaluation_id",
    evaluation_id=_TEXT,
    prompt_id=_TEXT,
    instruction=_TEXT,
    editor=_TEXT,
    seed=_I64,
    guidance_scale=_F32,
    image_guidance_scale=_F32,
    source_image=_IMAGE,
    edited_image=_IMAGE,
    clip_image=_F32,
    clip_direction=_F32,
    reward=_F32,
    followed=_F32,
    preserved=_F32,
    draws=pa.list_(_DRAW),  # of all edits of the prompt; empty if the row has the measures of its own edit only
)


def prompt_row(instruction: Row, source_image: bytes) -> Row:
    """A row of PROMPTS: a held-out instruction with the picture to be edited."""
    kept = ("instruction", "source_caption", "edited_caption", "split")
    return {
        "prompt_id": id_for("prompt", instruction["instruction_id"]),
        **{name: instruction[name] for name in kept},
        "source_image": source_image,
    }


def edits_as_pairs(rankings: Rows, edits_of: Mapping[str, Collection[str]]) -> Rows:
    """The edits of RANKINGS rows as rows of pairs with `edit_id`.

    edits_of: ranking id -> the ids of the edits that are returned.
    """
    columns = ("prompt_id", "instruction", "source_caption", "edited_caption", "source_image")
    return [
        {column: ranking[column] for column in columns} | {"edit_id": edit["edit_id"], "edited_image": edit["image"]}
        for ranking in rankings
        for edit in ranking["edits"]
        if edit["edit_id"] in edits_of[ranking["ranking_id"]]
    ]
