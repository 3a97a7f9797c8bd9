"""The editor: a diffusion backbone whose U-Net also reads the latent of the source image.

    a text-to-image folder -> Editor -> an editor folder (diffusers layout, card.json written last)

B batch, C latent channels, h w latent height and width, T tokens, D width of the text states
"""

import copy
import json
import math
from bisect import bisect_right
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from pydantic import Field, ValidationError
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from hive_ray.config import EditorFile, Section
from hive_ray.diffusion.backbone import Backbone, load_backbone, posterior
from hive_ray.diffusion.single_file import is_single_file
from hive_ray.diffusion.text import TextEncoder
from hive_ray.diffusion.typed import channels_last
from hive_ray.files.model_folders import ModelFolderError, forget_origin
from hive_ray.seeds import generator_for
from hive_ray.storage import fetch_model

FORMAT_VERSION = 1


class EditorCard(Section):
    """The content of `card.json`: what the weights do not say. It is the last file that is written."""

    base_model: str
    """Folder or hub name of the text-to-image model at the root of its training."""
    resolution: int
    """Width and height of the images it was trained on."""
    instruction_suffix: str = ""
    """Text that is appended to every instruction at sampling (HIVE's conditional reward)."""
    level_guidance_scale: float = 0.0
    """For an editor with quality levels, as `editor.level_guidance_scale`."""
    training_table: str = ""
    """Digest of the table it was trained on; "" for a model that was not trained here."""
    metrics: dict[str, float] = Field(default_factory=dict)
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    """What the U-Net predicts; `Editor.save` takes it from the scheduler."""
    format_version: int = FORMAT_VERSION


def read_card(folder: str | Path) -> EditorCard:
    """The card of a finished editor folder; ModelFolderError where there is none that can be read."""
    path = Path(folder) / "card.json"
    if is_single_file(folder):
        raise ModelFolderError(f"{folder} is a single file: make an editor folder of it with jobs.convert_editor first")
    if not path.is_file():
        raise ModelFolderError(f"{folder} has no card.json: the job that makes it has not finished; run it first")
    seen = json.loads(path.read_text()).get("format_version")
    if seen != FORMAT_VERSION:
        raise ModelFolderError(f"{path} has format_version {seen}, this version reads {FORMAT_VERSION}; train it again")
    try:
        return EditorCard.model_validate_json(path.read_text())
    except ValidationError as error:
        raise ModelFolderError(f"{path} is not an editor's card: {error}") from error


