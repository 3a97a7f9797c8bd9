"""Training checkpoints -> portable model folders, which are finished or absent as tables are.

engine (sharded state) -> Average, consolidated_state -> objective.save -> store_model -> <model folder>

<model folder>/...          the objective's files, loadable with no cluster and no DeepSpeed
<model folder>/made.json    fingerprint, metrics, git commit, seconds
<model folder>/card.json    the objective's card, copied last
"""

import json
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from hive_ray import storage
from hive_ray.distributed.tables import Fingerprint, OnMismatch, differences, git_commit, mismatch
from hive_ray.seeds import id_for

Metrics = dict[str, float]


class Average:
    """Running average of the trained weights in fp32: under ZeRO stage 3 of a rank's own part, else of all.

    decay_n = min(decay, (1 + n) / (10 + n)), n counting updates from 1: InstructPix2Pix's EMA, but once an
    optimiser step and not once a micro batch.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay, self.updates = decay, 0
        self.weights = {name: own_part(weight).clone().float() for name, weight in _trained(model)}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after an optimiser step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, weight in _trained(model):
            self.weights[name].lerp_(own_part(weight).float(), 1 - decay)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Put the averaged weights in place of the trained ones."""
        for name, weight in _trained(model):
            own_part(weight).copy_(self.weights[name])

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"updates": self.updates, "weights": self.weights}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.updates = state["updates"]
        for name, weight in self.weights.items():
            weight.copy_(state["weights"][name])


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


def store_model(
    path: str, save: Callable[[Path], None], fingerprint: Fingerprint, metrics: Metrics, seconds: float
) -> None:
    """Write a model folder at `path`: what `save` writes (card.json among it), and how it was made."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save(folder)
        if not (folder / "card.json").is_file():
            raise FileNotFoundError(f"{path}: the objective saved no card.json, which says that a model is whole")
        made = {
            "fingerprint": fingerprint,
            "metrics": metrics,
            "git_commit": git_commit(),
            "seconds": seconds,
        }
        (folder / "made.json").write_text(json.dumps(made, indent=2))
        storage.store_folder(folder, path)


def build_model(
    name: str,
    path: str,
    fingerprint: Fingerprint,
    make: Callable[[], None],
    *,
    on_mismatch: OnMismatch = "refuse",
) -> Metrics:
    """Run `make` (it ends in `store_model`), or keep what the same settings and inputs made; its metrics."""
    if storage.exists(storage.join(path, "card.json")):
        address = storage.join(path, "made.json")
        made = json.loads(storage.read_text(address)) if storage.exists(address) else {"fingerprint": {}}
        if made["fingerprint"] == fingerprint:
            print(f"{name}: kept (nothing changed)", flush=True)
            return made["metrics"]
        if on_mismatch == "refuse":
            raise mismatch(path, made["fingerprint"], fingerprint)
        print(f"{name}: made again, since {differences(made['fingerprint'], fingerprint)}", flush=True)
        storage.remove_tree(path)
    make()
    return json.loads(storage.read_text(storage.join(path, "made.json")))["metrics"]


def model_digest(model: str) -> str:
    """Names a model by what it was made from, a foreign folder by its content, and a hub's by its name."""
    made = storage.join(model, "made.json")
    if storage.exists(made):
        return id_for(json.dumps(json.loads(storage.read_text(made))["fingerprint"], sort_keys=True))
    return storage.folder_digest(model) if storage.exists(model) else model
