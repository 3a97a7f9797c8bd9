"""LoRA: low-rank adapters of an editor's layers, which are trained instead of the layers (Hu et al. 2021).

    W x + alpha / rank * B A x, with A (rank, in) and B (out, rank); B is 0 at first

The first convolution has no adapter if the editor was just made from a text-to-image model. Half of its weight is
still 0, so the weight itself is trained. Its bias keeps the pretrained values.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from hive_ray.config import Editor as Settings
from hive_ray.editor.model import Editor
from hive_ray.seeds import generator_for

LORA_WEIGHTS_FILE = "pytorch_lora_weights.safetensors"
"""The file name that `load_lora_weights` of diffusers expects."""
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
_DOWN, _UP = ".lora_A.default.weight", ".lora_B.default.weight"
_FIRST = "unet.conv_in"


class LoraAdapters:
    """Adds adapters to an editor, and extracts their weights from a state dict of its `Denoiser`."""

    def __init__(self, editor: Editor, settings: Settings) -> None:
        """Freezes all weights but the adapters, and a first convolution whose weights for the image are still zero."""
        alpha = settings.lora_alpha or settings.lora_rank
        self.scale = alpha / settings.lora_rank
        first = editor.unet.conv_in.weight
        reads_image = bool(first[:, editor.latent_channels :].any())
        _inject(editor.unet, settings.lora_rank, alpha, settings.lora_targets)
        if settings.train_text_encoder:
            _inject(editor.text, settings.lora_rank, alpha, TEXT_TARGETS)
        first.requires_grad_(not reads_image)
        self.first = None if reads_image else first.detach().cpu().clone()

    def merge_adapters(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The state dict of the same module without adapters, with their products added to the weights."""
        merged = {name.replace(".base_layer.", "."): value for name, value in state.items() if ".lora_" not in name}
        for layer, down, up in _products(state):
            weight = merged[f"{layer}.weight"]
            merged[f"{layer}.weight"] = weight + self.scale * (up.flatten(1) @ down.flatten(1)).view_as(weight)
        return merged

    def save(self, folder: Path, state: dict[str, Tensor]) -> None:
        """Write the adapters for diffusers' `load_lora_weights`, with the scale multiplied in.

        They adapt the editor that training started from, `Editor.build(start)`. A trained first convolution becomes
        an adapter of full rank. An embedding of levels is not among them, since diffusers has no adapters of
        embeddings; only the U-Net of the folder has it.
        """
        adapters = {}
        for layer, down, up in _products(state):
            named = _in_a_pipeline(layer)
            adapters[f"{named}.lora_A.weight"] = down
            adapters[f"{named}.lora_B.weight"] = self.scale * up
        if self.first is not None:
            learned = state[f"{_FIRST}.weight"] - self.first
            size = self.first[0].numel()
            adapters[f"{_FIRST}.lora_A.weight"] = torch.eye(size).view(size, *self.first.shape[1:])
            adapters[f"{_FIRST}.lora_B.weight"] = learned.flatten(1)[:, :, None, None]
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: value.contiguous() for name, value in adapters.items()}, folder / LORA_WEIGHTS_FILE, {"format": "pt"}
        )


@contextmanager
def without_adapters(module: nn.Module) -> Iterator[None]:
    """Disable the adapters of the module in this context."""
    layers = [layer for layer in module.modules() if isinstance(layer, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def _inject(module: nn.Module, rank: int, alpha: float, targets: tuple[str, ...]) -> None:
    """Add adapters to the layers with these names and freeze all other weights; the products are initially zero."""
    inject_adapter_in_model(
        LoraConfig(
            r=rank,
            lora_alpha=alpha,  # pyright: ignore[reportArgumentType] - peft scales by alpha / r, whole or not
            target_modules=list(targets),
        ),
        module,
    )
    for name, weight in module.named_parameters():
        if name.endswith(_DOWN):  # as peft does, but from a generator so that a rerun repeats it
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator_for("lora", name))


def _products(state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The name of each adapted layer with its matrices A and B."""
    for name, down in state.items():
        if name.endswith(_DOWN):
            layer = name.removesuffix(_DOWN)
            yield layer, down, state[layer + _UP]


def _in_a_pipeline(layer: str) -> str:
    """The layer's name in a pipeline of diffusers, where each text encoder is a part of its own."""
    for place, part in enumerate(("text_encoder", "text_encoder_2")):
        layer = layer.replace(f"text_encoder.encoders.{place}.", f"{part}.")
    return layer
