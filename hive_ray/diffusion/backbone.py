"""The families of diffusion models that draw pairs and become editors. All differences between families are here.

    a folder, a single file (.ckpt, .safetensors), the s3:// address of either, a hub name -> Backbone

B batch, C latent channels, h w latent height and width
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionXLInstructPix2PixPipeline,
    UNet2DConditionModel,
)
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor, nn
from transformers import CLIPTokenizer

from hive_ray.config import SingleFile
from hive_ray.diffusion.conversion import load_clip_tokenizer, load_single_file
from hive_ray.diffusion.loading import (
    load_folder_scheduler,
    load_folder_text,
    load_folder_unet,
    load_folder_vae,
    load_folder_xl_text,
)
from hive_ray.diffusion.single_file import check_single_file, is_single_file
from hive_ray.diffusion.text import TextEncoder
from hive_ray.diffusion.typed import from_config, load_config
from hive_ray.files.model_folders import ModelFolderError, check_parts, read_model_index
from hive_ray.storage import fetch_model

VAE_PIXELS = 2**21
"""Pixels in one batch of the VAE (8 images of 512 x 512), whose activations are the largest of all parts."""


@dataclass
class Backbone(ABC):
    """The parts of a latent diffusion model.

    Each family is a subclass. A new family needs a subclass and an entry in BACKBONES.
    """

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text: TextEncoder
    scheduler: DDIMScheduler
    origin: str = ""
    """Where the parts come from: an address, or the name of a single file and the kind of its weights."""
    scaled_condition: bool = False
    """Whether an editor reads the latent of the source times the scaling factor (`is_cosxl_edit` of the pipeline)."""

    vae_overflows_fp16: ClassVar[bool] = False
    """Whether activations of the family's VAE exceed the range of fp16."""

    @classmethod
    @abstractmethod
    def recognises(cls, unet_config: Mapping[str, Any]) -> bool:
        """Whether a U-Net with this config belongs to the family."""

    @classmethod
    @abstractmethod
    def load_text(cls, folder: str | Path, dtype: torch.dtype) -> TextEncoder:
        """The text encoders and tokenizers of a diffusers folder or hub name. ModelFolderError where one is missing."""

    @abstractmethod
    def editing_pipeline(self, parts: dict[str, Any]) -> DiffusionPipeline:
        """The pipeline of diffusers that edits with these parts. Their names are those of a diffusers folder."""

    @classmethod
    def loaded_vae_dtype(cls, dtype: torch.dtype) -> torch.dtype:
        """The dtype in which `load_backbone` loads the VAE when the other parts are in `dtype`."""
        return torch.float32 if cls.vae_overflows_fp16 else dtype

    @property
    def vae_factor(self) -> int:
        """The height of an image divided by that of its latent."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    @property
    def latent_channels(self) -> int:
        """C, the number of latent channels."""
        return self.vae.config["latent_channels"]

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, h, w) of the latent of an image of this size in pixels; ValueError for no multiple of `vae_factor`."""
        factor = self.vae_factor
        if height % factor or width % factor:
            raise ValueError(f"images are {height} x {width}; both must be multiples of {factor}, the VAE's factor")
        return self.latent_channels, height // factor, width // factor

    def parts(self) -> dict[str, Any]:
        """The parts by their names in a diffusers folder."""
        return {"unet": self.unet, "vae": self.vae, "scheduler": self.scheduler, **self.text.parts()}

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> "Backbone":
        """Move the weights, and cast them if a dtype is given; returns itself.

        In fp16 a VAE whose activations overflow stays in fp32 if its config has `force_upcast`.
        """
        overflows = dtype == torch.float16 and self.vae_overflows_fp16 and self.vae.config["force_upcast"]
        vae_dtype = torch.float32 if overflows else dtype
        self._cast(device, dtype, vae_dtype)
        return self

    def _cast(self, device: str | torch.device, dtype: torch.dtype | None, vae_dtype: torch.dtype | None) -> None:
        """Move all parts; cast the VAE to `vae_dtype` and the others to `dtype`."""
        for part, part_dtype in ((self.unet, dtype), (self.text, dtype), (self.vae, vae_dtype)):
            nn.Module.to(part, device=device, dtype=part_dtype)  # diffusers' own warns of each cast

    def with_weights(self, unet: dict[str, Tensor], text: dict[str, Tensor] | None = None) -> "Backbone":
        """A backbone with these weights; it shares all other parts. This backbone's modules do not change."""
        with torch.device("meta"):  # the given weights replace the initial ones
            new_unet = from_config(UNet2DConditionModel, self.unet.config).eval()
        new_unet.load_state_dict(unet, assign=True)
        if text is None:
            return replace(self, unet=new_unet)
        new_text = self.text.reinitialised()
        new_text.load_state_dict(text)
        return replace(self, unet=new_unet, text=new_text)

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) -> images (B, 3, H, W), about -1..1, in fp32 or a finer dtype of the VAE."""
        latents = (latents / self.vae.config["scaling_factor"]).to(self.vae.device, self.vae.dtype)
        chunks = _chunks(latents, latents[0, 0].numel() * self.vae_factor**2)
        precise = torch.promote_types(self.vae.dtype, torch.float32)
        with torch.autocast(self.vae.device.type, enabled=False):  # as in `posterior`
            return torch.cat([_decoded(self.vae, chunk).to(precise) for chunk in chunks])


class StableDiffusion(Backbone):
    """Stable Diffusion 1.x and 2.x, which differ only in their configs."""

    @classmethod
    def recognises(cls, unet_config: Mapping[str, Any]) -> bool:
        """A U-Net that is conditioned only on the states of a text."""
        return unet_config.get("addition_embed_type") is None

    @classmethod
    def load_text(cls, folder: str | Path, dtype: torch.dtype) -> TextEncoder:
        """One text encoder and its tokenizer."""
        return load_folder_text(folder, dtype)

    def editing_pipeline(self, parts: dict[str, Any]) -> DiffusionPipeline:
        """InstructPix2Pix's pipeline, without a safety checker."""
        checker = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        return StableDiffusionInstructPix2PixPipeline(**parts, **checker)


