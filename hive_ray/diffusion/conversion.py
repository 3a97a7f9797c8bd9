"""A compvis checkpoint (the one file of Stable Diffusion, InstructPix2Pix, HIVE) -> the parts of a backbone.

diffusers' single-file loader maps the names. Widths, depths and channels are inferred from the shapes of the weights,
so nothing is downloaded. `CheckpointFamily` holds what the shapes do not determine.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from hive_ray.config import SingleFile
from hive_ray.diffusion.single_file import UNET_PREFIX, first_few, prefer_ema, read_weights
from hive_ray.diffusion.text import ClipEncoder, TextEncoder
from hive_ray.diffusion.typed import ModuleT, channels_last
from hive_ray.files.model_folders import ModelFolderError

VAE_PREFIX = "first_stage_model."
VAE_PART_PREFIXES = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
HEAD_CHANNELS = 64
"""Channels of an attention head in every CLIP, and in the U-Nets of Stable Diffusion 2 and XL."""

Weights = dict[str, Tensor]
Prediction = Literal["epsilon", "v_prediction"]


@dataclass(frozen=True)
class CheckpointFamily:
    """What the shapes of a checkpoint do not determine."""

    clip: str | None
    """Prefix of the text encoder with transformers' names; None without one."""
    open_clip: str | None
    """Prefix of the text encoder with OpenCLIP's names; None without one."""
    heads: int | None
    """Attention heads in every layer of the U-Net; None means one for each 64 channels."""
    sample_size: int
    scaling_factor: float = 0.18215


CHECKPOINT_FAMILIES = {
    "Stable Diffusion 1": CheckpointFamily("cond_stage_model.transformer.", None, heads=8, sample_size=64),
    "Stable Diffusion 2": CheckpointFamily(None, "cond_stage_model.model.", heads=None, sample_size=64),
    "Stable Diffusion XL": CheckpointFamily(
        "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model.", heads=None, sample_size=128,
        scaling_factor=0.13025,
    ),
}  # fmt: skip


def load_single_file(path: str | Path, settings: SingleFile) -> tuple[dict[str, Any], str]:
    """The parts of a file in fp32, by the names of the fields of `Backbone`, and their `origin`."""
    weights, averaged = prefer_ema(read_weights(path), path)
    parts = convert_checkpoint(weights, settings, path)
    return parts, f"{Path(path).name}, {'averaged weights' if averaged else 'its only weights'}"


def convert_checkpoint(weights: Weights, settings: SingleFile, path: str | Path) -> dict[str, Any]:
    """The parts of a backbone from weights by their compvis names; `path` is for error messages."""
    checkpoint = _Checkpoint(weights, path)
    family = _family(checkpoint)
    prediction_type = _prediction_type(checkpoint, family, settings)
    return {
        "unet": channels_last(_convert_unet(checkpoint, family, prediction_type)),
        "vae": channels_last(_convert_vae(checkpoint, family)),
        "text": _convert_text(checkpoint, family, settings.tokenizer),
        "scheduler": DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
            set_alpha_to_one=False, steps_offset=1, prediction_type=prediction_type,
        ),
    }  # fmt: skip


