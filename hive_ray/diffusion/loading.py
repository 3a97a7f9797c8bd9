"""The parts of a diffusion model from where they lie: a diffusers folder or a hub name (single files: conversion.py).

a folder -> U-Net, VAE, text side, noise schedule
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from hive_ray.diffusion.text import TextEncoder
from hive_ray.files.model_folders import XL_PARTS, ModelFolderError, check_parts, read_model_index

_WEIGHTS = {"dtype": torch.float32, "use_safetensors": True, "low_cpu_mem_usage": False}


def load_parts(start: str | Path) -> dict[str, Any]:
    """The parts of a folder or hub name, in fp32, by the names of Editor's fields."""
    check_parts(start)
    unet = UNet2DConditionModel.from_pretrained(start, subfolder="unet", **_WEIGHTS)
    index = read_model_index(start)
    return {
        "unet": unet.to(memory_format=torch.channels_last),
        "vae": load_folder_vae(start),
        "text": _load_text(start, index if unet.config.addition_embed_type == "text_time" else None),
        "scheduler": _load_scheduler(start),
        "scaled_condition": bool(index.get("is_cosxl_edit")),
    }


def load_folder_vae(start: str | Path) -> AutoencoderKL:
    """The frozen VAE, in fp32, of a folder or hub name."""
    vae = AutoencoderKL.from_pretrained(start, subfolder="vae", **_WEIGHTS)
    return vae.to(memory_format=torch.channels_last).requires_grad_(False)


def _load_text(start: str | Path, xl_index: dict[str, Any] | None) -> TextEncoder:
    """The text side of a folder or hub name; `xl_index` is the model index of an XL."""
    weights = {"dtype": torch.float32, "use_safetensors": True}
    first = CLIPTextModel.from_pretrained(start, subfolder="text_encoder", **weights)
    tokenizer = CLIPTokenizer.from_pretrained(start, subfolder="tokenizer")
    if xl_index is None:
        return TextEncoder([first], [tokenizer])
    check_parts(start, XL_PARTS)
    second = CLIPTextModelWithProjection.from_pretrained(start, subfolder="text_encoder_2", **weights)
    tokenizers = [tokenizer, CLIPTokenizer.from_pretrained(start, subfolder="tokenizer_2")]
    return TextEncoder([first, second], tokenizers, xl_index.get("force_zeros_for_empty_prompt", True))


def _load_scheduler(start: str | Path) -> DDIMScheduler:
    """The noise schedule of a folder or hub name."""
    config = DDIMScheduler.load_config(start, subfolder="scheduler")
    if "sigma_data" in config:
        raise ModelFolderError(
            f"the scheduler of {start} is {config['_class_name']}, with noise levels of EDM (CosXL); give a model whose"
            " noise is of Stable Diffusion's 1000 timesteps"
        )
    scheduler = DDIMScheduler.from_config(config, clip_sample=False)
    if scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
        raise ModelFolderError(
            f"{start} predicts {scheduler.config.prediction_type!r}; give a model that predicts epsilon or v_prediction"
        )
    return scheduler
