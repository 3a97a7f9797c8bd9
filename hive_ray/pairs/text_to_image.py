"""A text-to-image model whose attention can be shared between the pictures of a pair.

n pairs in one call, m pictures, C h w latent channels, height and width, T tokens, D width of the text states
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hive_ray.config import SingleFile
from hive_ray.diffusion.backbone import load_backbone
from hive_ray.diffusion.schedules import SCHEDULES, NoiseSource
from hive_ray.diffusion.text import TextStates
from hive_ray.files.model_folders import ModelFolderError
from hive_ray.pairs.alignment import word_spans
from hive_ray.pairs.controls import Caption, Controls
from hive_ray.pairs.local_blending import blend, blend_mask
from hive_ray.pairs.prompt_to_prompt import SharedAttention, install_sharing


@dataclass(frozen=True)
class LocalBlend:
    """Settings of local blending (see `local_blending.blend_mask`)."""

    threshold: float
    start: float
    """Share of the steps before it begins."""


class TextToImage:
    """A text-to-image model: a diffusers folder, a single file (.ckpt, .safetensors), the s3:// address of either, or a
    hub name."""

    def __init__(
        self,
        base: str | Path,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        single_file: SingleFile = SingleFile(),  # noqa: B008 - frozen
    ) -> None:
        """`single_file`: settings that such a file does not contain.

        Raises ModelFolderError for an incomplete model, or a U-Net with further inputs (an editor or inpainting model).
        """
        self.backbone = load_backbone(base, single_file, dtype)
        seen, channels = self.backbone.unet.config["in_channels"], self.backbone.latent_channels
        if seen != channels:
            raise ModelFolderError(
                f"the U-Net of {base} has {seen} input channels and its VAE {channels} latent channels: it needs more"
                " than a text; give a text-to-image model"
            )
        self.backbone.to(device)
        self.device = torch.device(device)
        self.tokenizer = self.backbone.text.tokenizers[0]
        self.holder = install_sharing(self.backbone.unet)

    def describe(self, captions: list[str]) -> list[Caption]:
        """The words and tokens of captions, truncated to the model's maximum length."""
        return [self._describe(caption) for caption in captions]

    def noise(self, generators: list[torch.Generator], resolution: int) -> NoiseSource:
        """A function that returns standard normal noise (m, C, h, w); each row has its own CPU generator."""
        shape = self.backbone.latent_shape(resolution, resolution)
        return lambda: torch.stack([torch.randn(shape, generator=generator) for generator in generators])

    @torch.inference_mode()
    def draw(
        self,
        captions: list[str],
        noise: NoiseSource,
        *,
        guidance_scale: Tensor,
        num_inference_steps: int,
        schedule: str = "ddim",
    ) -> Tensor:
        """Sample pictures (m, 3, H, W) in -1..1 of captions; guidance_scale (m,)."""
        return self._denoise(
            noise, self._guided_states(captions), guidance_scale, num_inference_steps, schedule, _plain, _unblended
        )

    @torch.inference_mode()
    def draw_pairs(
        self,
        source_captions: list[str],
        edited_captions: list[str],
        noise: NoiseSource,
        *,
        guidance_scale: Tensor,
        controls: Controls,
        num_inference_steps: int,
        schedule: str = "ddim",
        control_side: float = 0.25,
        local_blend: LocalBlend | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Sample source and edited pictures (n, 3, H, W) in -1..1 with the same noise (n, C, h, w) in every step.

        guidance_scale: (n,); control_side: side of the layers of `controls` and local blending, relative to the latent.
        """
        n = len(source_captions)
        controls = controls.to(self.device)
        self.holder.attended.clear()  # left by an interrupted call
        attended: list[Tensor] = []

        def shared(step: int, latents: Tensor) -> SharedAttention:
            side = round(control_side * latents.shape[-1])
            return controls.at(step, side=side, watch=local_blend is not None)

        def blended(step: int, latents: Tensor) -> Tensor:
            if local_blend is None:
                return latents
            attended.append(_sum_of(self.holder.attended, control_side))
            self.holder.attended.clear()
            if step < int(local_blend.start * num_inference_steps):
                return latents
            seen = torch.stack(attended).sum(0)
            height, width = latents.shape[-2:]
            side = round(control_side * width)
            mask = blend_mask(seen.unflatten(-1, (side, side)), height, width, local_blend.threshold)
            return blend(latents, mask)

        images = self._denoise(
            lambda: noise().repeat(2, 1, 1, 1),
            self._guided_states([*source_captions, *edited_captions]),
            guidance_scale.repeat(2),
            num_inference_steps,
            schedule,
            shared,
            blended,
        )
        return images[:n], images[n:]

    def _describe(self, caption: str) -> Caption:
        tokens = self.tokenizer(caption, truncation=True).input_ids
        padded = self.tokenizer(caption, padding="max_length", truncation=True).input_ids
        words = caption.split()
        lengths = [len(self.tokenizer(word, add_special_tokens=False, truncation=True).input_ids) for word in words]
        return Caption(words, tokens, padded, word_spans(lengths, len(tokens)))

    def _guided_states(self, texts: list[str]) -> TextStates:
        """Text states (2 m, ...): m of the empty text, then those of m texts."""
        places = [0] * len(texts) + list(range(1, len(texts) + 1))
        return self.backbone.text.encode(["", *texts]).select(places)

    def _denoise(
        self,
        noise: NoiseSource,
        states: TextStates,
        guidance_scale: Tensor,
        num_inference_steps: int,
        schedule: str,
        shared: Callable[[int, Tensor], SharedAttention | None],
        blended: Callable[[int, Tensor], Tensor],
    ) -> Tensor:
        """Pictures (m, 3, H, W) on the CPU; states (2 m, ...), the unconditional half first.

        `shared` is called before each step, and `blended` maps the latents after it; both get the step and its latents.
        """
        unet = self.backbone.unet
        way = SCHEDULES[schedule](self.backbone.scheduler.config, num_inference_steps, self.device)
        precise = torch.promote_types(unet.dtype, torch.float32)
        latents = noise().to(self.device, precise) * way.init_noise_sigma
        scale = guidance_scale.view(-1, 1, 1, 1).to(latents)
        height, width = (self.backbone.vae_factor * side for side in latents.shape[-2:])
        text_inputs = states.unet_inputs(height, width, unet.dtype)
        for step, timestep in enumerate(way.timesteps):
            self.holder.shared = shared(step, latents)
            inputs = way.scale_model_input(latents, step).repeat(2, 1, 1, 1)
            inputs = inputs.to(unet.dtype, memory_format=torch.channels_last)
            outputs = unet(inputs, timestep, **text_inputs).sample
            unconditional, conditional = outputs.to(precise).chunk(2)
            guided = unconditional + scale * (conditional - unconditional)
            latents = blended(step, way.step(guided, step, latents, noise))
        self.holder.shared = None
        return self.backbone.decode(latents).cpu()


def _plain(step: int, latents: Tensor) -> None:
    """Nothing is shared."""


def _unblended(step: int, latents: Tensor) -> Tensor:
    return latents


def _sum_of(attended: list[Tensor], control_side: float) -> Tensor:
    """Sum (2, n, P) over all layers of one step."""
    if not attended:
        raise ValueError(
            f"no attention layer has {control_side} of the latent's side, where local blending looks; set"
            " pairs.control_side to a size that the U-Net has (1, 1/2, 1/4, ...), or pairs.local_blend to 0"
        )
    return torch.stack(attended).sum(0)
