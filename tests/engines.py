"""A small network under DeepSpeed's engine, trained by fixed rows: what tests run in gloo workers."""

import time
from types import SimpleNamespace

import numpy as np
import torch

from hive_ray.config import Editor, Preview, Resources, Training, Watching
from hive_ray.editor.model import Editor as EditorModel
from hive_ray.editor.objective import EditorObjective
from hive_ray.images import encode
from hive_ray.training import collectives
from hive_ray.training.checkpoints import Checkpoints, TrainingState
from hive_ray.training.deepspeed_fixes import loss_scaler
from hive_ray.training.engine import start_engine, take_step
from hive_ray.training.validation import Validation, evaluation_mode
from hive_ray.training.weights import WeightAverage, consolidated_state

BATCH = 8
Result = tuple[list[float], dict[str, list]]


def settings(world: int, **changes) -> Training:
    told = dict(
        total_images=64, batch_size=BATCH, micro_batch_size=2, learning_rate=0.01, ema_decay=0.5, checkpoint_images=8,
        workers=Resources(num_actors=world, num_gpus=0),
    )  # fmt: skip
    return Training(**told | changes)


def network() -> torch.nn.Module:
    """Three sizes that no number of workers divides; one frozen weight."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.ReLU(), torch.nn.Linear(7, 3))
    model[0].bias.requires_grad_(False)
    return model


def rows(images: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(images)
    return torch.randn(BATCH, 5, generator=generator), torch.randn(BATCH, 3, generator=generator)


def train(rank: int, world: int, folder: str, until: int, changes: dict) -> Result:
    """Go on from the newest checkpoint below `folder` until so many images, and store one; "" neither reads nor writes.

    Returns the mean loss of each step, and on rank 0 the averaged weights.
    """
    told = settings(world, **changes)
    checkpoints = Checkpoints(folder, rank) if folder else None
    state = checkpoints.newest() if folder and rank == 0 else None
    at = torch.tensor([state.images if state else 0])
    torch.distributed.broadcast(at, 0)
    images = at.item()
    opened = None
    for turn in range(world):  # one after the other, as on one machine
        if turn == rank and images:
            opened = checkpoints.open(images, world)
        torch.distributed.barrier()
    engine = start_engine(network(), told, universal=bool(opened and opened.universal))
    average = WeightAverage(engine.module, told.ema_decay)
    if opened:
        opened.restore(engine, average, rank, world)
    losses = []
    share = BATCH // world
    while images < until:
        x, y = rows(images)
        total = torch.zeros(1)
        for start in range(rank * share, (rank + 1) * share, 2):
            loss = (engine(x[start : start + 2]).float() - y[start : start + 2]).square().mean()
            engine.backward(loss)
            take_step(engine, told.max_grad_norm)
            total += loss.item() * 2 / BATCH
        torch.distributed.all_reduce(total)
        losses.append(total.item())
        average.update()
        images += BATCH
    if folder:
        scaler = loss_scaler(engine)
        state = TrainingState(
            images, {}, world, average.updates, told.zero_stage, scaler.state_dict() if scaler else {}
        )
        checkpoints.save(engine, average, state)
        checkpoints.wait()
    average.copy_to_model()
    return losses, {name: value.tolist() for name, value in consolidated_state(engine.module).items()}


def seconds_together(rank: int, world: int, work_s: float) -> float:
    """How long a rank is at it where rank 0 alone has work, and they ask each other twenty times a second."""
    collectives.POLL_S, began = 0.05, time.monotonic()
    collectives.run_until_all_finish(lambda: time.sleep(work_s * (rank == 0)), torch.device("cpu"))
    return time.monotonic() - began


def train_each(rank: int, world: int, until: int, calls: list[tuple[str, dict]]) -> list[Result]:
    """`train` for each (folder, changes), one after the other: a process takes seconds to start."""
    return [train(rank, world, folder, until, changes) for folder, changes in calls]


def steps_from_too_large_a_scale(rank: int, world: int, stages: tuple[int, ...]) -> list[list[float]]:
    """Gradient norms of 60 steps in fp16 whose loss scale begins at 2 ** 40, by ZeRO stage."""
    found = []
    for stage in stages:
        told = settings(world, precision="fp16", zero_stage=stage, batch_size=2 * world)
        engine = start_engine(network(), told)
        scaler = loss_scaler(engine)
        scaler.load_state_dict(scaler.state_dict() | {"scale": 2.0**40})
        norms = []
        for _ in range(60):
            x, y = rows(0)
            engine.backward((engine(x[:2]).float() - y[:2]).square().mean())
            norms.append(take_step(engine, told.max_grad_norm))
        found.append(norms)
    return found


def clipped_norms(rank: int, world: int, calls: list[dict]) -> list[float]:
    """The norm of the gradient that AdamW got in a first step, from its first moment, for each of some settings."""
    norms = []
    for changes in calls:
        told = settings(world, **changes | {"batch_size": 2 * world})
        engine = start_engine(network(), told)
        x, y = rows(0)
        engine.backward((engine(x[:2]).float() - y[:2]).square().mean())
        take_step(engine, told.max_grad_norm)
        states = getattr(engine.optimizer, "optimizer", engine.optimizer).state.values()
        found = torch.stack([state["exp_avg"].square().sum() for state in states if "exp_avg" in state]).sum()
        if changes["zero_stage"]:
            torch.distributed.all_reduce(found)
        norms.append(found.sqrt().item() / (1 - 0.9))
    return norms


def previews(rank: int, world: int, base: str, stages: list[int]) -> list[bytes | None]:
    """What this rank has of a preview of an editor that all of them train, by ZeRO stage."""
    picture = encode(np.linspace(0, 255, 64 * 64 * 3).astype(np.uint8).reshape(64, 64, 3))
    row = {"instruction": "make it red", "source_image": picture, "edited_image": picture, "weight": 1.0}
    store, found = SimpleNamespace(num_rows=2, key="", read=lambda places: [row] * len(places)), []
    for stage in stages:
        told = settings(world, zero_stage=stage, watching=Watching(num_previews=2))
        preview = Preview(num_inference_steps=2)
        options = Editor(start="", resolution=64, preview=preview, sft=told, finetune=told)
        objective = EditorObjective(EditorModel.build(base), options)
        engine = start_engine(objective.model, told)
        with evaluation_mode(engine, None):
            found.append(Validation(store, "rows", told, rank=rank, world=world).preview(objective, engine))
    return found
