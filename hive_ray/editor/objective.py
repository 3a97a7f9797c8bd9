"""The editor's objective: predict the noise of the edited image from the source image and the instruction.

    pairs or scored_pairs, Editor -> loss of some rows -> (cluster/fitting.py) -> an editor folder

It does not use rewards themselves. They act through the `weight` and the `instruction` of a row.

B batch, C latent channels, h w latent height and width, E text encoders, T tokens
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from hive_ray.config import Editor as Settings
from hive_ray.diffusion.noising import add_noise, denoising_target
from hive_ray.diffusion.text import TextEncoder, TextStates
from hive_ray.editor.latents import PairLatentReader, Views, draw_views
from hive_ray.editor.levels import BEST_LEVEL, WORST_LEVEL, add_levels, class_labels, train_levels
from hive_ray.editor.lora import LoraAdapters
from hive_ray.editor.model import Editor, EditorCard, move_to
from hive_ray.editor.preview import draw_preview
from hive_ray.errors import BadRows
from hive_ray.schemas import Rows
from hive_ray.statistics.measures import effective_sample_size

Measures = dict[str, Tensor]
"""What a loss reports of its batch: scalar tensors, float64, by name."""
Metrics = dict[str, float]
"""What is logged for a step: means over its rows by name."""
Batch = dict[str, Tensor]
"""Inputs of some rows by name, as `EditorObjective.draw_batch` describes them."""


def draw_condition_dropout(count: int, *, rate: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which of `count` rows lose their text, and which their image: bool (count,) each.

    One uniform draw u a row (InstructPix2Pix's ddpm_edit.py): the text is dropped where u < 2 rate, the image
    where rate <= u < 3 rate; so the text alone, both, and the image alone at `rate` each.
    """
    place = torch.rand(count, generator=generator)
    return place < 2 * rate, (rate <= place) & (place < 3 * rate)


