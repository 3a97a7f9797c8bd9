"""Models of real shapes at toy widths, with random weights and nothing downloaded, for all tests."""

from pathlib import Path
from typing import Literal

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from hive_ray.editor.model import Editor, EditorCard
from hive_ray.shapes.pretraining.words import train_tokenizer

MAX_TOKENS = 77
WORDS = "a an and the of , in to on make it add remove turn into photo picture red blue green sky sea cat dog hat"
QUALITY = "left right image quality is one two three four five out of"


def tiny_stable_diffusion(
    folder: Path, prediction_type: Literal["epsilon", "v_prediction"] = "epsilon", in_channels: int = 4
) -> Path:
    """A text-to-image folder of 64 x 64 images in fp16: Stable Diffusion 1.5's blocks and PNDM, or with
    "v_prediction" a DDIM of zero terminal SNR and trailing steps; `in_channels` 9 is an inpainting U-Net."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = tiny_tokenizer()
        pipeline = StableDiffusionPipeline(
            vae=tiny_autoencoder(),
            unet=tiny_unet(in_channels),
            text_encoder=tiny_text_encoder(tokenizer),
            tokenizer=tokenizer,
            scheduler=_scheduler(prediction_type),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.to(torch.float16).save_pretrained(folder, safe_serialization=True)
    return Path(folder)


def tiny_stable_diffusion_xl(folder: Path) -> Path:
    """A text-to-image folder of 64 x 64 images in fp16 with SDXL's blocks, conditions and two text encoders."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = tiny_tokenizer()
        pipeline = StableDiffusionXLPipeline(
            vae=tiny_autoencoder(),
            unet=UNet2DConditionModel(
                sample_size=8,
                block_out_channels=(16, 16, 32),
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                layers_per_block=1,
                transformer_layers_per_block=(1, 1, 2),
                cross_attention_dim=64,
                attention_head_dim=(2, 2, 4),
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=6 * 8 + 32,
                norm_num_groups=8,
            ),
            text_encoder=tiny_text_encoder(tokenizer),
            text_encoder_2=CLIPTextModelWithProjection(tiny_text_encoder(tokenizer).config),
            tokenizer=tokenizer,
            tokenizer_2=tokenizer,
            scheduler=EulerDiscreteScheduler(**_BETAS, timestep_spacing="leading", steps_offset=1),
            force_zeros_for_empty_prompt=True,
            add_watermarker=False,
        )
    pipeline.to(torch.float16).save_pretrained(folder, safe_serialization=True)
    return Path(folder)


def tiny_base(folder: Path, kind: Literal["epsilon", "v_prediction", "xl"]) -> Path:
    """A text-to-image folder of each kind that editors start from: SD 1.5, one that predicts v, SDXL."""
    return tiny_stable_diffusion_xl(folder) if kind == "xl" else tiny_stable_diffusion(folder, kind)


def tiny_clip(folder: Path, seed: int = 0) -> Path:
    """A random CLIP of 16x16 pictures and 8 tokens, stored in fp16 as the shipped weights are."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=8).save_pretrained(folder)
    width = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    ends = dict(bos_token_id=52, eos_token_id=53, pad_token_id=53)
    config = CLIPConfig(
        text_config=dict(vocab_size=54, max_position_embeddings=8, **ends, **width),
        vision_config=dict(image_size=16, patch_size=8, **width),
        projection_dim=12,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPModel(config)
    model.half().save_pretrained(folder)
    return Path(folder)


def tiny_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer with a token for each of a few words; others fall to letters."""
    return train_tokenizer([WORDS, QUALITY], MAX_TOKENS)


def tiny_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two layers, 32 wide."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=32,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def tiny_autoencoder() -> AutoencoderKL:
    """64 x 64 x 3 to 8 x 8 x 4."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
    )


def tiny_unet(in_channels: int = 4) -> UNet2DConditionModel:
    """The four blocks of Stable Diffusion 1.5, 16 to 32 wide."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        out_channels=4,
        block_out_channels=(16, 16, 32, 32),
        down_block_types=(*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
    )


_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def _scheduler(prediction_type: str) -> PNDMScheduler | DDIMScheduler:
    if prediction_type == "epsilon":
        return PNDMScheduler(**_BETAS, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)
    return DDIMScheduler(
        **_BETAS,
        clip_sample=False,
        steps_offset=1,
        prediction_type=prediction_type,
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )


def tiny_editor(folder: Path, kind: str) -> Path:
    """The folder of a saved editor on `tiny_base` whose U-Net does hear the image, unlike a fresh one."""
    editor = Editor.build(tiny_base(folder / "base", kind))
    with torch.no_grad():
        torch.nn.init.normal_(editor.unet.conv_in.weight, std=0.1, generator=torch.Generator().manual_seed(1))
    editor.save(folder / "editor", EditorCard(base_model="tiny", resolution=64))
    return folder / "editor"
