"""Training the editor: against diffusers' script, against a bare loop, and in memory by ZeRO stage.

python -m bench.training script      what diffusers' train_instruct_pix2pix.py does each step, against our training
python -m bench.training ray_train   the same step in a bare torch loop, against Ray Train and DeepSpeed
python -m bench.training start       how long a training takes before its first step and after its last
python -m bench.training compiled    that step through torch.compile, against itself as it is
python -m bench.training memory      two workers at each ZeRO stage, beside the formula

Whatever is compared runs on the same machine in turns, in slices of a few seconds (slices.py) or whole, with the same
rows, network, batch and precision; on a CPU each side has all of its cores.
"""

import itertools
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import psutil
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel
from torch import nn

from bench.ratios import say
from bench.slices import in_slices
from hive_ray.artifacts.building import write_rows
from hive_ray.artifacts.selection import read_rows
from hive_ray.cluster.starting import start_ray
from hive_ray.config import Config, Resources, Training, Watching
from hive_ray.config import Editor as EditorSettings
from hive_ray.diffusion.noising import add_noise
from hive_ray.editor.latents import PICTURE_COLUMNS, LatentEncoder
from hive_ray.editor.model import Editor
from hive_ray.editor.objective import EditorObjective
from hive_ray.images import encode, resize, to_batch
from hive_ray.presets import shapes
from hive_ray.schemas import PAIRS, Row, Rows
from hive_ray.seeds import generator_for
from hive_ray.shapes.pretraining.scene_pictures import scene_and_twin
from hive_ray.shapes.scenes import draw
from hive_ray.training.engine import (
    AUTOCAST_DTYPES,
    BUCKET_SIZE,
    BYTES_PER_WEIGHT,
    autocast,
    estimate_memory,
    start_engine,
)
from hive_ray.training.prefetching import to_device
from hive_ray.training.weights import WeightAverage
from jobs import encode_latents, train_editor
from jobs.run import Run
from tests.gloo import in_workers

ROUNDS = 2
CORES = 2
BATCH = 32
IMAGES = 4800
WEIGHTS = 100_000_000
"""Trained weights of the network whose memory is measured."""
RETURNS_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
"""What has glibc's allocator keep nothing that is not in use: up to 0.9 GB, which would be measured too."""
Loop = Callable[[str, EditorSettings], Iterator[int]]
"""A loop over the pairs of a folder that yields how many images it has seen, after each step."""


