"""The training loop of all parts of this domain's pretraining."""

import math
import time
from collections.abc import Callable

import numpy as np
import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

Say = Callable[[str], None]


def cosine_rate(step: int, num_steps: int, warmup: int = 50, floor: float = 0.02) -> float:
    """Learning-rate factor: linear warm-up, then half a cosine down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup)))


def train_steps(
    name: str,
    parameters: list[nn.Parameter],
    loss_of: Callable[[int], Tensor],
    *,
    num_steps: int,
    lr: float,
    say: Say,
    bf16: bool = False,
) -> None:
    """AdamW on `loss_of(step)` with a cosine rate; a line of progress every 50 steps.

    bf16: compute losses under autocast; weights stay in float32.
    """
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine_rate(step, num_steps))
    start, recent = time.monotonic(), []
    for step in range(num_steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = loss_of(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        recent.append(loss.item())
        if (step + 1) % 50 == 0 or step + 1 == num_steps:
            left = (time.monotonic() - start) / (step + 1) * (num_steps - step - 1)
            say(f"{name}: step {step + 1}/{num_steps}, loss {np.mean(recent):.4f}, {left / 60:.1f} min left")
            recent.clear()


def train_with_ema(
    name: str,
    parameters: list[nn.Parameter],
    loss_of: Callable[[int], Tensor],
    *,
    num_steps: int,
    lr: float,
    say: Say,
    save: Callable[[], None],
) -> None:
    """`train_steps` with an exponential moving average of the weights, which the model has at the end.

    `save` is called every 500 steps and at the end, with the averaged weights in the model.
    """
    ema = EMAModel(parameters, decay=0.999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)

    def averaged_loss_of(step: int) -> Tensor:
        if step:
            ema.step(parameters)
        if step and step % 500 == 0:
            ema.store(parameters)
            ema.copy_to(parameters)
            save()
            ema.restore(parameters)
        return loss_of(step)

    train_steps(name, parameters, averaged_loss_of, num_steps=num_steps, lr=lr, say=say)
    ema.copy_to(parameters)
    save()
