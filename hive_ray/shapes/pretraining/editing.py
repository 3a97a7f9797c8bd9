"""Train the editor of this domain together with its base: one U-Net learns to edit and to draw.

A batch holds edits (the source's latents and an instruction) and captions (zero latents, which mean that there is no
source). The U-Net is the editor; without the input channels of the source it is the base. The editor is also trained
with the quality phrase after instructions. Otherwise the phrase would disturb it, and fine-tuning would first have to
learn to ignore that.

R rows of a batch
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from hive_ray.diffusion.noising import add_noise, velocity
from hive_ray.shapes.pretraining.diffusion import TextToImageModel, degraded_sample, differs, is_thing, loss_weight
from hive_ray.shapes.pretraining.scene_pictures import degrade, scene_and_twin
from hive_ray.shapes.pretraining.steps import Say, train_with_ema
from hive_ray.shapes.pretraining.words import MAX_TOKENS, with_quality
from hive_ray.shapes.scenes import draw, random_description


@dataclass(frozen=True)
class BatchComposition:
    """Number of rows of each task in a batch."""

    edits: int
    graded: int
    """Edits whose result is degraded to the level in the quality phrase after their instruction."""
    captions: int
    degraded: int
    """Degraded pictures, and captions with the quality phrase."""


BOTH_TASKS = BatchComposition(edits=42, graded=0, captions=20, degraded=2)
WITH_PHRASE = BatchComposition(edits=32, graded=24, captions=6, degraded=2)

KIND_RATES = {
    "recolour": 0.5, "reshape": 0.8, "add": 1.0, "remove": 1.0, "background": 0.4, "swap": 1.0, "resize": 0.6,
}  # fmt: skip
"""Share of the drawn edits of each kind that is kept. Edits that draw a new thing take longest to learn."""

DROP_RATE = 0.05
"""Share of rows that lose their text; equal shares lose their image, and both (InstructPix2Pix)."""


class TwinPool:
    """A pool of latents of scenes and their edited twins, and tokens of their four texts, renewed every step."""

    def __init__(self, model: TextToImageModel, size: int, rng: np.random.Generator) -> None:
        self.model = model
        self.size = size
        self.rng = rng
        self.oldest = 0
        self.latents = torch.empty(size, 2, 4, 8, 8)
        self.tokens = torch.empty(size, 4, MAX_TOKENS, dtype=torch.long)

    def renew(self, count: int) -> None:
        """Replace the `count` oldest twins by new ones."""
        twins = [scene_and_twin(self.rng, KIND_RATES) for _ in range(count)]
        places = torch.arange(self.oldest, self.oldest + count) % self.size
        self.oldest += count
        pictures = [draw(scene) for twin in twins for scene in twin.scenes]
        self.latents[places] = self.model.encode(pictures).unflatten(0, (count, 2))
        texts = [text for twin in twins for text in twin.texts]
        self.tokens[places] = self.model.tokenize(texts).unflatten(0, (count, 4))


def degraded_pool(model: TextToImageModel, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Latents (size, 4, 8, 8) of degraded pictures, and tokens of captions with the quality phrase."""
    pictures, texts = zip(*(degraded_sample(random_description(rng), rng) for _ in range(size)), strict=True)
    return encoded(model, list(pictures)), model.tokenize(list(texts))


