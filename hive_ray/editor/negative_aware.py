"""DiffusionNFT (Zheng et al. 2025): the editor learns from its own scored edits, including bad ones.

    scored_candidates, Editor -> negative-aware loss of some rows -> (cluster/fitting.py) -> an editor folder

The frozen start made the edits. It is the old policy v_old of the paper.

B rows, C latent channels, h w latent height and width
"""

import torch
from torch import Tensor, nn

from hive_ray.editor.objective import Batch, Measures, Metrics, row_errors
from hive_ray.editor.preference import ReferenceModelObjective
from hive_ray.errors import BadRows
from hive_ray.schemas import Rows


def implicit_policies(predicted: Tensor, reference: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """The implicit positive and negative predictions, (B, C, h, w) each as the arguments (DiffusionNFT, Theorem 3.2).

    v+ = (1 - beta) v_old + beta v and v- = (1 + beta) v_old - beta v, in fp32.
    """
    predicted, reference = predicted.float(), reference.float()
    positive = (1 - beta) * reference + beta * predicted
    negative = (1 + beta) * reference - beta * predicted
    return positive, negative


def negative_aware_loss(
    predicted: Tensor, reference: Tensor, target: Tensor, optimality: Tensor, beta: float
) -> Tensor:
    """The loss of each row (B,): r |v+ - v|^2 + (1 - r) |v- - v|^2 (DiffusionNFT, eq. 5), a mean over C, h and w.

    predicted, reference, target: (B, C, h, w); optimality: r (B,) in 0..1. The v of the paper is a velocity. For a
    given noisy latent the noise is linear in the velocity. So for an epsilon model only the weights of the timesteps
    differ from the paper: they are those of the plain denoising loss. At beta = 1 and r = 1 it is the plain loss.
    """
    positive, negative = implicit_policies(predicted, reference, beta)
    return optimality * row_errors(positive, target) + (1 - optimality) * row_errors(negative, target)


class NegativeAwareObjective(ReferenceModelObjective):
    """The trained weights and the negative-aware loss of rows of `scored_candidates`. `weight` is the optimality."""

    def prepare(self, rows: Rows, generator: torch.Generator) -> Batch:
        """As `EditorObjective.prepare`. BadRows also names rows whose weight is above 1."""
        reasons = {
            place: f"its weight is {row['weight']}, but a probability is at most 1"
            for place, row in enumerate(rows)
            if row["weight"] > 1
        }
        if reasons:
            raise BadRows(reasons)
        return super().prepare(rows, generator)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Measures]:
        """Mean loss of a prepared batch. `model` is `self.model`, bare or wrapped."""
        noised, optimality = self.noise_batch(batch), batch["weight"]
        predicted, reference = model(*noised.inputs)
        losses = negative_aware_loss(predicted, reference, noised.target, optimality, self.settings.nft.beta)
        measures = {
            "optimality": optimality,
            "error": row_errors(predicted, noised.target),
            "reference_error": row_errors(reference, noised.target),
        }
        return losses.mean(), {f"train/{name}": each.detach().mean().double() for name, each in measures.items()}

    def summarise(self, means: Metrics, num_rows: int) -> Metrics:
        """The means unchanged, since every measure is over all rows."""
        return means