@dataclass(frozen=True)
class _Checkpoint:
    """Weights by their compvis names, with the path of their file for error messages."""

    weights: Weights
    path: str | Path

    def below(self, prefix: str, parts: tuple[str, ...] = ("",)) -> Weights:
        """The weights whose names begin with the prefix and one of the parts, by their full names."""
        starts = tuple(prefix + part for part in parts)
        return {name: value for name, value in self.weights.items() if name.startswith(starts)}

    def shape(self, name: str) -> torch.Size:
        """The shape of one weight."""
        if name not in self.weights:
            raise ModelFolderError(f"{self.path} lacks {name}: it is incomplete, or not a model of this kind")
        return self.weights[name].shape

    def numbers(self, prefix: str) -> list[int]:
        """The numbers that follow a prefix, such as those of the blocks of a U-Net."""
        found = (re.match(r"\d+", name[len(prefix) :]) for name in self.weights if name.startswith(prefix))
        return sorted({int(number[0]) for number in found if number})

    def fill(self, module: ModuleT, weights: Weights) -> ModuleT:
        """The module, made on the meta device, with converted weights in fp32.

        ModelFolderError for missing and unknown weights, and for those of another shape.
        """
        wanted = module.state_dict()
        off = [
            f"{name} {list(weights[name].shape)}, not {list(wanted[name].shape)}"
            for name in wanted.keys() & weights.keys()
            if weights[name].shape != wanted[name].shape
        ]
        wrong = {
            "lacks": sorted(wanted.keys() - weights.keys()),
            "has unknown weights:": sorted(weights.keys() - wanted.keys()),
            "has other shapes:": sorted(off),
        }
        problems = "; ".join(f"{verb} {first_few(names)}" for verb, names in wrong.items() if names)
        if problems:
            kind = type(module).__name__
            raise ModelFolderError(f"{self.path} is no complete {kind}: by diffusers' names it {problems}")
        # Copies, so that the module does not depend on a memory-mapped file.
        copies = {name: value.to(torch.float32, copy=True) for name, value in weights.items()}
        module.load_state_dict(copies, assign=True)
        return module.eval()


def _family(weights: _Checkpoint) -> CheckpointFamily:
    if edm := weights.below("edm_"):  # edm_mean (Playground), edm_vpred.sigma_max (CosXL)
        raise ModelFolderError(
            f"{weights.path} has {first_few(edm)}: noise levels of EDM; give a model with the 1000 timesteps of"
            " Stable Diffusion"
        )
    for family in CHECKPOINT_FAMILIES.values():
        prefixes = [UNET_PREFIX, VAE_PREFIX, *(prefix for prefix in (family.clip, family.open_clip) if prefix)]
        if all(weights.below(prefix) for prefix in prefixes):
            return family
    raise ModelFolderError(
        f"{weights.path} is no complete checkpoint of {', '.join(CHECKPOINT_FAMILIES)}: it begins with"
        f" {first_few(weights.weights)}; a single file holds {UNET_PREFIX}*, {VAE_PREFIX}* and a text encoder"
        " (cond_stage_model.* or conditioner.embedders.*). For weights with diffusers' names give their folder"
    )


def _prediction_type(weights: _Checkpoint, family: CheckpointFamily, settings: SingleFile) -> Prediction:
    """What the U-Net predicts. Stable Diffusion 2 exists with both types, and their weights have the same shapes."""
    if settings.prediction_type:
        return settings.prediction_type
    in_channels = weights.shape(f"{UNET_PREFIX}input_blocks.0.0.weight")[1]
    if family is CHECKPOINT_FAMILIES["Stable Diffusion 2"] and in_channels == 4:
        raise ModelFolderError(
            f"{weights.path} is a Stable Diffusion 2, whose weights do not show what it predicts; set"
            " prediction_type to epsilon (2.1-base, 512 x 512) or v_prediction (2.1, 768 x 768)"
        )
    return "epsilon"  # HIVE's editors of Stable Diffusion 2 were trained from 2.1-base


def _convert_unet(weights: _Checkpoint, family: CheckpointFamily, prediction_type: Prediction) -> UNet2DConditionModel:
    config = _unet_config(weights, family, prediction_type)
    given = weights.below(UNET_PREFIX)
    converted = convert_ldm_unet_checkpoint(given, config)
    if len(converted) != len(given):
        raise ModelFolderError(
            f"{weights.path}: {len(converted)} of {len(given)} weights of the U-Net have a name in diffusers; it is not"
            " a U-Net of Stable Diffusion"
        )
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    return weights.fill(unet, converted)


