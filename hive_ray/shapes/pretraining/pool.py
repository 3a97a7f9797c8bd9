"""Pictures of scenes and their edited twins, reconstructed by an autoencoder, to train vision models.

N twins, P patches of a picture
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from hive_ray.images import to_pixels
from hive_ray.shapes.pretraining.autoencoder import as_channels_last, decode, encode
from hive_ray.shapes.pretraining.diffusion import is_thing
from hive_ray.shapes.pretraining.scene_pictures import Twin, scene_and_twin, to_batch
from hive_ray.shapes.scenes import BACKGROUNDS, COLOURS, RADII, RESOLUTION, SHAPES, Scene, draw

PATCH = 8
"""Side of a patch, pixels."""

NAMES = (("nothing", *SHAPES), (*COLOURS, *BACKGROUNDS), ("nothing", *RADII))
"""The names of a patch: shape, colour and size of what it shows."""


class ReconstructionNoise:
    """Reconstructs pictures by the autoencoder, with noise on the latents of things."""

    def __init__(self, vae: str | Path) -> None:
        self.vae: AutoencoderKL = AutoencoderKL.from_pretrained(vae, torch_dtype=torch.float32)
        as_channels_last(self.vae)

    @torch.no_grad()
    def __call__(self, pictures: list[np.ndarray], amounts: list[float], seed: int) -> list[np.ndarray]:
        """amounts: standard deviation of the noise for each picture; the latents of things have a deviation of 1.15."""
        generator = torch.Generator().manual_seed(seed)
        latents = encode(self.vae, to_batch(pictures)).mean
        amount = torch.tensor(amounts, dtype=torch.float32).view(-1, 1, 1, 1) * is_thing(latents)
        noisy = latents + amount * torch.randn(latents.shape, generator=generator)
        return [to_pixels(image) for image in decode(self.vae, noisy)]


class TwinPictures:
    """Twins and their slightly noisy pictures (2 N, 64, 64, 3), scenes and edited scenes alternating; fixed by seed."""

    def __init__(self, vae: Path, size: int, seed: int) -> None:
        rng, wear = np.random.default_rng(seed), ReconstructionNoise(vae)
        self.twins: list[Twin] = [scene_and_twin(rng) for _ in range(size)]
        scenes = [scene for twin in self.twins for scene in twin.scenes]
        self.pictures = np.empty((len(scenes), RESOLUTION, RESOLUTION, 3), np.uint8)
        for start in range(0, len(scenes), 64):
            drawn = [draw(scene) for scene in scenes[start : start + 64]]
            self.pictures[start : start + 64] = wear(drawn, rng.uniform(0, 0.3, len(drawn)).tolist(), seed + start)
        self.names = torch.from_numpy(np.stack([patch_names(scene) for scene in scenes]))


def patch_names(scene: Scene) -> np.ndarray:
    """(P, 3) indices into `NAMES` for the patches of a scene, row by row; a patch on the edge of a thing shows it."""
    side = RESOLUTION // PATCH
    y, x = np.meshgrid(*[PATCH * (np.arange(side) + 0.5)] * 2, indexing="ij")
    names = np.zeros((side, side, 3), np.int64)
    names[..., 1] = NAMES[1].index(scene.description.background)
    for thing, where in zip(scene.description.things, scene.places, strict=True):
        shown = np.hypot(x - where.x, y - where.y) < where.radius + 1
        words = (thing.shape, thing.colour, thing.size)
        names[shown] = [known.index(word) for known, word in zip(NAMES, words, strict=True)]
    return names.reshape(side * side, 3)


class PatchNaming(torch.nn.Module):
    """Predicts what each patch shows from its token: an auxiliary loss with which a ViT learns in a few hundred steps.

    Used only in training. Captions say little about where things are, and a contrastive loss learns it late.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(width)
        self.heads = torch.nn.ModuleList(torch.nn.Linear(width, len(known)) for known in NAMES)

    def loss(self, tokens: Tensor, names: Tensor) -> Tensor:
        """tokens (B, 1 + P, D), with the class token first; names (B, P, 3) -> mean cross entropy."""
        patches = self.norm(tokens[:, 1:]).flatten(0, 1)
        losses = [
            torch.nn.functional.cross_entropy(head(patches), names[..., place].flatten())
            for place, head in enumerate(self.heads)
        ]
        return torch.stack(losses).mean()
