"""Scoring pairs: Ray Data around a reward model, batches, and what the model's arithmetic allows.

python -m bench.reward floor       operations of a pair, the rate of matrix products, where the time of a batch goes
python -m bench.reward ray_data    the stage of `score_pairs` against the same model in a bare loop over the same
                                   Parquet with as many threads, in batches and one pair at a time

Of the embedded domain's model on the CPU, and of one of BLIP-base's size with random weights, on a GPU if there is one.
Whatever is compared runs in turns, each in fresh processes. Pairs/s are those after the first quarter, so that starting
and loading are left out; they are said beside it.
"""

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow.parquet as pq
import ray
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BlipTextConfig, BlipVisionConfig

from bench.ratios import rate_of, say
from hive_ray.artifacts.building import build_table, write_rows
from hive_ray.cluster.starting import start_ray
from hive_ray.config import Resources
from hive_ray.images import encode, resize, to_batch
from hive_ray.presets import shapes
from hive_ray.reward.model import RewardModel, load_tokenizer
from hive_ray.schemas import PAIRS, REWARDS, Row
from hive_ray.shapes.pretraining.scene_pictures import scene_and_twin
from hive_ray.shapes.scenes import draw
from jobs import score_pairs
from jobs.actors.scoring import rewards_of
from jobs.run import Run

ROUNDS = 3
CORES = 2
ON_GPU = torch.cuda.is_available()
COLUMNS = ["pair_id", "instruction", "source_image", "edited_image"]
NUM_PICTURES = 32
"""Different pairs; a table repeats them."""


@dataclass(frozen=True)
class Case:
    """A reward model and the pairs that it scores."""

    make: Callable[[], RewardModel]
    side: int
    """Of the pairs' pictures."""
    pairs: int
    alone: int
    """Pairs that are scored one at a time."""
    batch_size: int
    rows_per_shard: int
    on_gpu: bool = False


def blip_base() -> RewardModel:
    """BLIP-base's sizes at 224 x 224 with random weights; what it says is no use, how long it takes is."""
    vision, text = BlipVisionConfig(image_size=224), BlipTextConfig(encoder_hidden_size=768)
    torch.manual_seed(0)
    return RewardModel(vision, text, load_tokenizer(shapes().reward.tokenizer), max_tokens=35).eval()


def small() -> RewardModel:
    """The embedded domain's model as it was pretrained."""
    return RewardModel.load(shapes().reward.start)


CASES = {
    "shapes": Case(small, side=64, pairs=5120, alone=512, batch_size=64, rows_per_shard=256),
    "BLIP-base": Case(blip_base, side=512, pairs=2048, alone=256, batch_size=64, rows_per_shard=128, on_gpu=True)
    if ON_GPU
    else Case(blip_base, side=512, pairs=32, alone=8, batch_size=4, rows_per_shard=4),
}


def pictures(side: int) -> Iterator[Row]:
    """Pairs of drawn scenes, with some noise where they are enlarged: else no photograph were so easy to decode."""
    rng = np.random.default_rng(0)
    for _ in range(NUM_PICTURES):
        twin = scene_and_twin(rng)
        scenes = [resize(draw(scene), side) for scene in twin.scenes]
        if side > 64:
            scenes = [np.clip(one + rng.normal(0, 4, one.shape), 0, 255).astype(np.uint8) for one in scenes]
        yield {
            "instruction_id": "", "instruction": twin.texts[2], "source_caption": twin.texts[0],
            "edited_caption": twin.texts[1], "source_image": encode(scenes[0]), "edited_image": encode(scenes[1]),
            "weight": 1.0, "seed": 0, "shared_attention": 0.0, "clip_image": 0.0, "clip_source_text": 0.0,
            "clip_edited_text": 0.0, "clip_direction": 0.0, "origin": "generated", "split": "train",
        }  # fmt: skip


def prepare(folder: str, case: Case) -> Run:
    """A run with pairs and a reward model, and all cores for scoring."""
    drawn = list(pictures(case.side))
    rows = ({"pair_id": f"{number:06d}"} | drawn[number % len(drawn)] for number in range(case.pairs))
    write_rows(f"{folder}/pairs", PAIRS, rows, {}, rows_per_file=128)
    case.make().save(f"{folder}/reward", {})
    resources = Resources(num_cpus=CORES, num_gpus=int(case.on_gpu), batch_size=case.batch_size)
    preset = shapes()
    scoring = preset.scoring.model_copy(update={"resources": resources})
    return Run(folder, preset.model_copy(update={"scoring": scoring}))