def graded_pool(model: TextToImageModel, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Latents (size, 4, 8, 8) of degraded edited pictures and of their sources, and tokens."""
    edited = []
    sources = []
    texts = []
    for _ in range(size):
        twin, level = scene_and_twin(rng, KIND_RATES), int(rng.integers(1, 6))
        before, after = twin.scenes
        sources.append(draw(before))
        edited.append(degrade(draw(after), level, rng))
        texts.append(with_quality(twin.texts[2], level))
    return encoded(model, edited), encoded(model, sources), model.tokenize(texts)


def encoded(model: TextToImageModel, pictures: list[np.ndarray]) -> Tensor:
    """Latents (N, 4, 8, 8) of many pictures, 64 at a time."""
    return torch.cat([model.encode(pictures[start : start + 64]) for start in range(0, len(pictures), 64)])


def edit_weight(edited: Tensor, source: Tensor) -> Tensor:
    """Loss weight (R, 1, h, w) of latents (R, C, h, w): five times higher at things and at changes.

    Unchanged things must weigh as much as changes; otherwise "remove the star" removes everything.
    """
    return loss_weight(torch.maximum(differs(edited, source), is_thing(edited)))


def train_editing(
    model: TextToImageModel,
    *,
    num_steps: int,
    pool: int,
    seed: int,
    say: Say,
    save: Callable[[], None],
    phrased: int = 3000,
    rows: BatchComposition = BOTH_TASKS,
    lr: float = 1e-3,
) -> None:
    """Train `model`, whose U-Net also reads the source's latents, on both tasks; it ends with averaged weights.

    Batches are drawn from `pool` twins, which are renewed, and from `phrased` pictures of each task with the quality
    phrase. `save` is called every 500 steps and at the end, with averaged weights in the model.
    """
    torch.manual_seed(seed)
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    twins, (harmed_latents, harmed_tokens) = TwinPool(model, pool, rng), degraded_pool(model, phrased, rng)
    graded_latents, graded_sources, graded_tokens = graded_pool(model, phrased if rows.graded else 1, rng)
    for _ in range(0, pool, 50):
        twins.renew(50)
    with_source, without = rows.edits + rows.graded, rows.captions + rows.degraded
    empty, num_rows = model.tokenize([""]), with_source + without
    scale = model.vae.config["scaling_factor"]

    def chosen(size: int, count: int) -> Tensor:
        return torch.from_numpy(rng.integers(0, size, count))

    def batch() -> tuple[Tensor, Tensor, Tensor]:
        """Unscaled target and source latents (R, 4, 8, 8), and tokens (R, MAX_TOKENS)."""
        edit, caption = chosen(pool, rows.edits + rows.captions).split([rows.edits, rows.captions])
        # 0 edits a scene to its twin, 1 edits the twin back.
        start, shown = chosen(2, rows.edits + rows.captions).split([rows.edits, rows.captions])
        drawn, graded = chosen(len(harmed_latents), rows.degraded), chosen(len(graded_latents), rows.graded)
        target = [
            twins.latents[edit, 1 - start], graded_latents[graded],
            twins.latents[caption, shown], harmed_latents[drawn],
        ]  # fmt: skip
        source = [twins.latents[edit, start], graded_sources[graded], torch.zeros(without, 4, 8, 8)]
        words = [
            twins.tokens[edit, 2 + start], graded_tokens[graded],
            twins.tokens[caption, shown], harmed_tokens[drawn],
        ]  # fmt: skip
        return torch.cat(target), torch.cat(source), torch.cat(words)

    def loss_of(step: int) -> Tensor:
        twins.renew(4)
        target, source, words = batch()
        dropped = torch.rand(num_rows, generator=generator)
        latents = target * scale
        drawn_weight = loss_weight(is_thing(latents[with_source:]))
        weight = torch.cat([edit_weight(latents[:with_source], source[:with_source] * scale), drawn_weight])
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = torch.randint(0, 1000, (num_rows,), generator=generator)
        words = torch.where((dropped < 2 * DROP_RATE)[:, None], empty, words)
        no_image = (dropped >= DROP_RATE) & (dropped < 3 * DROP_RATE)
        noisy = add_noise(model.scheduler, latents, noise, timesteps)
        condition = source.masked_fill(no_image.view(-1, 1, 1, 1), 0)
        inputs = torch.cat([noisy, condition], 1).contiguous(memory_format=torch.channels_last)
        predicted = model.unet(inputs, timesteps, model.text_encoder(words).last_hidden_state).sample
        return (weight * (predicted - velocity(model.scheduler, latents, noise, timesteps)).square()).mean()

    parameters = [*model.unet.parameters(), *model.text_encoder.parameters()]
    train_with_ema("editing", parameters, loss_of, num_steps=num_steps, lr=lr, say=say, save=save)


def without_source(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """The text-to-image U-Net inside an editor: equal to it for zero source latents."""
    channels = unet.config["in_channels"] // 2
    base = cast(UNet2DConditionModel, UNet2DConditionModel.from_config({**unet.config, "in_channels": channels}))
    weights = unet.state_dict()
    base.load_state_dict(weights | {"conv_in.weight": weights["conv_in.weight"][:, :channels]})
    return base
