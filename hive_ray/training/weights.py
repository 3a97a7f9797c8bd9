"""The weights of a DeepSpeed engine: their moving average, and their full state dict from partitions."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import deepspeed
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from hive_ray.training.deepspeed_fixes import full_numel, partition_of

MAX_GATHERED_WEIGHTS = 200_000_000
"""Elements that are gathered at a time."""


def ema_decay(updates: int, max_decay: float, rule: str) -> float:
    """The decay of update number `updates` (1, 2, ...): min(max_decay, (1 + n) / (10 + n)).

    n is the number of this update, as in InstructPix2Pix's LitEma, which updates after each micro-batch. With the rule
    "diffusers" n is the number of earlier updates, and the first decay is 0, as in its EMAModel.
    """
    if rule == "diffusers":
        return ema_decay(updates - 1, max_decay, "step") if updates > 1 else 0.0
    return min(max_decay, (1 + updates) / (10 + updates))


class WeightAverage:
    """Exponential moving average of the trained weights, in fp32. Under ZeRO stage 3 it covers the rank's partition."""

    def __init__(self, model: nn.Module, decay: float, rule: str = "step"):
        """Starts with the current weights of `model`, which it keeps a reference to. `rule`: `Training.ema_rule`."""
        self.decay = decay
        self.rule = rule
        self.updates = 0
        self.trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.weights = {name: local_partition(weight).clone().float() for name, weight in self.trained.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Add the current weights: after each optimiser step or each micro-batch, depending on the rule."""
        self.updates += 1
        now = [local_partition(weight).float() for weight in self.trained.values()]
        get_ema_multi_avg_fn(self.last_decay)(list(self.weights.values()), now, None)

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Replace the trained weights by the averaged ones."""
        for name, weight in self.trained.items():
            local_partition(weight).copy_(self.weights[name])

    @property
    def last_decay(self) -> float:
        """The decay of the last update."""
        return ema_decay(self.updates, self.decay, self.rule)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Replace the trained weights by the averaged ones inside this context. On exit the trained ones are restored.

        Meanwhile a rank holds a second copy of its weights, which needs less memory than a backward pass.
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
        """Load the average of a checkpoint: one part with all of it, or the partitions of ZeRO stage 3 by rank."""
        self.updates = updates
        for name, weight in self.weights.items():
            size, flat = weight.numel(), torch.cat([part[name].flatten() for part in parts])
            start = rank * size if size < flat.numel() else 0
            mine = flat[start : start + size]  # the last partitions are padded and may start after the end
            if mine.numel() == size:
                weight.copy_(mine.view(weight.shape))
            else:
                weight[: mine.numel()].copy_(mine)


def join_partitions(parts: list[Tensor], shape: torch.Size) -> Tensor:
    """The full weight from its partitions under ZeRO stage 3, of which the last ones are padded."""
    return torch.cat([part.flatten() for part in parts])[: shape.numel()].view(shape)


def local_partition(weight: nn.Parameter) -> Tensor:
    """What this rank holds of a weight: its partition under ZeRO stage 3, otherwise all of it."""
    part = partition_of(weight)
    return weight.data if part is None else part


def consolidated_state(model: nn.Module) -> dict[str, Tensor]:
    """The full state dict on rank 0's CPU, an empty one on other ranks.

    Every rank must call it: stage 3 gathers the partitions, a limited number at a time so that they fit on a GPU.
    """
    is_rank_0 = torch.distributed.get_rank() == 0
    state: dict[str, Tensor] = {}
    for group in _groups(model.state_dict(keep_vars=True)):
        parts = [value for value in group.values() if partition_of(value) is not None]
        with deepspeed.zero.GatheredParameters(parts) if parts else nullcontext():
            if is_rank_0:
                for name, value in group.items():
                    state[name] = torch.empty_like(value, device="cpu", requires_grad=False).copy_(value.detach())
    return state


def _groups(state: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """A state dict in groups of at most MAX_GATHERED_WEIGHTS elements. A larger entry is a group of its own."""
    group: dict[str, Tensor] = {}
    size = 0
    for name, value in state.items():
        size_of_value = full_numel(value)
        if group and size + size_of_value > MAX_GATHERED_WEIGHTS:
            yield group
            group = {}
            size = 0
        group[name] = value
        size += size_of_value
    yield group
