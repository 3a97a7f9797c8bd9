"""A Stable Diffusion (1.x, 2.x or XL) whose attention can be shared between the pictures of a pair.

n pairs in one call, m pictures, C h w latent channels, height and width, T tokens, D width of the text states
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from hive_ray.diffusion.schedules import SCHEDULES, Noise
from hive_ray.files.model_folders import XL_PARTS, check_parts, read_model_index
from hive_ray.pairs.alignment import word_spans
from hive_ray.pairs.controls import Caption, Controls
from hive_ray.pairs.local_blending import blend, blend_mask
from hive_ray.pairs.prompt_to_prompt import SharedAttention, install
from hive_ray.storage import fetch_model

FASTEST = {"memory_format": torch.channels_last}
"""How convolutions like their numbers to lie."""


@dataclass(frozen=True)
class LocalBlend:
    """Local blending's numbers (see `local_blending.blend_mask`)."""

    threshold: float
    start: float
    """The share of the steps before it begins."""


@dataclass(frozen=True)
class TextStates:
    """What a U-Net is told by texts."""

    sequence: Tensor
    """(m, T, D)."""
    pooled: Tensor | None = None
    """(m, D') of the second text encoder; XL alone."""

    def rows(self, start: int, stop: int, times: int = 1) -> "TextStates":
        """Rows start..stop, all of them so many times over."""
        pooled = None if self.pooled is None else self.pooled[start:stop].repeat(times, 1)
        return TextStates(self.sequence[start:stop].repeat(times, 1, 1), pooled)


