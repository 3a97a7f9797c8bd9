from pathlib import Path

import pytest
import torch
from foreign import picture
from tiny_models import tiny_clip

from hive_ray.config import Importing
from hive_ray.pairs.formats.imported import ImportedPair, imported_rows
from hive_ray.pairs.formats.measuring import PairMeasurer
from hive_ray.schemas import PAIRS, Dropped, to_table
from hive_ray.similarity import Similarity


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    return str(tiny_clip(Path(tmp_path_factory.mktemp("clip"))))


def rows(**changed) -> list[dict]:
    words = {"source_caption": "a cat", "edited_caption": "a dog", "inverse_instruction": "make it a cat"}
    pair = ImportedPair("make it a dog", picture(1), picture(2), **words | changed)
    return list(imported_rows([pair], Importing()))


def swapped(row: dict) -> dict:
    return row | {"source_image": row["edited_image"], "edited_image": row["source_image"]}


def agreeing(clip: str) -> dict:
    """A row whose pictures change as its captions do, by this random CLIP."""
    (row,) = rows()
    measure = PairMeasurer(Importing(clip=clip, drop_swapped=False))
    return row if measure([row])[0]["clip_direction"] > 0 else swapped(row)


def test_pairs_carry_what_clip_measures_and_their_twin(clip):
    row = agreeing(clip)
    pair, twin = PairMeasurer(Importing(clip=clip))([row])
    to_table([pair, twin], PAIRS)
    measured = Similarity(clip).measure([row["source_image"]], [row["edited_image"]], ["a cat"], ["a dog"])
    for name, value in measured.items():
        assert pair[name] == pytest.approx(float(value[0]), abs=1e-6)
    assert (pair["origin"], pair["weight"], pair["instruction"]) == ("imported", 1.0, "make it a dog")
    assert (twin["origin"], twin["instruction"], twin["split"]) == ("cycle", "make it a cat", pair["split"])
    assert (twin["source_image"], twin["source_caption"]) == (pair["edited_image"], "a dog")
    assert twin["clip_direction"] == pair["clip_direction"]


def test_pairs_have_no_twin_without_an_inverse_or_where_none_is_wanted(clip):
    row = agreeing(clip)
    assert len(PairMeasurer(Importing(clip=clip))([row | {"inverse_instruction": ""}])) == 1
    assert len(PairMeasurer(Importing(clip=clip, cycle=False))([row])) == 1


def test_pictures_that_look_swapped_are_dropped_or_kept_as_the_settings_say(clip):
    row = swapped(agreeing(clip))
    assert PairMeasurer(Importing(clip=clip))([row]) == [Dropped("pictures_look_swapped")]
    pair, _ = PairMeasurer(Importing(clip=clip, drop_swapped=False))([row])
    assert pair["clip_direction"] < 0


def test_what_cannot_be_compared_for_want_of_a_caption_is_zero(clip):
    bare, half = rows(source_caption="", edited_caption=None), rows(edited_caption="")
    measured = PairMeasurer(Importing(clip=clip, cycle=False))([*bare, *half])
    assert [(one["clip_source_text"] != 0, one["clip_edited_text"], one["clip_direction"]) for one in measured] == [
        (False, 0, 0), (True, 0, 0),
    ]  # fmt: skip
    assert all(one["clip_image"] != 0 for one in measured)
    assert torch.isfinite(torch.tensor([one["clip_image"] for one in measured])).all()
