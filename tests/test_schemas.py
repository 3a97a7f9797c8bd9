import json

import pyarrow as pa
import pytest

from hive_ray import schemas
from hive_ray.errors import ContractError
from hive_ray.schemas import CAPTIONS, RANKINGS, id_column, prompt_row, table_name, to_table

ALL = [value for value in vars(schemas).values() if isinstance(value, pa.Schema)]


def test_rows_become_a_table_of_exactly_the_schema():
    table = to_table([{"caption": "a dog", "caption_id": "1"}], CAPTIONS)
    assert table.schema.equals(CAPTIONS, check_metadata=True)
    assert table.to_pylist() == [{"caption_id": "1", "caption": "a dog"}]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"caption_id": "1"}, r"missing \['caption'\]"),
        ({"caption_id": "1", "caption": "a", "colour": "b"}, r"unexpected \['colour'\]"),
        ({"caption_id": "1", "caption": None}, r"null \['caption'\]"),
        ({"caption_id": "1", "caption": 3}, "captions"),
    ],
)
def test_a_row_that_breaks_the_contract_is_named(row, words):
    with pytest.raises(ContractError, match=words):
        to_table([row], CAPTIONS)


@pytest.mark.parametrize("schema", ALL, ids=table_name)
def test_every_schema_names_its_id_and_its_hugging_face_features(schema):
    assert id_column(schema) in schema.names
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == schema.names
    assert not any(field.nullable for field in schema)


def test_pictures_in_lists_are_pictures_to_hugging_face():
    features = json.loads(RANKINGS.metadata[b"huggingface"])["info"]["features"]
    assert features["source_image"] == {"_type": "Image"}
    assert features["edits"]["feature"]["image"] == {"_type": "Image"}


def test_a_prompt_keeps_the_words_of_its_instruction():
    words = {"instruction": "i", "source_caption": "s", "edited_caption": "e", "split": "test"}
    row = prompt_row(words | {"instruction_id": "7", "writer": "w"}, b"png")
    assert row == words | {"source_image": b"png", "prompt_id": row["prompt_id"]}
