"""Instructions -> pairs of pictures, which a text-to-image model samples together."""

import torch
from torch import Tensor

from hive_ray.config import Pairs
from hive_ray.diffusion.precision import sampling_dtype
from hive_ray.images import encode, to_pixels
from hive_ray.pairs.controls import (
    Caption,
    Controls,
    cross_and_self_controls,
    instruct_pix2pix_controls,
    prompt_to_prompt_controls,
    same_number_of_words,
)
from hive_ray.pairs.cycle import make_twin
from hive_ray.pairs.filtering import keep_best
from hive_ray.pairs.safety import SafetyChecker, flag_nothing
from hive_ray.pairs.text_to_image import LocalBlend, TextToImage
from hive_ray.schemas import Dropped, Result, Row, Rows, prompt_row
from hive_ray.seeds import id_for, seed_for
from hive_ray.similarity import Similarity

NOT_REPLACEABLE = "captions_differ_in_number_of_words"
"""Drop reason of pairs whose captions do not allow a word swap."""


class PairGenerator:
    """Instructions -> kept pairs, their cycle twins, and dropped pairs with their reasons."""

    def __init__(self, settings: Pairs, device: str = "cpu") -> None:
        self.settings = settings
        self.model = TextToImage(
            settings.base, device, sampling_dtype(device, settings.precision), settings.single_file
        )
        self.similarity = Similarity(settings.clip, device)
        self.flagged = SafetyChecker(settings.safety_checker, device) if settings.safety_checker else flag_nothing

    def __call__(self, rows: Rows) -> list[Result]:
        drawn = [row for row in rows if self._can_be_drawn(row)]
        samples = [(row, draw) for row in drawn for draw in range(self.settings.samples_per_instruction)]
        pairs: Rows = []
        for start in range(0, len(samples), self.settings.resources.batch_size):
            pairs += self._draw(samples[start : start + self.settings.resources.batch_size])
        unlike = [Dropped(NOT_REPLACEABLE)] * self.settings.samples_per_instruction
        chosen: list[Result] = []
        for row in rows:
            chosen += self._chosen(row, pairs) if self._can_be_drawn(row) else unlike
        return chosen

    def _can_be_drawn(self, row: Row) -> bool:
        swaps = self.settings.sharing == "replace"
        return not swaps or same_number_of_words(row["source_caption"], row["edited_caption"])

    def _chosen(self, row: Row, pairs: Rows) -> list[Result]:
        """Kept pairs of one instruction, their twins, and the dropped ones with their reasons."""
        own = [pair for pair in pairs if pair["instruction_id"] == row["instruction_id"]]
        kept, dropped = keep_best(own, self.settings, self.flagged)
        twins = [make_twin(pair, row["inverse_instruction"]) for pair in kept if row["inverse_instruction"]]
        return [
            *kept,
            *(twins if self.settings.cycle else []),
            *(Dropped(reason, row=pair) for reason, pair in dropped),
        ]

    def _draw(self, samples: list[tuple[Row, int]]) -> Rows:
        settings = self.settings
        seeds = [seed_for(settings.seed, row["instruction_id"], draw) for row, draw in samples]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        drawn = torch.tensor([first_draws(generator) for generator in generators])
        scales = _between(settings.guidance_scale, drawn[:, 1])
        source_captions = [row["source_caption"] for row, _ in samples]
        edited_captions = [row["edited_caption"] for row, _ in samples]
        sources, edits = self.model.draw_pairs(
            source_captions,
            edited_captions,
            self.model.noise(generators, settings.resolution),
            guidance_scale=scales,
            controls=make_controls(
                settings, self.model.describe(source_captions), self.model.describe(edited_captions), drawn[:, 0]
            ),
            num_inference_steps=settings.num_inference_steps,
            schedule=settings.schedule,
            control_side=settings.control_side,
            local_blend=LocalBlend(settings.local_blend, settings.local_blend_start) if settings.local_blend else None,
        )
        shared = _between(_recorded_span(settings), drawn[:, 0])
        before = [to_pixels(image) for image in sources]
        after = [to_pixels(image) for image in edits]
        measured = self.similarity.measure(before, after, source_captions, edited_captions)
        pairs: Rows = []
        for i, (row, _) in enumerate(samples):
            similarities = {name: float(values[i]) for name, values in measured.items()}
            pairs.append(
                {
                    "pair_id": id_for(row["instruction_id"], seeds[i]),
                    "instruction_id": row["instruction_id"],
                    "instruction": row["instruction"],
                    "source_caption": row["source_caption"],
                    "edited_caption": row["edited_caption"],
                    "source_image": encode(before[i]),
                    "edited_image": encode(after[i]),
                    "weight": 1.0,
                    "seed": seeds[i],
                    "shared_attention": float(shared[i]),
                    **similarities,
                    "origin": "generated",
                    "split": row["split"],
                }
            )
        return pairs


