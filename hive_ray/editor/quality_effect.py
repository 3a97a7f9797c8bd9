"""How much an editor's prediction depends on the quality that its instruction asks for.

    pairs, Editor -> the change of its prediction between the worst and the best quality, and that by the instruction

HIVE appends the quality in words to the instruction. If the text encoder hardly distinguishes "one" from "five", the
prediction is the same for both, and the phrase has no effect at sampling. Measure the start of the training, too. An
effect before any phrase was learned comes from unfamiliar words, and training has to unlearn it first.

N rows, C latent channels, h w latent height and width
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hive_ray.diffusion.noising import add_noise
from hive_ray.editor.denoising_errors import common_noise
from hive_ray.editor.levels import BEST_LEVEL, WORST_LEVEL, class_labels
from hive_ray.editor.model import Editor, append_suffix
from hive_ray.images import to_batch
from hive_ray.schemas import Rows

TIMESTEPS = (250, 450, 650)
MICRO_BATCH = 64
"""Rows in one forward pass, three times each."""


@dataclass(frozen=True)
class QualityEffect:
    """Root mean squares over rows, timesteps, C, h and w, in units of the predicted noise."""

    quality: float
    """Of the difference between the predictions for the best and the worst quality."""
    instruction: float
    """Of the difference between the predictions for the best quality and without any instruction."""

    @property
    def share(self) -> float:
        """The effect of the quality divided by that of the instruction; 0 means that the editor ignores the quality."""
        return self.quality / self.instruction if self.instruction else 0.0


@torch.inference_mode()
def quality_effect(
    editor: Editor,
    rows: Rows,
    *,
    suffixes: tuple[str, str] = ("", ""),
    levels: tuple[int, int] = (WORST_LEVEL, BEST_LEVEL),
    timesteps: Sequence[int] = TIMESTEPS,
    micro_batch: int = MICRO_BATCH,
) -> QualityEffect:
    """The effect on N rows of pairs (`instruction`, `source_image`, `edited_image`), their edited pictures noised.

    suffixes: the phrases of the worst and the best quality, for an editor that reads the quality in words. levels: the
    labels of both, which an editor without levels ignores. All rows get the same noise (`common_noise`). ValueError if
    there are no rows.
    """
    if not rows:
        raise ValueError("no rows to measure the effect of the quality on: give some pairs")
    squares, count = torch.zeros(2, dtype=torch.float64), 0
    for start in range(0, len(rows), micro_batch):
        part = rows[start : start + micro_batch]
        for worst, best, without in _predictions(editor, part, suffixes, levels, timesteps):
            squares += torch.stack([(best - worst).square().sum(), (best - without).square().sum()]).cpu()
            count += best.numel()
    quality, instruction = (squares / count).sqrt().tolist()
    return QualityEffect(quality, instruction)


def _predictions(
    editor: Editor, rows: Rows, suffixes: tuple[str, str], levels: tuple[int, int], timesteps: Sequence[int]
) -> list[Tensor]:
    """At each timestep the predictions (3, N, C, h, w) for the worst quality, the best, and without an instruction."""
    count = len(rows)
    device = editor.unet.device
    dtype = editor.unet.dtype
    side = editor.card.resolution
    sources = to_batch([row["source_image"] for row in rows], side)
    mean, std = editor.posterior(to_batch([row["edited_image"] for row in rows], side))
    latents = editor.draw_target(mean, std, torch.zeros_like(std)).to(device)
    conditions = editor.encode_condition(sources).to(device).repeat(3, 1, 1, 1)
    texts = [append_suffix(editor.tokenizer, row["instruction"], suffix) for suffix in suffixes for row in rows]
    texts += [""] * count
    text_inputs = editor.text.encode_rows(texts).unet_inputs(side, side, dtype)
    row_levels = [level for level in (*levels, BEST_LEVEL) for _ in rows]
    labels = class_labels(editor.unet, texts, row_levels, device=device)
    predictions = []
    for timestep in torch.tensor(timesteps, device=device):
        noise = common_noise(latents.shape[1:], int(timestep), 0).to(device).expand_as(latents)
        noisy = add_noise(editor.scheduler, latents, noise, timestep.expand(count))
        inputs = torch.cat([noisy.repeat(3, 1, 1, 1), conditions], dim=1)
        inputs = inputs.to(dtype).contiguous(memory_format=torch.channels_last)
        predicted = editor.unet(inputs, timestep, class_labels=labels, **text_inputs).sample
        predictions.append(predicted.float().unflatten(0, (3, count)))
    return predictions
