"""A table of rankings with broken pictures, through the reward trainer's objective and its card."""

import json

import numpy as np
import torch
from tiny_models import tiny_clip
from transformers import CLIPTokenizer

from hive_ray.artifacts.building import write_rows
from hive_ray.artifacts.selection import select
from hive_ray.config import Reward, Training
from hive_ray.images import encode
from hive_ray.reward.model import RewardModel
from hive_ray.reward.objective import is_held_out
from hive_ray.schemas import RANKINGS
from hive_ray.training.bad_rows import RowQuarantine
from hive_ray.training.rows import RowStore
from jobs.train_reward import COLUMNS, RewardTraining

SETTINGS = Reward(
    resolution=16, max_tokens=12, held_out_rate=0.5,
    training=Training(total_images=8, batch_size=4, micro_batch_size=4, learning_rate=1e-3, checkpoint_images=8),
)  # fmt: skip
SCALES = {"guidance_scale": 7.5, "image_guidance_scale": 1.5}


def square(level):
    return encode(np.full((16, 16, 3), level, dtype=np.uint8))


def ranking(number, source=None):
    edits = [{"edit_id": f"{number}-{level}", "image": square(level), "seed": 0, **SCALES} for level in (50, 200)]
    return {
        "ranking_id": f"r{number:02d}", "prompt_id": f"p{number}", "instruction": "add a b", "source_caption": "a",
        "edited_caption": "a b", "source_image": source or square(number), "split": "rank", "edits": edits,
        "editor": "sft", "annotator": "one", "ranks": [2, 1],
    }  # fmt: skip


def test_broken_pictures_are_named_skipped_and_counted_in_training_and_in_the_card(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HIVE_RAY_CACHE", str(tmp_path / "cache"))
    sides = {out: [n for n in range(30) if is_held_out(f"p{n}", 0.5) == out] for out in (False, True)}
    broken = {sides[False][1], sides[True][0]}
    rows = [ranking(number, b"no picture" if number in broken else None) for number in range(30)]
    write_rows(str(tmp_path / "rankings"), RANKINGS, rows, {})
    letters = "abcdefgh"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: place for place, word in enumerate(words)}, merges=[])
    RewardModel.from_scratch(tokenizer, resolution=16, max_tokens=12).save(tmp_path / "start", {})
    tiny_clip(tmp_path / "clip")
    start, clip = str(tmp_path / "start"), str(tmp_path / "clip")
    objective = RewardTraining(start, SETTINGS, [str(tmp_path / "rankings")], clip)

    store = RowStore(select(str(tmp_path / "rankings"), RANKINGS), COLUMNS, write=True).write_cache("test").open()
    good = RowQuarantine(store, "reward", most_bad_rows=0.1)
    places = np.array(sides[False][:4])
    batch, count = good.take(good.prepare(objective.prepare, places, ("draw",)))
    loss, _ = objective.loss(objective.model, batch)
    assert count == 3
    assert torch.isfinite(loss)
    (why,) = good.local_bad_rows.values()
    assert why.startswith(f"r{sides[False][1]:02d}: source_image: 10 bytes")
    store.close()

    objective.save(tmp_path / "reward", objective.model.state_dict())
    card = json.loads((tmp_path / "reward" / "card.json").read_text())
    assert card["bad_rankings"] == 2
    assert card["train_rankings"] == len(sides[False])
    assert card["held_out_rankings"] == len(sides[True]) - 1
    printed = capsys.readouterr().out
    for number in broken:
        assert f"reward: not measured on r{number:02d}: source_image: 10 bytes" in printed
