"""The editor: a Stable Diffusion whose U-Net also sees the source image.

    a text-to-image folder -> Editor -> an editor folder (diffusers layout, card.json written last)

B batch, C latent channels, h w latent height and width, T tokens, D width of the text states
"""

import copy
import json
import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionXLInstructPix2PixPipeline,
    UNet2DConditionModel,
)
from pydantic import Field, ValidationError
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from hive_ray.config import Section, SingleFile
from hive_ray.diffusion.conversion import load_single_file, told_tokenizer
from hive_ray.diffusion.loading import load_folder_vae, load_parts
from hive_ray.diffusion.single_file import is_single_file
from hive_ray.diffusion.text import TextEncoder
from hive_ray.files.model_folders import ModelFolderError, forget_origin
from hive_ray.seeds import generator_for
from hive_ray.storage import fetch_model

FORMAT_VERSION = 1
VAE_PIXELS = 2**21
"""Pixels that the VAE takes at a time (8 images of 512 x 512): its activations are the largest of all."""


class EditorCard(Section):
    """What a folder of weights does not say by itself: `card.json`, the last file to be written."""

    base_model: str
    """Folder or hub name of the text-to-image model at the root of its training."""
    resolution: int
    """Width and height of the images it was trained on."""
    instruction_suffix: str = ""
    """What must be appended to every instruction when editing (HIVE's conditional reward)."""
    level_guidance_scale: float = 0.0
    """For an editor with quality levels, as `editor.level_guidance_scale`."""
    training_table: str = ""
    """Digest of the table it was trained on; "" for a model that was not trained here."""
    metrics: dict[str, float] = Field(default_factory=dict)
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    """What the U-Net predicts; `Editor.save` takes it from the scheduler."""
    format_version: int = FORMAT_VERSION


def read_card(folder: str | Path) -> EditorCard:
    """The card of a finished editor folder."""
    path = Path(folder) / "card.json"
    if is_single_file(folder):
        raise ModelFolderError(f"{folder} is a single file: make an editor folder of it with jobs.convert_editor first")
    if not path.is_file():
        raise ModelFolderError(f"{folder} has no card.json: the job that makes it has not finished; run it first")
    seen = json.loads(path.read_text()).get("format_version")
    if seen != FORMAT_VERSION:
        raise ModelFolderError(f"{path} has format_version {seen}, this program reads {FORMAT_VERSION}; train it again")
    try:
        return EditorCard.model_validate_json(path.read_text())
    except ValidationError as error:
        raise ModelFolderError(f"{path} is not an editor's card: {error}") from error


