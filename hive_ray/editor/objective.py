"""What the editor learns: the noise of the edited image, given the source image and the instruction.

    pairs or scored_pairs, Editor -> loss of some rows -> (distributed/training.py) -> an editor folder

Blind to rewards: a row's `weight` and `instruction` say all.

B batch, C latent channels, h w latent height and width, E text encoders, T tokens
"""

import re
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from hive_ray.config import Editor as Settings
from hive_ray.editor.model import Editor, EditorCard
from hive_ray.editor.text import TextEncoder, TextStates
from hive_ray.images import to_batch
from hive_ray.schemas import Row, Rows

LATENT_BYTES = 2 * 1024**3
"""CPU memory for the latents of pairs already seen."""

Metrics = dict[str, float]


def draw_dropped_conditions(count: int, *, rate: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which of `count` rows lose their text, and which their image: bool (count,) each.

    One uniform draw u a row (InstructPix2Pix; method.md 5.1): the text is dropped where u < 2 rate, the image
    where rate <= u < 3 rate; so the text alone, both, and the image alone at `rate` each.
    """
    place = torch.rand(count, generator=generator)
    return place < 2 * rate, (rate <= place) & (place < 3 * rate)


def weighted_denoising_loss(
    predicted: Tensor, target: Tensor, weight: Tensor, snr_weight: Tensor | None = None
) -> Tensor:
    """Mean squared error of a prediction, each row counted `weight` times (HIVE's weighted reward).

    predicted, target: (B, C, h, w); weight, snr_weight: (B,). A weight of 1 everywhere changes no bit of it.
    """
    per_row = (predicted.float() - target.float()).square().flatten(1).mean(1)  # (B,)
    if snr_weight is not None:
        per_row = snr_weight * per_row
    return (weight * per_row).mean()


def min_snr_weight(alphas_cumprod: Tensor, gamma: float, prediction_type: str) -> Tensor:
    """Loss weight of timesteps with these cumulated alphas, same shape (Min-SNR-gamma, Hang et al. 2023).

    SNR = alpha / (1 - alpha). min(SNR, gamma) / SNR for epsilon, 1 in its limit of no signal;
    min(SNR, gamma) / (SNR + 1) for v_prediction, 0 there.
    """
    snr = alphas_cumprod / (1 - alphas_cumprod)
    if prediction_type == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1)
    return (gamma / snr).clamp(max=1)


def mentions_side(instruction: str) -> bool:
    """Whether a mirrored pair would contradict the instruction: it says left or right."""
    return re.search(r"\b(left|right)(most|wards?)?\b", instruction, re.IGNORECASE) is not None


class Denoiser(nn.Module):
    """The weights that move, as one module for DeepSpeed to wrap."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: TextEncoder | None, vae_factor: int) -> None:
        """`vae_factor`: the side of an image over that of its latent, for XL's size conditioning."""
        super().__init__()
        self.unet, self.text_encoder, self.vae_factor = unet, text_encoder, vae_factor

    def forward(self, noisy: Tensor, timesteps: Tensor, text: Tensor | TextStates) -> Tensor:
        """Prediction (B, C, h, w) from [noisy latent, image latent] (B, 2 C, h, w) and timesteps (B,).

        text: token ids (B, E, T) where the text encoder is trained too, else its states.
        """
        states = text if self.text_encoder is None else self.text_encoder(text)
        height, width = (self.vae_factor * side for side in noisy.shape[-2:])
        noisy = noisy.to(self.unet.dtype, memory_format=torch.channels_last)
        return self.unet(noisy, timesteps, **states.unet_inputs(height, width, self.unet.dtype)).sample


class LatentCache:
    """Posteriors of pairs already seen: the VAE is frozen, and on a CPU it costs as much as the U-Net.

    Full, it takes no more: rows come in random order, so old ones are as likely to come again as new ones.
    """

    def __init__(self, most_bytes: int = LATENT_BYTES) -> None:
        self.most_bytes, self.num_bytes = most_bytes, 0
        self.latents: dict[tuple[str, bool], Tensor] = {}

    def get(self, pair_id: str, flipped: bool) -> Tensor | None:
        """What was put under a pair, or None."""
        return self.latents.get((pair_id, flipped))

    def put(self, pair_id: str, flipped: bool, latents: Tensor) -> None:
        """Keep the latents of a pair, on the CPU, while there is room."""
        size = latents.numel() * latents.element_size()
        if (pair_id, flipped) not in self.latents and self.num_bytes + size <= self.most_bytes:
            self.latents[pair_id, flipped] = latents
            self.num_bytes += size


class EditorObjective:
    """The weights that move, and the denoising loss of rows of `pairs`."""

    def __init__(self, editor: Editor, settings: Settings, *, latent_bytes: int = LATENT_BYTES) -> None:
        self.editor, self.settings = editor, settings
        self.cache = LatentCache(latent_bytes)
        editor.vae.requires_grad_(False)
        editor.unet.requires_grad_(True)
        editor.text.requires_grad_(settings.train_text_encoder)
        self.model = Denoiser(editor.unet, editor.text if settings.train_text_encoder else None, editor.vae_factor)

    def loss(self, model: nn.Module, rows: Rows, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Weighted denoising loss of rows of `pairs`. `model` is `self.model`, bare or wrapped.

        Draws from the CPU `generator`, in this order: flips, timesteps, noise of the posterior, noise, drops.
        """
        editor, settings, device, count = self.editor, self.settings, self._place(), len(rows)
        flips = torch.rand(count, generator=generator) < 0.5
        source, mean, std = self._posteriors(rows, flips, device)
        num_timesteps = editor.scheduler.config.num_train_timesteps
        timesteps = torch.randint(0, num_timesteps, (count,), generator=generator).to(device)
        jitter = torch.randn(mean.shape, generator=generator).to(device)
        noise = torch.randn(mean.shape, generator=generator).to(device)
        drops = draw_dropped_conditions(count, rate=settings.condition_dropout, generator=generator)
        no_text, no_image = (drop.to(device) for drop in drops)

        latents = editor.draw_target(mean, std, jitter)
        noisy = editor.scheduler.add_noise(latents, noise, timesteps)
        condition = editor.scale_condition(source).masked_fill(no_image.view(-1, 1, 1, 1), 0.0)
        text = self._text([row["instruction"] for row in rows], no_text)
        predicted = model(torch.cat([noisy, condition], dim=1), timesteps, text)

        weight = torch.tensor([row["weight"] for row in rows], dtype=torch.float32, device=device)
        target = denoising_target(editor.scheduler, latents, noise, timesteps)
        loss = weighted_denoising_loss(predicted, target, weight, self._snr_weight(timesteps))
        return loss, {"train/weight": weight.mean().item()}

    def save(self, folder: str | Path, state: dict[str, Tensor], card: EditorCard) -> None:
        """Write an editor folder with the weights of `state`, a state dict of `model` (say, its average)."""
        unet = _under("unet.", state)
        text_encoder = _under("text_encoder.", state) if self.settings.train_text_encoder else None
        self.editor.with_weights(unet, text_encoder).save(folder, card)

    def _place(self) -> torch.device:
        """The device of the trained weights, with the frozen parts brought to it."""
        device = next(self.model.parameters()).device
        for module in (self.editor.vae, self.editor.text):
            if module.device != device:
                module.to(device)
        return device

    def _posteriors(self, rows: Rows, flips: Tensor, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Mode of the source, mean and deviation of the edited image: (B, C, h, w) each, unscaled."""
        mirrored = [
            self.settings.flip and flip and not mentions_side(row["instruction"])
            for row, flip in zip(rows, flips.tolist(), strict=True)
        ]
        found = [self.cache.get(row["pair_id"], flipped) for row, flipped in zip(rows, mirrored, strict=True)]
        missing = [index for index, latents in enumerate(found) if latents is None]
        if missing:
            fresh = self._encode([rows[index] for index in missing], torch.tensor([mirrored[i] for i in missing]))
            for index, latents in zip(missing, fresh, strict=True):
                found[index] = latents.clone()
                self.cache.put(rows[index]["pair_id"], mirrored[index], found[index])
        source, mean, std = torch.stack(found).to(device).unbind(1)
        return source, mean, std

    @torch.no_grad()
    def _encode(self, rows: list[Row], mirrored: Tensor) -> Tensor:
        """Rows -> (B, 3, C, h, w) on the CPU: source mode, edited mean, edited standard deviation."""
        images = [row["source_image"] for row in rows] + [row["edited_image"] for row in rows]
        pixels = to_batch(images, self.settings.resolution)
        both = torch.where(mirrored.repeat(2).view(-1, 1, 1, 1), pixels.flip(-1), pixels)
        mean, std = self.editor.posterior(both)
        source, edited = mean.chunk(2)
        return torch.stack([source, edited, std.chunk(2)[1]], dim=1).cpu()

    def _text(self, instructions: list[str], no_text: Tensor) -> Tensor | TextStates:
        """Token ids (B, E, T), or a frozen encoder's states, of the instructions or of nothing."""
        given = ["" if dropped else words for words, dropped in zip(instructions, no_text.tolist(), strict=True)]
        if self.settings.train_text_encoder:
            return self.editor.text.tokenize(given).to(no_text.device)
        with torch.no_grad():
            return self.editor.text.encode(given)

    def _snr_weight(self, timesteps: Tensor) -> Tensor | None:
        """Min-SNR weight of the timesteps (B,), or None without it."""
        if not self.settings.min_snr_gamma:
            return None
        scheduler = self.editor.scheduler
        alphas_cumprod = scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
        return min_snr_weight(alphas_cumprod, self.settings.min_snr_gamma, scheduler.config.prediction_type)


def denoising_target(scheduler: DDIMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the U-Net has to say (B, C, h, w): the noise, or the velocity of a v-prediction model."""
    if scheduler.config.prediction_type == "v_prediction":
        return scheduler.get_velocity(latents, noise, timesteps)
    return noise


def _under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The entries below a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