def settings(*, workers: int, latents: str = "fp32", zero_stage: int = 0) -> Config:
    """One training of the shapes preset on all cores."""
    cores = Resources(num_actors=workers, num_cpus=CORES // workers, num_gpus=0)
    return one_training(shapes(), cores, latents=latents, zero_stage=zero_stage)


def one_training(preset: Config, workers: Resources, *, latents: str, **changes: Any) -> Config:
    """A preset with a frozen text encoder, as diffusers' script has it, and nothing to look at on the way."""
    defaults = {
        "total_images": IMAGES, "batch_size": BATCH, "micro_batch_size": BATCH // workers.num_actors,
        "workers": workers, "warmup_images": 0, "schedule": "constant", "validation_rows": 0,
        "watching": Watching(tracker="none"),
    }  # fmt: skip
    training = preset.editor.sft.model_copy(update=defaults | changes)
    training = training.model_copy(update={"checkpoint_images": 10 * training.total_images})
    editor = {"train_text_encoder": False, "sft": training, "latents": latents}
    return preset.model_copy(update={"editor": preset.editor.model_copy(update=editor)})


def write_pairs(folder: str, count: int = 512, side: int = 64) -> None:
    """<folder>/pairs: drawn scenes of side x side pixels, and edits of them."""
    rng = np.random.default_rng(0)

    def row(number: int) -> dict[str, Any]:
        twin = scene_and_twin(rng)
        source, edited = (encode(resize(draw(scene), side)) for scene in twin.scenes)
        return {
            "pair_id": f"{number:06d}", "instruction_id": f"{number:06d}", "instruction": twin.texts[2],
            "source_caption": twin.texts[0], "edited_caption": twin.texts[1], "source_image": source,
            "edited_image": edited, "weight": 1.0, "seed": number, "shared_attention": 0.0, "clip_image": 0.0,
            "clip_source_text": 0.0, "clip_edited_text": 0.0, "clip_direction": 0.0, "origin": "generated",
            "split": "train",
        }  # fmt: skip

    write_rows(f"{folder}/pairs", PAIRS, (row(number) for number in range(count)), {"count": count})


def script() -> None:
    """Images/s of our training, pictures encoded in each step and once, over a loop as diffusers' script."""
    with tempfile.TemporaryDirectory() as folder:
        write_pairs(folder)
        for workers, changes in (
            (1, {"latents": "fp32"}),
            (1, {"latents": "none"}),
            (CORES, {"latents": "fp32"}),
            (CORES, {"latents": "fp32", "zero_stage": 2}),
        ):
            each = [_over(diffusers_loop, folder, workers=workers, **changes) for _ in range(ROUNDS)]
            say(f"{workers} workers, {changes}: images/s over the script's loop", each)


def ray_train() -> None:
    """Images/s through Ray Train and DeepSpeed over a bare loop of the same step."""
    with tempfile.TemporaryDirectory() as folder:
        write_pairs(folder)
        for stage in (0, 2):
            each = [_over(bare_loop, folder, workers=1, zero_stage=stage) for _ in range(ROUNDS)]
            say(f"one worker, ZeRO {stage}, over the bare loop", each)


def start() -> None:
    """Seconds of a training that are no steps: workers, imports, the model, its folder."""
    with tempfile.TemporaryDirectory() as folder:
        write_pairs(folder)
        start_ray(num_cpus=CORES)
        began = time.perf_counter()
        marks = our_training(folder, settings(workers=1, latents="none"))
        took = time.perf_counter() - began
        print(f"start and end: {took - marks[-1][1]:.1f} s of {took:.1f} s", flush=True)


def _over(loop: Loop, folder: str, **changes: Any) -> float:
    """Images/s of our training over a loop's, which has the same settings but for the latents, workers and ZeRO."""
    rates = in_slices(
        partial(our_training, folder, settings(**changes)),
        partial(timed_loop, loop, folder, settings(workers=1).editor),
    )
    return rates[0] / rates[1]


def our_training(folder: str, config: Config) -> list[tuple[int, float]]:
    """`train_editor` as users run it: images, and seconds since its first step began."""
    out = tempfile.mkdtemp(dir=folder)
    os.symlink(f"{folder}/pairs", f"{out}/pairs")
    run = Run(out, config)
    start_ray(num_cpus=CORES)
    if run.config.editor.latents != "none":
        encode_latents.build(run)
    train_editor.build(run)
    lines = Path(out, "metrics", "editors", "sft.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    return [(step["images"], step["images"] / step["train/images_per_second"]) for step in steps if step["images"]]


def timed_loop(loop: Loop, folder: str, editor_settings: EditorSettings) -> Iterator[tuple[int, float]]:
    """A loop that yields images seen, with all cores, and when it did."""
    torch.set_num_threads(CORES)
    for images in loop(folder, editor_settings):
        yield images, time.perf_counter()


def device_of(editor_settings: EditorSettings) -> str:
    """Where its training takes place."""
    return "cuda" if editor_settings.sft.workers.num_gpus else "cpu"


def diffusers_loop(folder: str, editor_settings: EditorSettings) -> Iterator[int]:
    """The loop of diffusers' train_instruct_pix2pix.py: both pictures and the text encoded in each step, EMA in each.

    Own words; its defaults but for the batch: AdamW, gradient norm 1, one draw for both conditions, EMAModel. Networks
    and pictures are contiguous, as from_pretrained and its collate_fn leave them; what is frozen is in the precision of
    the training.
    """
    device = device_of(editor_settings)
    editor = Editor.build(editor_settings.start)
    unet: Any = editor.unet.train()  # untyped: torch and diffusers type this use of `to` wrongly
    vae: Any = editor.vae
    unet.to(memory_format=torch.contiguous_format)
    vae.to(memory_format=torch.contiguous_format)
    frozen = getattr(torch, AUTOCAST_DTYPES.get(editor_settings.sft.precision, "float32"))
    unet, vae, text = unet.to(device), vae.to(device, frozen), editor.text.requires_grad_(False).to(device, frozen)
    scheduler = cast(DDPMScheduler, DDPMScheduler.from_config(editor.scheduler.config))
    optimizer = torch.optim.AdamW(unet.parameters(), lr=editor_settings.sft.learning_rate)
    average = EMAModel(unet.parameters(), model_cls=type(unet), model_config=unet.config)
    rows = list(read_rows(f"{folder}/pairs", PAIRS))
    for start in itertools.count(step=BATCH):
        batch = [rows[place % len(rows)] for place in range(start, start + BATCH)]
        source, edited = (
            to_batch([row[name] for row in batch], editor_settings.resolution) for name in PICTURE_COLUMNS
        )
        flips = torch.rand(BATCH, 1, 1, 1) < 0.5
        source, edited = (torch.where(flips, one.flip(-1), one).to(device, frozen) for one in (source, edited))
        with torch.no_grad():
            latents = vae.encode(edited).latent_dist.sample() * vae.config.scaling_factor
            condition = vae.encode(source).latent_dist.mode()
            states = text.encode([row["instruction"] for row in batch]).sequence
            null = text.encode([""]).sequence
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, scheduler.config["num_train_timesteps"], (BATCH,), device=device)
        noisy = add_noise(scheduler, latents, noise, timesteps)
        place = torch.rand(BATCH, device=device).view(BATCH, 1, 1)
        states = torch.where(place < 2 * editor_settings.condition_dropout, null, states)
        place = place.view(BATCH, 1, 1, 1)
        kept = (place < editor_settings.condition_dropout) | (place >= 3 * editor_settings.condition_dropout)
        with autocast(editor_settings.sft):
            predicted = unet(torch.cat([noisy, kept * condition], dim=1), timesteps, states).sample
        loss = torch.nn.functional.mse_loss(predicted.float(), noise.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(unet.parameters())
        loss.item()
        yield start + BATCH


def compiled() -> None:
    """Images/s of the bare step through torch.compile over the same without, and how long it takes to compile."""
    with tempfile.TemporaryDirectory() as folder:
        write_pairs(folder)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            pool.apply(_in_turns, (folder,))


def _in_turns(folder: str, blocks: int = 12, steps: int = 3) -> None:
    """Both in one process, a few steps at a time each: what else this machine does then meets both alike."""
    torch.set_num_threads(CORES)
    editor_settings = settings(workers=1).editor
    sides = {compiles: bare_loop(folder, editor_settings, compiles=compiles) for compiles in (False, True)}
    first = {compiles: _seconds(side, 1) for compiles, side in sides.items()}
    print(f"  first step: {first[True]:.0f} s compiled, {first[False]:.1f} s as it is", flush=True)
    ratios = []
    for block in range(blocks):
        order = (False, True) if block % 2 else (True, False)
        took = {compiles: _seconds(sides[compiles], steps) for compiles in order}
        ratios.append(took[False] / took[True])
    say("torch.compile over the step as it is", ratios)


def _seconds(loop: Iterator[int], steps: int) -> float:
    started = time.perf_counter()
    for _ in range(steps):
        next(loop)
    return time.perf_counter() - started


def bare_loop(folder: str, editor_settings: EditorSettings, *, compiles: bool = False) -> Iterator[int]:
    """Our step in a plain loop: the same objective on the same latents, AdamW, clipping and average. Beside a GPU, too,
    each batch is prepared when the one before is done."""
    rows = _with_latents(Path(folder), editor_settings)
    objective = EditorObjective(Editor.build(editor_settings.start), editor_settings)
    model = objective.model.train().to(device_of(editor_settings))
    if compiles:
        model.compile()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(
        weights, lr=editor_settings.sft.learning_rate, weight_decay=editor_settings.sft.weight_decay, fused=True
    )
    average = WeightAverage(model, editor_settings.sft.ema_decay)
    for start in itertools.count(step=BATCH):
        batch = [rows[place % len(rows)] for place in range(start, start + BATCH)]
        prepared = to_device(next(model.parameters()).device, objective.prepare(batch, generator_for(start)))
        with autocast(editor_settings.sft):
            loss, _ = objective.loss(model, prepared)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, editor_settings.sft.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        average.update()
        loss.item()
        yield start + BATCH


def _with_latents(folder: Path, editor_settings: EditorSettings) -> Rows:
    """Rows as training reads them where latents are encoded once."""
    rows = list(read_rows(str(folder / "pairs"), PAIRS))
    encode_all = LatentEncoder(editor_settings.start, editor_settings, device_of(editor_settings))
    encoded: list[Row] = []
    for start in range(0, len(rows), 64):
        encoded += [row for row in encode_all(rows[start : start + 64]) if isinstance(row, dict)]
    return [row | latents for row, latents in zip(rows, encoded, strict=True)]


@patch.dict(os.environ, RETURNS_MEMORY)  # read by the workers' C library when they start
def memory() -> None:
    """Resident memory of a worker of two beyond what it held before the network: after a step, at most; the formula."""
    print("stage  after a step  formula of what stays  ratio      at most    formula  ratio")
    for stage in (0, 1, 2, 3):
        changes = {"zero_stage": stage}
        both = in_workers(2, resident, changes)
        after, most = (max(one[place] for one in both) / 1e6 for place in (0, 1))
        estimate = estimate_memory(WEIGHTS, 0, wide_settings(changes))["device"]
        full = sum(estimate.values()) / 1e6
        stays = full - (estimate["gradients"] + estimate["buffers"]) / 1e6
        if stage == 3:  # DeepSpeed keeps its part of the gradients, and a bucket
            stays += (estimate["gradients"] + BYTES_PER_WEIGHT * BUCKET_SIZE) / 1e6
        print(
            f"{stage:>5}  {after:>9.0f} MB  {stays:>18.0f} MB  {after / stays:>5.2f}  {most:>8.0f} MB  {full:>6.0f} MB"
            f"  {most / full:>5.2f}",
            flush=True,
        )


def wide_settings(changes: dict[str, Any]) -> Training:
    return settings(workers=2).editor.sft.model_copy(update=changes)


def resident(rank: int, world: int, changes: dict[str, Any]) -> tuple[int, int]:
    """Bytes after three steps, and at most, less those before the network was made."""
    side, training = 1000, wide_settings(changes)
    x = torch.randn(training.micro_batch_size, side)
    before = psutil.Process().memory_info().rss
    model = torch.nn.Sequential(*(torch.nn.Linear(side, side, bias=False) for _ in range(WEIGHTS // side**2)))
    engine = start_engine(model, training)
    average = WeightAverage(cast(nn.Module, engine.module), training.ema_decay)
    for _ in range(3):
        engine.backward(engine(x).square().mean())
        engine.step()
        average.update()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return psutil.Process().memory_info().rss - before, most - before


if __name__ == "__main__":
    benches = {"script": script, "ray_train": ray_train, "start": start, "compiled": compiled, "memory": memory}
    for name in sys.argv[1:] or benches:
        print(f"-- {name}")
        benches[name]()
