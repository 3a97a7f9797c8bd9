"""The base: a text-to-image model of this domain, trained from scratch on the latents of its autoencoder."""

from copy import deepcopy
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models import Transformer2DModel
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from hive_ray.diffusion.noising import add_noise, velocity
from hive_ray.files.model_folders import forget_origin
from hive_ray.shapes.edits import write_edits
from hive_ray.shapes.pretraining.autoencoder import as_channels_last, bias_of, encode
from hive_ray.shapes.pretraining.scene_pictures import degrade, to_batch
from hive_ray.shapes.pretraining.steps import Say, train_with_ema
from hive_ray.shapes.pretraining.words import MAX_TOKENS, shapes_tokenizer, with_quality
from hive_ray.shapes.scenes import COLOURS, SHAPES, Description, draw, place_things, random_description


def random_sample(rng: np.random.Generator, num_things: int | None) -> tuple[np.ndarray, str]:
    """A random picture and its text.

    The text is mostly a caption. Instructions and quality phrases are included, so that the text encoder knows their
    words before an editor is trained. `num_things` None draws one to three; crowded scenes are more frequent than in
    practice, since they are harder.
    """
    num_things = num_things or int(rng.choice([1, 2, 3], p=[0.25, 0.4, 0.35]))
    description = random_description(rng, num_things)
    kind = rng.choice(["caption", "instruction", "both", "quality"], p=[0.8, 0.06, 0.06, 0.08])
    if kind == "caption":
        return draw(place_things(description, rng)), description.caption
    if kind == "quality":
        return degraded_sample(description, rng)
    edit = write_edits(description.caption, 1, rng)[0]
    text = edit.instruction if kind == "instruction" else f"{description.caption}, {edit.instruction}"
    return draw(place_things(edit.edited, rng)), text


