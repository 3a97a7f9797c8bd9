"""How `shapes/weights` came to be: an autoencoder, a text-to-image model and a CLIP, each from nothing.

Everything is drawn from `scenes.py` with fixed seeds; no other picture or text is used, and never the judge.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models import Transformer2DModel
from diffusers.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D
from diffusers.training_utils import EMAModel
from PIL import Image, ImageFilter
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    BlipConfig,
    BlipForImageTextRetrieval,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
)

from hive_ray.model_folders import forget_origin
from hive_ray.shapes.language import all_words, carry_out, write_edits
from hive_ray.shapes.scenes import COLOURS, SHAPES, Scene, draw, place, random_description
from hive_ray.similarity import preprocess

Say = Callable[[str], None]

MAX_TOKENS = 32
"""Longest text of this domain, start and end included; the longest wording with the quality phrase is 28."""

BLIP_TEMPERATURE = 0.07
"""Where CLIP and BLIP start theirs."""

QUALITIES = ("one", "two", "three", "four", "five")
QUALITY_PHRASE = "image quality is {level} out of five"


def crowded_scenes(seed: int) -> Iterator[np.ndarray]:
    """Endless pictures uint8 (64, 64, 3), the same for the same seed; most hold three things, for more to learn."""
    rng = np.random.default_rng(seed)
    while True:
        yield draw(place(random_description(rng, int(rng.choice([1, 2, 3], p=[0.1, 0.3, 0.6]))), rng))


def to_batch(pictures: list[np.ndarray]) -> Tensor:
    """uint8 pictures -> float (B, 3, 64, 64) in -1..1."""
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    return pixels.float() / 127.5 - 1


def cosine_rate(step: int, num_steps: int, warmup: int = 50, floor: float = 0.02) -> float:
    """Learning-rate factor: linear warm-up, then a half cosine down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup)))


def train_steps(
    name: str,
    parameters: list[Tensor],
    loss_of: Callable[[int], Tensor],
    *,
    num_steps: int,
    lr: float,
    say: Say,
) -> None:
    """AdamW on `loss_of(step)` with a cosine rate; a line of progress every 50 steps."""
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine_rate(step, num_steps))
    start, recent = time.monotonic(), []
    for step in range(num_steps):
        loss = loss_of(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        recent.append(loss.item())
        if (step + 1) % 50 == 0 or step + 1 == num_steps:
            left = (time.monotonic() - start) / (step + 1) * (num_steps - step - 1)
            say(f"{name}: step {step + 1}/{num_steps}, loss {np.mean(recent):.4f}, {left / 60:.1f} min left")
            recent.clear()


@torch.no_grad()
def carry_colours(model: AutoencoderKL) -> None:
    """Weights of an untrained autoencoder such that it begins as block averages: an error of 0.04 instead of 0.6.

    Ten channels carry red, green and blue, their negatives, and constants through every layer. Since
    silu(x) - silu(-x) = x, the last layers read the colours back; the constants keep the group norm's scale the same
    for every picture. Residual branches begin at zero and latent noise at a standard deviation of exp(-4).
    """
    carried, latents = 10, model.config.latent_channels

    def pass_on(conv: torch.nn.Conv2d, taps: dict[tuple[int, int], float]) -> None:
        conv.weight[:carried], conv.bias[:carried] = 0, 0
        for channel in range(carried):
            for (row, column), share in taps.items():
                conv.weight[channel, channel, row, column] = share

    for module in model.modules():
        if isinstance(module, ResnetBlock2D):
            module.conv2.weight.zero_()
            module.conv2.bias.zero_()
            if module.conv_shortcut is not None:
                pass_on(module.conv_shortcut, {(0, 0): 1.0})
        elif isinstance(module, Downsample2D):
            pass_on(module.conv, {(0, 0): 0.25, (0, 1): 0.25, (1, 0): 0.25, (1, 1): 0.25})
        elif isinstance(module, Upsample2D):
            pass_on(module.conv, {(1, 1): 1.0})
    for conv in (model.encoder.conv_in, model.decoder.conv_in):
        conv.weight[:carried], conv.bias[:6] = 0, 0
        conv.bias[6:carried] = torch.tensor([2.0, -2.0, 2.0, -2.0])
        for colour in range(3):
            conv.weight[colour, colour, 1, 1], conv.weight[colour + 3, colour, 1, 1] = 1, -1
    for conv in (model.encoder.conv_out, model.decoder.conv_out):
        conv.weight[:3], conv.bias[:] = 0, 0
        for colour in range(3):
            conv.weight[colour, colour, 1, 1], conv.weight[colour, colour + 3, 1, 1] = 1, -1
    for conv in (model.quant_conv, model.post_quant_conv):
        conv.weight.zero_()
        conv.bias.zero_()
        for channel in range(latents):
            conv.weight[channel, channel] = 1
    model.quant_conv.bias[latents:] = -8


def autoencoder() -> AutoencoderKL:
    """An untrained AutoencoderKL from 64x64x3 to 8x8x4 that begins as block averages.

    At 8x8 what a thing is makes a large share of the latents; at 16x16 they are little else than its colours, and a
    U-Net of the same size learned no shapes from them.
    """
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 48, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1,
        mid_block_add_attention=False,
        sample_size=64,
    ).to(memory_format=torch.channels_last)
    carry_colours(model)
    return model


