"""Prompt-to-Prompt as plainly as it can be said: one pair at a time, every attention map written out.

Nothing of hive_ray is used: texts go through diffusers' own pipelines, noise levels and steps are written from the
papers, controls after InstructPix2Pix's generate_img_dataset.py and Google's prompt-to-prompt. The batched sampler is
held to this, and bench/pairs.py measures it against it.

    source_image, edited_image = draw_pair(pipeline, "a cat", "a dog", noises, guidance_scale=7.5, ...)

H heads, P pixels of an attention layer, T text tokens; a batch is [unconditional source, unconditional edited,
conditional source, conditional edited]
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from math import exp, log, sqrt

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor
from torch.nn import functional as F

Pipeline = StableDiffusionPipeline | StableDiffusionXLPipeline


@dataclass
class InstructPix2Pix:
    """Self-attention maps of the source, in both guidance halves, while threshold > i / (N - 1)."""

    threshold: float


@dataclass
class Google:
    """Word swap or refinement, with self-attention replacement, re-weighting and local blending."""

    swaps_words: bool
    side: int
    """Side of the largest layers whose self-attention is replaced, and of those that local blending looks at."""
    self_replace_steps: float = 0.4
    cross_replace_steps: float = 0.8
    changed_replace_steps: float = 0.8
    changed_scale: float = 1.0
    local_blend: float = 0.0
    local_blend_start: float = 0.2


@torch.no_grad()
def draw_pair(
    pipeline: Pipeline,
    source_caption: str,
    edited_caption: str,
    noises: Iterator[Tensor],
    *,
    control: InstructPix2Pix | Google,
    guidance_scale: float,
    num_steps: int,
    schedule: str,
) -> tuple[Tensor, Tensor]:
    """Source and edited picture (3, H, W), about -1..1; noises give (C, h, w), standard normal, as they are needed."""
    unet, vae = pipeline.unet, pipeline.vae
    texts, extra = _texts(pipeline, [source_caption, edited_caption])
    first = next(noises)
    if extra is not None:
        pixels = float(first.shape[-1] * 2 ** (len(vae.config.block_out_channels) - 1))
        extra["time_ids"] = torch.tensor([[pixels, pixels, 0, 0, pixels, pixels]] * 4)
    controller = Controller(control, _Captions(pipeline.tokenizer, source_caption, edited_caption), num_steps)
    unet.set_attn_processor(MapsInFull(controller))

    def predict(latents: Tensor, timestep: Tensor) -> Tensor:
        outputs = unet(torch.cat([latents, latents]).to(unet.dtype), timestep, texts, added_cond_kwargs=extra).sample
        return outputs[:2] + guidance_scale * (outputs[2:] - outputs[:2])

    noise = torch.stack([first, first])
    latents = WAYS[schedule](pipeline.scheduler.config, num_steps, noise, noises, predict, controller.after_step)
    source, edited = vae.decode((latents / vae.config.scaling_factor).to(vae.dtype)).sample
    return source, edited


def _texts(pipeline: Pipeline, captions: list[str]) -> tuple[Tensor, dict[str, Tensor] | None]:
    found = pipeline.encode_prompt(
        captions, device=torch.device("cpu"), num_images_per_prompt=1, do_classifier_free_guidance=True
    )
    if isinstance(pipeline, StableDiffusionXLPipeline):
        given, empty, pooled, empty_pooled = found
        return torch.cat([empty, given]), {"text_embeds": torch.cat([empty_pooled, pooled])}
    given, empty = found
    return torch.cat([empty, given]), None


# Attention


class MapsInFull:
    """A diffusers attention processor that shows every map (4, H, P, K) to the controller."""

    def __init__(self, controller: "Controller") -> None:
        self.controller = controller

    def __call__(self, attention, hidden_states, encoder_hidden_states=None, **_):
        crosses = encoder_hidden_states is not None
        context = encoder_hidden_states if crosses else hidden_states
        query, key, value = (
            layer(x).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
            for layer, x in ((attention.to_q, hidden_states), (attention.to_k, context), (attention.to_v, context))
        )
        maps = torch.softmax(query @ key.transpose(-1, -2) / sqrt(query.shape[-1]), -1)
        maps = self.controller.cross(maps) if crosses else self.controller.itself(maps)
        return attention.to_out[0]((maps @ value).transpose(1, 2).flatten(2))


@dataclass
class Controller:
    """Changes the edited picture's maps of the current step, and blends its latents after it."""

    control: InstructPix2Pix | Google
    captions: "_Captions"
    num_steps: int
    step: int = 0
    seen: list[Tensor] = field(default_factory=list)

    def itself(self, maps: Tensor) -> Tensor:
        """Self-attention maps (4, H, P, P)."""
        maps, control = maps.clone(), self.control
        if isinstance(control, InstructPix2Pix):
            if control.threshold > self.step / (self.num_steps - 1):
                maps[1], maps[3] = maps[0], maps[2]
        elif maps.shape[-1] <= control.side**2 and self.step < int(control.self_replace_steps * self.num_steps):
            maps[3] = maps[2]
        return maps

    def cross(self, maps: Tensor) -> Tensor:
        """Cross-attention maps (4, H, P, T)."""
        control = self.control
        if isinstance(control, InstructPix2Pix):
            return maps
        maps = maps.clone()
        source, edited = maps[2], maps[3].clone()
        gone, new = self.captions.changed
        for token in range(maps.shape[-1]):
            share = control.changed_replace_steps if token in new else control.cross_replace_steps
            if self.step >= int(share * self.num_steps):
                continue
            if control.swaps_words:
                mapped = (source * self.captions.swap[:, token]).sum(-1)
            else:
                origin = self.captions.refinement[token]
                mapped = source[..., origin] if origin >= 0 else edited[..., token]
            maps[3, ..., token] = mapped * (control.changed_scale if token in new else 1.0)
        if control.local_blend and maps.shape[2] == control.side**2:
            per_side = [maps[2][..., gone].sum(-1).mean(0), maps[3][..., new].sum(-1).mean(0)]
            self.seen.append(torch.stack(per_side).view(2, 1, control.side, control.side))
        return maps

    def after_step(self, latents: Tensor) -> Tensor:
        """Latents (2, C, h, w) of source and edited picture, blended where Google's local blending does."""
        self.step += 1
        control = self.control
        if isinstance(control, InstructPix2Pix) or not control.local_blend:
            return latents
        if self.step <= int(control.local_blend_start * self.num_steps):
            return latents
        looked = F.max_pool2d(torch.stack(self.seen).mean(0), 3, stride=1, padding=1)
        looked = F.interpolate(looked, size=latents.shape[2:], mode="nearest")
        mask = torch.zeros_like(latents[:1])
        for one in looked:
            if one.max() > 0:
                mask += (one / one.max() > control.local_blend).float()
        return latents[:1] + mask.clamp(max=1) * (latents - latents[:1])


