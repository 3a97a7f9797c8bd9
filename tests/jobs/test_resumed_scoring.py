"""Scoring on a cluster: killed and gone on with, and never done twice for another way to use the rewards."""

import time
from pathlib import Path

import drivers
import numpy as np
import pytest

from hive_ray.artifacts.building import write_rows
from hive_ray.artifacts.selection import read_rows
from hive_ray.config import Config, Resources
from hive_ray.images import encode
from hive_ray.presets import shapes
from hive_ray.reward.model import RewardModel, load_tokenizer
from hive_ray.schemas import PAIRS, SCORED_PAIRS
from jobs import score_pairs
from jobs.actors.scoring import rewards_of
from jobs.run import Run

pytestmark = pytest.mark.ray

SHARDS = 6
NUM_PAIRS = SHARDS * 256
MADE = {"shared_attention": 0.0, "clip_image": 0.0, "clip_source_text": 0.0, "clip_edited_text": 0.0,
        "clip_direction": 0.0, "origin": "generated", "split": "train", "weight": 1.0, "seed": 0}  # fmt: skip


def run_of(folder, on_mismatch="refuse", **scoring) -> Run:
    preset = shapes()
    told = {"baseline": "none", "resources": Resources(num_gpus=0, num_cpus=1, batch_size=64)} | scoring
    sections = dict(preset) | {"scoring": preset.scoring.model_copy(update=told)}
    return Run(str(folder), Config(**sections), on_mismatch)


def write_inputs(folder):
    """Pairs of grey squares, each 256 with one picture, and a reward model that was never trained."""
    squares = [encode(np.full((16, 16, 3), 10 * number, dtype=np.uint8)) for number in range(SHARDS)]
    rows = (
        {"pair_id": f"{number:05d}", "instruction_id": "", "instruction": f"turn it {number % 7}",
         "source_caption": "", "edited_caption": "", "source_image": squares[0],
         "edited_image": squares[number // 256], **MADE}
        for number in range(NUM_PAIRS)
    )  # fmt: skip
    write_rows(f"{folder}/pairs", PAIRS, rows, {})
    tokenizer = load_tokenizer(shapes().reward.tokenizer)
    RewardModel.from_scratch(tokenizer, resolution=16, max_tokens=16).save(folder / "reward", {})


def score(folder: Path) -> None:
    score_pairs.build(run_of(folder))


def kill_after_the_first_shard(folder: Path, cluster: str) -> dict[str, int]:
    """Runs the job, kills it with SIGKILL on its way; the files that it left, each with its inode."""
    data = folder / "rewards" / "data"
    drivers.kill_when(lambda: list(data.glob("part-*")), drivers.start(score, folder, cluster=cluster))
    time.sleep(2)  # what the actors have in hand is written still
    left = {part.name: part.stat().st_ino for part in data.glob("part-*")}
    assert 1 <= len(left) < SHARDS
    return left


def test_a_killed_scoring_goes_on_and_another_beta_or_phrase_scores_nothing_again(tmp_path, shared_cluster, capfd):
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    for folder in (killed, undisturbed):
        folder.mkdir()
        write_inputs(folder)
    left = kill_after_the_first_shard(killed, shared_cluster)
    score_pairs.build(run_of(killed))
    assert "rewards: resumed" in capfd.readouterr().out
    data = killed / "rewards" / "data"
    assert {name: (data / name).stat().st_ino for name in left} == left
    score_pairs.build(run_of(undisturbed))
    found, wanted = (rewards_of(f"{folder}/rewards") for folder in (killed, undisturbed))
    assert len(found) == NUM_PAIRS
    assert found == wanted

    capfd.readouterr()
    score_pairs.build(run_of(killed, "rebuild", beta=0.5, phrase=" ({level} of five)"))
    assert f"rewards: kept, {NUM_PAIRS} rows (nothing changed)" in capfd.readouterr().out
    rows = read_rows(f"{killed}/scored_pairs", SCORED_PAIRS, ["pair_id", "reward", "instruction"])
    shaped = {row["pair_id"]: (row["reward"], row["instruction"].endswith(" of five)")) for row in rows}
    assert shaped == {name: (reward, True) for name, reward in wanted.items()}