def ray_data() -> None:
    """Pairs/s of the stage over a bare loop's, of that over one at a time, and how far their rewards are apart."""
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            run = prepare(folder, case)
            over_bare, over_alone = [], []
            for number in range(ROUNDS):
                ours, said = through_ray_data(run, f"{folder}/rewards{number}", case)
                batched, wanted = in_a_process(bare, folder, case.pairs, case.batch_size, case.on_gpu)
                alone, _ = in_a_process(bare, folder, case.alone, 1, case.on_gpu)
                over_bare.append(ours / batched)
                over_alone.append(batched / alone)
                apart = max(abs(said[pair_id] - reward) for pair_id, reward in wanted.items())
                print(f"  {ours:.3g}, {batched:.3g} and {alone:.3g} pairs/s; rewards {apart:.1e} apart", flush=True)
        device = "the GPU" if case.on_gpu else f"{CORES} threads"
        say(f"{name} on {device}: Ray Data over a bare loop", over_bare)
        say(f"{name} on {device}: batches of {case.batch_size} over one at a time", over_alone)


def through_ray_data(run: Run, out: str, case: Case) -> tuple[float, dict[str, float]]:
    """Pairs/s of `score_pairs`' own stage, by when its shards were written; and the rewards."""
    start_ray(num_cpus=CORES)
    plan = replace(score_pairs.plan_scoring(run, "model"), rows_per_shard=case.rows_per_shard)
    started = time.time()
    build_table(out, REWARDS, {}, lambda: plan)
    ended = time.time()
    ray.shutdown()
    written = sorted(file.stat().st_mtime for file in Path(out, "data").glob("part-*.parquet"))
    marks = [((place + 1) * case.rows_per_shard, at) for place, at in enumerate(written)]
    rate = case.rows_per_shard / (written[1] - written[0])
    print(f"  start {written[0] - started - case.rows_per_shard / rate:.1f} s, end {ended - written[-1]:.1f} s")
    return rate_of(marks), rewards_of(out)


def bare(folder: str, count: int, batch_size: int, on_gpu: bool) -> tuple[float, dict[str, float]]:
    """Pairs/s of the same model in a loop over the same files, and the rewards."""
    torch.set_num_threads(CORES)
    model = RewardModel.load(f"{folder}/reward").to("cuda" if on_gpu else "cpu")
    rewards: dict[str, float] = {}
    marks = []
    for file in sorted(Path(folder, "pairs", "data").glob("*.parquet")):
        for batch in pq.ParquetFile(file).iter_batches(batch_size, columns=COLUMNS):
            rows = batch.to_pylist()
            columns = ([row[name] for row in rows] for name in ("source_image", "edited_image", "instruction"))
            scored = model.score(*columns)
            rewards |= {row["pair_id"]: reward for row, reward in zip(rows, scored, strict=True)}
            marks.append((len(rewards), time.perf_counter()))
            if len(rewards) >= count:
                return rate_of(marks), rewards
    raise AssertionError("fewer pairs than wanted")


def in_a_process(act: Callable, *arguments):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(act, arguments)


@torch.inference_mode()
def floor() -> None:
    """Milliseconds of a pair in a batch by parts, beside its operations at the rates of matrix products, on the CPU."""
    torch.set_num_threads(CORES)
    for name, case in CASES.items():
        model, drawn = case.make(), list(pictures(case.side))
        rows = [drawn[place % len(drawn)] for place in range(case.batch_size)]
        texts, sources, edits = ([row[column] for row in rows] for column in COLUMNS[1:])
        source, edited = to_batch(sources, model.resolution), to_batch(edits, model.resolution)[:, None]
        inputs = (source, edited, *model.encode_text(texts))
        with FlopCounterMode(display=False) as counter:
            model(*inputs)
        operations = counter.get_total_flops() / len(rows)
        config = model.vision.config
        patch = cast(int, config.patch_size)
        tokens = 2 * len(rows) * (1 + (cast(int, config.image_size) // patch) ** 2)
        largest = products(tokens, config.hidden_size, config.intermediate_size)
        parts = {
            "pictures": partial(to_batch, sources + edits, model.resolution),
            "text": partial(model.encode_text, texts),
            "model": partial(model, *inputs),
            "score": partial(model.score, sources, edits, texts),
        }
        took = ", ".join(f"{part} {1000 * least(act) / len(rows):.3g}" for part, act in parts.items())
        print(
            f"{name}: {operations / 1e9:.3g} GFLOP a pair, {1000 * operations / largest:.3g} ms at the rate of its "
            f"largest product ({largest / 1e9:.0f} GFLOP/s), {1000 * operations / products(2048, 2048, 2048):.3g} at "
            f"that of a square one; ms a pair: {took}",
            flush=True,
        )


def products(rows: int, inner: int, columns: int) -> float:
    """Operations/s of a matrix product of these sizes."""
    one, other = torch.rand(rows, inner), torch.rand(inner, columns)
    return 2 * rows * inner * columns / least(lambda: one @ other)


def least(act: Callable[[], object]) -> float:
    """Seconds, the least of some."""

    def timed() -> float:
        started = time.perf_counter()
        act()
        return time.perf_counter() - started

    return min(timed() for _ in range(1 + ROUNDS))


if __name__ == "__main__":
    chosen = sys.argv[1:] or ["floor", "ray_data"]
    for name in chosen:
        print(f"-- {name}")
        {"floor": floor, "ray_data": ray_data}[name]()
