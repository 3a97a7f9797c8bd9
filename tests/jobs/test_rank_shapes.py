"""The rankings that come with the embedded domain: how they are made, and what is shipped."""

from collections import Counter

import pytest
import ray

from hive_ray.agreement import preference_agreement
from hive_ray.config import Importing
from hive_ray.distributed.cluster import start_ray
from hive_ray.images import decode, kind_of
from hive_ray.pairs.formats.ranked import ranking_rows, read_rankings
from hive_ray.presets import SHAPES_WEIGHTS, shapes
from hive_ray.schemas import RANKINGS, to_table
from jobs.import_rankings import dataset_of
from jobs.rank_shapes import ShippedRankings, configured, main


def read(folder: str) -> list[dict]:
    settings = Importing(rankings=folder)
    return list(ranking_rows(read_rankings(dataset_of(folder), settings), folder, settings.least_kept))


@pytest.mark.ray
def test_a_few_are_made_by_one_command_and_read_as_a_users_would_be(tmp_path):
    start_ray(num_cpus=2)
    settings = ShippedRankings(str(tmp_path / "run"), num_prompts=12, num_ranked=6, out=tmp_path / "rankings")
    try:
        main(settings)
    finally:
        ray.shutdown()
    rows = read(str(tmp_path / "rankings"))
    assert to_table(rows, RANKINGS).num_rows == 12
    assert set(Counter(row["prompt_id"] for row in rows).values()) == {2}
    assert {row["annotator"] for row in rows} == {"simulated-0", "simulated-1"}
    pictures = [picture for row in rows for picture in (row["source_image"], *(edit["image"] for edit in row["edits"]))]
    assert {kind_of(picture) for picture in pictures} == {"jpg"}
    assert {decode(picture).shape for picture in pictures} == {(64, 64, 3)}


def test_no_caption_of_them_is_drawn_by_the_quickstart():
    ours, quickstart = configured(ShippedRankings()), shapes()
    assert ours.instructions.seed != quickstart.instructions.seed
    assert ours.candidates.guidance_scale == quickstart.candidates.guidance_scale


def test_what_is_shipped_is_small_and_whole():
    folder = SHAPES_WEIGHTS.parent / "rankings"
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 12 * 2**20
    rows = read("shapes")
    assert 1000 <= len(rows) <= 2000
    assert not [row for row in rows if "dropped" in row]
    agreed = preference_agreement(rows)
    assert 0.25 <= agreed.ties <= 0.35
    assert 0.7 <= agreed.in_order <= 0.9
