from pathlib import Path

import numpy as np
import pytest

from hive_ray.artifacts.building import Mapped, build_table, write_rows, write_shard
from hive_ray.artifacts.dropped import strip_pictures
from hive_ray.artifacts.manifest import fingerprint_of
from hive_ray.config import Inspection
from hive_ray.images import encode
from hive_ray.pairs.cycle import make_twin
from hive_ray.presets import shapes
from hive_ray.schemas import PAIRS, Dropped
from jobs import inspect_pairs
from jobs.run import Run

SETTINGS = shapes().pairs.model_copy(update={"samples_per_instruction": 3})


def pair(instruction: int, draw: int) -> dict:
    pixels = np.random.default_rng([instruction, draw]).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return {
        "pair_id": f"p{instruction}-{draw}", "instruction_id": f"i{instruction}",
        "instruction": f"edit {instruction}, draw {draw}",
        "source_caption": "before", "edited_caption": "after", "source_image": encode(pixels),
        "edited_image": encode(255 - pixels), "weight": 1.0, "seed": draw, "shared_attention": 0.5, "clip_image": 0.9,
        "clip_source_text": 0.95, "clip_edited_text": 0.95, "clip_direction": 0.5 - 0.2 * draw, "origin": "generated",
        "split": "train",
    }  # fmt: skip


class Plan:
    """Two shards of four instructions: of three pairs one is kept, with its twin; the last instruction fails."""

    rows_in, rows_per_shard = 8, 4

    def run(self, path, shards):
        for number in shards:
            rows = []
            for instruction in range(4 * number, 4 * number + 4):
                first, *others = (pair(instruction, draw) for draw in range(3))
                rows += [first, make_twin(first, "undo it")]
                rows += [Dropped("clip_direction_below_0.41", row=one) for one in others]
            rows = [*rows[:-4], Dropped("error: ValueError: no")] if number else rows
            yield write_shard(path, number, Mapped.of(strip_pictures(rows, PAIRS, 2)), PAIRS, rows_in=4)


def run_in(folder: Path, **settings) -> Run:
    config = shapes()
    run = Run(str(folder), config.model_copy(update={"pairs": SETTINGS.model_copy(update=settings)}))
    build_table(run.path("pairs"), PAIRS, fingerprint_of(SETTINGS), Plan)
    return run


def test_counts_of_the_page_are_those_of_the_table(tmp_path):
    seen = inspect_pairs.gather(run_in(tmp_path))
    assert (seen.num_kept, seen.num_twins) == (7, 7)
    assert seen.dropped == {"clip_direction_below_0.41": 14}
    assert seen.failed == {"error: ValueError: no": 1}
    assert len(seen.kept_values["clip_direction"]) == 7
    assert sorted(set(seen.dropped_values["clip_direction"].round(1))) == np.float32([0.1, 0.3]).tolist()


def test_kept_pairs_are_no_twins_and_dropped_ones_come_from_every_shard(tmp_path):
    seen = inspect_pairs.gather(run_in(tmp_path, inspection=Inspection(num_shown=3)))
    assert [row["origin"] for row in seen.kept] == ["generated"] * 3
    assert len({row["instruction_id"] for row in seen.kept}) == 3
    assert [row["pair_id"] for row in seen.examples["clip_direction_below_0.41"]] == ["p0-1", "p4-1", "p0-2"]


def test_limits_on_the_page_are_those_that_the_table_was_made_with(tmp_path):
    run = run_in(tmp_path, least_clip_direction=0.77)
    assert inspect_pairs.gather(run).settings.least_clip_direction == 0.41


def test_the_page_is_written_beside_the_table_and_twice_the_same(tmp_path, capsys):
    run = run_in(tmp_path)
    address = inspect_pairs.build(run)
    first = Path(address).read_text()
    assert address == run.path("pairs.html")
    assert address in capsys.readouterr().out
    assert "edit 0, draw 1" in first
    assert Path(inspect_pairs.build(run)).read_text() == first


def test_a_table_of_no_rows_has_a_page(tmp_path):
    run = Run(str(tmp_path), shapes())
    write_rows(run.path("pairs"), PAIRS, [], fingerprint_of(SETTINGS))
    assert "0 of 0 drawn pairs are kept" in Path(inspect_pairs.build(run)).read_text()


def test_pairs_that_were_imported_have_no_such_page(tmp_path):
    run = run_in(tmp_path)
    write_rows(run.path("pairs"), PAIRS, [], {"importing.dataset": "x"}, on_mismatch="rebuild")
    with pytest.raises(ValueError, match="was imported, not drawn"):
        inspect_pairs.build(run)
