"""Diffusion-DPO: the editor learns from rankings to make chosen edits more likely than rejected ones.

    rankings, Editor -> Diffusion-DPO loss of some rows -> (cluster/fitting.py) -> an editor folder

There is no reward model. The frozen start is the reference model.

B rankings, C latent channels, h w latent height and width
"""

import copy
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor, nn

from hive_ray.config import Dpo
from hive_ray.config import Editor as Settings
from hive_ray.editor.latents import select_edit_latents
from hive_ray.editor.lora import without_adapters
from hive_ray.editor.model import Editor, EditorCard
from hive_ray.editor.objective import Batch, Denoiser, EditorObjective, Measures, Metrics, row_errors, sub_state_dict
from hive_ray.errors import BadRows
from hive_ray.schemas import Row, Rows
from hive_ray.seeds import generator_for
from hive_ray.statistics.agreement import dense_ranks
from hive_ray.statistics.preferences import preference_loss


def preference_margin(errors: Tensor, reference_errors: Tensor, beta: float) -> Tensor:
    """How much more than the reference a model prefers the chosen edit (Diffusion-DPO, Wallace et al. 2023): (B,).

    -beta / 2 ((L_chosen - L_rejected) - (L_chosen of the reference - L_rejected of the reference)). As in the published
    code, beta includes the number of timesteps, and L is a mean over C, h and w.
    errors, reference_errors: (2 B,), those of the chosen edits first. Without training the margin is 0.
    """
    chosen, rejected = errors.chunk(2)
    reference_chosen, reference_rejected = reference_errors.chunk(2)
    return -0.5 * beta * ((chosen - rejected) - (reference_chosen - reference_rejected))


def safe_scale(predicted: Tensor, target: Tensor, margin: float = 0.0) -> Tensor:
    """The largest factor in 0..1 of the rejected edit's gradient that does not harm the chosen edit: (B,), detached.

    Diffusion-SDPO (Fu et al. 2025, arXiv 2511.03317): a step along -(g_w - lambda g_l) changes the chosen edit's error
    by -(|g_w|^2 - lambda <g_w, g_l>) to first order. The error falls by at least the share `margin` (mu) of what g_w
    alone would give if lambda is at most

        lambda_safe = min(1, (1 - mu) |g_w|^2 / <g_w, g_l>)   where <g_w, g_l> > 0, else 1.

    As in the paper's output-space form, g is the gradient with respect to the prediction, which is proportional to
    predicted - target. The published code takes one factor for a micro-batch. Here each comparison has its own, so the
    factor does not depend on how a batch is divided.
    predicted, target: (2 B, C, h, w), the chosen edits first.
    """
    residual = predicted.detach().float() - target.float()
    chosen, rejected = residual.flatten(1).chunk(2)
    alignment = (chosen * rejected).sum(1)
    bound = (1 - margin) * chosen.square().sum(1) / alignment
    return torch.where(alignment > 0, bound, 1.0).clamp(max=1.0)


def scale_rejected_gradient(errors: Tensor, scale: Tensor) -> Tensor:
    """The same errors (2 B,), those of the chosen edits first; the gradient of the rejected ones is scaled by (B,)."""
    chosen, rejected = errors.chunk(2)
    fixed = rejected.detach()
    return torch.cat([chosen, fixed + scale * (rejected - fixed)])


def has_comparison(ranks: list[int], settings: Dpo) -> bool:
    """Whether a ranking has two edits to learn from: at least `min_rank_gap` ranks apart, or tied if ties count."""
    if settings.pairs == "any" and settings.tie_threshold > 1 and len(set(ranks)) < len(ranks):
        return True
    return max(dense_ranks(ranks)) > settings.min_rank_gap


def draw_comparison(ranks: list[int], settings: Dpo, generator: torch.Generator) -> tuple[int, int, bool]:
    """The places of a chosen and a rejected edit, and whether they tie; drawn uniformly from a ranking's comparisons.

    The ranks of the two differ by at least `min_rank_gap`, or they tie and ties count. ValueError for a ranking without
    such a comparison.
    """
    dense = dense_ranks(ranks)
    least = max(settings.min_rank_gap, max(dense) - 1) if settings.pairs == "best_worst" else settings.min_rank_gap
    has_ties = settings.pairs == "any" and settings.tie_threshold > 1
    comparisons = []
    for first, second in combinations(range(len(dense)), 2):
        chosen, rejected = (first, second) if dense[first] <= dense[second] else (second, first)
        gap = dense[rejected] - dense[chosen]
        is_drawn = gap >= least if gap else has_ties
        if is_drawn:
            comparisons.append((chosen, rejected, gap == 0))
    if not comparisons:
        raise ValueError(
            f"ranks {ranks} have no two edits at least {least} ranks apart: leave such rankings out (has_comparison)"
        )
    return comparisons[int(torch.randint(len(comparisons), (), generator=generator))]


def shuffle_ranks(row: Row) -> Row:
    """The ranking with its ranks shuffled. The order depends on the ranking_id alone."""
    ranks = row["ranks"]
    order = torch.randperm(len(ranks), generator=generator_for("shuffled", row["ranking_id"])).tolist()
    return row | {"ranks": [ranks[place] for place in order]}


