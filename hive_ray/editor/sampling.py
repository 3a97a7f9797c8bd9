"""Sampling: an editor, source images and instructions -> edited images.

    prompts, editor -> candidates

B batch, C latent channels, h w latent height and width
"""

import copy
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from hive_ray.config import Candidates
from hive_ray.diffusion.precision import sampling_dtype
from hive_ray.editor.levels import BEST_LEVEL, WORST_LEVEL, class_labels, has_levels
from hive_ray.editor.model import Editor, append_suffix
from hive_ray.images import encode, to_batch, to_pixels
from hive_ray.schemas import Rows
from hive_ray.seeds import id_for, seed_for, uniform_for

MICRO_BATCH = 64
"""Edits that are denoised in one batch."""

Scales = float | Sequence[float] | Tensor
"""A guidance scale: one for all rows, or one for each."""


class SchedulerOutput(Protocol):
    """The result of a scheduler's step."""

    prev_sample: Tensor
    """Latents (B, C, h, w) at the next noise level."""


class Scheduler(Protocol):
    """A scheduler of diffusers, as `sample` uses it."""

    @property
    def timesteps(self) -> Tensor:
        """Timesteps (N,) of the chosen steps, the noisiest first."""
        ...

    @property
    def init_noise_sigma(self) -> float | Tensor:
        """Standard deviation of the first latents."""
        ...

    def set_timesteps(self, num_inference_steps: int, *, device: torch.device) -> None:
        """Choose the timesteps for this number of steps."""
        ...

    def scale_model_input(self, sample: Tensor, timestep: Any) -> Tensor:
        """The latents scaled as the U-Net expects them."""
        ...

    @property
    def step(self) -> Callable[..., SchedulerOutput]:
        """(prediction, timestep, latents, ...) -> the next latents. Some schedulers take a generator, too."""
        ...


class SamplingStopped(RuntimeError):
    """Sampling was stopped, because nobody waits for the edits any more."""


def guided_noise(
    unconditional: Tensor,
    image_only: Tensor,
    conditional: Tensor,
    *,
    guidance_scale: float | Tensor,
    image_guidance_scale: float | Tensor,
) -> Tensor:
    """Noise estimate pushed towards the image and the instruction (InstructPix2Pix, eq. 3).

    unconditional: eps(z_t, no image, no instruction), image_only: eps(z_t, source image, no instruction),
    conditional: eps(z_t, source image, instruction), each (B, C, h, w). A scale is a number or (B, 1, 1, 1).
    Linear, so it holds for v-predictions as well. Both scales at 1 give `conditional` back unchanged.
    """
    towards_image = image_only - unconditional
    towards_instruction = conditional - image_only
    return unconditional + image_guidance_scale * towards_image + guidance_scale * towards_instruction


