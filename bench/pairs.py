"""Making pairs: the batched sampler, Ray Data around it, and a hundred thousand instructions.

python -m bench.pairs sampler     one pair at a time with its maps in full (InstructPix2Pix's way) against batches
python -m bench.pairs precision   PairGenerator in bf16 against fp32, where the CPU has a matrix unit for it
python -m bench.pairs ray_data    PairGenerator in a bare loop against the same through Ray Data
python -m bench.pairs scale       a sampler that sleeps: 1, 2, 4 actors; memory; a kill at half of 100,000 rows

Whatever is compared runs in the same process or on the same Ray, in turns.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import ray
import torch
from diffusers import StableDiffusionPipeline

from bench.ratios import say
from bench.stand_in import Sleeper
from hive_ray import storage
from hive_ray.artifacts.building import build_table, write_rows
from hive_ray.artifacts.manifest import table_digest
from hive_ray.artifacts.selection import read_rows
from hive_ray.cluster.mapping import map_table
from hive_ray.cluster.starting import start_ray
from hive_ray.config import Pairs, Resources
from hive_ray.images import decode
from hive_ray.pairs.controls import instruct_pix2pix_controls
from hive_ray.pairs.generation import PairGenerator
from hive_ray.pairs.text_to_image import TextToImage
from hive_ray.presets import shapes
from hive_ray.schemas import INSTRUCTIONS, PAIRS, Dropped, Result, Row, Rows
from hive_ray.seeds import id_for
from hive_ray.shapes.actors import ShapesWriter, random_captions
from tests.pairs.reference_prompt_to_prompt import InstructPix2Pix, draw_pair

ROUNDS = 3
PAIRS_AT_ONCE = 32
DTYPE = torch.float32


def instructions(count: int) -> Rows:
    """`count` edits of scenes of the embedded domain, all for training."""
    preset = shapes().instructions.model_copy(update={"rank_rate": 0.0, "test_rate": 0.0})
    captions = [{"caption_id": id_for(text), "caption": text} for text in random_captions(count, seed=0)]
    return [row for row in ShapesWriter(preset)(captions) if isinstance(row, dict)]


def timed(act: Callable[[], object]) -> float:
    """Seconds."""
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def sampler() -> None:
    """Same network, steps, precision, thresholds and scales; pictures decoded in both."""
    settings, rows = shapes().pairs, instructions(PAIRS_AT_ONCE)
    model, pipeline = TextToImage(settings.base), StableDiffusionPipeline.from_pretrained(settings.base, dtype=DTYPE)
    sources, edits = ([row[name] for row in rows] for name in ("source_caption", "edited_caption"))
    scales, thresholds = torch.linspace(2, 5, len(rows)), torch.linspace(0.1, 0.9, len(rows))
    steps = settings.num_inference_steps

    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(number) for number in range(len(rows))]

    def batched() -> torch.Tensor:
        noise, controls = model.noise(generators(), settings.resolution), instruct_pix2pix_controls(thresholds, steps)
        drawn = model.draw_pairs(
            sources, edits, noise, guidance_scale=scales, controls=controls, num_inference_steps=steps
        )
        return torch.stack(drawn, dim=1)

    @torch.inference_mode()
    def one_by_one() -> torch.Tensor:
        drawn = []
        for number, generator in enumerate(generators()):
            noise = iter([model.noise([generator], settings.resolution)()[0]])
            control, scale = InstructPix2Pix(float(thresholds[number])), float(scales[number])
            pair = draw_pair(
                pipeline, sources[number], edits[number], noise,
                control=control, guidance_scale=scale, num_steps=steps, schedule="ddim",
            )  # fmt: skip
            drawn.append(torch.stack(pair))
        return torch.stack(drawn)

    apart = (batched() - one_by_one()).abs().max()  # and both are warm
    print(f"{len(rows)} pairs of {steps} steps; the two ways are {apart:.1e} apart at most (of -1..1)")
    ratios = [timed(one_by_one) / timed(batched) for _ in range(ROUNDS)]
    say("batched over one by one", ratios)


def by_pair_id(results: list[Result]) -> dict[str, Row]:
    """All pairs that were drawn, dropped ones too."""
    pairs = [result.row if isinstance(result, Dropped) else result for result in results]
    return {pair["pair_id"]: pair for pair in pairs if isinstance(pair, dict)}


def precision(count: int = 64) -> None:
    """The whole actor, CLIP and PNGs included, in turns on one core; and how far the pictures are apart."""
    torch.set_num_threads(1)
    rows, settings = instructions(count), shapes().pairs
    actors = {name: PairGenerator(settings.model_copy(update={"precision": name})) for name in ("fp32", "bf16")}
    made: dict[str, list[Result]] = {}

    def make(name: str) -> None:
        made[name] = [pair for at in range(0, count, 8) for pair in actors[name](rows[at : at + 8])]

    for name in actors:  # warm
        make(name)
    ratios = [timed(lambda: make("fp32")) / timed(lambda: make("bf16")) for _ in range(ROUNDS)]
    drawn = [by_pair_id(made[name]) for name in actors]
    apart = [
        np.abs(decode(one["edited_image"]).astype(float) - decode(drawn[1][name]["edited_image"])).mean()
        for name, one in drawn[0].items()
    ]
    kept = [{pair["pair_id"] for pair in made[name] if isinstance(pair, dict)} for name in actors]
    print(f"edited pictures are {np.median(apart):.2f} levels of 255 apart (median), {max(apart):.2f} at most")
    print(
        f"{len(kept[0] & kept[1])} rows are kept by both, {len(kept[0] - kept[1])} by fp32 alone, "
        f"{len(kept[1] - kept[0])} by bf16 alone"
    )
    say("bf16 over fp32", ratios)


def ray_data(count: int = 240, rounds: int = 2) -> None:
    """Both load the models and write a table; Ray itself runs already."""
    settings = shapes().pairs
    resources = settings.resources.model_copy(update={"num_actors": 1, "batch_size": 8, "num_cpus": 1.0, "num_gpus": 0})
    start_ray()
    with tempfile.TemporaryDirectory() as folder:
        source = storage.join(folder, "instructions")
        write_rows(source, INSTRUCTIONS, instructions(count), {"count": count})

        def mapped(number: int) -> None:
            build_table(
                storage.join(folder, f"mapped{number}"), PAIRS, {"from": table_digest(source)},
                lambda: map_table(
                    source, INSTRUCTIONS, PairGenerator, produces=PAIRS, resources=resources, settings=settings
                ),
            )  # fmt: skip

        ratios = [
            _alone(_bare, source, storage.join(folder, f"bare{number}"), settings, resources.batch_size)
            / timed(lambda number=number: mapped(number))
            for number in range(rounds)
        ]
    ray.shutdown()
    say("Ray Data over a bare loop", ratios)


def _bare(source: str, out: str, settings: Pairs, batch_size: int) -> None:
    """The same actor, in a loop of one process."""
    torch.set_num_threads(1)
    actor, rows = PairGenerator(settings), list(read_rows(source, INSTRUCTIONS))

    def made():
        for start in range(0, len(rows), batch_size):
            yield from (row for row in actor(rows[start : start + batch_size]) if isinstance(row, dict))

    write_rows(out, PAIRS, made(), {})


def _alone(act: Callable, *arguments) -> float:
    """Seconds of a fresh process, its imports counted: an actor's are, too."""

    def run() -> None:
        process = multiprocessing.get_context("spawn").Process(target=act, args=arguments)
        process.start()
        process.join()
        if process.exitcode:
            sys.exit(f"{act.__name__} ended with {process.exitcode}")

    return timed(run)