class SourceGenerator:
    """Held-out instructions -> prompts, with source pictures sampled by the text-to-image model."""

    def __init__(self, settings: Pairs, device: str = "cpu") -> None:
        self.settings = settings
        self.model = TextToImage(
            settings.base, device, sampling_dtype(device, settings.precision), settings.single_file
        )

    def __call__(self, rows: Rows) -> Rows:
        settings, captions = self.settings, [row["source_caption"] for row in rows]
        generators = [
            torch.Generator().manual_seed(seed_for(settings.seed, row["instruction_id"], "prompt")) for row in rows
        ]
        images = self.model.draw(
            captions,
            self.model.noise(generators, settings.resolution),
            guidance_scale=torch.full((len(rows),), sum(settings.guidance_scale) / 2),
            num_inference_steps=settings.num_inference_steps,
            schedule=settings.schedule,
        )
        return [prompt_row(row, encode(to_pixels(image))) for row, image in zip(rows, images, strict=True)]


def first_draws(generator: torch.Generator) -> tuple[float, float]:
    """Two uniform numbers in [0, 1), which place a sample in the ranges of sharing and of guidance_scale.

    They are the first two draws of the seed, as in InstructPix2Pix's generate_img_dataset.py, so that its published
    thresholds and scales can be recomputed.
    """
    return float(torch.rand((), generator=generator)), float(torch.rand((), generator=generator))


def make_controls(settings: Pairs, sources: list[Caption], edits: list[Caption], drawn: Tensor) -> Controls:
    """The controls of n pairs by the settings; drawn (n,) in 0..1 places each pair in the ranges of the settings."""
    num_steps = settings.num_inference_steps
    if settings.sharing == "self":
        return instruct_pix2pix_controls(_between(settings.shared_attention, drawn), num_steps)
    if settings.sharing == "cross_and_self":
        return cross_and_self_controls(sources, edits, _between(settings.shared_attention, drawn), num_steps)
    alike = [len(source.words) == len(edited.words) for source, edited in zip(sources, edits, strict=True)]
    return prompt_to_prompt_controls(
        sources,
        edits,
        swaps_words=[settings.sharing != "refine" and is_alike for is_alike in alike],
        self_replace_steps=_between(settings.self_replace_steps, drawn),
        cross_replace_steps=_between(settings.cross_replace_steps, drawn),
        changed_replace_steps=_between(settings.changed_replace_steps or settings.cross_replace_steps, drawn),
        changed_scale=settings.changed_scale,
        num_steps=num_steps,
    )


def _recorded_span(settings: Pairs) -> tuple[float, float]:
    """The range of the column `shared_attention`, the share of the steps that share self-attention."""
    return settings.shared_attention if settings.sharing in ("self", "cross_and_self") else settings.self_replace_steps


def _between(span: tuple[float, float], uniform: Tensor) -> Tensor:
    return span[0] + (span[1] - span[0]) * uniform