@dataclass
class Editor:
    """A backbone whose U-Net also reads the latent of the source image, and its card."""

    backbone: Backbone
    card: EditorCard

    def __post_init__(self) -> None:
        self.backbone.vae.requires_grad_(False)

    @classmethod
    def build(
        cls,
        start: str | Path,
        bias: Literal["copy", "diffusers_legacy"] = "copy",
        single_file: EditorFile = EditorFile(),  # noqa: B008 - frozen
    ) -> "Editor":
        """An editor from a text-to-image model, whose U-Net is widened, or from another editor.

        start: a folder, a single file (.ckpt, .safetensors), the s3:// address of either, or a hub name. bias: that of
        the widened convolution; "copy" keeps it, "diffusers_legacy" draws a new one. single_file: what such a file does
        not contain. ModelFolderError for a U-Net with another number of input channels.
        """
        backbone = load_backbone(start, single_file)
        seen, channels = backbone.unet.config["in_channels"], backbone.latent_channels
        if seen == channels:
            _widen(backbone.unet, bias)
        elif seen != 2 * channels:
            raise ModelFolderError(
                f"the U-Net of {start} has {seen} input channels and its VAE {channels} latent channels; give"
                f" a text-to-image model ({channels} input channels) or an editor ({2 * channels})"
            )
        folder = Path(fetch_model(start))
        has_card = (folder / "card.json").is_file()
        return cls(backbone, read_card(folder) if has_card else _first_card(backbone, single_file))

    @classmethod
    def load(cls, folder: str | Path) -> "Editor":
        """A finished editor that `save` wrote, from its folder or s3:// address."""
        folder = fetch_model(folder)
        card = read_card(folder)
        backbone = load_backbone(folder)
        seen, wanted = backbone.unet.config["in_channels"], 2 * backbone.latent_channels
        if seen != wanted:
            raise ModelFolderError(f"the U-Net of {folder} has {seen} input channels, an editor's has {wanted}")
        return cls(backbone, card)

    def save(self, folder: str | Path, card: EditorCard, dtype: torch.dtype = torch.float32) -> None:
        """Write the diffusers layout in `dtype`, and the card last. The weights in memory do not change.

        StableDiffusionInstructPix2PixPipeline of diffusers loads the folder. Where the editor is an XL,
        StableDiffusionXLInstructPix2PixPipeline does.
        """
        folder = Path(folder)
        (folder / "card.json").unlink(missing_ok=True)
        parts = self.backbone.parts()
        parts = {name: _cast(part, dtype) if isinstance(part, nn.Module) else part for name, part in parts.items()}
        self.backbone.editing_pipeline(parts).save_pretrained(folder, safe_serialization=True)
        forget_origin(folder)
        card = card.model_copy(update={"prediction_type": self.scheduler.config["prediction_type"]})
        (folder / "card.json").write_text(card.model_dump_json(indent=2) + "\n")

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> "Editor":
        """Move the weights, and cast them where a dtype is given (as `Backbone.to`); returns itself."""
        self.backbone.to(device, dtype)
        return self

    def with_weights(self, unet: dict[str, Tensor], text: dict[str, Tensor] | None = None) -> "Editor":
        """An editor with these weights; it shares all other parts. This editor's modules do not change."""
        return replace(self, backbone=self.backbone.with_weights(unet, text))

    @property
    def unet(self) -> UNet2DConditionModel:
        """The U-Net, of 2 C input channels."""
        return self.backbone.unet

    @property
    def vae(self) -> AutoencoderKL:
        """The frozen VAE."""
        return self.backbone.vae

    @property
    def text(self) -> TextEncoder:
        """The text encoders with their tokenizers."""
        return self.backbone.text

    @property
    def scheduler(self) -> DDIMScheduler:
        """The noise schedule."""
        return self.backbone.scheduler

    @property
    def text_encoder(self) -> CLIPTextModel:
        """The first text encoder."""
        return cast(CLIPTextModel, self.text.encoders[0])

    @property
    def tokenizer(self) -> CLIPTokenizer:
        """The first tokenizer. The two of an XL split texts into the same tokens."""
        return self.text.tokenizers[0]

    @property
    def vae_factor(self) -> int:
        """The height of an image divided by that of its latent."""
        return self.backbone.vae_factor

    @property
    def latent_channels(self) -> int:
        """C: the U-Net reads 2 C channels, [noisy latent, image latent], and predicts C."""
        return self.backbone.latent_channels

    def latent_shape(self, images: Tensor) -> tuple[int, int, int]:
        """(C, h, w) of the latent of each of the images (B, 3, H, W)."""
        return self.backbone.latent_shape(*images.shape[-2:])

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents of images in -1..1: (B, C, h, w) each, unscaled."""
        return posterior(self.vae, images)

    def encode_target(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Images (B, 3, H, W) -> the target: a VAE *sample* times its scaling factor (InstructPix2Pix)."""
        mean, std = self.posterior(images)
        return self.draw_target(mean, std, torch.randn(mean.shape, generator=generator).to(mean.device))

    def draw_target(self, mean: Tensor, std: Tensor, noise: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) drawn from a posterior by standard normal noise."""
        return (mean + std * noise) * self.vae.config["scaling_factor"]

    def encode_condition(self, images: Tensor) -> Tensor:
        """Source images (B, 3, H, W) in -1..1 -> the latents that the U-Net reads (B, C, h, w)."""
        return self.scale_condition(self.posterior(images)[0])

    def scale_condition(self, mean: Tensor) -> Tensor:
        """The latent that the U-Net reads of a source (B, C, h, w): the *mode* of its posterior.

        It is not scaled (InstructPix2Pix's ddpm_edit.py), unless the model was trained with scaled latents.
        """
        return mean * self.vae.config["scaling_factor"] if self.backbone.scaled_condition else mean

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) -> float images (B, 3, H, W), about -1..1."""
        return self.backbone.decode(latents)


def move_to(part: AutoencoderKL | TextEncoder, device: torch.device) -> None:
    """Move a frozen part to a device, unless it is there already."""
    if part.device != device:
        cast(nn.Module, part).to(device)  # diffusers declares its own without `self`


def append_suffix(tokenizer: CLIPTokenizer, instruction: str, suffix: str) -> str:
    """instruction + suffix. The last words of the instruction are cut where CLIP's 77 tokens would not hold the suffix.

    ValueError for a suffix that is longer than that.
    """
    if not suffix:
        return instruction

    def length(text: str) -> int:
        return len(tokenizer(text, verbose=False).input_ids)

    limit = tokenizer.model_max_length
    if length(suffix) > limit:
        raise ValueError(f"suffix {suffix!r} has {length(suffix)} tokens, the text encoder takes {limit}; shorten it")
    if length(instruction + suffix) <= limit:
        return instruction + suffix
    words = instruction.split()
    kept = bisect_right(range(len(words)), limit, key=lambda count: length(" ".join(words[:count]) + suffix)) - 1
    return " ".join(words[:kept]) + suffix


def _widen(unet: UNet2DConditionModel, bias: Literal["copy", "diffusers_legacy"]) -> None:
    """Give the U-Net C more input channels for the image latent, which have no effect at first (InstructPix2Pix).

    The new weight has the pretrained one in channels 0..C-1 and zeros in the others. The bias is kept, or drawn anew
    for "diffusers_legacy", as diffusers' train_instruct_pix2pix.py does by mistake (huggingface/diffusers#4960).
    """
    old = unet.conv_in
    assert old.bias is not None, "conv_in of diffusers' U-Net has a bias"
    kernel_size, padding = cast(tuple[int, int], old.kernel_size), cast(tuple[int, int], old.padding)
    new = nn.Conv2d(2 * old.in_channels, old.out_channels, kernel_size, padding=padding)
    assert new.bias is not None
    with torch.no_grad():
        new.weight.zero_()
        new.weight[:, : old.in_channels].copy_(old.weight)
        if bias == "copy":
            new.bias.copy_(old.bias)
        else:  # nn.Conv2d's own first bias, from a generator so that a rerun repeats it
            bound = 1 / math.sqrt(new.weight[0].numel())
            nn.init.uniform_(new.bias, -bound, bound, generator=generator_for("conv_in.bias"))
    unet.conv_in = channels_last(new)
    unet.register_to_config(in_channels=new.in_channels)


def _first_card(backbone: Backbone, single_file: EditorFile) -> EditorCard:
    """The card of a model that was not trained here."""
    return EditorCard(
        base_model=backbone.origin,
        instruction_suffix=single_file.instruction_suffix,
        resolution=backbone.unet.config["sample_size"] * backbone.vae_factor,
        prediction_type=backbone.scheduler.config["prediction_type"],
    )


def _cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The module itself if it is in `dtype`, else a copy that is."""
    if all(parameter.dtype == dtype for parameter in module.parameters()):
        return module
    return copy.deepcopy(module).to(dtype)
