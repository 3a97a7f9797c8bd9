"""The reward model: how much people like an edit, learned from rankings, built on BLIP (HIVE, figure 2).

One ViT with shared weights encodes the source and the edited picture. The two token sequences are concatenated, each
with its own type embedding. BLIP's image-grounded text encoder attends to them with the instruction. A linear head on
its first token gives the reward.

Before each of the ViT's upper layers, and after the last, each edited token adds W (edited - source), where `source` is
the source's token at the same position and W is initialised to zero. So these layers see what an edit changed.
Attention alone would have to learn which tokens to compare.

    B prompts, K edits of a prompt, H W height and width
    N tokens of a picture, L tokens of an instruction, D width
"""

import json
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoTokenizer,
    BlipForImageTextRetrieval,
    BlipTextConfig,
    BlipVisionConfig,
    BlipVisionModel,
    PreTrainedTokenizerBase,
)
from transformers.models.blip.modeling_blip_text import BlipTextModel

from hive_ray import config
from hive_ray.files.model_folders import ModelFolderError
from hive_ray.images import to_batch
from hive_ray.schemas import Rows
from hive_ray.similarity import CLIP_MEAN, CLIP_STD
from hive_ray.storage import fetch_model

FOLDER_KIND = "hive_ray reward model"
"""Written into config.json, to distinguish our folders from BLIP's."""

_MISMATCH, _MATCH = 0, 1  # outputs of BLIP's image-text matching head


