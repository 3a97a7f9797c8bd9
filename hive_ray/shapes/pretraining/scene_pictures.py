"""Training pictures: crowded scenes, degraded pictures, and scenes with their edited twins."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from hive_ray.shapes.edits import apply_edit, write_edits
from hive_ray.shapes.scenes import Scene, draw, place_things, random_description


def crowded_scenes(seed: int) -> Iterator[np.ndarray]:
    """Yield an endless sequence of pictures uint8 (64, 64, 3), fixed by the seed; most show three things."""
    rng = np.random.default_rng(seed)
    while True:
        yield draw(place_things(random_description(rng, int(rng.choice([1, 2, 3], p=[0.1, 0.3, 0.6]))), rng))


def to_batch(pictures: list[np.ndarray]) -> Tensor:
    """uint8 pictures -> float (B, 3, 64, 64) in -1..1."""
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    return pixels.float() / 127.5 - 1


def degrade(picture: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Degrade a picture to `level` 1 (worst) to 4 by blur, noise, colour cast and misplaced blocks; 5 is unchanged."""
    harm = (5 - level) / 4
    if harm == 0:
        return picture
    image = Image.fromarray(picture).filter(ImageFilter.GaussianBlur(3.0 * harm * rng.random()))
    pixels = np.asarray(image).astype(np.float32)
    pixels += rng.normal(0, 30 * harm, 3) * rng.random() + rng.normal(0, 40 * harm * rng.random(), pixels.shape)
    for _ in range(int(rng.integers(0, 1 + round(4 * harm)))):
        size, (y, x, v, u) = int(rng.integers(6, 16)), rng.integers(0, 48, 4)
        pixels[y : y + size, x : x + size] = pixels[v : v + size, u : u + size]
    return pixels.clip(0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Twin:
    """A random scene, the scene after an edit, and four texts about them."""

    scenes: tuple[Scene, Scene]
    texts: tuple[str, str, str, str]
    """Caption, edited caption, instruction, inverse instruction."""


def scene_and_twin(rng: np.random.Generator, rates: dict[str, float] | None = None) -> Twin:
    """A random scene and its edited twin. `rates` gives the share that is kept for each kind of edit; default all."""
    while True:
        scene = place_things(random_description(rng), rng)
        edit = write_edits(scene.description.caption, 1, rng)[0]
        edited = apply_edit(scene, edit.edited, rng)
        if edited is not None and (rates is None or rng.random() < rates[edit.kind]):
            captions = (scene.description.caption, edit.edited.caption)
            return Twin((scene, edited), (*captions, edit.instruction, edit.inverse_instruction))
