"""How `shapes/weights` came to be: an autoencoder, a text-to-image model and a CLIP, each from nothing.

Everything is drawn from `scenes.py` with fixed seeds; no other picture or text is used, and never the judge.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

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
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from hive_ray.shapes.language import all_words, carry_out, write_edits
from hive_ray.shapes.scenes import draw, place, random_description
from hive_ray.similarity import preprocess

Say = Callable[[str], None]

MAX_TOKENS = 32
"""Longest text of this domain, start and end included; the longest wording with the quality phrase is 28."""

QUALITIES = ("one", "two", "three", "four", "five")
QUALITY_PHRASE = "image quality is {level} out of five"


def scenes(seed: int) -> Iterator[tuple[np.ndarray, str]]:
    """Endless (picture, caption): uint8 (64, 64, 3) and its words, the same for the same seed."""
    rng = np.random.default_rng(seed)
    while True:
        scene = place(random_description(rng), rng)
        yield draw(scene), scene.description.caption


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


def train_autoencoder(folder: Path, *, num_steps: int, seed: int, say: Say) -> None:
    """An AutoencoderKL from 64x64x3 to 16x16x4, saved at `folder`; its scaling factor gives latents unit variance."""
    torch.manual_seed(seed)
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 48),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1,
        mid_block_add_attention=False,
        sample_size=64,
    ).to(memory_format=torch.channels_last)
    carry_colours(model)
    source = scenes(seed)

    def loss_of(step: int) -> Tensor:
        images = to_batch([next(source)[0] for _ in range(8)])
        posterior = model.encode(images).latent_dist
        error = model.decode(posterior.sample()).sample - images
        return error.abs().mean() + error.square().mean() + 1e-6 * posterior.kl().mean()

    train_steps("autoencoder", list(model.parameters()), loss_of, num_steps=num_steps, lr=6e-4, say=say)
    with torch.no_grad():
        images = to_batch([next(source)[0] for _ in range(256)])
        latents = model.encode(images).latent_dist.mean
        say(f"autoencoder: reconstruction error {F.mse_loss(model.decode(latents).sample, images):.5f} (-1..1)")
        model.register_to_config(scaling_factor=float(1 / latents.std()))
    model.half().save_pretrained(folder, safe_serialization=True)


def train_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer whose merges make one token of every word of this domain; other words fall to letters."""
    phrases = [QUALITY_PHRASE.format(level=level) for level in QUALITIES]
    corpus = [*all_words(), *phrases, "the a an and, of . left right middle move please object picture"] * 3
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace()])
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=2000, end_of_word_suffix="</w>", initial_alphabet=letters)
    )
    state = json.loads(bpe.to_str())["model"]
    merges = [tuple(merge) for merge in state["merges"]]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge) for merge in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)


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
    encoder knows their words before any editor is trained."""
    description = random_description(rng, num_things)
    kind = rng.choice(["caption", "instruction", "both", "quality"], p=[0.72, 0.1, 0.08, 0.1])
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
        self.latents = torch.empty(size, 4, 16, 16)
        self.tokens = torch.empty(size, MAX_TOKENS, dtype=torch.long)

    @torch.no_grad()
    def renew(self, count: int, num_things: int | None) -> None:
        """Put `count` new pictures in place of the oldest; `num_things` None draws one to three."""
        pictures, texts = zip(*(picture_and_text(self.rng, num_things) for _ in range(count)), strict=True)
        places = torch.arange(self.oldest, self.oldest + count) % self.size
        self.oldest += count
        self.latents[places] = self.vae.encode(to_batch(list(pictures))).latent_dist.mean
        self.latents[places] *= self.vae.config.scaling_factor
        words = self.tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt")
        self.tokens[places] = words.input_ids


def thing_weight(latents: Tensor) -> Tensor:
    """Loss weight (B, 1, h, w) of latents (B, C, h, w): ten times as much where a thing is as on plain background.

    Things cover a tenth of a picture; with equal weights, 100,000 pictures taught the backgrounds and no thing.
    """
    ground = latents.flatten(2).median(-1).values[..., None, None]
    return 0.3 + 3.0 * ((latents - ground).abs().amax(1, keepdim=True) > 0.35).float()


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


def train_text_to_image(folder: Path, vae_folder: Path, *, num_steps: int, pool: int, seed: int, say: Say) -> None:
    """A v-prediction U-Net and its text encoder, trained together; saved at `folder` as a StableDiffusionPipeline.

    The first third of the steps sees single things only, which binds words to colours and shapes sooner. Timesteps
    lean towards noise, where it is decided what there is: t = 999 (1 - u^1.5) for uniform u.
    """
    torch.manual_seed(seed)
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    vae = AutoencoderKL.from_pretrained(vae_folder, torch_dtype=torch.float32)
    tokenizer = train_tokenizer()
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=128, intermediate_size=384, num_hidden_layers=3,
            num_attention_heads=4, max_position_embeddings=MAX_TOKENS, projection_dim=128,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(32, 64, 128), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=128, attention_head_dim=4, norm_num_groups=4,
    ).to(memory_format=torch.channels_last)  # fmt: skip
    silence_branches(unet)
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=True,
        steps_offset=1, prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing",
    )  # fmt: skip
    empty = tokenizer("", padding="max_length", return_tensors="pt").input_ids
    pictures = Pool(vae, tokenizer, pool, rng)
    for _ in range(0, pool, 50):
        pictures.renew(50, 1)
    parameters = [*unet.parameters(), *text_encoder.parameters()]
    ema = EMAModel(parameters, decay=0.999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)

    def loss_of(step: int) -> Tensor:
        if step:
            ema.step(parameters)
        pictures.renew(8, 1 if step < num_steps / 3 else None)
        rows = torch.from_numpy(rng.integers(0, pool, 64))
        latents = pictures.latents[rows]
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = (999 * (1 - torch.rand(64, generator=generator) ** 1.5)).long()
        words = torch.where(torch.rand(64, 1, generator=generator) < 0.1, empty, pictures.tokens[rows])
        noisy = scheduler.add_noise(latents, noise, timesteps).contiguous(memory_format=torch.channels_last)
        predicted = unet(noisy, timesteps, text_encoder(words).last_hidden_state).sample
        error = predicted - scheduler.get_velocity(latents, noise, timesteps)
        return (thing_weight(latents) * error.square()).mean()

    train_steps("text to image", parameters, loss_of, num_steps=num_steps, lr=1e-3, say=say)
    ema.copy_to(parameters)
    StableDiffusionPipeline(
        vae=vae, unet=unet, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    ).to(torch.float16).save_pretrained(folder, safe_serialization=True)  # fmt: skip


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
        pictures, captions = zip(*(one for _ in range(32) for one in scene_and_twin(rng)), strict=True)
        pixels = torch.stack([preprocess(soften(picture, rng), 64) for picture in pictures])
        tokens = tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt")
        return model(input_ids=tokens.input_ids, pixel_values=pixels, return_loss=True).loss

    train_steps("clip", list(model.parameters()), loss_of, num_steps=num_steps, lr=1e-3, say=say)
    model.half().save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)


def scene_and_twin(rng: np.random.Generator) -> list[tuple[np.ndarray, str]]:
    """(picture, caption) of a random scene and of what an edit makes of it."""
    while True:
        scene = place(random_description(rng), rng)
        edit = write_edits(scene.description.caption, 1, rng)[0]
        edited = carry_out(scene, edit.edited, rng)
        if edited is not None:
            return [(draw(one), one.description.caption) for one in (scene, edited)]


def soften(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A little blur and noise, as a decoded latent has."""
    image = Image.fromarray(picture).filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 1))))
    noisy = np.asarray(image).astype(np.float32) + rng.normal(0, rng.uniform(0, 8), picture.shape)
    return noisy.clip(0, 255).astype(np.uint8)