@torch.inference_mode()
def sample(
    editor: Editor,
    source_images: Tensor,
    instructions: Sequence[str],
    *,
    guidance_scale: Scales,
    image_guidance_scale: Scales,
    num_inference_steps: int,
    seeds: Sequence[int],
    scheduler: Scheduler | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Tensor:
    """One edit (B, 3, H, W) in -1..1, on the CPU, of each source image (B, 3, H, W) in -1..1.

    The noise of a row comes from its own seed on the CPU, so other rows of the batch change nothing but rounding.
    A scale is one number, or one a row. scheduler: copied, never changed; by default the editor's DDIM.
    should_stop: called before each step; SamplingStopped is raised when it returns true. ValueError for different
    numbers of images, instructions and seeds.
    """
    rows = len(source_images)
    device = editor.unet.device
    dtype = editor.unet.dtype
    if not rows == len(instructions) == len(seeds):
        raise ValueError(f"{rows} images, {len(instructions)} instructions, {len(seeds)} seeds: give as many of each")
    text_scale = _per_row(guidance_scale, rows, device)
    image_scale = _per_row(image_guidance_scale, rows, device)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    schedule = cast(Scheduler, copy.deepcopy(scheduler or editor.scheduler))
    schedule.set_timesteps(num_inference_steps, device=device)
    latents = row_noise(editor.latent_shape(source_images), generators).to(device) * schedule.init_noise_sigma
    predict = _Denoising(editor, source_images, instructions, text_scale, image_scale)
    extra = {"generator": generators} if "generator" in inspect.signature(schedule.step).parameters else {}
    for timestep in schedule.timesteps:
        if should_stop and should_stop():
            raise SamplingStopped(f"stopped before timestep {float(timestep):g}")
        guided = predict(schedule.scale_model_input(latents, timestep).to(dtype), timestep)
        latents = schedule.step(guided, timestep, latents, **extra).prev_sample
    return editor.decode(latents).clamp(-1, 1).cpu()


def row_noise(shape: tuple[int, ...], generators: Sequence[torch.Generator]) -> Tensor:
    """Standard normal noise (B, *shape), each row from its own CPU generator."""
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


class _Denoising:
    """The guided prediction of a batch. What does not change between steps is computed once.

    The passes are in diffusers' order, [text and image, image, none]. Those that cancel are left out: with s_I = 1 the
    unconditional one, with s_T = s_I the image-only one. An editor with levels gets the best level with the text and
    no level without it, so guidance strengthens the level, too. If its card has a `level_guidance_scale` s_L, one more
    pass has the worst level w, and the prediction gains
    s_L (eps(z_t, source, text, best) - eps(z_t, source, text, w)): classifier-free guidance (Ho and Salimans 2022)
    between two conditions, which is a step of policy improvement (Frans et al. 2025).
    """

    def __init__(
        self,
        editor: Editor,
        source_images: Tensor,
        instructions: Sequence[str],
        text_scale: Tensor,
        image_scale: Tensor,
    ) -> None:
        self.unet = editor.unet
        self.text_scale = text_scale
        self.image_scale = image_scale
        self.needs_image_only = bool((text_scale != image_scale).any())
        self.needs_unconditional = bool((image_scale != 1).any())
        latents = editor.encode_condition(source_images).to(self.unet.device, self.unet.dtype)
        no_text = [""] * len(instructions)
        self.level_scale = editor.card.level_guidance_scale if has_levels(self.unet) else 0.0
        image_latents, texts = [latents], [*instructions]
        if self.needs_image_only:
            image_latents.append(latents)
            texts += no_text
        if self.needs_unconditional:
            image_latents.append(torch.zeros_like(latents))  # no image is a zero latent, not a black image's
            texts += no_text
        levels = [BEST_LEVEL] * len(texts)
        if self.level_scale:
            image_latents.append(latents)
            texts += instructions
            levels += [WORST_LEVEL] * len(instructions)
        self.image_latents = torch.cat(image_latents)
        height, width = source_images.shape[-2:]
        self.text_inputs = editor.text.encode_rows(texts).unet_inputs(height, width, self.unet.dtype)
        self.class_labels = class_labels(self.unet, texts, levels, device=self.unet.device)

    def __call__(self, latents: Tensor, timestep: Tensor) -> Tensor:
        """Latents (B, C, h, w), scaled for the U-Net -> guided prediction (B, C, h, w) in fp32."""
        passes = len(self.image_latents) // len(latents)
        inputs = torch.cat([latents.repeat(passes, 1, 1, 1), self.image_latents], dim=1)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        predicted = self.unet(inputs, timestep, class_labels=self.class_labels, **self.text_inputs).sample
        conditional, *others = predicted.float().chunk(passes)
        worst = others.pop() if self.level_scale else None
        # A prediction that was left out cancels, so any tensor can take its place.
        image_only = others[0] if others else conditional
        unconditional = others[-1] if others else conditional
        guided = guided_noise(
            unconditional,
            image_only,
            conditional,
            guidance_scale=self.text_scale,
            image_guidance_scale=self.image_scale,
        )
        return guided if worst is None else guided + self.level_scale * (conditional - worst)


def edit_rows(
    editor: Editor,
    rows: Rows,
    *,
    seeds: Sequence[int],
    guidance_scale: Scales,
    image_guidance_scale: Scales,
    num_inference_steps: int,
    micro_batch: int = MICRO_BATCH,
    should_stop: Callable[[], bool] | None = None,
) -> list[bytes]:
    """One edit, as PNG, of each row's `source_image` by its `instruction` with the suffix of the editor's card.

    The arguments are those of `sample`, which gets `micro_batch` rows at a time.
    """
    text_scale = _numbers(guidance_scale, len(rows))
    image_scale = _numbers(image_guidance_scale, len(rows))
    edits: list[bytes] = []
    for start in range(0, len(rows), micro_batch):
        part = slice(start, start + micro_batch)
        images = sample(
            editor,
            to_batch([row["source_image"] for row in rows[part]], editor.card.resolution),
            [append_suffix(editor.tokenizer, row["instruction"], editor.card.instruction_suffix) for row in rows[part]],
            guidance_scale=text_scale[part],
            image_guidance_scale=image_scale[part],
            num_inference_steps=num_inference_steps,
            seeds=seeds[part],
            should_stop=should_stop,
        )
        edits += [encode(to_pixels(image)) for image in images]
    return edits


ScoreFunction = Callable[[list[bytes], list[bytes], list[str]], list[float]]
"""Sources, edits and instructions of B edits -> the reward of each, such as `RewardModel.score`."""


@dataclass(frozen=True)
class ScoredEdits:
    """Several edits of one prompt with their rewards, in the order of their seeds."""

    edits: tuple[bytes, ...]
    seeds: tuple[int, ...]
    rewards: tuple[float, ...]

    @property
    def best(self) -> int:
        """The place of the greatest reward, the first of equal ones. NaN counts as less than any number."""
        rewards = [-math.inf if math.isnan(reward) else reward for reward in self.rewards]
        return rewards.index(max(rewards))


def sample_and_score(
    editor: Editor,
    rows: Rows,
    score: ScoreFunction,
    *,
    seeds: Sequence[Sequence[int]],
    guidance_scale: float,
    image_guidance_scale: float,
    num_inference_steps: int,
) -> list[ScoredEdits]:
    """Best of N (ImageReward, Xu et al. 2023, section 4.2): one scored edit of each row for each of its `seeds`.

    `ScoredEdits.best` is the edit to show. The first edit is the one that N = 1 would give.
    """
    counts = [len(of_row) for of_row in seeds]
    each = [row for row, count in zip(rows, counts, strict=True) for _ in range(count)]
    edits = edit_rows(
        editor, each, seeds=[seed for of_row in seeds for seed in of_row], guidance_scale=guidance_scale,
        image_guidance_scale=image_guidance_scale, num_inference_steps=num_inference_steps,
    )  # fmt: skip
    rewards = score([row["source_image"] for row in each], edits, [row["instruction"] for row in each])
    ends = list(accumulate(counts))
    parts = [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
    return [
        ScoredEdits(tuple(edits[part]), tuple(of_row), tuple(rewards[part]))
        for part, of_row in zip(parts, seeds, strict=True)
    ]


class EditSampler:
    """Adds several edits to each prompt, for people to rank."""

    def __init__(self, editor: str, settings: Candidates, *, name: str, device: str = "cpu") -> None:
        """editor: a finished editor folder. name: the editor's digest, for the column `editor`."""
        self.editor = Editor.load(editor).to(device, sampling_dtype(device, settings.precision))
        self.settings, self.name = settings, name

    def __call__(self, rows: Rows) -> Rows:
        count = self.settings.num_edits
        plans = [self._plan(row["prompt_id"], draw) for row in rows for draw in range(count)]
        images = edit_rows(
            self.editor,
            [row for row in rows for _ in range(count)],
            seeds=[plan["seed"] for plan in plans],
            guidance_scale=[plan["guidance_scale"] for plan in plans],
            image_guidance_scale=[plan["image_guidance_scale"] for plan in plans],
            num_inference_steps=self.settings.num_inference_steps,
        )
        edits = [plan | {"image": image} for plan, image in zip(plans, images, strict=True)]
        return [
            row | {"edits": edits[index * count : (index + 1) * count], "editor": self.name}
            for index, row in enumerate(rows)
        ]

    def _plan(self, prompt_id: str, draw: int) -> dict:
        """Seed and scales of one edit. They are the same for every editor, so that editors can be compared."""
        seed = seed_for(self.settings.seed, prompt_id, draw)
        return {
            "edit_id": id_for(prompt_id, self.name, seed),
            "seed": seed,
            "guidance_scale": _between(self.settings.guidance_scale, uniform_for("guidance_scale", seed)),
            "image_guidance_scale": _between(
                self.settings.image_guidance_scale, uniform_for("image_guidance_scale", seed)
            ),
        }


def _between(bounds: tuple[float, float], place: float) -> float:
    """Linear interpolation between two bounds at `place` in 0..1, rounded to fp32, the type of the column."""
    least, most = bounds
    return float(torch.tensor(least + (most - least) * place, dtype=torch.float32))


def _numbers(scale: Scales, rows: int) -> Tensor:
    """A scale as fp32 (B,)."""
    numbers = torch.as_tensor(scale, dtype=torch.float32).flatten()
    if len(numbers) not in (1, rows):
        raise ValueError(f"{len(numbers)} guidance scales for {rows} rows; give one, or one for each row")
    return numbers.expand(rows)


def _per_row(scale: Scales, rows: int, device: torch.device) -> Tensor:
    """A scale as fp32 (B, 1, 1, 1) on `device`."""
    return _numbers(scale, rows).to(device).view(rows, 1, 1, 1)
