"""The weights of a DeepSpeed engine, whole or in parts: their running average, and all of them in one place."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn


class Average:
    """Running average of the trained weights in fp32: under ZeRO stage 3 of a rank's own part, else of all.

    decay_n = min(decay, (1 + n) / (10 + n)), n counting updates from 1: InstructPix2Pix's EMA, but once an
    optimiser step and not once a micro batch.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay, self.updates = decay, 0
        self.weights = {name: own_part(weight).clone().float() for name, weight in _trained(model)}

    @property
    def last_decay(self) -> float:
        """The decay of the last update."""
        return min(self.decay, (1 + self.updates) / (10 + self.updates))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after an optimiser step."""
        self.updates += 1
        for name, weight in _trained(model):
            self.weights[name].lerp_(own_part(weight).float(), 1 - self.last_decay)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Put the averaged weights in place of the trained ones."""
        for name, weight in _trained(model):
            own_part(weight).copy_(self.weights[name])

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """The averaged weights in place of the trained ones for a while; then those are back to the last bit.

        Meanwhile a rank holds its part once more: less than what a backward pass holds.
        """
        trained = {name: own_part(weight).clone() for name, weight in _trained(model)}
        self.copy_to(model)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, weight in _trained(model):
                    own_part(weight).copy_(trained[name])

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"updates": self.updates, "weights": self.weights}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.updates = state["updates"]
        for name, weight in self.weights.items():
            weight.copy_(state["weights"][name])


def take_step(engine: deepspeed.DeepSpeedEngine) -> float | None:
    """`engine.step()`; the L2 norm of the whole gradient over all ranks that it took, before clipping.

    None, or the step's before, within an accumulation. ZeRO's optimisers measure it; without ZeRO nobody does.
    """
    if engine.zero_optimization():
        engine.step()
        norm = engine.get_global_grad_norm()
        return None if norm is None else float(norm)
    norm = None
    if engine.is_gradient_accumulation_boundary():
        scaler = engine.torch_autocast_z0_gradscaler  # fp16's, which engine.step() takes out again
        gradients = [weight.grad for weight in engine.module.parameters() if weight.grad is not None]
        norm = float(nn.utils.get_total_norm(gradients)) / (scaler.get_scale() if scaler else 1.0)
    engine.step()
    return norm


def own_part(weight: nn.Parameter) -> Tensor:
    """What this rank holds of a weight: its part under ZeRO stage 3, else the whole."""
    return weight.ds_tensor.data if hasattr(weight, "ds_tensor") else weight.data


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]


def consolidated_state(model: nn.Module) -> dict[str, Tensor]:
    """The whole state dict on the CPU; every rank must call it, since stage 3 gathers the parts."""
    parts = [weight for weight in model.parameters() if hasattr(weight, "ds_tensor")]
    with deepspeed.zero.GatheredParameters(parts) if parts else nullcontext():
        return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