def degraded_sample(description: Description, rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """A picture of a description, degraded to a random level, and its caption with the quality phrase of that level."""
    level = int(rng.integers(1, 6))
    return degrade(draw(place_things(description, rng)), level, rng), with_quality(description.caption, level)


class SamplePool:
    """A pool of latents and tokens to draw batches from, which is renewed step by step."""

    def __init__(self, model: "TextToImageModel", size: int, rng: np.random.Generator) -> None:
        self.model = model
        self.size = size
        self.rng = rng
        self.oldest = 0
        self.latents = torch.empty(size, 4, 8, 8)
        self.tokens = torch.empty(size, MAX_TOKENS, dtype=torch.long)

    def renew(self, count: int, num_things: int | None) -> None:
        """Replace the `count` oldest pictures by new ones; `num_things` None draws one to three."""
        pictures, texts = zip(*(random_sample(self.rng, num_things) for _ in range(count)), strict=True)
        places = torch.arange(self.oldest, self.oldest + count) % self.size
        self.oldest += count
        self.latents[places], self.tokens[places] = self.encoded(list(pictures), list(texts))

    def encoded(self, pictures: list[np.ndarray], texts: list[str]) -> tuple[Tensor, Tensor]:
        """Scaled latents (N, 4, 8, 8) and token ids (N, MAX_TOKENS)."""
        return self.model.encode(pictures) * self.model.vae.config["scaling_factor"], self.model.tokenize(texts)


def differs(latents: Tensor, others: Tensor) -> Tensor:
    """(B, 1, h, w): 1 where latents (B, C, h, w) clearly differ from `others`, else 0."""
    return ((latents - others).abs().amax(1, keepdim=True) > 0.35).float()


def is_thing(latents: Tensor) -> Tensor:
    """(B, 1, h, w): 1 where latents (B, C, h, w) show a thing, 0 on plain background."""
    return differs(latents, latents.flatten(2).median(-1).values[..., None, None])


def loss_weight(places: Tensor) -> Tensor:
    """Loss weights of a 0/1 mask: 2.0 where it is 1, and 0.4 where it is 0."""
    return 0.4 + 1.6 * places


@torch.no_grad()
def zero_residual_branches(unet: UNet2DConditionModel) -> None:
    """Initialise all residual branches and the output to zero (Dhariwal and Nichol 2021), which trains faster."""
    for module in unet.modules():
        if isinstance(module, ResnetBlock2D):
            module.conv2.weight.zero_()
        elif isinstance(module, Transformer2DModel):
            module.proj_out.weight.zero_()
    nn.init.zeros_(unet.conv_out.weight)
    nn.init.zeros_(bias_of(unet.conv_out))


@dataclass
class TextToImageModel:
    """The trained parts (U-Net and text encoder) and the fixed parts (autoencoder, tokenizer, scheduler)."""

    vae: AutoencoderKL
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    scheduler: DDIMScheduler

    @classmethod
    def from_scratch(cls, vae_folder: Path, seed: int) -> "TextToImageModel":
        """An untrained model with a trained autoencoder."""
        torch.manual_seed(seed)
        tokenizer = shapes_tokenizer()
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer), hidden_size=128, intermediate_size=384, num_hidden_layers=3,
                num_attention_heads=4, max_position_embeddings=MAX_TOKENS, projection_dim=128,
                bos_token_id=cast(int, tokenizer.bos_token_id), eos_token_id=cast(int, tokenizer.eos_token_id),
                pad_token_id=cast(int, tokenizer.pad_token_id),
            )
        )  # fmt: skip
        unet = UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, block_out_channels=(64, 128), layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
            cross_attention_dim=128, attention_head_dim=4, norm_num_groups=4,
        )  # fmt: skip
        as_channels_last(unet)
        zero_residual_branches(unet)
        scheduler = DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
            set_alpha_to_one=True, steps_offset=1, prediction_type="v_prediction", rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
        )  # fmt: skip
        vae = AutoencoderKL.from_pretrained(vae_folder, torch_dtype=torch.float32)
        return cls(vae, tokenizer, text_encoder, unet, scheduler)

    @classmethod
    def load(cls, folder: Path) -> "TextToImageModel":
        """Load what `save` wrote, in fp32."""
        parts = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32).components
        parts["unet"].to(memory_format=torch.channels_last)
        return cls(**{name.name: parts[name.name] for name in fields(cls)})

    def error(self, latents: Tensor, noise: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        """Squared error of the predicted velocity, weighted by `loss_weight` of things: (B, C, h, w)."""
        noisy = add_noise(self.scheduler, latents, noise, timesteps).contiguous(memory_format=torch.channels_last)
        predicted = self.unet(noisy, timesteps, self.text_encoder(tokens).last_hidden_state).sample
        off = predicted - velocity(self.scheduler, latents, noise, timesteps)
        return loss_weight(is_thing(latents)) * off.square()

    @torch.no_grad()
    def encode(self, pictures: list[np.ndarray]) -> Tensor:
        """The autoencoder's mean latents (N, 4, 8, 8), unscaled."""
        return encode(self.vae, to_batch(pictures)).mean

    def tokenize(self, texts: list[str]) -> Tensor:
        """Token ids (N, MAX_TOKENS)."""
        return self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids

    def save(self, folder: Path) -> None:
        """Save a copy in half precision as a StableDiffusionPipeline."""
        half: dict[str, Any] = {
            name: deepcopy(getattr(self, name)).to(torch.float16).to(memory_format=torch.contiguous_format)
            for name in ("vae", "text_encoder", "unet")
        }
        nothing: Any = None  # the types of the pipeline do not allow None for its optional parts
        StableDiffusionPipeline(
            **half, tokenizer=self.tokenizer, scheduler=cast(Any, self.scheduler), safety_checker=nothing,
            feature_extractor=nothing, requires_safety_checker=False,
        ).save_pretrained(folder, safe_serialization=True)  # fmt: skip
        forget_origin(folder)


class CaptionSensitivity:
    """The relative increase of the loss with a wrong colour or shape in the caption; 0 if words have no effect."""

    def __init__(self, pool: SamplePool, count: int, rng: np.random.Generator) -> None:
        descriptions = [random_description(rng) for _ in range(count)]
        pictures = [draw(place_things(description, rng)) for description in descriptions]
        texts = [description.caption for description in descriptions]
        self.latents, self.right = pool.encoded(pictures, texts)
        self.wrong = {
            "colour": pool.encoded(pictures, [with_wrong_words(text, tuple(COLOURS)) for text in texts])[1],
            "shape": pool.encoded(pictures, [with_wrong_words(text, SHAPES) for text in texts])[1],
        }

    @torch.no_grad()
    def measure(self, model: TextToImageModel) -> str:
        """The increase at three timesteps, as text for progress messages."""
        words = []
        for timestep in (900, 700, 500):
            noise = torch.randn(self.latents.shape, generator=torch.Generator().manual_seed(0))
            times = torch.full((len(self.latents),), timestep)
            right = model.error(self.latents, noise, times, self.right).mean()
            gaps = [
                f"{name} {float(model.error(self.latents, noise, times, wrong).mean() / right - 1):+.1%}"
                for name, wrong in self.wrong.items()
            ]
            words.append(f"t={timestep} {', '.join(gaps)}")
        return "; ".join(words)


def with_wrong_words(text: str, words: tuple[str, ...]) -> str:
    """Replace each of `words` in the text by the next one in `words`."""
    following = dict(zip(words, (*words[1:], words[0]), strict=True))
    return " ".join(
        following.get(word.rstrip(","), word.rstrip(",")) + "," * word.endswith(",") for word in text.split()
    )


def train_text_to_image(
    model: TextToImageModel, folder: Path, *, num_steps: int, single_things: float, pool: int, seed: int, say: Say
) -> None:
    """Train a v-prediction U-Net and its text encoder, and save them in `folder` as a StableDiffusionPipeline.

    In the first share `single_things` of the steps, pictures show single things, which binds words to colours and
    shapes sooner. On a saved model, training continues with a second cosine schedule (warm restart).
    """
    torch.manual_seed(seed)
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    empty, pictures = model.tokenize([""]), SamplePool(model, pool, rng)
    gaps = CaptionSensitivity(pictures, 128, np.random.default_rng(seed + 1))
    for _ in range(0, pool, 50):
        pictures.renew(50, 1 if single_things else None)

    def save() -> None:
        say(f"text to image: what wrong words cost: {gaps.measure(model)}")
        model.save(folder)

    def loss_of(step: int) -> Tensor:
        pictures.renew(8, 1 if step < single_things * num_steps else None)
        rows = torch.from_numpy(rng.integers(0, pool, 64))
        latents = pictures.latents[rows]
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = torch.randint(0, 1000, (64,), generator=generator)
        words = torch.where(torch.rand(64, 1, generator=generator) < 0.1, empty, pictures.tokens[rows])
        return model.error(latents, noise, timesteps, words).mean()

    parameters = [*model.unet.parameters(), *model.text_encoder.parameters()]
    train_with_ema("text to image", parameters, loss_of, num_steps=num_steps, lr=1e-3, say=say, save=save)