def scale(count: int = 100_000, seconds: float = 0.004) -> None:
    """Throughput by actors on a fifth of the rows, then all of them with a kill at half."""
    start_ray(num_cpus=8, num_gpus=4)
    with tempfile.TemporaryDirectory() as folder:
        few, many = (_numbered(storage.join(folder, f"in{rows}"), rows) for rows in (count // 5, count))
        rates = {}
        for actors in (1, 2, 4):
            took = timed(lambda actors=actors: _asleep(few, storage.join(folder, f"by{actors}"), actors, seconds))
            rates[actors] = count // 5 / took
            floor = actors / seconds
            share = rates[actors] / floor
            print(f"{actors} actors: {rates[actors] / rates[1]:.2f} x one, {share:.2f} of what the sleeping allows")
        out = storage.join(folder, "out")
        address = ray.get_runtime_context().gcs_address
        watched = Watch()
        driver = multiprocessing.get_context("spawn").Process(
            target=_driver, args=(address, many, out, seconds), daemon=True
        )
        started = time.perf_counter()
        driver.start()
        assert driver.pid is not None  # it has been started
        watched.watch(driver.pid)
        while _shards(out) < count / 32 / 2:
            time.sleep(0.2)
        os.kill(driver.pid, signal.SIGKILL)
        driver.join()
        first = time.perf_counter() - started
        watched.stop()
        before = _settled(out)  # the actors of the dead driver write what they have in hand
        began = time.perf_counter()
        threading.Thread(target=_first_new_shard, args=(out, before, began), daemon=True).start()
        second = timed(lambda: _asleep(many, out, 4, seconds))
        print(f"killed after {before} of {count // 32} shards; first and second half took {first / second:.2f} to 1")
        print(f"rows: {sum(1 for _ in read_rows(out, PAIRS, ['pair_id']))} of {count}")
        watched.say()


def _numbered(path: str, count: int) -> str:
    row = instructions(1)[0]
    rows = (row | {"instruction_id": f"i{number:07d}"} for number in range(count))
    write_rows(path, INSTRUCTIONS, rows, {"count": count})
    return path


def _asleep(source: str, out: str, actors: int, seconds: float) -> None:
    resources = Resources(num_actors=actors, num_gpus=1, num_cpus=1, batch_size=32)
    build_table(
        out, PAIRS, {"from": table_digest(source)},
        lambda: map_table(source, INSTRUCTIONS, Sleeper, produces=PAIRS, resources=resources, seconds=seconds),
    )  # fmt: skip


def _driver(address: str, source: str, out: str, seconds: float) -> None:
    os.environ["RAY_ADDRESS"] = address
    start_ray()
    _asleep(source, out, 4, seconds)


def _shards(out: str) -> int:
    data = Path(out) / "data"
    return (
        sum(name.endswith(".parquet") and not name.startswith(".") for name in os.listdir(data)) if data.exists() else 0
    )


def _settled(out: str) -> int:
    """Shards, once none has come for some seconds."""
    seen, since = _shards(out), time.monotonic()
    while time.monotonic() - since < 5:
        time.sleep(0.2)
        if _shards(out) != seen:
            seen, since = _shards(out), time.monotonic()
    return seen


def _first_new_shard(out: str, before: int, began: float) -> None:
    while _shards(out) <= before:
        time.sleep(0.05)
    print(f"resumed: the first new shard came {time.perf_counter() - began:.1f} s after the start of the second driver")


class Watch:
    """Memory of a driver and of the object store, twice a second."""

    def __init__(self) -> None:
        self.resident: list[float] = []
        self.stored: list[float] = []
        self.going = True

    def watch(self, pid: int) -> None:
        self.process = psutil.Process(pid)
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        capacity = ray.cluster_resources()["object_store_memory"]
        while self.going and self.process.is_running():
            self.resident.append(self.process.memory_info().rss / 2**20)
            self.stored.append((capacity - ray.available_resources().get("object_store_memory", capacity)) / 2**20)
            time.sleep(0.5)

    def stop(self) -> None:
        self.going = False

    def say(self) -> None:
        """At a third and at the end of what was watched."""
        for name, values in (("driver", self.resident), ("object store", self.stored)):
            early, late = values[len(values) // 3], values[-1]
            print(f"{name}: {late:.0f} MiB at the end, {late / max(early, 1e-9):.2f} of a third of the way there")


if __name__ == "__main__":
    chosen = sys.argv[1:] or ["sampler", "precision", "ray_data", "scale"]
    for name in chosen:
        print(f"-- {name}")
        {"sampler": sampler, "precision": precision, "ray_data": ray_data, "scale": scale}[name]()
