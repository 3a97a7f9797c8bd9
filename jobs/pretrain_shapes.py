"""How hive_ray/shapes/weights came to be, again from nothing and with fixed seeds.

    scenes -> base (autoencoder, text encoder, U-Net), clip, blip, editor

The base, the CLIP and the BLIP learn from drawn scenes and their words. The editor stands for published InstructPix2Pix
weights: the base, fine-tuned by `train_editor` itself on drawn pairs. The judge only measures the result.
Started again, it keeps the parts that are whole.
"""

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro

from hive_ray.config import SHAPES_WEIGHTS, Config, Resources, shapes
from hive_ray.distributed.cluster import start_ray
from hive_ray.distributed.mapping import map_table
from hive_ray.distributed.tables import build_table, table_digest
from hive_ray.editor.model import Editor
from hive_ray.images import to_pixels
from hive_ray.pairs.generation import TextToImage
from hive_ray.schemas import INSTRUCTIONS, PAIRS
from hive_ray.seeds import generator_for
from hive_ray.shapes import judge, pretraining
from hive_ray.shapes.actors import PairPainter, random_captions
from hive_ray.shapes.pretraining import TextToImageModel
from jobs import train_editor, write_instructions
from jobs.run import Run, fingerprint


@dataclass(frozen=True)
class Pretraining:
    """Sizes of each part's training; the defaults made what is shipped."""

    out: Path = SHAPES_WEIGHTS
    work: Path = Path("runs/pretrain_shapes")
    autoencoder_steps: int = 4000
    base_steps: tuple[int, ...] = (4500, 2000)
    base_pool: int = 6000
    clip_steps: int = 360
    blip_steps: int = 1500
    editor_captions: int = 12_000
    editor_images: int = 120_000
    threads: int = 2
    rebuild: bool = False
    """Make again what is there already."""


def make_autoencoder(settings: Pretraining) -> None:
    pretraining.train_autoencoder(settings.work / "vae", num_steps=settings.autoencoder_steps, seed=1, say=say)


def make_base(settings: Pretraining) -> None:
    """One cosine after the other, each from what the last one saved."""
    base = settings.out / "base"
    for cycle, num_steps in enumerate(settings.base_steps):
        model = TextToImageModel.load(base) if cycle else TextToImageModel.from_nothing(settings.work / "vae", seed=2)
        pretraining.train_text_to_image(
            model, base, num_steps=num_steps, single_things=0.0 if cycle else 0.2, pool=settings.base_pool,
            seed=2 + 100 * cycle, say=say,
        )  # fmt: skip
    adherence = measure_adherence(base)
    say(f"base: caption adherence {adherence:.3f} on 500 unseen captions")
    (base / "adherence.json").write_text(json.dumps({"captions": 500, "adherence": adherence}))


def make_clip(settings: Pretraining) -> None:
    tokenizer = settings.out / "base" / "tokenizer"
    pretraining.train_clip(settings.out / "clip", tokenizer, num_steps=settings.clip_steps, seed=3, say=say)


def make_blip(settings: Pretraining) -> None:
    tokenizer = settings.out / "base" / "tokenizer"
    pretraining.train_blip(settings.out / "blip", tokenizer, num_steps=settings.blip_steps, seed=5, say=say)


def make_editor(settings: Pretraining) -> None:
    """The base fine-tuned on drawn pairs through the project's own stages, stored in half precision."""
    start_ray()
    run = Run(str(settings.work.absolute()), editor_config(settings), "rebuild")
    write_instructions.build(run)
    build_pairs(run)
    train_editor.build(run, "sft")
    editor = Editor.load(run.path("editors/sft"))
    card = editor.card.model_copy(update={"base_model": "hive_ray shapes base"})
    editor.save(settings.out / "editor", card, dtype=torch.float16)


def editor_config(settings: Pretraining) -> Config:
    """The shapes preset with more captions and a longer training, from the base."""
    config = shapes()
    sft = config.editor.sft.model_copy(
        update={"total_images": settings.editor_images, "checkpoint_images": 20_000, "learning_rate": 1e-3,
                "batch_size": 32, "micro_batch_size": 16, "ema_decay": 0.999}
    )  # fmt: skip
    instructions = config.instructions.model_copy(
        update={"num_captions": settings.editor_captions, "rank_rate": 0.0, "test_rate": 0.0, "seed": 4}
    )
    editor = config.editor.model_copy(update={"start": str(settings.out / "base"), "sft": sft})
    return config.model_copy(update={"instructions": instructions, "editor": editor})


def build_pairs(run: Run) -> None:
    """Drawn pairs in place of Prompt-to-Prompt's."""
    settings, instructions = run.config.pairs, run.path("instructions")
    build_table(
        run.path("pairs"),
        PAIRS,
        fingerprint(settings.model_copy(update={"base": "", "clip": ""}), instructions=table_digest(instructions)),
        lambda: map_table(
            instructions, INSTRUCTIONS, PairPainter, produces=PAIRS, resources=Resources(num_gpus=0, num_actors=2),
            rows_per_shard=256, settings=settings,
        ),
        on_mismatch=run.on_mismatch,
    )  # fmt: skip


def measure_adherence(base: Path, count: int = 500) -> float:
    """Mean of the judge's caption adherence over captions that no training drew; 0..1."""
    model, captions = TextToImage(base), random_captions(count, seed=99)
    scores: list[float] = []
    for start in range(0, count, 50):
        words = captions[start : start + 50]
        noise = model.noise([generator_for("adherence", caption) for caption in words], resolution=64)
        scale = torch.full((len(words),), 3.5)
        images = model.draw(words, noise, guidance_scale=scale, num_inference_steps=16)
        scores += [judge.adherence(to_pixels(image), caption) for image, caption in zip(images, words, strict=True)]
    return float(np.mean(scores))


PARTS = {
    "autoencoder": make_autoencoder,
    "base": make_base,
    "clip": make_clip,
    "blip": make_blip,
    "editor": make_editor,
}


def last_file(part: str, settings: Pretraining) -> Path:
    """What is written last of a part: where it is, the part is whole."""
    return {
        "autoencoder": settings.work / "vae" / "config.json",
        "base": settings.out / "base" / "adherence.json",
        "clip": settings.out / "clip" / "tokenizer_config.json",
        "blip": settings.out / "blip" / "tokenizer_config.json",
        "editor": settings.out / "editor" / "card.json",
    }[part]


def main(settings: Pretraining) -> None:
    """Make the parts in order, each needing those before it; what is whole is kept."""
    torch.set_num_threads(settings.threads)
    for part, make in PARTS.items():
        done = last_file(part, settings)
        if done.exists() and not settings.rebuild:
            say(f"{part}: kept ({done.parent} is whole)")
            continue
        start = time.monotonic()
        shutil.rmtree(done.parent, ignore_errors=True)
        make(settings)
        say(f"{part}: made in {(time.monotonic() - start) / 60:.0f} minutes")


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main(tyro.cli(Pretraining))