def train_autoencoder(folder: Path, *, num_steps: int, seed: int, say: Say) -> None:
    """The autoencoder, saved at `folder`; its scaling factor gives latents unit variance."""
    torch.manual_seed(seed)
    model, source = autoencoder(), crowded_scenes(seed)

    def loss_of(step: int) -> Tensor:
        images = to_batch([next(source) for _ in range(8)])
        posterior = model.encode(images).latent_dist
        error = model.decode(posterior.sample()).sample - images
        return error.abs().mean() + error.square().mean() + 1e-6 * posterior.kl().mean()

    train_steps("autoencoder", list(model.parameters()), loss_of, num_steps=num_steps, lr=1e-3, say=say)
    with torch.no_grad():
        images = to_batch([next(source) for _ in range(256)])
        latents = model.encode(images).latent_dist.mean
        say(f"autoencoder: reconstruction error {F.mse_loss(model.decode(latents).sample, images):.5f} (-1..1)")
        model.register_to_config(scaling_factor=float(1 / latents.std()))
    model.half().save_pretrained(folder, safe_serialization=True)


def shapes_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer with a token for every word of this domain."""
    phrases = [QUALITY_PHRASE.format(level=level) for level in QUALITIES]
    more = "the a an and, of . left right middle move please object picture"
    return train_tokenizer([*all_words(), *phrases, more], MAX_TOKENS)


def train_tokenizer(corpus: list[str], max_tokens: int) -> CLIPTokenizer:
    """A CLIP tokenizer whose merges make one token of every word of the corpus; other words fall to letters."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace()])
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=2000, end_of_word_suffix="</w>", initial_alphabet=letters, show_progress=False
    )
    bpe.train_from_iterator(corpus * 3, trainer)  # a pair of letters must come twice to be merged
    merges = [tuple(merge) for merge in json.loads(bpe.to_str())["model"]["merges"]]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge) for merge in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=max_tokens)