class RewardModel(nn.Module):
    """(source picture, edited pictures, instruction) -> a reward for each edit. Only differences have a meaning."""

    def __init__(
        self,
        vision_config: BlipVisionConfig,
        text_config: BlipTextConfig,
        tokenizer: PreTrainedTokenizerBase,
        max_tokens: int,
    ) -> None:
        super().__init__()
        if len(tokenizer) > text_config.vocab_size:
            raise ModelFolderError(
                f"the tokenizer has {len(tokenizer)} tokens, the model {text_config.vocab_size}; give the "
                "tokenizer that the model was trained with (reward.tokenizer)"
            )
        self.tokenizer, self.max_tokens = tokenizer, min(max_tokens, text_config.max_position_embeddings)
        self.resolution = cast(int, vision_config.image_size)
        self.vision = BlipVisionModel(vision_config)
        self.text = BlipTextModel(text_config, add_pooling_layer=False)
        self.image_type = nn.Embedding(2, vision_config.hidden_size)  # 0 source, 1 edited
        nn.init.zeros_(self.image_type.weight)
        layers, width = vision_config.num_hidden_layers, vision_config.hidden_size
        changes = {str(layer): nn.Linear(width, width, bias=False) for layer in range(layers // 2, layers + 1)}
        for change in changes.values():
            nn.init.zeros_(change.weight)
        self.changes = nn.ModuleDict(changes)
        """The maps W, by the index of the layer that follows. The ViT's norm follows the last layer."""
        self.head = nn.Linear(text_config.hidden_size, 1)
        nn.init.normal_(self.head.weight, std=1 / (text_config.hidden_size + 1))
        nn.init.zeros_(self.head.bias)
        # BLIP's statistics of pixels in 0..1, converted for our tensors in -1..1.
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(CLIP_MEAN)[:, None, None] * 2 - 1, persistent=False)
        self.register_buffer("std", torch.tensor(CLIP_STD)[:, None, None] * 2, persistent=False)

    def forward(self, source: Tensor, edited: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """source (B, 3, H, W), edited (B, K, 3, H, W) in -1..1, tokens, mask (B, L) -> rewards (B, K).

        The tokens of the source are computed once for all edits of a prompt.
        """
        num_prompts, num_edits = edited.shape[:2]
        images = (torch.cat([source, edited.flatten(0, 1)]) - self.mean) / self.std
        images = images.to(self.head.weight.dtype)  # (B + B K, 3, H, W)
        before, after = self._encode_images(images, num_prompts)
        source_type, edited_type = self.image_type(torch.arange(2, device=images.device))
        both = [(before + source_type).repeat_interleave(num_edits, 0), after + edited_type]
        read = self.text(
            input_ids=tokens.repeat_interleave(num_edits, 0),
            attention_mask=mask.repeat_interleave(num_edits, 0),
            encoder_hidden_states=torch.cat(both, 1),  # (B K, 2 N, D)
        ).last_hidden_state[:, 0]
        return self.head(read).view(num_prompts, num_edits)

    def _encode_images(self, images: Tensor, num_prompts: int) -> tuple[Tensor, Tensor]:
        """B sources and their K edits each (B + B K, 3, H, W) -> their tokens, (B, N, D) and (B K, N, D)."""
        tokens = self.vision.embeddings(images)
        for place, layer in enumerate([*self.vision.encoder.layers, self.vision.post_layernorm]):
            if str(place) in self.changes:
                before, after = tokens[:num_prompts], tokens[num_prompts:]
                differs = (after.unflatten(0, (num_prompts, -1)) - before[:, None]).flatten(0, 1)
                tokens = torch.cat([before, after + self.changes[str(place)](differs)])
            tokens = layer(tokens)
        return tokens[:num_prompts], tokens[num_prompts:]

    def encode_text(self, instructions: list[str]) -> tuple[Tensor, Tensor]:
        """Instructions, truncated to `max_tokens` -> tokens and mask (B, L); 0 in the mask is padding."""
        encoded = self.tokenizer(
            instructions, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        return encoded.input_ids, encoded.attention_mask

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head.weight.device

    @torch.inference_mode()
    def score(self, source_images: list[bytes], edited_images: list[bytes], instructions: list[str]) -> list[float]:
        """The reward of each edit; leaves the model in evaluation mode."""
        self.eval()
        source, edited = to_batch(source_images, self.resolution), to_batch(edited_images, self.resolution)
        tokens, mask = self.encode_text(instructions)
        inputs = (source, edited[:, None], tokens, mask)
        return self(*(tensor.to(self.device) for tensor in inputs))[:, 0].float().tolist()

    def freeze(self, rate: float) -> None:
        """Freeze this share (0..1) of the layers of both encoders, the lowest first, and the embeddings below them."""
        for embeddings, layers in (
            (self.vision.embeddings, self.vision.encoder.layers),
            (self.text.embeddings, self.text.encoder.layer),
        ):
            frozen = layers[: int(rate * len(layers))]
            for part in [embeddings, *frozen] if len(frozen) else []:
                part.requires_grad_(False)

    def save(self, folder: str | Path, card: dict[str, Any]) -> None:
        """Write model.safetensors, config.json, tokenizer/, and card.json last, which marks a finished folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "card.json").unlink(missing_ok=True)
        weights = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        save_file(weights, folder / "model.safetensors")
        settings = {
            "kind": FOLDER_KIND,
            "max_tokens": self.max_tokens,
            "vision": self.vision.config.to_diff_dict(),
            "text": self.text.config.to_diff_dict(),
        }
        (folder / "config.json").write_text(json.dumps(settings, indent=2))
        self.tokenizer.save_pretrained(folder / "tokenizer")
        (folder / "card.json").write_text(json.dumps(card, indent=2))

    @classmethod
    def load(cls, folder: str | Path) -> "RewardModel":
        """A model that `save` wrote, on the CPU in float32 and in evaluation mode.

        folder: a folder or its s3:// address. ModelFolderError for other and unfinished folders.
        """
        folder = Path(fetch_model(folder))
        parts = ("card.json", "config.json", "model.safetensors")
        missing = [name for name in parts if not (folder / name).is_file()]
        if missing:
            raise ModelFolderError(f"{folder} lacks {', '.join(missing)}: no finished reward model; train one first")
        settings = json.loads((folder / "config.json").read_text())
        if settings.get("kind") != FOLDER_KIND:
            kind = settings.get("kind")
            raise ModelFolderError(
                f"{folder} is no {FOLDER_KIND}: its config.json has the kind {kind!r}; give a folder of train_reward"
            )
        vision_config = BlipVisionConfig(**settings["vision"])
        text_config = BlipTextConfig(**settings["text"])
        model = cls(vision_config, text_config, load_tokenizer(folder), settings["max_tokens"])
        missing, unknown = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
        if missing or unknown:
            raise ModelFolderError(
                f"{folder} has other weights than this version's reward model: it lacks {sorted(missing)} and has the "
                f"unknown {sorted(unknown)}; train it again"
            )
        return model.eval()

    @classmethod
    def from_scratch(
        cls, tokenizer: PreTrainedTokenizerBase, *, resolution: int, max_tokens: int, seed: int = 0
    ) -> "RewardModel":
        """A small untrained model (about 1.5M weights) for the embedded domain, the same for the same seed."""
        sizes: dict[str, Any] = dict(hidden_size=128, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4)
        vision_config = BlipVisionConfig(
            image_size=resolution, patch_size=resolution // 8, initializer_range=0.02, **sizes
        )
        text_config = BlipTextConfig(
            vocab_size=len(tokenizer),
            encoder_hidden_size=128,
            max_position_embeddings=max_tokens,
            bos_token_id=None,
            eos_token_id=None,
            sep_token_id=None,
            pad_token_id=None,  # padding is masked; CLIP's padding token also ends a text, so it is trained
            **sizes,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(vision_config, text_config, tokenizer, max_tokens)

    @classmethod
    def from_blip(
        cls, blip: str | Path, tokenizer: PreTrainedTokenizerBase, *, resolution: int, max_tokens: int
    ) -> "RewardModel":
        """A reward model from the folder or hub name of a `BlipForImageTextRetrieval`.

        The head is initialised as the logit of a match. Position embeddings are interpolated to the resolution.
        ModelFolderError if weights are missing.
        """
        loaded: Any = BlipForImageTextRetrieval.from_pretrained(blip, dtype=torch.float32, output_loading_info=True)
        pretrained, report = loaded
        missing = sorted(report["missing_keys"])
        if missing:
            raise ModelFolderError(
                f"{blip} lacks {len(missing)} weights of BlipForImageTextRetrieval, {missing[0]} among them; "
                "give image-text matching weights such as Salesforce/blip-itm-base-coco"
            )
        vision_config = BlipVisionConfig(**{**pretrained.config.vision_config.to_diff_dict(), "image_size": resolution})
        model = cls(vision_config, pretrained.config.text_config, tokenizer, max_tokens)
        vision = pretrained.vision_model.state_dict()
        positions = "embeddings.position_embedding"
        vision[positions] = resize_positions(vision[positions], resolution // cast(int, vision_config.patch_size))
        model.vision.load_state_dict(vision)
        model.text.load_state_dict(pretrained.text_encoder.state_dict())
        match = pretrained.itm_head
        with torch.no_grad():
            model.head.weight.copy_(match.weight[_MATCH] - match.weight[_MISMATCH])
            model.head.bias.copy_(match.bias[_MATCH] - match.bias[_MISMATCH])
        return model

    @classmethod
    def build(cls, start: str | Path, tokenizer: str | Path, settings: config.Reward) -> "RewardModel":
        """The model that training starts from, with the lower layers frozen as in the settings.

        start: "shapes" for a small untrained model, a folder of `RewardModel.save` (which has its own tokenizer and
        sizes), or the folder or hub name of BLIP weights, with their `tokenizer`.
        """
        sizes = dict(resolution=settings.resolution, max_tokens=settings.max_tokens)
        start, tokenizer = fetch_model(start), fetch_model(tokenizer)
        if str(start) == "shapes":
            model = cls.from_scratch(load_tokenizer(tokenizer), seed=settings.training.seed, **sizes)
        elif is_reward_model(start):
            model = cls.load(start)
        else:
            model = cls.from_blip(start, load_tokenizer(tokenizer), **sizes)
        model.freeze(settings.frozen_rate)
        return model.train()


def is_reward_model(folder: str | Path) -> bool:
    """Whether `RewardModel.save` wrote this folder, and not BLIP."""
    settings = Path(folder) / "config.json"
    return settings.is_file() and json.loads(settings.read_text()).get("kind") == FOLDER_KIND


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub name; from the subfolder tokenizer/ if there is one."""
    part = Path(name) / "tokenizer"
    return AutoTokenizer.from_pretrained(part if part.is_dir() else name)


def resize_positions(positions: Tensor, side: int) -> Tensor:
    """ViT position embeddings (1, 1 + n n, D) -> (1, 1 + side side, D), bicubic. That of [CLS] does not change."""
    first, grid = positions[:, :1], positions[:, 1:]
    old = round(grid.shape[1] ** 0.5)
    if old == side:
        return positions
    square = grid.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(square, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([first, resized.flatten(2).transpose(1, 2)], 1)


class ScoringModel(Protocol):
    """Any reward model that can score edits."""

    def score(self, source_images: list[bytes], edited_images: list[bytes], instructions: list[str]) -> list[float]:
        """The reward of each edit."""
        ...


class RewardScorer:
    """Adds a reward to each pair."""

    def __init__(self, model: ScoringModel) -> None:
        self.model = model

    def __call__(self, rows: Rows) -> Rows:
        rewards = self.model.score(
            source_images=[row["source_image"] for row in rows],
            edited_images=[row["edited_image"] for row in rows],
            instructions=[row["instruction"] for row in rows],
        )
        return [row | {"reward": reward} for row, reward in zip(rows, rewards, strict=True)]