def _unet_config(weights: _Checkpoint, family: CheckpointFamily, prediction_type: Prediction) -> dict[str, Any]:
    """The arguments of UNet2DConditionModel. LDM numbers the blocks and downsamplers of all levels consecutively."""
    levels: list[list[str]] = [[]]
    for place in weights.numbers(f"{UNET_PREFIX}input_blocks.")[1:]:
        block = f"{UNET_PREFIX}input_blocks.{place}."
        if f"{block}0.op.weight" in weights.weights:
            levels.append([])
        else:
            levels[-1].append(block)
    if not all(levels):
        raise ModelFolderError(f"{weights.path} has levels of its U-Net without blocks: it is incomplete")
    channels = [weights.shape(f"{blocks[0]}0.out_layers.3.weight")[0] for blocks in levels]
    depths = [len(weights.numbers(f"{blocks[0]}1.transformer_blocks.")) for blocks in levels]
    attends = f"{UNET_PREFIX}middle_block.1."
    is_21 = family is CHECKPOINT_FAMILIES["Stable Diffusion 2"] and prediction_type == "v_prediction"  # 768 x 768
    config = {
        "sample_size": family.sample_size * 3 // 2 if is_21 else family.sample_size,
        "upcast_attention": is_21,
        "in_channels": weights.shape(f"{UNET_PREFIX}input_blocks.0.0.weight")[1],
        "out_channels": weights.shape(f"{UNET_PREFIX}out.2.weight")[0],
        "block_out_channels": channels,
        "layers_per_block": len(levels[0]),
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)],
        "transformer_layers_per_block": [max(1, depth) for depth in depths],
        "attention_head_dim": family.heads or [max(1, width // HEAD_CHANNELS) for width in channels],
        "cross_attention_dim": weights.shape(f"{attends}transformer_blocks.0.attn2.to_k.weight")[1],
        "use_linear_projection": len(weights.shape(f"{attends}proj_in.weight")) == 2,
    }
    if family.clip and family.open_clip:  # XL: six sizes and the pooled text
        inputs = weights.shape(f"{UNET_PREFIX}label_emb.0.0.weight")[1]
        pooled = weights.shape(f"{family.open_clip}text_projection")[1]
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": (inputs - pooled) // 6,
            "projection_class_embeddings_input_dim": inputs,
        }
    return config


def _convert_vae(weights: _Checkpoint, family: CheckpointFamily) -> AutoencoderKL:
    levels = weights.numbers(f"{VAE_PREFIX}encoder.down.")
    channels = [weights.shape(f"{VAE_PREFIX}encoder.down.{level}.block.0.conv1.weight")[0] for level in levels]
    config = {
        "sample_size": family.sample_size * 2 ** (len(levels) - 1),
        "block_out_channels": channels,
        "layers_per_block": len(weights.numbers(f"{VAE_PREFIX}encoder.down.0.block.")),
        "down_block_types": ["DownEncoderBlock2D"] * len(levels),
        "up_block_types": ["UpDecoderBlock2D"] * len(levels),
        "latent_channels": weights.shape(f"{VAE_PREFIX}decoder.conv_in.weight")[1],
        "scaling_factor": family.scaling_factor,
    }
    with torch.device("meta"):
        vae = AutoencoderKL(**config)
    return weights.fill(vae, convert_ldm_vae_checkpoint(weights.below(VAE_PREFIX, VAE_PART_PREFIXES), config))


def _convert_text(weights: _Checkpoint, family: CheckpointFamily, source: str) -> TextEncoder:
    encoders: list[ClipEncoder] = []
    tokenizers: list[CLIPTokenizer] = []
    if family.clip:
        shape = weights.shape(f"{family.clip}text_model.embeddings.token_embedding.weight")
        tokenizers.append(_tokenizer(source, shape[0], weights.path))
        encoders.append(_convert_clip(weights, family.clip, tokenizers[-1]))
    if family.open_clip:
        shape = weights.shape(f"{family.open_clip}token_embedding.weight")
        tokenizers.append(_tokenizer(source, shape[0], weights.path, pad_token="!"))  # 0, OpenCLIP's padding
        encoders.append(_convert_open_clip(weights, family.open_clip, tokenizers[-1], whole=family.clip is not None))
    return TextEncoder(encoders, tokenizers, empty_is_zero=len(encoders) == 2)


