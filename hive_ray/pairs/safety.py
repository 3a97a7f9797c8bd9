"""The optional safety checker: Stable Diffusion's, on a CLIP vision tower, as diffusers has it."""

import logging
from pathlib import Path

import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPImageProcessorPil

from hive_ray.images import decode
from hive_ray.storage import fetch_model


class SafetyChecker:
    """Encoded pictures -> whether the checker flags each as unsafe."""

    def __init__(self, checker: str | Path, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.model = StableDiffusionSafetyChecker.from_pretrained(
            fetch_model(checker), dtype=torch.float32, use_safetensors=True
        )
        self.model.eval()
        self.model.to(self.device)  # pyright: ignore[reportArgumentType] - transformers wraps Module.to without `self`
        size = self.model.config.vision_config.image_size
        self.prepare = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
        logging.getLogger(StableDiffusionSafetyChecker.__module__).setLevel(
            logging.ERROR
        )  # it warns that it paints pictures black, which does not apply here

    def __call__(self, pictures: list[bytes]) -> list[bool]:
        if not pictures:
            return []
        inputs = self.prepare([decode(picture) for picture in pictures], return_tensors="pt").pixel_values.to(
            self.device
        )
        _, flagged = self.model(clip_input=inputs, images=torch.zeros(len(pictures), 1))  # would be painted black
        return flagged


def flag_nothing(pictures: list[bytes]) -> list[bool]:
    """Flag no picture: the default without a checker."""
    return [False] * len(pictures)
