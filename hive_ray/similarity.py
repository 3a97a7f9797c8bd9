"""CLIP similarity: picture to picture, picture to text, and the direction of an edit.

Used by the pair filter and by the evaluation. Pictures are prepared as InstructPix2Pix's `clip_similarity.py`
does, so that thresholds and curves published for it keep their meaning.

    B batch, D feature size
"""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

from hive_ray.files.model_folders import ModelFolderError
from hive_ray.images import decode
from hive_ray.storage import fetch_model

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of pixels in 0..1, red green blue; BLIP uses the same."""

Picture = np.ndarray | bytes
"""uint8 pixels (H, W, 3), or an encoded picture."""


def image_similarity(source: Tensor, edited: Tensor) -> Tensor:
    """cos(I0, I1): how similar the edited picture is to its source. Unit features (B, D) -> (B,) in -1..1."""
    return F.cosine_similarity(source, edited, dim=-1)


def text_similarity(image: Tensor, text: Tensor) -> Tensor:
    """cos(I, T): how well a caption describes a picture. Unit features (B, D) -> (B,) in -1..1."""
    return F.cosine_similarity(image, text, dim=-1)


def directional_similarity(source: Tensor, edited: Tensor, source_text: Tensor, edited_text: Tensor) -> Tensor:
    """cos(I1 - I0, T1 - T0): whether the pictures changed as the captions did (Gal et al. 2021).

    Unit features (B, D), normalised before the differences -> (B,) in -1..1; 0 where nothing changed.
    """
    return F.cosine_similarity(edited - source, edited_text - source_text, dim=-1)


def preprocess(pixels: np.ndarray, size: int) -> Tensor:
    """uint8 (H, W, 3) -> float (3, size, size) with CLIP's mean and std.

    Resized bicubically without antialias, the aspect ratio ignored.
    """
    image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float() / 255
    return normalize(F.interpolate(image, size=(size, size), mode="bicubic", align_corners=False)[0])


def normalize(pixels: Tensor) -> Tensor:
    """Pixels (..., 3, H, W) in 0..1 -> with CLIP's mean and std."""
    mean = torch.tensor(CLIP_MEAN)[:, None, None]
    std = torch.tensor(CLIP_STD)[:, None, None]
    return (pixels - mean) / std


class Similarity:
    """A CLIP model: pictures and texts -> unit features."""

    def __init__(self, clip: str | Path, device: str | torch.device = "cpu") -> None:
        clip = fetch_model(clip)
        _check_folder(Path(clip))
        self.device = torch.device(device)
        self.model = CLIPModel.from_pretrained(clip, dtype=torch.float32, use_safetensors=True).eval()
        self.model.to(self.device)  # pyright: ignore[reportArgumentType] - transformers wraps Module.to without `self`
        self.tokenizer = CLIPTokenizer.from_pretrained(clip)
        sizes = cast(CLIPConfig, self.model.config)
        self.image_size = cast(int, cast(CLIPVisionConfig, sizes.vision_config).image_size)
        self.max_tokens = cast(CLIPTextConfig, sizes.text_config).max_position_embeddings

    @torch.inference_mode()
    def images(self, images: Sequence[Picture]) -> Tensor:
        """Pictures of any size -> (B, D) unit features."""
        pixels = [decode(image) if isinstance(image, bytes) else image for image in images]
        batch = torch.stack([preprocess(picture, self.image_size) for picture in pixels]).to(self.device)
        return _unit_features(self.model.get_image_features(pixel_values=batch))

    @torch.inference_mode()
    def texts(self, texts: list[str]) -> Tensor:
        """Texts, cut to the model's length -> (B, D) unit features."""
        tokens = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(self.device)
        features = self.model.get_text_features(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        return _unit_features(features)

    def to_source(self, source_images: Sequence[Picture], edited_images: Sequence[Picture]) -> Tensor:
        """`image_similarity` of edits to their sources, (B,)."""
        return image_similarity(self.images(source_images), self.images(edited_images))

    def measure(
        self,
        source_images: Sequence[Picture],
        edited_images: Sequence[Picture],
        source_captions: list[str],
        edited_captions: list[str],
    ) -> dict[str, Tensor]:
        """The four `clip_` columns of pairs, each (B,)."""
        source, edited = self.images(source_images), self.images(edited_images)
        source_text, edited_text = self.texts(source_captions), self.texts(edited_captions)
        return {
            "clip_image": image_similarity(source, edited),
            "clip_source_text": text_similarity(source, source_text),
            "clip_edited_text": text_similarity(edited, edited_text),
            "clip_direction": directional_similarity(source, edited, source_text, edited_text),
        }


def _unit_features(output: tuple | BaseModelOutputWithPooling) -> Tensor:
    """Output of CLIP for a batch -> (B, D) unit features."""
    assert isinstance(output, BaseModelOutputWithPooling)
    assert output.pooler_output is not None
    return F.normalize(output.pooler_output, dim=-1)


def _check_folder(folder: Path) -> None:
    """Raise a ModelFolderError that names the missing files of a local folder; hub names are not checked."""
    if not folder.is_dir():
        return
    parts = {
        "config.json": ("config.json",),
        "model.safetensors": ("model.safetensors", "model.safetensors.index.json"),
        "tokenizer.json (or vocab.json)": ("tokenizer.json", "vocab.json"),
    }
    missing = []
    for part, files in parts.items():
        if not any((folder / file).is_file() for file in files):
            missing.append(part)
    if missing:
        raise ModelFolderError(
            f"CLIP folder {folder} lacks {', '.join(missing)}; save both parts there with "
            "CLIPModel.save_pretrained and CLIPTokenizer.save_pretrained"
        )