@dataclass
class Editor:
    """The parts of an instruction-conditioned Stable Diffusion (1.x, 2.x or XL), and its card."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text: TextEncoder
    scheduler: DDIMScheduler
    card: EditorCard
    scaled_condition: bool = False
    """Whether the image latent is scaled as the target is (`is_cosxl_edit` of diffusers' SDXL pipeline)."""

    @classmethod
    def build(
        cls,
        start: str | Path,
        bias: Literal["copy", "diffusers_legacy"] = "copy",
        single_file: SingleFile = SingleFile(),  # noqa: B008 - frozen
    ) -> "Editor":
        """An editor from a text-to-image model (its U-Net widened) or from an editor: a folder, a single file (.ckpt,
        .safetensors), the s3:// address of either, or a hub name. `single_file`: what such a file does not say."""
        named, start = str(start), fetch_model(start)
        if is_single_file(start):
            parts, named = load_single_file(start, single_file)
        else:
            parts = load_parts(start)
        unet, vae = parts["unet"], parts["vae"]
        seen, channels = unet.config.in_channels, vae.config.latent_channels
        if seen == channels:
            _widen(unet, bias)
        elif seen != 2 * channels:
            raise ModelFolderError(
                f"the U-Net of {start} has {seen} input channels and its VAE {channels} latent channels; give"
                f" a text-to-image model ({channels} input channels) or an editor ({2 * channels})"
            )
        has_card = (Path(start) / "card.json").is_file()
        return cls(**parts, card=read_card(start) if has_card else _first_card(named, single_file, **parts))

    @classmethod
    def load(cls, folder: str | Path) -> "Editor":
        """A finished editor, as `save` left it: a folder or its s3:// address."""
        folder = fetch_model(folder)
        card, parts = read_card(folder), load_parts(folder)
        seen, wanted = parts["unet"].config.in_channels, 2 * parts["vae"].config.latent_channels
        if seen != wanted:
            raise ModelFolderError(f"the U-Net of {folder} has {seen} input channels, an editor's has {wanted}")
        return cls(**parts, card=card)

    def save(self, folder: str | Path, card: EditorCard, dtype: torch.dtype = torch.float32) -> None:
        """Write the diffusers layout in `dtype`, and the card last. The weights in memory stay as they are.

        diffusers' StableDiffusionInstructPix2PixPipeline opens the folder, StableDiffusionXLInstructPix2PixPipeline
        that of an XL.
        """
        folder = Path(folder)
        (folder / "card.json").unlink(missing_ok=True)
        parts = {"unet": self.unet, "vae": self.vae, "scheduler": self.scheduler, **self.text.parts()}
        parts = {name: _cast(part, dtype) if isinstance(part, nn.Module) else part for name, part in parts.items()}
        self._pipeline(parts).save_pretrained(folder, safe_serialization=True)
        forget_origin(folder)
        card = card.model_copy(update={"prediction_type": self.scheduler.config.prediction_type})
        (folder / "card.json").write_text(card.model_dump_json(indent=2) + "\n")

    def _pipeline(self, parts: dict[str, Any]) -> DiffusionPipeline:
        if not self.is_xl:
            checker = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
            return StableDiffusionInstructPix2PixPipeline(**parts, **checker)
        switches = {"force_zeros_for_empty_prompt": self.text.empty_is_zero, "is_cosxl_edit": self.scaled_condition}
        pipeline = StableDiffusionXLInstructPix2PixPipeline(**parts, **switches, add_watermarker=False)
        pipeline.register_to_config(**switches)  # by itself it forgets is_cosxl_edit
        return pipeline

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> "Editor":
        """Move the weights, and cast them where a dtype is given; returns itself.

        The VAE of an XL stays in fp32 where fp16 is asked for and its config says `force_upcast`: its activations
        overflow.
        """
        overflows = dtype == torch.float16 and self.is_xl and self.vae.config.force_upcast
        for part, its in ((self.unet, dtype), (self.text, dtype), (self.vae, torch.float32 if overflows else dtype)):
            nn.Module.to(part, device=device, dtype=its)  # diffusers' own warns of each cast
        return self

    def with_weights(self, unet: dict[str, Tensor], text: dict[str, Tensor] | None = None) -> "Editor":
        """An editor with these weights and every other part shared; the live modules are not touched."""
        other = copy.copy(self)
        with torch.device("meta"):  # no time for first weights that the given ones replace
            other.unet = UNet2DConditionModel.from_config(self.unet.config).eval()
        other.unet.load_state_dict(unet, assign=True)
        if text is not None:
            other.text = self.text.fresh()
            other.text.load_state_dict(text)
        return other

    @property
    def is_xl(self) -> bool:
        """Whether it is a Stable Diffusion XL: two text encoders, and a U-Net that is told sizes."""
        return self.unet.config.addition_embed_type == "text_time"

    @property
    def text_encoder(self) -> CLIPTextModel:
        """The first text encoder."""
        return self.text.encoders[0]

    @property
    def tokenizer(self) -> CLIPTokenizer:
        """The first tokenizer; an XL's two cut texts into the same tokens."""
        return self.text.tokenizers[0]

    @property
    def vae_factor(self) -> int:
        """The side of an image over that of its latent."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def latent_channels(self) -> int:
        """C: the U-Net reads 2 C channels, [noisy latent, image latent], and predicts C."""
        return self.vae.config.latent_channels

    def latent_shape(self, images: Tensor) -> tuple[int, int, int]:
        """(C, h, w) of the latent of each of the images (B, 3, H, W)."""
        factor = self.vae_factor
        height, width = images.shape[-2:]
        if height % factor or width % factor:
            raise ValueError(f"images are {height} x {width}; both must be multiples of {factor}, the VAE's factor")
        return self.latent_channels, height // factor, width // factor

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents of images in -1..1: (B, C, h, w) each, unscaled."""
        return posterior(self.vae, images)

    def encode_target(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Images (B, 3, H, W) -> the target: a VAE *sample* times its scaling factor (InstructPix2Pix)."""
        mean, std = self.posterior(images)
        return self.draw_target(mean, std, torch.randn(mean.shape, generator=generator).to(mean.device))

    def draw_target(self, mean: Tensor, std: Tensor, noise: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) drawn from a posterior by standard normal noise."""
        return (mean + std * noise) * self.vae.config.scaling_factor

    def encode_condition(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> what the U-Net sees of them (B, C, h, w)."""
        return self.scale_condition(self.posterior(images)[0])

    def scale_condition(self, mean: Tensor) -> Tensor:
        """What the U-Net sees of a source (B, C, h, w): its posterior's *mode*, not scaled (InstructPix2Pix's
        ddpm_edit.py) unless the model learned it so."""
        return mean * self.vae.config.scaling_factor if self.scaled_condition else mean

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) -> float images (B, 3, H, W), about -1..1."""
        latents = (latents / self.vae.config.scaling_factor).to(self.vae.device, self.vae.dtype)
        chunks = _chunks(latents, latents[0, 0].numel() * self.vae_factor**2)
        with torch.autocast(self.vae.device.type, enabled=False):  # as in `posterior`
            return torch.cat([self.vae.decode(chunk).sample.float() for chunk in chunks])


def bring(part: AutoencoderKL | TextEncoder, device: torch.device) -> None:
    """Move a frozen part to a device; once it is there, its weights are not looked through again."""
    if part.device != device:
        part.to(device)


def posterior(vae: AutoencoderKL, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the latents of images in -1..1: (B, C, h, w) each, unscaled, on its device."""
    images = images.to(vae.device, vae.dtype)
    with torch.autocast(vae.device.type, enabled=False):  # a training's precision is not the VAE's: XL's is fp32
        found = [vae.encode(chunk).latent_dist for chunk in _chunks(images, images[0, 0].numel())]
    return torch.cat([one.mean for one in found]).float(), torch.cat([one.std for one in found]).float()


def load_vae(start: str | Path, single_file: SingleFile) -> AutoencoderKL:
    """The frozen VAE, in fp32, of what an editor starts from: a folder, a single file, s3:// or a hub name."""
    start = fetch_model(start)
    return load_single_file(start, single_file)[0]["vae"] if is_single_file(start) else load_folder_vae(start)


def load_tokenizer(start: str | Path, single_file: SingleFile) -> CLIPTokenizer:
    """The tokenizer of what an editor starts from: a folder's or a hub name's own; a single file's, as told."""
    if is_single_file(start):
        return told_tokenizer(single_file.tokenizer, start)
    return CLIPTokenizer.from_pretrained(fetch_model(start), subfolder="tokenizer")


def append_suffix(tokenizer: CLIPTokenizer, instruction: str, suffix: str) -> str:
    """instruction + suffix; the instruction's last words are cut so that CLIP's 77 tokens hold the suffix."""
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
    """Give the U-Net C more input channels for the image latent, at first unheard (InstructPix2Pix).

    The new weight is zero but for the pretrained one in channels 0..C-1. The bias is kept; "diffusers_legacy"
    draws a new one, as diffusers' train_instruct_pix2pix.py does by mistake (huggingface/diffusers#4960).
    """
    old = unet.conv_in
    new = nn.Conv2d(2 * old.in_channels, old.out_channels, old.kernel_size, padding=old.padding)
    with torch.no_grad():
        new.weight.zero_()
        new.weight[:, : old.in_channels].copy_(old.weight)
        if bias == "copy":
            new.bias.copy_(old.bias)
        else:  # nn.Conv2d's own first bias, from a generator so that a rerun repeats it
            bound = 1 / math.sqrt(new.weight[0].numel())
            nn.init.uniform_(new.bias, -bound, bound, generator=generator_for("conv_in.bias"))
    unet.conv_in = new.to(memory_format=torch.channels_last)
    unet.register_to_config(in_channels=new.in_channels)


def _first_card(
    named: str,
    single_file: SingleFile,
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    scheduler: DDIMScheduler,
    **_: object,
) -> EditorCard:
    """The card of a model that was not trained here."""
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    return EditorCard(
        base_model=named,
        instruction_suffix=single_file.instruction_suffix,
        resolution=unet.config.sample_size * factor,
        prediction_type=scheduler.config.prediction_type,
    )


def _cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The module itself if it is in `dtype`, else a copy that is."""
    if all(parameter.dtype == dtype for parameter in module.parameters()):
        return module
    return copy.deepcopy(module).to(dtype)


def _chunks(batch: Tensor, pixels: int) -> Iterator[Tensor]:
    """The rows of a batch, as many at a time as the VAE may take at `pixels` a row."""
    return iter(batch.split(max(1, VAE_PIXELS // pixels)))
