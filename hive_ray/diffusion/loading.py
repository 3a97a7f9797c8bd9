"""The parts of a diffusion model from a diffusers folder or a hub name. conversion.py reads single files.

a folder -> U-Net, VAE, text encoders, noise schedule
"""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from hive_ray.diffusion.text import TextEncoder
from hive_ray.diffusion.typed import channels_last, from_config, load_config
from hive_ray.files.model_folders import XL_PARTS, ModelFolderError, check_parts, read_model_index

_WEIGHTS = {"use_safetensors": True, "low_cpu_mem_usage": False}


def load_folder_unet(start: str | Path, dtype: torch.dtype) -> UNet2DConditionModel:
    """The U-Net of a folder or hub name."""
    unet = UNet2DConditionModel.from_pretrained(start, subfolder="unet", dtype=dtype, **_WEIGHTS)
    return channels_last(unet)


def load_folder_vae(start: str | Path, dtype: torch.dtype) -> AutoencoderKL:
    """The VAE of a folder or hub name."""
    vae = AutoencoderKL.from_pretrained(start, subfolder="vae", dtype=dtype, **_WEIGHTS)
    return channels_last(vae)


def load_folder_text(start: str | Path, dtype: torch.dtype) -> TextEncoder:
    """The text encoder and tokenizer of a Stable Diffusion 1.x or 2.x, from a folder or hub name."""
    encoder = CLIPTextModel.from_pretrained(start, subfolder="text_encoder", dtype=dtype, use_safetensors=True)
    tokenizer = CLIPTokenizer.from_pretrained(start, subfolder="tokenizer")
    return TextEncoder([encoder], [tokenizer])


def load_folder_xl_text(start: str | Path, dtype: torch.dtype) -> TextEncoder:
    """Both text encoders and tokenizers of a Stable Diffusion XL, from a folder or hub name."""
    check_parts(start, XL_PARTS)
    weights = {"dtype": dtype, "use_safetensors": True}
    first = CLIPTextModel.from_pretrained(start, subfolder="text_encoder", **weights)
    second = CLIPTextModelWithProjection.from_pretrained(start, subfolder="text_encoder_2", **weights)
    tokenizers = [CLIPTokenizer.from_pretrained(start, subfolder=part) for part in ("tokenizer", "tokenizer_2")]
    return TextEncoder([first, second], tokenizers, read_model_index(start).get("force_zeros_for_empty_prompt", True))


def load_folder_scheduler(start: str | Path) -> DDIMScheduler:
    """The noise schedule of a folder or hub name; ModelFolderError for EDM's and for other prediction types."""
    config = load_config(DDIMScheduler, start, "scheduler")
    if "sigma_data" in config:
        raise ModelFolderError(
            f"the scheduler of {start} is {config['_class_name']}, with noise levels of EDM (CosXL); give a model with"
            " the 1000 timesteps of Stable Diffusion"
        )
    scheduler = from_config(DDIMScheduler, config, clip_sample=False)
    prediction_type = scheduler.config["prediction_type"]
    if prediction_type not in ("epsilon", "v_prediction"):
        raise ModelFolderError(
            f"{start} predicts {prediction_type!r}; give a model that predicts epsilon or v_prediction"
        )
    return scheduler
