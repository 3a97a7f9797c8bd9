"""The error with which an editor predicts the noise in an edit: a measure of edits that needs no training.

    rankings, editor -> ErrorMeasurer -> denoising_errors

An edit that follows the instruction and keeps the picture is likely under the editor. The mean squared error of its
denoising bounds that likelihood (Ho et al. 2020, eq. 14). All edits get the same noise, as in Li et al. 2023 ("Your
Diffusion Model is Secretly a Zero-Shot Classifier"), so only the edits make their errors differ.

B edits, S source pictures, C latent channels, h w latent height and width
F features: errors at each noise level under each condition
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hive_ray.config import DenoisingError
from hive_ray.diffusion.noising import add_noise, denoising_target
from hive_ray.diffusion.precision import sampling_dtype
from hive_ray.editor.levels import class_labels
from hive_ray.editor.model import Editor, append_suffix
from hive_ray.editor.objective import row_errors
from hive_ray.images import to_batch
from hive_ray.schemas import Dropped, Result, Rows, edits_as_pairs
from hive_ray.seeds import generator_for

MICRO_BATCH = 64
"""Edits in one forward pass."""


def feature_names(settings: DenoisingError) -> tuple[str, ...]:
    """Names of the F features in their order, such as "error@450, instruction" or "log error@450, instruction"."""
    what = "log error" if settings.log else "error"
    return tuple(f"{what}@{level}, {condition}" for level in settings.levels for condition in settings.conditions)


def evaluations_per_edit(settings: DenoisingError) -> int:
    """Network evaluations that the features of one edit cost."""
    return len(feature_names(settings)) * settings.draws


def common_noise(shape: tuple[int, ...], level: int, draw: int) -> Tensor:
    """Standard normal noise of this shape: the same for every edit, on every device."""
    return torch.randn(shape, generator=generator_for("denoising_error", level, draw))


@torch.inference_mode()
def denoising_errors(
    editor: Editor,
    source_images: Tensor,
    source_indices: Sequence[int],
    edited_images: Tensor,
    instructions: Sequence[str],
    settings: DenoisingError,
) -> Tensor:
    """Errors (B, F), or their logarithms, in fp32 on the CPU, in the order of `feature_names`.

    Each is a mean over C, h, w and the draws of noise.

    source_images (S, 3, H, W) and edited_images (B, 3, H, W) in -1..1; source_indices: the source of each edit.
    The latent of an edit is the mean of its posterior, so only the common noise is random. The error is in what the
    editor was trained to predict: the noise or the velocity.
    """
    count = len(edited_images)
    device = editor.unet.device
    dtype = editor.unet.dtype
    check_levels(editor, settings)
    mean, std = editor.posterior(edited_images)
    latents = editor.draw_target(mean, std, torch.zeros_like(std)).to(device)
    sources = editor.encode_condition(source_images).to(device)[list(source_indices)]
    pictures = {"instruction": sources, "source": sources, "nothing": torch.zeros_like(sources)}
    texts_of = {"instruction": list(instructions), "source": [""] * count, "nothing": [""] * count}
    conditions = torch.cat([pictures[condition] for condition in settings.conditions])
    texts = [text for condition in settings.conditions for text in texts_of[condition]]
    num_conditions = len(settings.conditions)
    height, width = edited_images.shape[-2:]
    text_inputs = editor.text.encode_rows(texts).unet_inputs(height, width, dtype)
    labels = class_labels(editor.unet, texts, device=device)
    features = []
    for level in settings.levels:
        timesteps = torch.full((count,), level, device=device)
        total = torch.zeros(num_conditions, count, device=device)
        for draw in range(settings.draws):
            noise = common_noise(latents.shape[1:], level, draw).to(device).expand_as(latents)
            noisy = add_noise(editor.scheduler, latents, noise, timesteps)
            target = denoising_target(editor.scheduler, latents, noise, timesteps)
            inputs = torch.cat([noisy.repeat(num_conditions, 1, 1, 1), conditions], dim=1)
            inputs = inputs.to(dtype).contiguous(memory_format=torch.channels_last)
            predicted = editor.unet(inputs, timesteps[0], class_labels=labels, **text_inputs).sample
            total += row_errors(predicted, target.repeat(num_conditions, 1, 1, 1)).view_as(total)
        features.append(total.T / settings.draws)
    errors = torch.cat(features, dim=1).cpu()
    return errors.log() if settings.log else errors


def check_levels(editor: Editor, settings: DenoisingError) -> None:
    """Raise a ValueError for noise levels beyond the editor's timesteps."""
    most = editor.scheduler.config["num_train_timesteps"] - 1
    beyond = [level for level in settings.levels if level > most]
    if beyond:
        raise ValueError(
            f"reward.denoising_error.levels has {beyond}, the editor's timesteps end at {most}: give levels from 0 to "
            f"{most}"
        )


def errors_of_edits(
    editor: Editor,
    source_images: Sequence[bytes],
    edited_images: Sequence[bytes],
    instructions: Sequence[str],
    settings: DenoisingError,
    *,
    micro_batch: int = MICRO_BATCH,
) -> Tensor:
    """Errors (B, F) of encoded pictures, as `denoising_errors`. The suffix of the editor's card is appended to the
    instructions.

    Each source is decoded and encoded once per micro batch.
    """
    side, suffix = editor.card.resolution, editor.card.instruction_suffix
    features = [torch.empty(0, len(feature_names(settings)))]
    for start in range(0, len(edited_images), micro_batch):
        part = slice(start, start + micro_batch)
        distinct = list(dict.fromkeys(source_images[part]))
        place_of = {source: place for place, source in enumerate(distinct)}
        features.append(
            denoising_errors(
                editor,
                to_batch(distinct, side),
                [place_of[source] for source in source_images[part]],
                to_batch(list(edited_images[part]), side),
                [append_suffix(editor.tokenizer, instruction, suffix) for instruction in instructions[part]],
                settings,
            )
        )
    return torch.cat(features)


class ErrorMeasurer:
    """Rankings -> one row of features for each edit."""

    def __init__(
        self, editor: str, settings: DenoisingError, edits_of: Mapping[str, Sequence[str]], device: str = "cpu"
    ) -> None:
        """`edits_of`: the ids of the edits that are measured, by ranking_id."""
        self.editor = Editor.load(editor).to(device, sampling_dtype(device, settings.precision))
        check_levels(self.editor, settings)
        self.settings, self.edits_of = settings, edits_of

    def __call__(self, rows: Rows) -> list[Result]:
        edits = edits_as_pairs(rows, self.edits_of)
        features = errors_of_edits(
            self.editor,
            [edit["source_image"] for edit in edits],
            [edit["edited_image"] for edit in edits],
            [edit["instruction"] for edit in edits],
            self.settings,
        )
        measured: list[Result] = []
        for edit, numbers in zip(edits, features, strict=True):
            if numbers.isfinite().all():
                ids = {"edit_id": edit["edit_id"], "prompt_id": edit["prompt_id"]}
                measured.append(ids | {"features": numbers.tolist()})
            else:
                measured.append(Dropped("error_not_finite"))
        return measured