def degrade(picture: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """The picture as bad as `level` 1 (worst) to 4, or untouched at 5: blur, noise, a wrong cast and smears."""
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


def picture_and_text(rng: np.random.Generator, num_things: int | None) -> tuple[np.ndarray, str]:
    """A picture and its words: captions for the most part, and instructions and quality phrases, so that the text
    encoder knows their words before any editor is trained. `num_things` None draws one to three, crowded ones more
    often than users write them, since they are harder."""
    num_things = num_things or int(rng.choice([1, 2, 3], p=[0.25, 0.4, 0.35]))
    description = random_description(rng, num_things)
    kind = rng.choice(["caption", "instruction", "both", "quality"], p=[0.8, 0.06, 0.06, 0.08])
    if kind == "caption":
        return draw(place(description, rng)), description.caption
    if kind == "quality":
        level = int(rng.integers(1, 6))
        text = f"{description.caption}, {QUALITY_PHRASE.format(level=QUALITIES[level - 1])}"
        return degrade(draw(place(description, rng)), level, rng), text
    edit = write_edits(description.caption, 1, rng)[0]
    text = edit.instruction if kind == "instruction" else f"{description.caption}, {edit.instruction}"
    return draw(place(edit.edited, rng)), text


class Pool:
    """Latents and tokens of pictures to draw batches from, a few of them new every few steps."""

    def __init__(self, vae: AutoencoderKL, tokenizer: CLIPTokenizer, size: int, rng: np.random.Generator) -> None:
        self.vae, self.tokenizer, self.size, self.rng, self.oldest = vae, tokenizer, size, rng, 0
        self.latents = torch.empty(size, 4, 8, 8)
        self.tokens = torch.empty(size, MAX_TOKENS, dtype=torch.long)

    def renew(self, count: int, num_things: int | None) -> None:
        """Put `count` new pictures in place of the oldest; `num_things` None draws one to three."""
        pictures, texts = zip(*(picture_and_text(self.rng, num_things) for _ in range(count)), strict=True)
        places = torch.arange(self.oldest, self.oldest + count) % self.size
        self.oldest += count
        self.latents[places], self.tokens[places] = self.encoded(list(pictures), list(texts))

    @torch.no_grad()
    def encoded(self, pictures: list[np.ndarray], texts: list[str]) -> tuple[Tensor, Tensor]:
        """Scaled latents (N, 4, 8, 8) and token ids (N, MAX_TOKENS)."""
        latents = self.vae.encode(to_batch(pictures)).latent_dist.mean * self.vae.config.scaling_factor
        tokens = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return latents, tokens


def thing_weight(latents: Tensor) -> Tensor:
    """Loss weight (B, 1, h, w) of latents (B, C, h, w): five times as much where a thing is as on plain background."""
    ground = latents.flatten(2).median(-1).values[..., None, None]
    return 0.4 + 1.6 * ((latents - ground).abs().amax(1, keepdim=True) > 0.35).float()


@torch.no_grad()
def silence_branches(unet: UNet2DConditionModel) -> None:
    """Begin with every residual branch and the output at zero (Dhariwal and Nichol 2021), which trains faster."""
    for module in unet.modules():
        if isinstance(module, ResnetBlock2D):
            module.conv2.weight.zero_()
        elif isinstance(module, Transformer2DModel):
            module.proj_out.weight.zero_()
    unet.conv_out.weight.zero_()
    unet.conv_out.bias.zero_()


@dataclass
class TextToImageModel:
    """What is trained together: a U-Net and its text encoder; and what stays: autoencoder, tokenizer, schedule."""

    vae: AutoencoderKL
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    scheduler: DDIMScheduler

    @classmethod
    def from_nothing(cls, vae_folder: Path, seed: int) -> "TextToImageModel":
        """Untrained, around a trained autoencoder."""
        torch.manual_seed(seed)
        tokenizer = shapes_tokenizer()
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer), hidden_size=128, intermediate_size=384, num_hidden_layers=3,
                num_attention_heads=4, max_position_embeddings=MAX_TOKENS, projection_dim=128,
                bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )  # fmt: skip
        unet = UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, block_out_channels=(64, 128), layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
            cross_attention_dim=128, attention_head_dim=4, norm_num_groups=4,
        ).to(memory_format=torch.channels_last)  # fmt: skip
        silence_branches(unet)
        scheduler = DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
            set_alpha_to_one=True, steps_offset=1, prediction_type="v_prediction", rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
        )  # fmt: skip
        vae = AutoencoderKL.from_pretrained(vae_folder, torch_dtype=torch.float32)
        return cls(vae, tokenizer, text_encoder, unet, scheduler)

    @classmethod
    def load(cls, folder: Path) -> "TextToImageModel":
        """What `save` wrote, in fp32."""
        parts = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32).components
        parts["unet"].to(memory_format=torch.channels_last)
        return cls(**{name.name: parts[name.name] for name in fields(cls)})

    def error(self, latents: Tensor, noise: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        """Squared error of the predicted velocity, times the thing weight; (B, C, h, w)."""
        noisy = self.scheduler.add_noise(latents, noise, timesteps).contiguous(memory_format=torch.channels_last)
        predicted = self.unet(noisy, timesteps, self.text_encoder(tokens).last_hidden_state).sample
        return thing_weight(latents) * (predicted - self.scheduler.get_velocity(latents, noise, timesteps)).square()

    def save(self, folder: Path) -> None:
        """As a StableDiffusionPipeline in half precision; the model itself stays as it is."""
        half = {
            name: deepcopy(getattr(self, name)).to(torch.float16).to(memory_format=torch.contiguous_format)
            for name in ("vae", "text_encoder", "unet")
        }
        StableDiffusionPipeline(
            **half, tokenizer=self.tokenizer, scheduler=self.scheduler, safety_checker=None, feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(folder, safe_serialization=True)  # fmt: skip
        forget_origin(folder)


class WordGaps:
    """How much the loss rises with a wrong colour or a wrong shape in the caption: 0 where words teach nothing."""

    def __init__(self, pool: Pool, count: int, rng: np.random.Generator) -> None:
        descriptions = [random_description(rng) for _ in range(count)]
        pictures = [draw(place(description, rng)) for description in descriptions]
        texts = [description.caption for description in descriptions]
        self.latents, self.right = pool.encoded(pictures, texts)
        self.wrong = {
            "colour": pool.encoded(pictures, [with_next_words(text, tuple(COLOURS)) for text in texts])[1],
            "shape": pool.encoded(pictures, [with_next_words(text, SHAPES) for text in texts])[1],
        }

    @torch.no_grad()
    def measure(self, model: TextToImageModel) -> str:
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


def with_next_words(text: str, words: tuple[str, ...]) -> str:
    """The text with every one of `words` replaced by the next of them."""
    following = dict(zip(words, (*words[1:], words[0]), strict=True))
    return " ".join(
        following.get(word.rstrip(","), word.rstrip(",")) + "," * word.endswith(",") for word in text.split()
    )


def train_text_to_image(
    model: TextToImageModel, folder: Path, *, num_steps: int, single_things: float, pool: int, seed: int, say: Say
) -> None:
    """A v-prediction U-Net and its text encoder, trained together; saved at `folder` as a StableDiffusionPipeline.

    For the share `single_things` of the steps it sees single things only, which binds words to colours and shapes
    sooner. Called again on what it saved, it goes on with a second cosine (warm restart).
    """
    torch.manual_seed(seed)
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    empty = model.tokenizer("", padding="max_length", return_tensors="pt").input_ids
    pictures = Pool(model.vae, model.tokenizer, pool, rng)
    gaps = WordGaps(pictures, 128, np.random.default_rng(seed + 1))
    for _ in range(0, pool, 50):
        pictures.renew(50, 1 if single_things else None)
    parameters = [*model.unet.parameters(), *model.text_encoder.parameters()]
    ema = EMAModel(parameters, decay=0.999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)

    def loss_of(step: int) -> Tensor:
        if step:
            ema.step(parameters)
        if step and step % 500 == 0:
            ema.store(parameters)
            ema.copy_to(parameters)
            say(f"text to image: what wrong words cost: {gaps.measure(model)}")
            model.save(folder)
            ema.restore(parameters)
        pictures.renew(8, 1 if step < single_things * num_steps else None)
        rows = torch.from_numpy(rng.integers(0, pool, 64))
        latents = pictures.latents[rows]
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = torch.randint(0, 1000, (64,), generator=generator)
        words = torch.where(torch.rand(64, 1, generator=generator) < 0.1, empty, pictures.tokens[rows])
        return model.error(latents, noise, timesteps, words).mean()

    train_steps("text to image", parameters, loss_of, num_steps=num_steps, lr=1e-3, say=say)
    ema.copy_to(parameters)
    model.save(folder)


def train_clip(folder: Path, tokenizer_folder: Path, *, num_steps: int, seed: int, say: Say) -> None:
    """A CLIPModel on pictures and captions; each scene comes with an edited twin, its hardest negative."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder)
    tower = dict(hidden_size=128, intermediate_size=384, num_attention_heads=4)
    text = dict(
        vocab_size=len(tokenizer), num_hidden_layers=3, max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    vision = dict(image_size=64, patch_size=8, num_hidden_layers=4)
    model = CLIPModel(CLIPConfig(text_config=tower | text, vision_config=tower | vision, projection_dim=64))

    def loss_of(step: int) -> Tensor:
        scenes = [scene for _ in range(32) for scene in scene_and_twin(rng).scenes]
        pixels = torch.stack([preprocess(soften(draw(scene), rng), 64) for scene in scenes])
        captions = [scene.description.caption for scene in scenes]
        tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
        return model(input_ids=tokens.input_ids, pixel_values=pixels, return_loss=True).loss

    train_steps("clip", list(model.parameters()), loss_of, num_steps=num_steps, lr=1e-3, say=say)
    model.half().save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)


def train_blip(folder: Path, tokenizer_folder: Path, *, num_steps: int, seed: int, say: Say) -> None:
    """A BlipForImageTextRetrieval for the reward model to start from, as Salesforce's BLIP is for photographs.

    Two of BLIP's three losses (Li et al. 2022): captions and pictures are told apart by their features alone, and a
    matching head reads a text over a picture's tokens. Of a scene and its edited twin it reads the caption of each,
    the instruction (which fits the twin) and its inverse (which fits the scene).
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder)
    tower = dict(hidden_size=128, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4)
    text = dict(
        vocab_size=len(tokenizer), encoder_hidden_size=128, max_position_embeddings=MAX_TOKENS,
        bos_token_id=None, eos_token_id=None, sep_token_id=None, pad_token_id=None,
    )  # fmt: skip
    vision = dict(image_size=64, patch_size=8, initializer_range=0.02)
    model = BlipForImageTextRetrieval(
        BlipConfig(text_config=tower | text, vision_config=tower | vision, image_text_hidden_size=64)
    )
    fits = torch.tensor(Twin.FITS).flatten().repeat(16)
    own = torch.arange(32)

    def loss_of(step: int) -> Tensor:
        twins = [scene_and_twin(rng) for _ in range(16)]
        pixels = torch.stack([preprocess(soften(draw(one), rng), 64) for twin in twins for one in twin.scenes])
        tokens = tokenizer([words for twin in twins for words in twin.texts], padding=True, return_tensors="pt")
        ids, mask = tokens.input_ids, tokens.attention_mask
        seen = model.vision_model(pixel_values=pixels).last_hidden_state
        # Texts 0 and 1 of each four are the captions.
        captions = [part.unflatten(0, (16, 4))[:, :2].flatten(0, 1) for part in (ids, mask)]
        said = model.text_encoder(input_ids=captions[0], attention_mask=captions[1]).last_hidden_state[:, 0]
        pictures, words = (F.normalize(part, dim=-1) for part in (model.vision_proj(seen[:, 0]), model.text_proj(said)))
        alike = pictures @ words.T / BLIP_TEMPERATURE
        read = model.text_encoder(
            input_ids=ids.repeat_interleave(2, 0),
            attention_mask=mask.repeat_interleave(2, 0),
            encoder_hidden_states=seen.unflatten(0, (16, 2)).repeat_interleave(4, 0).flatten(0, 1),
        ).last_hidden_state[:, 0]  # (16 twins x 4 texts x 2 pictures, D)
        contrast = (F.cross_entropy(alike, own) + F.cross_entropy(alike.T, own)) / 2
        return contrast + F.cross_entropy(model.itm_head(read), fits)

    train_steps("blip", list(model.parameters()), loss_of, num_steps=num_steps, lr=5e-4, say=say)
    model.half().save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)


@dataclass(frozen=True)
class Twin:
    """A random scene and what an edit makes of it, and four texts about them."""

    FITS: ClassVar = ((1, 0), (0, 1), (0, 1), (1, 0))
    """Whether each text is true of (scene, edited scene)."""

    scenes: tuple[Scene, Scene]
    texts: tuple[str, str, str, str]
    """Caption, edited caption, instruction, inverse instruction."""


def scene_and_twin(rng: np.random.Generator) -> Twin:
    while True:
        scene = place(random_description(rng), rng)
        edit = write_edits(scene.description.caption, 1, rng)[0]
        edited = carry_out(scene, edit.edited, rng)
        if edited is not None:
            captions = (scene.description.caption, edit.edited.caption)
            return Twin((scene, edited), (*captions, edit.instruction, edit.inverse_instruction))


def soften(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A little blur and noise, as a decoded latent has."""
    image = Image.fromarray(picture).filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 1))))
    noisy = np.asarray(image).astype(np.float32) + rng.normal(0, rng.uniform(0, 8), picture.shape)
    return noisy.clip(0, 255).astype(np.uint8)