# Words and tokens


class _Captions:
    """What a pair's words have to do with each other, after Google's seq_aligner."""

    def __init__(self, tokenizer, source: str, edited: str) -> None:
        self.length = tokenizer.model_max_length
        before, after = tokenizer(source).input_ids, tokenizer(edited).input_ids
        self.refinement = needleman_wunsch(before, after) + list(range(len(after), self.length))
        new = [token for token, origin in enumerate(self.refinement) if origin < 0]
        self.changed = [token for token in range(len(before)) if token not in self.refinement[: len(after)]], new
        self.tokenizer, self.source, self.edited = tokenizer, source, edited

    @cached_property
    def swap(self) -> Tensor:
        """(T, T), as get_replacement_mapper walks both captions."""
        words = list(zip(self.source.split(), self.edited.split(), strict=True))
        swaps = [
            (self._places(self.source, place), self._places(self.edited, place))
            for place, (before, after) in enumerate(words)
            if before != after
        ]
        mapper, i, j = torch.zeros(self.length, self.length), 0, 0
        while i < self.length and j < self.length:
            if swaps and swaps[0][0][0] == i:
                sources, targets = swaps.pop(0)
                if len(sources) == len(targets):
                    for one, other in zip(sources, targets, strict=True):
                        mapper[one, other] = 1
                else:
                    for one in sources:
                        for other in targets:
                            mapper[one, other] = 1 / len(targets)
                i, j = i + len(sources), j + len(targets)
            else:
                mapper[i if swaps else j, j] = 1
                i, j = i + 1, j + 1
        return mapper

    def _places(self, text: str, place: int) -> list[int]:
        """Tokens of a word, by the lengths of what the tokens before it say."""
        found, word, length = [], 0, 0
        for index, token in enumerate(self.tokenizer(text).input_ids[1:-1], start=1):
            length += len(self.tokenizer.decode([token]).strip())
            if word == place:
                found.append(index)
            if length >= len(text.split()[word]):
                word, length = word + 1, 0
        return found


