"""What the editor learns from rankings directly: to make what people chose likelier than what they rejected.

    rankings, Editor -> Diffusion-DPO loss of some rows -> (distributed/training.py) -> an editor folder

No reward model: the start, frozen, is the reference that says how likely an edit was before.

B rankings, C latent channels, h w latent height and width
"""

import copy
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor, nn

from hive_ray.config import Dpo
from hive_ray.config import Editor as Settings
from hive_ray.editor.lora import without_adapters
from hive_ray.editor.model import Editor, EditorCard
from hive_ray.editor.objective import Batch, Denoiser, EditorObjective, Metrics, row_errors, under
from hive_ray.preferences import preference_loss
from hive_ray.schemas import BadRows, Row, Rows


def preference_margin(errors: Tensor, reference_errors: Tensor, beta: float) -> Tensor:
    """How much more than the reference a model prefers the chosen edit (Diffusion-DPO, Wallace et al. 2023): (B,).

    -beta / 2 ((L_chosen - L_rejected) - (L_chosen of the reference - L_rejected of the reference)), as in the
    published code: beta holds the number of timesteps, and L is a mean over C, h and w.
    errors, reference_errors: (2 B,), the chosen edits' first. The reference against itself has a margin of 0.
    """
    chosen, rejected = errors.chunk(2)
    reference_chosen, reference_rejected = reference_errors.chunk(2)
    return -0.5 * beta * ((chosen - rejected) - (reference_chosen - reference_rejected))


def draw_comparison(ranks: list[int], settings: Dpo, generator: torch.Generator) -> tuple[int, int, bool]:
    """Places of a chosen and a rejected edit, drawn uniformly from the comparisons of a ranking, and if they tie.

    Ties are among them only where they say something, or where there is nothing else.
    """
    places = combinations(range(len(ranks)), 2)
    pairs = [(one, other) if ranks[one] <= ranks[other] else (other, one) for one, other in places]
    apart = [(chosen, rejected) for chosen, rejected in pairs if ranks[chosen] < ranks[rejected]]
    if settings.pairs == "best_worst":
        best, worst = min(ranks), max(ranks)
        apart = [(chosen, rejected) for chosen, rejected in apart if ranks[chosen] == best and ranks[rejected] == worst]
    if apart and (settings.pairs == "best_worst" or settings.tie_threshold == 1):
        pairs = apart
    chosen, rejected = pairs[int(torch.randint(len(pairs), (), generator=generator))]
    return chosen, rejected, ranks[chosen] == ranks[rejected]


class Compared(nn.Module):
    """The weights that move and what they were at the start, as one module for DeepSpeed to wrap.

    Inside it, both see the same precision, and ZeRO's stage 3 takes both apart.
    """

    def __init__(self, denoiser: Denoiser, adapted: bool) -> None:
        """`adapted`: all that is trained are adapters, so the start is the same network with them off."""
        super().__init__()
        self.denoiser = denoiser
        self.reference = None if adapted else copy.deepcopy(denoiser).requires_grad_(False)

    def forward(self, *inputs: object) -> tuple[Tensor, Tensor]:
        """Predictions (B, C, h, w) of the denoiser and, without gradient, of the reference; arguments of `Denoiser`."""
        with torch.no_grad(), without_adapters(self.denoiser):
            reference = (self.reference or self.denoiser)(*inputs)
        return self.denoiser(*inputs), reference


class PreferenceObjective(EditorObjective):
    """The weights that move, and the Diffusion-DPO loss of rows of `rankings`, one comparison of each."""

    def __init__(self, editor: Editor, settings: Settings) -> None:
        super().__init__(editor, settings)
        self.model = Compared(self.model, adapted=settings.lora_rank > 0)

    def prepare(self, rows: Rows, generator: torch.Generator) -> Batch:
        """Both edits of a comparison of each of B rows of `rankings` as `drawn`, the chosen ones first; and whether
        they are "tied" (B,).

        Draws from the CPU `generator`: a comparison a row, then as `drawn`, the same for both edits. BadRows names rows
        with a picture that cannot be read.
        """
        dpo = self.settings.dpo
        drawn = [draw_comparison(row["ranks"], dpo, generator) for row in rows]
        chosen = [_pair(row, place) for row, (place, _, _) in zip(rows, drawn, strict=True)]
        rejected = [_pair(row, place) for row, (_, place, _) in zip(rows, drawn, strict=True)]
        try:
            batch = self.drawn(chosen + rejected, generator, copies=2)
        except BadRows as bad:
            raise BadRows({place % len(rows): reason for place, reason in bad.reasons.items()}) from bad
        return batch | {"tied": torch.tensor([tie for *_, tie in drawn])}

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Metrics]:
        """Mean loss of a prepared batch; a comparison that says nothing counts as 0. `model` is `self.model`."""
        dpo, noised, tied = self.settings.dpo, self.noised(batch), batch["tied"]
        errors, reference_errors = (row_errors(predicted, noised.target) for predicted in model(*noised.inputs))
        margin = preference_margin(errors, reference_errors, dpo.beta)
        loss = preference_loss(margin, tied, dpo.tie_threshold).mean()
        better = (margin.sign() + 1) / 2 * ~tied
        measures = {"apart": (~tied).float(), "better": better, "error": errors, "reference_error": reference_errors}
        return loss, {f"train/{name}": each.detach().mean().double() for name, each in measures.items()}

    def summarise(self, means: Metrics, num_rows: int) -> Metrics:
        """What to log of rows whose measures have these means: DPO's implicit accuracy, over rows that do not tie.

        0.5 is the reference's own, and what is returned if all of them tie.
        """
        apart, better = means.pop("train/apart"), means.pop("train/better")
        return means | {"train/implicit_accuracy": better / apart if apart else 0.5}

    def save(self, folder: str | Path, state: dict[str, Tensor], card: EditorCard) -> None:
        """Write an editor folder with the weights of `state`, a state dict of `model`; the reference is left out."""
        super().save(folder, under("denoiser.", state), card)


def _pair(row: Row, place: int) -> Row:
    """A ranking's edit as a row of `pairs`."""
    edit, kept = row["edits"][place], ("instruction", "source_image")
    return {name: row[name] for name in kept} | {"pair_id": edit["edit_id"], "edited_image": edit["image"]}