class ModelWithReference(nn.Module):
    """The trained model and the frozen reference as one module, for DeepSpeed to wrap.

    So both run in the same precision, and stage 3 of ZeRO partitions both.
    """

    def __init__(self, denoiser: Denoiser, only_adapters: bool) -> None:
        """only_adapters: only adapters are trained, so the reference is the same network with its adapters disabled."""
        super().__init__()
        self.denoiser = denoiser
        self.reference = None if only_adapters else copy.deepcopy(denoiser).requires_grad_(False)

    def forward(self, *inputs: object) -> tuple[Tensor, Tensor]:
        """Predictions (B, C, h, w) of the denoiser and, without gradient, of the reference; inputs as `Denoiser`."""
        with torch.no_grad(), without_adapters(self.denoiser):
            reference = (self.reference or self.denoiser)(*inputs)
        return self.denoiser(*inputs), reference


class ReferenceModelObjective(EditorObjective):
    """An objective that compares the trained model with the frozen start, its reference."""

    def __init__(self, editor: Editor, settings: Settings) -> None:
        super().__init__(editor, settings)
        self.model: nn.Module = ModelWithReference(self.denoiser, only_adapters=settings.lora_rank > 0)

    def save(self, folder: str | Path, state: dict[str, Tensor], card: EditorCard) -> None:
        """Write an editor folder with the weights of `state`, a state dict of `model`; the reference is left out."""
        super().save(folder, sub_state_dict("denoiser.", state), card)


class PreferenceObjective(ReferenceModelObjective):
    """The trained weights and the Diffusion-DPO loss of rows of `rankings`, with one comparison of each row."""

    def prepare(self, rows: Rows, generator: torch.Generator) -> Batch:
        """Two edits of each of B rows of `rankings` as `draw_batch` returns them: the chosen ones, then the rejected.

        "tied" (B,) says whether the two edits of a row tie.
        Draws from the CPU `generator`: one comparison a row, then as `draw_batch`, shared by both edits. BadRows names
        rows with a picture that cannot be read, or with broken latents.
        """
        dpo = self.settings.dpo
        if "latents" in rows[0]:
            reasons = self.latents.wrong_size_reasons(rows, [len(row["ranks"]) for row in rows])
            if reasons:
                raise BadRows(reasons)
        if dpo.shuffled:
            rows = [shuffle_ranks(row) for row in rows]
        drawn = [draw_comparison(row["ranks"], dpo, generator) for row in rows]
        chosen = [self._pair(row, place) for row, (place, _, _) in zip(rows, drawn, strict=True)]
        rejected = [self._pair(row, place) for row, (_, place, _) in zip(rows, drawn, strict=True)]
        try:
            batch = self.draw_batch(chosen + rejected, generator, copies=2, timesteps=dpo.timesteps)
        except BadRows as bad:
            raise BadRows({place % len(rows): reason for place, reason in bad.reasons.items()}) from bad
        return batch | {"tied": torch.tensor([tie for *_, tie in drawn])}

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Measures]:
        """Mean loss of a prepared batch; ties count as 0 unless `dpo.tie_threshold` is above 1.

        `model` is `self.model`, bare or wrapped.
        """
        dpo = self.settings.dpo
        noised = self.noise_batch(batch)
        tied = batch["tied"]
        predicted, reference = model(*noised.inputs)
        errors = row_errors(predicted, noised.target)
        reference_errors = row_errors(reference, noised.target)
        measures = {"error": errors, "reference_error": reference_errors}
        guarded = errors
        if dpo.safeguard:
            scale = 1 - dpo.safeguard * (1 - safe_scale(predicted, noised.target, dpo.safeguard_margin))
            scale = scale.masked_fill(tied, 1.0)
            guarded = scale_rejected_gradient(errors, scale)
            measures["rejected_scale"] = scale
        margin = preference_margin(guarded, reference_errors, dpo.beta)
        loss = preference_loss(margin, tied, dpo.tie_threshold).mean()
        measures |= {"apart": (~tied).float(), "better": (margin.sign() + 1) / 2 * ~tied}
        return loss, {f"train/{name}": each.detach().mean().double() for name, each in measures.items()}

    def summarise(self, means: Metrics, num_rows: int) -> Metrics:
        """The metrics to log for rows whose measures have these means, with DPO's implicit accuracy.

        The implicit accuracy is over rows without ties. It is 0.5 for the reference, and if all rows tie.
        """
        apart, better = means.pop("train/apart"), means.pop("train/better")
        return means | {"train/implicit_accuracy": better / apart if apart else 0.5}

    def _pair(self, row: Row, place: int) -> Row:
        """An edit of a ranking as a row of `pairs`, or as its latents if the ranking carries them."""
        if "latents" in row:
            num_views = self.latents.stored_shape[0]
            latents = select_edit_latents(row["latents"], place, len(row["ranks"]), num_views)
            return {"instruction": row["instruction"], "latents": latents}
        picture = row["edits"][place]["image"]
        return {"instruction": row["instruction"], "source_image": row["source_image"], "edited_image": picture}