def needleman_wunsch(source: list[int], edited: list[int]) -> list[int]:
    """For each edited token its source token or -1: gap 0, match 1, mismatch -1; ties go left, then up."""
    scores = {(i, 0): 0 for i in range(len(source) + 1)} | {(0, j): 0 for j in range(len(edited) + 1)}
    moves = {(i, 0): "up" for i in range(len(source) + 1)} | {(0, j): "left" for j in range(len(edited) + 1)}
    for i in range(1, len(source) + 1):
        for j in range(1, len(edited) + 1):
            match = 1 if source[i - 1] == edited[j - 1] else -1
            ways = {"left": scores[i, j - 1], "up": scores[i - 1, j], "both": scores[i - 1, j - 1] + match}
            scores[i, j] = max(ways.values())
            moves[i, j] = next(move for move, score in ways.items() if score == scores[i, j])
    found, i, j = [-1] * len(edited), len(source), len(edited)
    while (i, j) != (0, 0):
        move = moves[i, j]
        i, j = i - (move != "left"), j - (move != "up")
        if move == "both":
            found[j] = i
    return found


# Schedules: (config, N, first noise, more noises, predict, after_step) -> latents


def _ddim(config, num_steps, latents, noises, predict, after_step):
    scheduler = DDIMScheduler.from_config(config, clip_sample=False)
    scheduler.set_timesteps(num_steps)
    for t in scheduler.timesteps:
        alpha = scheduler.alphas_cumprod[t]
        following = int(t) - scheduler.config.num_train_timesteps // num_steps
        to_alpha = scheduler.alphas_cumprod[following] if following >= 0 else scheduler.final_alpha_cumprod
        output = predict(latents, t)
        if scheduler.config.prediction_type == "v_prediction":
            clean = alpha.sqrt() * latents - (1 - alpha).sqrt() * output
            noise = alpha.sqrt() * output + (1 - alpha).sqrt() * latents
        else:
            clean, noise = (latents - (1 - alpha).sqrt() * output) / alpha.sqrt(), output
        latents = after_step(to_alpha.sqrt() * clean + (1 - to_alpha).sqrt() * noise)
    return latents


def _euler_ancestral(config, num_steps, noise, noises, predict, after_step):
    """k-diffusion: get_sigmas, sample_euler_ancestral, and the denoisers of eps and v; in fp64."""
    scheduler = DDIMScheduler.from_config(config)
    alphas = scheduler.alphas_cumprod.double().clamp_min(2**-24)
    logs = [log(float((1 - alpha) / alpha)) / 2 for alpha in alphas]
    timesteps = [999 * (1 - i / (num_steps - 1)) for i in range(num_steps)]
    sigmas = []
    for t in timesteps:
        low, part = min(int(t), 998), t - min(int(t), 998)
        sigmas.append(exp((1 - part) * logs[low] + part * logs[low + 1]))
    latents = noise.double() * sigmas[0]
    for t, sigma, following in zip(timesteps, sigmas, [*sigmas[1:], 0.0], strict=True):
        output = predict(latents / sqrt(sigma**2 + 1), torch.tensor(t))
        if scheduler.config.prediction_type == "v_prediction":
            denoised = latents / (sigma**2 + 1) - output * sigma / sqrt(sigma**2 + 1)
        else:
            denoised = latents - sigma * output
        up = min(following, sqrt(following**2 * (sigma**2 - following**2) / sigma**2))
        down = sqrt(following**2 - up**2)
        latents = latents + (latents - denoised) / sigma * (down - sigma)
        if following > 0:
            latents = latents + next(noises) * up  # the same for both pictures
        latents = after_step(latents)
    return latents


def _dpm_solver(config, num_steps, latents, noises, predict, after_step):
    """DPM-Solver++ 2M (Lu et al. 2022, algorithm 2), its last step of first order and to no noise."""
    scheduler = DPMSolverMultistepScheduler.from_config(config)
    scheduler.set_timesteps(num_steps)
    sigmas, before = [float(sigma) for sigma in scheduler.sigmas], None
    for step, t in enumerate(scheduler.timesteps):
        alpha, to_alpha = (1 / sqrt(sigma**2 + 1) for sigma in sigmas[step : step + 2])
        sigma, to_sigma = sigmas[step] * alpha, sigmas[step + 1] * to_alpha
        output = predict(latents, t)
        if scheduler.config.prediction_type == "v_prediction":
            clean = alpha * latents - sigma * output
        else:
            clean = (latents - sigma * output) / alpha
        if to_sigma == 0:
            latents = clean
        else:
            width = log(sigmas[step] / sigmas[step + 1])
            pushed = clean
            if before is not None:
                ratio = log(sigmas[step - 1] / sigmas[step]) / width
                pushed = clean + (clean - before) / (2 * ratio)
            latents = to_sigma / sigma * latents + to_alpha * (1 - exp(-width)) * pushed
        latents, before = after_step(latents), clean
    return latents


WAYS = {"ddim": _ddim, "euler_ancestral": _euler_ancestral, "dpm_solver++": _dpm_solver}
