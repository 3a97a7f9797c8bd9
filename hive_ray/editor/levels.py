"""Quality levels: a learned embedding that conditions the editor, besides the instruction, on the quality of the edit.

    U-Net, texts, quality levels -> class labels

The embedding is diffusers' own: `UNet2DConditionModel(num_class_embeds=...)` adds one of its rows to the time
embedding. It is part of the U-Net's config and weights, so an editor folder needs no other sign that it has levels.
Multi-Reward (Gu et al. 2024) conditions an editor by embeddings, too, and reports that CLIP's text encoder is hardly
sensitive to scores.

diffusers' InstructPix2Pix pipelines pass no class labels and refuse a U-Net that needs them, so only hive_ray samples
an editor with levels. Editors without levels work in these pipelines.

B rows
"""

from collections.abc import Sequence
from typing import cast

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from hive_ray.files.model_folders import ModelFolderError

WORST_LEVEL, BEST_LEVEL = 1, 5
NO_LEVEL = 0
"""The label of a row without a quality level."""


def has_levels(unet: UNet2DConditionModel) -> bool:
    """Whether a U-Net has an embedding of levels; ModelFolderError for an embedding of other classes."""
    count = unet.config["num_class_embeds"]
    if count not in (None, BEST_LEVEL + 1):
        raise ModelFolderError(
            f"the U-Net has {count} class embeddings, an editor's quality levels are {BEST_LEVEL + 1}; give a U-Net "
            "without classes, or an editor that the arm level made"
        )
    return count is not None


def add_levels(unet: UNet2DConditionModel) -> None:
    """Add an embedding of levels to a U-Net, unless it has one. It is zero, so no prediction changes."""
    if has_levels(unet):
        return
    zeros = torch.zeros(BEST_LEVEL + 1, unet.time_embedding.linear_2.out_features, device=unet.device, dtype=unet.dtype)
    unet.class_embedding = nn.Embedding.from_pretrained(zeros, freeze=False)
    unet.register_to_config(num_class_embeds=BEST_LEVEL + 1)


class FastEmbedding(nn.Embedding):
    """An embedding whose rows are `factor` times its weight, so that a step of Adam moves them `factor` times as far.

    This gives it its own learning rate, as StyleGAN's mapping network has (Karras et al. 2019, appendix C), without a
    second parameter group in the optimiser. The gradient of the weight is that of the rows, not multiplied, so the
    gradient norm counts it like any other.
    """

    def __init__(self, rows: Tensor, factor: float) -> None:
        """rows: the initial embedding (number of rows, D)."""
        num_rows, width = rows.shape
        super().__init__(num_rows, width, _weight=rows / factor)
        self.factor = factor

    def forward(self, labels: Tensor) -> Tensor:
        """Labels (B,) -> rows (B, D)."""
        weight = super().forward(labels)
        return weight + ((self.factor - 1) * weight).detach()


def train_levels(unet: UNet2DConditionModel, factor: float) -> FastEmbedding:
    """Train the levels of a U-Net at `factor` times the learning rate of the other weights; returns their embedding.

    The U-Net's state dict then holds the rows of the levels divided by `factor`.
    """
    rows = cast(nn.Embedding, unet.class_embedding).weight.detach()
    embedding = FastEmbedding(rows, factor)
    unet.class_embedding = embedding
    return embedding


def class_labels(
    unet: UNet2DConditionModel,
    texts: Sequence[str],
    levels: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
) -> Tensor | None:
    """The U-Net's `class_labels` (B,) for rows with these texts; None for a U-Net without levels.

    levels: the quality levels of the rows, 1..5. By default each row has the best level, which sampling uses, so other
    losses train the editor as it is sampled. A row without a text has no level, so dropping the text drops the level,
    too, and guidance strengthens both.
    """
    if not has_levels(unet):
        return None
    if levels is None:
        levels = [BEST_LEVEL] * len(texts)
    labels = [level if text else NO_LEVEL for text, level in zip(texts, levels, strict=True)]
    return torch.tensor(labels, device=device)
