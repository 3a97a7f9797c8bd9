"""Train CLIP and BLIP of this domain from scratch to match pictures and texts.

Both use the same batches of scenes and their edited twins, which are hard negatives of each other. Both also learn to
name the content of each patch.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import BlipConfig, BlipForImageTextRetrieval, CLIPConfig, CLIPModel, CLIPTokenizer

from hive_ray.images import encode
from hive_ray.shapes.pretraining.pool import PATCH, PatchNaming, TwinPictures
from hive_ray.shapes.pretraining.scene_pictures import scene_and_twin
from hive_ray.shapes.pretraining.steps import Say, train_steps
from hive_ray.shapes.pretraining.words import MAX_TOKENS
from hive_ray.shapes.scenes import RESOLUTION, draw
from hive_ray.similarity import normalize

BLIP_TEMPERATURE = 0.07
"""The initial temperature of CLIP and BLIP."""

BATCH_TWINS = 32
"""Twins in a batch."""

WIDTH = 128
NAMING_WEIGHT = 2.0
"""Weight of the patch-naming loss relative to the matching loss."""


Score = Callable[[list[bytes], list[bytes], list[str]], list[float]]
"""Source pictures, edited pictures, instructions -> the reward of each edit."""


def train_clip(
    folder: Path, tokenizer_folder: Path, pool: TwinPictures, *, num_steps: int, seed: int, say: Say
) -> None:
    """Train a CLIPModel on pictures and captions, and save it with its tokenizer in `folder`."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder)
    tower = dict(hidden_size=WIDTH, intermediate_size=3 * WIDTH, num_attention_heads=4)
    text = dict(
        vocab_size=len(tokenizer), num_hidden_layers=3, max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    vision = dict(image_size=RESOLUTION, patch_size=PATCH, num_hidden_layers=4)
    model = CLIPModel(CLIPConfig(text_config=tower | text, vision_config=tower | vision, projection_dim=64))
    naming = PatchNaming(WIDTH)

    def loss_of(step: int) -> Tensor:
        captions, pixels, names = draw_batch(pool, rng)
        tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
        output = model(input_ids=tokens.input_ids, pixel_values=pixels, return_loss=True)
        return output.loss + NAMING_WEIGHT * naming.loss(output.vision_model_output.last_hidden_state, names)

    parameters = [*model.parameters(), *naming.parameters()]
    train_steps("clip", parameters, loss_of, num_steps=num_steps, lr=1e-3, say=say)
    model.half().save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)


def train_blip(
    folder: Path, tokenizer_folder: Path, pool: TwinPictures, *, num_steps: int, seed: int, say: Say
) -> None:
    """Train a BlipForImageTextRetrieval, from which the reward model starts, as Salesforce's BLIP for photographs.

    Two of BLIP's three losses (Li et al. 2022) are used: the contrastive loss of features, and the matching loss of
    each caption of a scene and its edited twin with each of the two pictures.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder)
    tower = dict(hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_attention_heads=4)
    text = dict(
        vocab_size=len(tokenizer), encoder_hidden_size=WIDTH, max_position_embeddings=MAX_TOKENS, num_hidden_layers=3,
        bos_token_id=None, eos_token_id=None, sep_token_id=None, pad_token_id=None,
    )  # fmt: skip
    vision = dict(image_size=RESOLUTION, patch_size=PATCH, initializer_range=0.02, num_hidden_layers=4)
    model = BlipForImageTextRetrieval(
        BlipConfig(text_config=tower | text, vision_config=tower | vision, image_text_hidden_size=64)
    )
    naming = PatchNaming(WIDTH)
    own, fits = torch.arange(2 * BATCH_TWINS), torch.eye(2, dtype=torch.long).flatten().repeat(BATCH_TWINS)

    def loss_of(step: int) -> Tensor:
        captions, pixels, names = draw_batch(pool, rng)
        tokens = tokenizer(captions, padding=True, return_tensors="pt")
        ids, mask = tokens.input_ids, tokens.attention_mask
        picture_tokens = model.vision_model(pixel_values=pixels).last_hidden_state
        text_states = model.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0]
        pictures = F.normalize(model.vision_proj(picture_tokens[:, 0]), dim=-1)
        words = F.normalize(model.text_proj(text_states), dim=-1)
        alike = pictures @ words.T / BLIP_TEMPERATURE
        read = model.text_encoder(
            input_ids=ids.repeat_interleave(2, 0),
            attention_mask=mask.repeat_interleave(2, 0),
            encoder_hidden_states=picture_tokens.unflatten(0, (BATCH_TWINS, 2)).repeat_interleave(2, 0).flatten(0, 1),
        ).last_hidden_state[:, 0]  # (twins x 2 captions x 2 pictures, D)
        contrast = (F.cross_entropy(alike, own) + F.cross_entropy(alike.T, own)) / 2
        return (
            contrast + F.cross_entropy(model.itm_head(read), fits) + NAMING_WEIGHT * naming.loss(picture_tokens, names)
        )

    parameters = [*model.parameters(), *naming.parameters()]
    train_steps("blip", parameters, loss_of, num_steps=num_steps, lr=5e-4, say=say, bf16=True)
    model.half().save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)


def matching_accuracy(score: Score, count: int, seed: int) -> float:
    """The share of `count` unseen scenes whose picture scores higher with its own caption than with its twin's.

    The picture is passed as source and edit, and the caption as the instruction. Chance is 0.5.
    """
    rng = np.random.default_rng(seed)
    twins = [scene_and_twin(rng) for _ in range(count)]
    pictures = [encode(draw(twin.scenes[0])) for twin in twins]
    own = score(pictures, pictures, [twin.texts[0] for twin in twins])
    other = score(pictures, pictures, [twin.texts[1] for twin in twins])
    return float(np.mean(np.array(own) > np.array(other)))


def draw_batch(pool: TwinPictures, rng: np.random.Generator) -> tuple[list[str], Tensor, Tensor]:
    """Draw BATCH_TWINS twins: captions, noisy pictures (2 BATCH_TWINS, 3, H, W) as input of CLIP and BLIP, and patch
    names."""
    chosen = rng.integers(0, len(pool.twins), BATCH_TWINS)
    rows = np.stack([2 * chosen, 2 * chosen + 1], 1).flatten()
    pixels = torch.from_numpy(pool.pictures[rows]).permute(0, 3, 1, 2).float() / 255
    noise = torch.from_numpy(rng.uniform(0, 0.03, (len(rows), 1, 1, 1)).astype(np.float32))
    pixels = (pixels + noise * torch.randn(pixels.shape)).clamp(0, 1)
    captions = [caption for index in chosen for caption in pool.twins[index].texts[:2]]
    return captions, normalize(pixels), pool.names[rows]
