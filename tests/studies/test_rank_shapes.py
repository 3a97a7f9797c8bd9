"""The rankings that come with the embedded domain: how they are made, and what is shipped."""

from collections import Counter
from itertools import combinations

import pytest

from hive_ray.config import Importing
from hive_ray.images import decode, image_format
from hive_ray.pairs.formats.ranked import ranking_rows, read_rankings
from hive_ray.presets import SHAPES_WEIGHTS, shapes
from hive_ray.schemas import RANKINGS, to_table
from jobs.import_rankings import dataset_of
from jobs.own_settings import ShippedRankings
from studies.rank_shapes import configured, main


def read(folder: str) -> list[dict]:
    settings = Importing(rankings=folder)
    return list(ranking_rows(read_rankings(dataset_of(folder), settings), folder, settings.least_kept))


@pytest.mark.ray
def test_a_few_are_made_by_one_command_and_read_as_a_users_would_be(tmp_path, shared_cluster):
    settings = ShippedRankings(str(tmp_path / "run"), num_prompts=12, num_ranked=6, out=tmp_path / "rankings")
    main(settings)
    rows = read(str(tmp_path / "rankings"))
    assert to_table(rows, RANKINGS).num_rows == 6
    assert set(Counter(row["prompt_id"] for row in rows).values()) == {1}
    assert 1 < len({row["annotator"] for row in rows}) <= 6
    pictures = [picture for row in rows for picture in (row["source_image"], *(edit["image"] for edit in row["edits"]))]
    assert {image_format(picture) for picture in pictures} == {"jpg"}
    assert {decode(picture).shape for picture in pictures} == {(64, 64, 3)}


def test_no_caption_of_them_is_drawn_by_the_quickstart():
    ours, quickstart = configured(ShippedRankings()), shapes()
    assert ours.instructions.seed != quickstart.instructions.seed
    assert ours.candidates.guidance_scale == quickstart.candidates.guidance_scale


def test_what_is_shipped_is_small_and_whole():
    folder = SHAPES_WEIGHTS.parent / "rankings"
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 12 * 2**20
    rows = read("shapes")
    assert 1000 <= len(rows) == len({row.get("prompt_id") for row in rows}) <= 2000
    assert len({row["annotator"] for row in rows}) == ShippedRankings().people
    pairs = [pair for row in rows for pair in combinations(row["ranks"], 2)]
    assert 0.25 <= sum(one == other for one, other in pairs) / len(pairs) <= 0.35  # as people tie (shapes/annotator.py)