class StableDiffusionXL(Backbone):
    """Stable Diffusion XL (Podell et al. 2023): two text encoders, and a U-Net that reads sizes and a pooled text."""

    vae_overflows_fp16 = True

    @classmethod
    def recognises(cls, unet_config: Mapping[str, Any]) -> bool:
        """A U-Net that is also conditioned on the pooled text and on sizes."""
        return unet_config.get("addition_embed_type") == "text_time"

    @classmethod
    def load_text(cls, folder: str | Path, dtype: torch.dtype) -> TextEncoder:
        """Two text encoders and their tokenizers."""
        return load_folder_xl_text(folder, dtype)

    def editing_pipeline(self, parts: dict[str, Any]) -> DiffusionPipeline:
        """InstructPix2Pix's pipeline for XL, without a watermark."""
        switches: dict[str, Any] = {
            "force_zeros_for_empty_prompt": self.text.empty_is_zero,
            "is_cosxl_edit": self.scaled_condition,
        }
        pipeline = StableDiffusionXLInstructPix2PixPipeline(**parts, **switches, add_watermarker=False)
        pipeline.register_to_config(**switches)  # its constructor does not register is_cosxl_edit
        return pipeline


BACKBONES: tuple[type[Backbone], ...] = (StableDiffusionXL, StableDiffusion)
"""The families. The first that recognises a U-Net is used."""


def load_backbone(
    address: str | Path,
    single_file: SingleFile = SingleFile(),  # noqa: B008 - frozen
    dtype: torch.dtype = torch.float32,
) -> Backbone:
    """A model on the CPU: a diffusers folder, a single file, the s3:// address of either, or a hub name.

    single_file: what such a file does not contain. dtype: of all parts, except a VAE that overflows fp16, which is in
    fp32. ModelFolderError for an incomplete model, or one of no family in BACKBONES.
    """
    start = fetch_model(address)
    if is_single_file(start):
        parts, origin = load_single_file(start, single_file)
        family = _family_of(parts["unet"].config, start)
        backbone = family(**parts, origin=origin)
        backbone._cast("cpu", dtype, family.loaded_vae_dtype(dtype))
        return backbone
    check_parts(start)
    family = _family_of(load_config(UNet2DConditionModel, start, "unet"), start)
    return family(
        unet=load_folder_unet(start, dtype),
        vae=load_folder_vae(start, family.loaded_vae_dtype(dtype)),
        text=family.load_text(start, dtype),
        scheduler=load_folder_scheduler(start),
        origin=str(address),
        scaled_condition=bool(read_model_index(start).get("is_cosxl_edit")),
    )


def check_backbone(address: str | Path) -> None:
    """Raise a ModelFolderError if a local folder lacks a part or a single file does not exist. Loads no weights."""
    start = fetch_model(address)
    if is_single_file(start):
        check_single_file(start)
    else:
        check_parts(start)


def load_vae(
    address: str | Path,
    single_file: SingleFile = SingleFile(),  # noqa: B008 - frozen
) -> AutoencoderKL:
    """The VAE of a model, frozen and in fp32; the arguments are those of `load_backbone`."""
    start = fetch_model(address)
    if is_single_file(start):
        vae = load_single_file(start, single_file)[0]["vae"]
    else:
        vae = load_folder_vae(start, torch.float32)
    return vae.requires_grad_(False)


def load_tokenizer(address: str | Path, single_file: SingleFile) -> CLIPTokenizer:
    """The first tokenizer of a model: that of the folder or hub name, or for a single file the one in `single_file`."""
    if is_single_file(address):
        return load_clip_tokenizer(single_file.tokenizer, address)
    return CLIPTokenizer.from_pretrained(fetch_model(address), subfolder="tokenizer")


def posterior(vae: AutoencoderKL, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (B, C, h, w) of the unscaled latents of images (B, 3, H, W) in -1..1, on the VAE's
    device."""
    images = images.to(vae.device, vae.dtype)
    chunks = _chunks(images, images[0, 0].numel())
    with torch.autocast(vae.device.type, enabled=False):  # the precision of training is too low for XL's VAE
        posteriors = [cast(AutoencoderKLOutput, vae.encode(chunk)).latent_dist for chunk in chunks]
    means = torch.cat([latents.mean for latents in posteriors])
    deviations = torch.cat([latents.std for latents in posteriors])
    return means.float(), deviations.float()


def _decoded(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """The images (B, 3, H, W) of unscaled latents (B, C, h, w)."""
    output = vae.decode(cast(torch.FloatTensor, latents))  # diffusers' name for a tensor of any float dtype
    return cast(DecoderOutput, output).sample


def _family_of(unet_config: Mapping[str, Any], address: str | Path) -> type[Backbone]:
    """The family of a U-Net with this config; `address` is for the error message."""
    for family in BACKBONES:
        if family.recognises(unet_config):
            return family
    raise ModelFolderError(
        f"the U-Net of {address} has the addition_embed_type {unet_config['addition_embed_type']!r}; give a Stable"
        " Diffusion 1.x, 2.x (None) or XL ('text_time')"
    )


def _chunks(batch: Tensor, pixels: int) -> Iterator[Tensor]:
    """The rows of a batch in chunks of at most VAE_PIXELS; a row has `pixels`."""
    return iter(batch.split(max(1, VAE_PIXELS // pixels)))
