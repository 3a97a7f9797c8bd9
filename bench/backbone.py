"""Training an editor of Stable Diffusion 1.5's size on one GPU, in bf16 at 256 x 256, its weights random.

python -m bench.backbone         against diffusers' script's loop and a bare loop, the chip's matrix rate, peak memory
python -m bench.backbone tiny    the same of a tiny network on a CPU: that the bench works, not how fast anything is
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

from bench.slices import in_slices
from bench.training import (
    BATCH,
    Loop,
    bare_loop,
    device_of,
    diffusers_loop,
    one_training,
    our_training,
    timed_loop,
    write_pairs,
)
from hive_ray.config import Config, Resources
from hive_ray.config import Editor as EditorSettings
from hive_ray.editor.model import Editor
from hive_ray.presets import sd15
from tests.tiny_models import MAX_TOKENS, tiny_stable_diffusion, tiny_tokenizer

STEPS = 200
ROUNDS = 2
SIDE = 8192
"""Of the square matrices whose product's rate is the chip's matrix rate."""


def compare(folder: str, config: Config) -> None:
    """Images/s of our training, latents stored, over each loop; shares of the matrix rate; peaks of GPU memory."""
    write_pairs(folder, side=config.editor.resolution)
    editor_settings, work = config.editor, flop_per_image(config.editor)
    print(f"U-Net and text encoder, a training step: {work / 1e9:.3g} GFLOP an image", flush=True)
    rate = matrix_rate() if device_of(editor_settings) == "cuda" else None
    for loop in (diffusers_loop, bare_loop):
        for _ in range(ROUNDS):
            other = partial(timed_loop, partial(with_peak, loop), folder, editor_settings)
            mine, theirs = in_slices(partial(our_training, folder, config), other)
            print(f"{mine / theirs:.2f} x {loop.__name__}: {mine:.1f} over {theirs:.1f} images/s", flush=True)
            if rate:
                print(f"  {mine * work / rate:.0%} of the matrix rate, {rate / 1e12:.0f} TFLOP/s", flush=True)
            print(f"  our peak: {peak_in_logs(folder)}", flush=True)


def with_peak(loop: Loop, folder: str, editor_settings: EditorSettings) -> Iterator[int]:
    """The loop, which says its peak of memory once."""
    for step, images in enumerate(loop(folder, editor_settings)):
        if step == 0 and device_of(editor_settings) == "cuda":
            torch.cuda.reset_peak_memory_stats()  # pictures may have been encoded before
        if step == STEPS // 10 and device_of(editor_settings) == "cuda":
            print(f"  its peak: {torch.cuda.max_memory_allocated() / 1e9:.1f} GB", flush=True)
        yield images


def peak_in_logs(folder: str) -> str:
    """Of our last training in this folder, as its log says; there is none on a CPU."""
    logs = sorted(Path(folder).glob("*/metrics/editors/sft.jsonl"), key=lambda file: file.stat().st_mtime)
    peak = json.loads(logs[-1].read_text().splitlines()[-1]).get("train/peak_memory_gb")
    return f"{peak:.1f} GB" if peak else "not on a CPU"


def flop_per_image(editor_settings: EditorSettings) -> int:
    """Floating point operations of a training step: the U-Net forth and back, the text encoder forth. Counted, with
    nothing computed."""
    editor = Editor.build(editor_settings.start).to("meta")
    latents = torch.empty(
        1, 2 * editor.latent_channels, *[editor_settings.resolution // editor.vae_factor] * 2, device="meta"
    )
    ids = torch.zeros(1, MAX_TOKENS, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        with torch.no_grad():
            states = editor.text_encoder(ids).last_hidden_state
        timesteps = torch.zeros(1, device="meta")
        editor.unet(latents, timesteps, states).sample.mean().backward()
    return counter.get_total_flops()


def matrix_rate(products: int = 10) -> float:
    """FLOP/s of bf16 products of random matrices."""
    first, second = (torch.randn(SIDE, SIDE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for count in (3, products):  # the first ones warm up
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(count):
            torch.matmul(first, second)
        torch.cuda.synchronize()
    return products * 2 * SIDE**3 / (time.perf_counter() - began)


def stable_diffusion(folder: Path) -> Path:
    """A text-to-image folder with the configs of Stable Diffusion 1.5, its words apart, and random weights in fp16."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    text = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768,
        bos_token_id=cast(int, tokenizer.bos_token_id), eos_token_id=cast(int, tokenizer.eos_token_id),
        pad_token_id=cast(int, tokenizer.pad_token_id),
    )  # fmt: skip
    blocks: dict[str, Any] = dict(  # diffusers types each as a tuple of one
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
    )
    vae = AutoencoderKL(**blocks, layers_per_block=2, sample_size=512)
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True,
        set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    nothing: Any = None  # the pipeline's own types do not say that these parts may be left out
    pipeline = StableDiffusionPipeline(
        vae=vae, unet=unet, text_encoder=CLIPTextModel(text), tokenizer=tokenizer, scheduler=cast(Any, scheduler),
        safety_checker=nothing, feature_extractor=nothing, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.to(torch.float16).save_pretrained(folder, safe_serialization=True)
    return folder


def settings(start: Path, *, on_gpu: bool) -> Config:
    """One training of the sd15 preset from this folder, on one device and without ZeRO; on a CPU the pictures are of
    64 x 64, the numbers fp32 and the steps few."""
    preset = sd15()
    device = Resources(num_actors=1, num_gpus=int(on_gpu), num_cpus=2)
    editor = {"start": str(start), "resources": device} | ({} if on_gpu else {"resolution": 64})
    preset = preset.model_copy(update={"editor": preset.editor.model_copy(update=editor)})
    sizes = {"total_images": STEPS * BATCH} if on_gpu else {"total_images": 10 * BATCH, "precision": "fp32"}
    return one_training(preset, device, latents="fp32", zero_stage=0, **sizes)


if __name__ == "__main__":
    tiny = sys.argv[1:] == ["tiny"]
    if not tiny and not torch.cuda.is_available():
        sys.exit("no GPU was found: `python -m bench.backbone tiny` tries the bench on a CPU")
    with tempfile.TemporaryDirectory() as root:
        make = tiny_stable_diffusion if tiny else stable_diffusion
        compare(root, settings(make(Path(root, "base")), on_gpu=not tiny))
