"""The weights of a DeepSpeed engine, whole or in parts: their running average, and all of them in one place."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import deepspeed
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from hive_ray.training.deepspeed_fixes import full_numel, partition_of

MAX_GATHERED_WEIGHTS = 200_000_000
"""Numbers whose parts are gathered at a time."""


def ema_decay(updates: int, greatest: float, rule: str) -> float:
    """The decay of the update that brings their number to `updates` (1, 2, ...): min(greatest, (1 + n) / (10 + n)).

    n counts updates (InstructPix2Pix's LitEma, whose updates are micro-batches), or by the rule "diffusers" those
    before, and the first one's decay is 0 (EMAModel).
    """
    if rule == "diffusers":
        return ema_decay(updates - 1, greatest, "step") if updates > 1 else 0.0
    return min(greatest, (1 + updates) / (10 + updates))


class WeightAverage:
    """Running average of the trained weights in fp32: under ZeRO stage 3 of a rank's own part, else of all."""

    def __init__(self, model: nn.Module, decay: float, rule: str = "step"):
        """Of `model`'s trained weights, which it holds; `rule`: `Training.ema_rule`."""
        self.decay, self.rule, self.updates = decay, rule, 0
        self.trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.weights = {name: local_partition(weight).clone().float() for name, weight in self.trained.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after an optimiser step, or after a micro-batch, as the rule has it."""
        self.updates += 1
        now = [local_partition(weight).float() for weight in self.trained.values()]
        get_ema_multi_avg_fn(self.last_decay)(list(self.weights.values()), now, None)

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Put the averaged weights in place of the trained ones."""
        for name, weight in self.trained.items():
            local_partition(weight).copy_(self.weights[name])

    @property
    def last_decay(self) -> float:
        """The decay of the last update."""
        return ema_decay(self.updates, self.decay, self.rule)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The averaged weights in place of the trained ones for a while; then those are back to the last bit.

        Meanwhile a rank holds its part once more: less than what a backward pass holds.
        """
        trained = {name: local_partition(weight).clone() for name, weight in self.trained.items()}
        self.copy_to_model()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, weight in self.trained.items():
                    local_partition(weight).copy_(trained[name])

    @torch.no_grad()
    def load(self, parts: list[dict[str, Tensor]], updates: int, rank: int) -> None:
        """Go on from a checkpoint's average: whole, or the parts that ZeRO stage 3 had made of it, in order of rank."""
        self.updates = updates
        for name, weight in self.weights.items():
            size, flat = weight.numel(), torch.cat([part[name].flatten() for part in parts])
            start = rank * size if size < flat.numel() else 0
            mine = flat[start : start + size]  # the last parts are padded, and may begin behind the end
            if mine.numel() == size:
                weight.copy_(mine.view(weight.shape))
            else:
                weight[: mine.numel()].copy_(mine)


def join_partitions(parts: list[Tensor], shape: torch.Size) -> Tensor:
    """A whole weight from the parts that ZeRO stage 3 made of it, the last ones padded."""
    return torch.cat([part.flatten() for part in parts])[: shape.numel()].view(shape)


def local_partition(weight: nn.Parameter) -> Tensor:
    """What this rank holds of a weight: its part under ZeRO stage 3, else the whole."""
    part = partition_of(weight)
    return weight.data if part is None else part


def consolidated_state(model: nn.Module) -> dict[str, Tensor]:
    """The whole state dict on rank 0's CPU, nothing on the others; every rank must call it, since stage 3 gathers the
    parts: some weights at a time, for only in parts may all of them fit a GPU."""
    first, state = torch.distributed.get_rank() == 0, {}
    for group in _groups(model.state_dict(keep_vars=True)):
        parts = [value for value in group.values() if partition_of(value) is not None]
        with deepspeed.zero.GatheredParameters(parts) if parts else nullcontext():
            if first:
                for name, value in group.items():
                    state[name] = torch.empty_like(value, device="cpu", requires_grad=False).copy_(value.detach())
    return state


def _groups(state: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """A state dict, some entries at a time: one, or as many as have GATHERED numbers."""
    group, size = {}, 0
    for name, value in state.items():
        numbers = full_numel(value)
        if group and size + numbers > MAX_GATHERED_WEIGHTS:
            yield group
            group, size = {}, 0
        group[name], size = value, size + numbers
    yield group