def row_errors(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each row (B,) of a prediction and its target, (B, C, h, w) each; in fp32."""
    return (predicted.float() - target.float()).square().flatten(1).mean(1)


def weighted_denoising_loss(
    predicted: Tensor, target: Tensor, weight: Tensor, snr_weight: Tensor | None = None
) -> Tensor:
    """Mean over rows of their mean squared errors times their weights (HIVE's weighted reward).

    predicted, target: (B, C, h, w); weight, snr_weight: (B,). With a weight of 1 everywhere it is the unweighted loss,
    bit for bit.
    """
    per_row = row_errors(predicted, target)
    if snr_weight is not None:
        per_row = snr_weight * per_row
    return (weight * per_row).mean()


def min_snr_weight(alphas_cumprod: Tensor, gamma: float, prediction_type: str) -> Tensor:
    """Loss weights of timesteps with these cumulative alphas, in the same shape (Min-SNR-gamma, Hang et al. 2023).

    SNR = alpha / (1 - alpha). For epsilon min(SNR, gamma) / SNR, which is 1 in the limit of no signal. For v_prediction
    min(SNR, gamma) / (SNR + 1), which is 0 there.
    """
    snr = alphas_cumprod / (1 - alphas_cumprod)
    if prediction_type == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1)
    return (gamma / snr).clamp(max=1)


class Denoiser(nn.Module):
    """The trained weights as one module, for DeepSpeed to wrap."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: TextEncoder | None, vae_factor: int) -> None:
        """vae_factor: the height of an image divided by that of its latent, for XL's size conditioning."""
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder
        self.vae_factor = vae_factor
        for layer in unet.modules():
            if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1):
                layer.register_forward_pre_hook(_as_channels_last)

    def forward(
        self, noisy: Tensor, timesteps: Tensor, text: Tensor | TextStates, labels: Tensor | None = None
    ) -> Tensor:
        """Prediction (B, C, h, w) from [noisy latent, image latent] (B, 2 C, h, w) and timesteps (B,).

        text: token ids (B, E, T) if the text encoder is trained, too, else its states. There may be B / n of them; then
        the rows are n blocks with the same texts. labels: the class labels (B,) of an editor with levels.
        """
        states = cast(TextStates, text) if self.text_encoder is None else self.text_encoder(text)
        states = states.repeat_texts(len(noisy) // len(states.sequence))
        height, width = (self.vae_factor * side for side in noisy.shape[-2:])
        noisy = noisy.to(self.unet.dtype, memory_format=torch.channels_last)
        text_inputs = states.unet_inputs(height, width, self.unet.dtype)
        return self.unet(noisy, timesteps, class_labels=labels, **text_inputs).sample


def _as_channels_last(layer: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """The input of a 1 x 1 convolution in the channels-last format.

    diffusers passes these layers contiguous tensors. Their weights lose the channels-last format in ZeRO's flat
    buffers. Without this hook all layers up to the next larger convolution would compute in the contiguous format and
    convert their inputs.
    """
    return (inputs[0].contiguous(memory_format=torch.channels_last),)


@dataclass(frozen=True)
class NoisyBatch:
    """The network's inputs for some rows, and the training target."""

    inputs: tuple
    """The arguments of `Denoiser`: [noisy latent, image latent] (B, 2 C, h, w), timesteps (B,), text, and class labels
    (B,) or None."""
    target: Tensor
    """(B, C, h, w)"""

    @property
    def timesteps(self) -> Tensor:
        """(B,)"""
        return self.inputs[1]


class EditorObjective:
    """The trained weights and the denoising loss of rows of `pairs`."""

    def __init__(self, editor: Editor, settings: Settings) -> None:
        self.editor, self.settings = editor, settings
        self.latents = PairLatentReader(editor, settings)
        editor.vae.requires_grad_(False)
        editor.unet.requires_grad_(True)
        editor.text.requires_grad_(settings.train_text_encoder)
        self.denoiser = Denoiser(editor.unet, editor.text if settings.train_text_encoder else None, editor.vae_factor)
        self.model: nn.Module = self.denoiser
        self.adapters = LoraAdapters(editor, settings) if settings.lora_rank else None
        if settings.gradient_checkpointing:
            editor.unet.enable_gradient_checkpointing()
            if settings.train_text_encoder:
                for encoder in editor.text.encoders:
                    cast(PreTrainedModel, encoder).gradient_checkpointing_enable({"use_reentrant": False})

    @property
    def frozen_modules(self) -> list[AutoencoderKL | TextEncoder]:
        """The frozen parts. They move to the device of `model` when they are needed."""
        return [self.editor.vae] if self.settings.train_text_encoder else [self.editor.vae, self.editor.text]

    def prepare(self, rows: Rows, generator: torch.Generator) -> Batch:
        """The batch that `draw_batch` draws for rows of `pairs`, with "weight" (B,).

        BadRows names rows without a usable picture or weight.
        """
        check_weights(rows)
        weight = torch.tensor([row["weight"] for row in rows], dtype=torch.float32)
        return self.draw_batch(rows, generator) | {"weight": weight}

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Measures]:
        """Weighted denoising loss of a prepared batch. `model` is `self.model`, bare or wrapped."""
        noised, weight = self.noise_batch(batch), batch["weight"]
        snr_weight = self._snr_weight(noised.timesteps)
        loss = weighted_denoising_loss(model(*noised.inputs), noised.target, weight, snr_weight)
        return loss, {"train/weight": weight.mean().double(), "train/weight_squared": weight.square().mean().double()}

    def levels(self, rows: Rows) -> list[int] | None:
        """The quality levels of rows, for an editor with levels; None means the best level for all."""
        return None

    def summarise(self, means: Metrics, num_rows: int) -> Metrics:
        """The metrics to log for `num_rows` rows whose measures have these means, with the effective sample size."""
        squared = means.pop("train/weight_squared")
        return means | {"train/effective_sample_size": effective_sample_size(means["train/weight"], squared, num_rows)}

    def draw_batch(
        self,
        rows: Rows,
        generator: torch.Generator,
        copies: int = 1,
        timesteps: tuple[float, float] = (0.0, 1.0),
    ) -> Batch:
        """The data of rows of `pairs` and all random numbers for them, on the CPU.

        "latents" or "pixels" (`PairLatentReader.read`), "timesteps" (B,), "jitter" of the posterior and "noise"
        (B, C, h, w), "no_image" (B,), "tokens" (B / copies, E, T) of the instructions or of the empty text, and
        "labels" (B,) of an editor with levels.
        copies: `rows` are so many blocks of equal length. Rows at the same place in their blocks have the same
        instruction and share all random numbers but the jitter.
        timesteps: bounds of the timesteps that are drawn, as shares of the schedule, 0..1.
        Draws from the CPU `generator`, in this order: flips, random crops, timesteps, jitter, noise, condition
        dropout. BadRows names rows without a usable picture.
        """
        settings = self.settings
        count = len(rows) // copies
        shape = self.latents.latent_shape
        drawn = draw_views(rows[:count], settings, generator)
        views = Views(drawn.mirrored * copies, drawn.crop_offsets * copies)
        batch = self.latents.read(rows, views)
        drawn_timesteps = self._draw_timesteps(count, timesteps, generator)
        batch["jitter"] = torch.randn((len(rows), *shape), generator=generator)
        noise = torch.randn((count, *shape), generator=generator)
        no_text, no_image = draw_condition_dropout(count, rate=settings.condition_dropout, generator=generator)
        shared = {"timesteps": drawn_timesteps, "noise": noise, "no_image": no_image}
        texts = []
        for row, dropped in zip(rows[:count], no_text.tolist(), strict=True):
            texts.append("" if dropped else row["instruction"])
        batch["tokens"] = self.editor.text.tokenize(texts)
        labels = class_labels(self.editor.unet, texts * copies, self.levels(rows))
        if labels is not None:
            batch["labels"] = labels
        return batch | {name: torch.cat([each] * copies) for name, each in shared.items()}

    def _draw_timesteps(self, count: int, shares: tuple[float, float], generator: torch.Generator) -> Tensor:
        """Timesteps (count,), uniform between two shares of the schedule; at least one timestep is always possible."""
        num_timesteps = self.editor.scheduler.config["num_train_timesteps"]
        least = min(round(shares[0] * num_timesteps), num_timesteps - 1)
        most = max(round(shares[1] * num_timesteps), least + 1)
        return torch.randint(least, most, (count,), generator=generator)

    def noise_batch(self, batch: Batch) -> NoisyBatch:
        """The noisy inputs and targets of a batch of `draw_batch`, on the device of the batch."""
        editor = self.editor
        noise = batch["noise"]
        timesteps = batch["timesteps"]
        source, mean, std = self.latents.posteriors(batch)
        latents = editor.draw_target(mean, std, batch["jitter"])
        noisy = add_noise(editor.scheduler, latents, noise, timesteps)
        condition = editor.scale_condition(source).masked_fill(batch["no_image"].view(-1, 1, 1, 1), 0.0)
        target = denoising_target(editor.scheduler, latents, noise, timesteps)
        inputs = torch.cat([noisy, condition], dim=1)
        text = self._text(batch["tokens"])
        return NoisyBatch((inputs, timesteps, text, batch.get("labels")), target)

    def save(self, folder: str | Path, state: dict[str, Tensor], card: EditorCard) -> None:
        """Write an editor folder with the weights of `state`, a state dict of `model` or of its running average.

        Adapters are merged into the weights that they adapt, and also written as `pytorch_lora_weights.safetensors`.
        """
        if self.adapters:
            self.adapters.save(Path(folder), state)
            state = self.adapters.merge_adapters(state)
        unet = sub_state_dict("unet.", state)
        text_encoder = sub_state_dict("text_encoder.", state) if self.settings.train_text_encoder else None
        self.editor.with_weights(unet, text_encoder).save(folder, card)

    def preview(self, rows: Rows) -> bytes | None:
        """A PNG of the present edits of rows with a source picture and an instruction; None if no picture is usable."""
        for frozen in self.frozen_modules:
            move_to(frozen, next(self.model.parameters()).device)
        return draw_preview(self.editor, rows, self.settings)

    def _text(self, tokens: Tensor) -> Tensor | TextStates:
        """The token ids (B, E, T) themselves, or the states of a frozen encoder.

        Texts are encoded in every step. Compared with the U-Net that costs little, and the cached states of one text
        would take more space than the latents of a pair.
        """
        if self.settings.train_text_encoder:
            return tokens
        move_to(self.editor.text, tokens.device)
        with torch.no_grad():
            return self.editor.text(tokens)

    def _snr_weight(self, timesteps: Tensor) -> Tensor | None:
        """Min-SNR weight of the timesteps (B,), or None without it."""
        if not self.settings.min_snr_gamma:
            return None
        scheduler = self.editor.scheduler
        alphas_cumprod = scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
        return min_snr_weight(alphas_cumprod, self.settings.min_snr_gamma, scheduler.config["prediction_type"])


_LEVELS = "unet.class_embedding.weight"


class LevelObjective(EditorObjective):
    """The denoising loss of rows of `scored_pairs`, each at its `quality_level`. Adds levels to the editor."""

    def __init__(self, editor: Editor, settings: Settings) -> None:
        add_levels(editor.unet)
        embedding = train_levels(editor.unet, settings.level_rate_factor)
        super().__init__(editor, settings)
        embedding.requires_grad_(True)  # with LoRA, too: an embedding has no adapter

    def prepare(self, rows: Rows, generator: torch.Generator) -> Batch:
        """As `EditorObjective.prepare`. BadRows also names rows whose level is not in 1..5."""
        reasons = {
            place: f"its quality_level is {row['quality_level']}, not {WORST_LEVEL} to {BEST_LEVEL}"
            for place, row in enumerate(rows)
            if not WORST_LEVEL <= row["quality_level"] <= BEST_LEVEL
        }
        if reasons:
            raise BadRows(reasons)
        return super().prepare(rows, generator)

    def levels(self, rows: Rows) -> list[int]:
        """The `quality_level` of each row, 1..5."""
        return [row["quality_level"] for row in rows]

    def save(self, folder: str | Path, state: dict[str, Tensor], card: EditorCard) -> None:
        """As `EditorObjective.save`. The embedding is written as a plain one, as diffusers expects."""
        rows = self.settings.level_rate_factor * state[_LEVELS]
        super().save(folder, state | {_LEVELS: rows}, card)


def check_weights(rows: Rows) -> None:
    """Raise BadRows for rows whose `weight` is not a finite number of at least 0."""
    reasons = {
        place: f"its weight is {row['weight']}, not a finite number of at least 0"
        for place, row in enumerate(rows)
        if not 0 <= row["weight"] < math.inf
    }
    if reasons:
        raise BadRows(reasons)


def sub_state_dict(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The entries whose names begin with the prefix, by the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