class TextToImage:
    """A text-to-image model: a diffusers folder, its s3:// address or a hub name."""

    def __init__(self, base: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        base = fetch_model(base)
        check_parts(base)
        weights = {"use_safetensors": True, "low_cpu_mem_usage": False}
        self.device = torch.device(device)
        unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet", dtype=dtype, **weights)
        self.unet, self.is_xl = unet.to(device, **FASTEST).eval(), unet.config.addition_embed_type == "text_time"
        vae_dtype = torch.float32 if self.is_xl else dtype  # XL's activations overflow fp16
        vae = AutoencoderKL.from_pretrained(base, subfolder="vae", dtype=vae_dtype, **weights)
        self.vae = vae.to(device, **FASTEST).eval()
        self.tokenizer = CLIPTokenizer.from_pretrained(base, subfolder="tokenizer")
        self.text_encoder = _text_encoder(CLIPTextModel, base, "text_encoder", dtype).to(device)
        if self.is_xl:
            check_parts(base, XL_PARTS)
            self.second_tokenizer = CLIPTokenizer.from_pretrained(base, subfolder="tokenizer_2")
            second = _text_encoder(CLIPTextModelWithProjection, base, "text_encoder_2", dtype)
            self.second_text_encoder = second.to(device)
            self.empty_is_zero = read_model_index(base).get("force_zeros_for_empty_prompt", True)
        self.scheduler = DDIMScheduler.from_pretrained(base, subfolder="scheduler", clip_sample=False)
        self.holder = install(self.unet)

    def describe(self, captions: list[str]) -> list[Caption]:
        """The words and tokens of captions, cut to the model's length as its texts are."""
        return [self._describe(caption) for caption in captions]

    def noise(self, generators: list[torch.Generator], resolution: int) -> Noise:
        """Standard normal noise (m, C, h, w) without end, each row from its own CPU generator."""
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        shape = (self.unet.config.in_channels, resolution // factor, resolution // factor)
        return lambda: torch.stack([torch.randn(shape, generator=generator) for generator in generators])

    @torch.inference_mode()
    def draw(
        self,
        captions: list[str],
        noise: Noise,
        *,
        guidance_scale: Tensor,
        num_inference_steps: int,
        schedule: str = "ddim",
    ) -> Tensor:
        """Pictures (m, 3, H, W) in -1..1 of captions; guidance_scale (m,)."""
        return self._denoise(
            noise, self._guided_states(captions), guidance_scale, num_inference_steps, schedule, _plain, _unblended
        )

    @torch.inference_mode()
    def draw_pairs(
        self,
        source_captions: list[str],
        edited_captions: list[str],
        noise: Noise,
        *,
        guidance_scale: Tensor,
        controls: Controls,
        num_inference_steps: int,
        schedule: str = "ddim",
        control_side: float = 0.25,
        local_blend: LocalBlend | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Source and edited pictures (n, 3, H, W) in -1..1 from the same noise (n, C, h, w), first and in every step.

        guidance_scale: (n,); control_side: of the small layers of `controls` and of local blending, over the latent's.
        """
        n = len(source_captions)
        controls = controls.to(self.device)
        self.holder.attended.clear()  # of a draw that did not come to its end
        attended: list[Tensor] = []

        def shared(step: int, latents: Tensor) -> SharedAttention:
            side = round(control_side * latents.shape[-1])
            return controls.at(step, side=side, watches=local_blend is not None)

        def blended(step: int, latents: Tensor) -> Tensor:
            if local_blend is None:
                return latents
            attended.append(_sum_of(self.holder.attended, control_side))
            self.holder.attended.clear()
            if step < int(local_blend.start * num_inference_steps):
                return latents
            seen = torch.stack(attended).sum(0)
            side = round(control_side * latents.shape[-1])
            mask = blend_mask(seen.unflatten(-1, (side, side)), *latents.shape[-2:], local_blend.threshold)
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

    def _states(self, texts: list[str]) -> TextStates:
        if not self.is_xl:
            return TextStates(self.text_encoder(self._ids(self.tokenizer, texts)).last_hidden_state)
        first = self.text_encoder(self._ids(self.tokenizer, texts), output_hidden_states=True)
        second = self.second_text_encoder(self._ids(self.second_tokenizer, texts), output_hidden_states=True)
        return TextStates(torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1), second.text_embeds)

    def _ids(self, tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
        """(m, T) token ids, padded and cut to the model's length."""
        return tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(self.device)

    def _guided_states(self, texts: list[str]) -> TextStates:
        """(2 m, ...) of m texts behind m of the empty text, which many an XL takes as zeros."""
        states = self._states(["", *texts])
        empty, given = states.rows(0, 1, times=len(texts)), states.rows(1, len(texts) + 1)
        if empty.pooled is None or given.pooled is None:
            return TextStates(torch.cat([empty.sequence, given.sequence]))
        kept = 0 if self.empty_is_zero else 1
        return TextStates(
            torch.cat([kept * empty.sequence, given.sequence]), torch.cat([kept * empty.pooled, given.pooled])
        )

    def _conditions(self, pooled: Tensor | None, pixels: int) -> dict[str, Tensor] | None:
        """XL's other conditions: the pooled text, and the sizes of a picture of pixels x pixels that was never cut."""
        if pooled is None:
            return None
        sizes = torch.tensor([pixels, pixels, 0, 0, pixels, pixels], device=self.device, dtype=pooled.dtype)
        return {"text_embeds": pooled, "time_ids": sizes.expand(len(pooled), -1)}

    def _denoise(
        self,
        noise: Noise,
        states: TextStates,
        guidance_scale: Tensor,
        num_inference_steps: int,
        schedule: str,
        shared: Callable[[int, Tensor], SharedAttention | None],
        blended: Callable[[int, Tensor], Tensor],
    ) -> Tensor:
        """Pictures (m, 3, H, W) on the CPU; states (2 m, ...), the unconditional half first.

        `shared` is asked before each step, `blended` gives what goes on after it; both get the step and its latents.
        """
        way = SCHEDULES[schedule](self.scheduler.config, num_inference_steps, self.device)
        precise = torch.promote_types(self.unet.dtype, torch.float32)
        latents = noise().to(self.device, precise) * way.first_scale
        scale = guidance_scale.view(-1, 1, 1, 1).to(latents)
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        conditions = self._conditions(states.pooled, factor * latents.shape[-1])
        for step, timestep in enumerate(way.timesteps):
            self.holder.shared = shared(step, latents)
            inputs = way.scale_input(latents, step).repeat(2, 1, 1, 1).to(self.unet.dtype, **FASTEST)
            outputs = self.unet(inputs, timestep, states.sequence, added_cond_kwargs=conditions).sample
            unconditional, conditional = outputs.to(precise).chunk(2)
            guided = unconditional + scale * (conditional - unconditional)
            latents = blended(step, way.step(guided, step, latents, noise))
        self.holder.shared = None
        latents = (latents / self.vae.config.scaling_factor).to(self.vae.dtype)
        return self.vae.decode(latents).sample.to(precise).cpu()


def _plain(step: int, latents: Tensor) -> None:
    """Nothing is shared."""


def _unblended(step: int, latents: Tensor) -> Tensor:
    return latents


def _sum_of(attended: list[Tensor], control_side: float) -> Tensor:
    """(2, n, P) over all layers of one step."""
    if not attended:
        raise ValueError(
            f"no attention layer has {control_side} of the latent's side, where local blending looks; set"
            " pairs.control_side to a size that the U-Net has (1, 1/2, 1/4, ...), or pairs.local_blend to 0"
        )
    return torch.stack(attended).sum(0)


def _text_encoder(kind: Any, base: str | Path, part: str, dtype: torch.dtype) -> Any:
    return kind.from_pretrained(base, subfolder=part, dtype=dtype, use_safetensors=True)