def _convert_clip(weights: _Checkpoint, prefix: str, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """OpenAI's text encoder, by transformers' names."""
    text = f"{prefix}text_model."
    config = _text_config(
        tokenizer, weights.shape(f"{text}embeddings.position_embedding.weight"), hidden_act="quick_gelu",
        intermediate_size=weights.shape(f"{text}encoder.layers.0.mlp.fc1.weight")[0],
        num_hidden_layers=len(weights.numbers(f"{text}encoder.layers.")),
    )  # fmt: skip
    return _fill_text(weights, CLIPTextModel, config, lambda _: convert_ldm_clip_checkpoint(weights.below(prefix)))


def _convert_open_clip(weights: _Checkpoint, prefix: str, tokenizer: CLIPTokenizer, *, whole: bool) -> ClipEncoder:
    """OpenCLIP's text encoder.

    Stable Diffusion 2 reads the last layer but one. So without `whole` the last layer and the pooled text are left out.
    XL reads the same layer, but also the pooled text, which needs them.
    """
    blocks, given = weights.numbers(f"{prefix}transformer.resblocks."), weights.below(prefix)
    if not whole:
        unread = (f"{prefix}transformer.resblocks.{blocks.pop()}.", f"{prefix}text_projection")
        given = {name: value for name, value in given.items() if not name.startswith(unread)}
    config = _text_config(
        tokenizer, weights.shape(f"{prefix}positional_embedding"), hidden_act="gelu",
        intermediate_size=weights.shape(f"{prefix}transformer.resblocks.0.mlp.c_fc.weight")[0],
        num_hidden_layers=len(blocks),
        projection_dim=weights.shape(f"{prefix}text_projection")[1] if whole else 0,
    )  # fmt: skip
    kind = CLIPTextModelWithProjection if whole else CLIPTextModel
    return _fill_text(weights, kind, config, lambda model: convert_open_clip_checkpoint(model, given, prefix))


def _text_config(tokenizer: CLIPTokenizer, positions: torch.Size, **sizes: Any) -> CLIPTextConfig:
    """The config of a text encoder. positions: the shape (T, D) of its position embedding."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=positions[0],
        hidden_size=positions[1],
        num_attention_heads=max(1, positions[1] // HEAD_CHANNELS),
        bos_token_id=cast(int, tokenizer.bos_token_id),
        eos_token_id=cast(int, tokenizer.eos_token_id),
        pad_token_id=cast(int, tokenizer.pad_token_id),
        **sizes,
    )


def _fill_text(
    weights: _Checkpoint, kind: type[ModuleT], config: CLIPTextConfig, converted: Callable[[nn.Module], Weights]
) -> ModuleT:
    with torch.device("meta"):
        encoder = kind(config)
    flat = not hasattr(encoder, "text_model")  # as CLIPTextModel since transformers 5.6
    named = {name.removeprefix("text_model.") if flat else name: value for name, value in converted(encoder).items()}
    weights.fill(encoder, {name: value for name, value in named.items() if not name.endswith("position_ids")})
    embeddings = encoder.get_submodule("embeddings" if flat else "text_model.embeddings")
    embeddings.position_ids = torch.arange(config.max_position_embeddings).unsqueeze(
        0
    )  # not a weight, so it is still on the meta device
    return encoder


def _tokenizer(source: str, num_words: int, path: str | Path, **special: str) -> CLIPTokenizer:
    """The tokenizer of a text encoder with a vocabulary of `num_words` tokens."""
    tokenizer = load_clip_tokenizer(source, path, **special)
    if len(tokenizer) != num_words:
        raise ModelFolderError(
            f"the tokenizer of {source!r} has {len(tokenizer)} tokens, the text encoder of {path} {num_words}; set"
            " tokenizer to the one that it was trained with"
        )
    return tokenizer


def load_clip_tokenizer(source: str, path: str | Path, **special: Any) -> CLIPTokenizer:
    """CLIP's tokenizer from its folder, a model's folder or the hub, since a single file contains none.

    path: the single file, for error messages.
    """
    subfolder = "tokenizer" if (Path(source) / "tokenizer").is_dir() else ""
    try:
        return CLIPTokenizer.from_pretrained(source, subfolder=subfolder, **special)
    except (OSError, ValueError) as error:
        raise ModelFolderError(
            f"{path} is a single file without a tokenizer, and {source!r} is not one: {error}; set tokenizer to a"
            " folder or hub name of CLIP's, openai/clip-vit-large-patch14 or any Stable Diffusion"
        ) from error
