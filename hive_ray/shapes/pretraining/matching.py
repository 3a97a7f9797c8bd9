"""CLIP and BLIP of this domain: pictures and texts that fit each other, from nothing."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import BlipConfig, BlipForImageTextRetrieval, CLIPConfig, CLIPModel, CLIPTokenizer

from hive_ray.shapes.pretraining.loop import Say, train_steps
from hive_ray.shapes.pretraining.pictures import Twin, scene_and_twin, soften
from hive_ray.shapes.pretraining.words import MAX_TOKENS
from hive_ray.shapes.scenes import draw
from hive_ray.similarity import preprocess

BLIP_TEMPERATURE = 0.07
"""Where CLIP and BLIP start theirs."""


def train_clip(folder: Path, tokenizer_folder: Path, *, num_steps: int, seed: int, say: Say) -> None:
    """A CLIPModel on pictures and captions; each scene comes with an edited twin, its hardest negative."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder)
    tower = dict(hidden_size=128, intermediate_size=384, num_attention_heads=4)
    text = dict(
        vocab_size=len(tokenizer), num_hidden_layers=3, max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    vision = dict(image_size=64, patch_size=8, num_hidden_layers=4)
    model = CLIPModel(CLIPConfig(text_config=tower | text, vision_config=tower | vision, projection_dim=64))

    def loss_of(step: int) -> Tensor:
        scenes = [scene for _ in range(32) for scene in scene_and_twin(rng).scenes]
        pixels = torch.stack([preprocess(soften(draw(scene), rng), 64) for scene in scenes])
        captions = [scene.description.caption for scene in scenes]
        tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
        return model(input_ids=tokens.input_ids, pixel_values=pixels, return_loss=True).loss

    train_steps("clip", list(model.parameters()), loss_of, num_steps=num_steps, lr=1e-3, say=say)
    model.half().save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)


def train_blip(folder: Path, tokenizer_folder: Path, *, num_steps: int, seed: int, say: Say) -> None:
    """A BlipForImageTextRetrieval for the reward model to start from, as Salesforce's BLIP is for photographs.

    Two of BLIP's three losses (Li et al. 2022): captions and pictures are told apart by their features alone, and a
    matching head reads a text over a picture's tokens. Of a scene and its edited twin it reads the caption of each,
    the instruction (which fits the twin) and its inverse (which fits the scene).
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder)
    tower = dict(hidden_size=128, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4)
    text = dict(
        vocab_size=len(tokenizer), encoder_hidden_size=128, max_position_embeddings=MAX_TOKENS,
        bos_token_id=None, eos_token_id=None, sep_token_id=None, pad_token_id=None,
    )  # fmt: skip
    vision = dict(image_size=64, patch_size=8, initializer_range=0.02)
    model = BlipForImageTextRetrieval(
        BlipConfig(text_config=tower | text, vision_config=tower | vision, image_text_hidden_size=64)
    )
    fits = torch.tensor(Twin.FITS).flatten().repeat(16)
    own = torch.arange(32)

    def loss_of(step: int) -> Tensor:
        twins = [scene_and_twin(rng) for _ in range(16)]
        pixels = torch.stack([preprocess(soften(draw(one), rng), 64) for twin in twins for one in twin.scenes])
        tokens = tokenizer([words for twin in twins for words in twin.texts], padding=True, return_tensors="pt")
        ids, mask = tokens.input_ids, tokens.attention_mask
        seen = model.vision_model(pixel_values=pixels).last_hidden_state
        # Texts 0 and 1 of each four are the captions.
        captions = [part.unflatten(0, (16, 4))[:, :2].flatten(0, 1) for part in (ids, mask)]
        said = model.text_encoder(input_ids=captions[0], attention_mask=captions[1]).last_hidden_state[:, 0]
        pictures, words = (F.normalize(part, dim=-1) for part in (model.vision_proj(seen[:, 0]), model.text_proj(said)))
        alike = pictures @ words.T / BLIP_TEMPERATURE
        read = model.text_encoder(
            input_ids=ids.repeat_interleave(2, 0),
            attention_mask=mask.repeat_interleave(2, 0),
            encoder_hidden_states=seen.unflatten(0, (16, 2)).repeat_interleave(4, 0).flatten(0, 1),
        ).last_hidden_state[:, 0]  # (16 twins x 4 texts x 2 pictures, D)
        contrast = (F.cross_entropy(alike, own) + F.cross_entropy(alike.T, own)) / 2
        return contrast + F.cross_entropy(model.itm_head(read), fits)

    train_steps("blip", list(model.parameters()), loss_of, num_steps=num_steps, lr=5e-4, say=say)
    model.half().save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
