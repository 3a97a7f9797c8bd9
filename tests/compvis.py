"""Every weight of Stable Diffusion's single files, from the architecture in LDM's and OpenCLIP's code: its name there,
its name in diffusers or transformers, and its shape. Written without the converter, so that this can test it."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

Named = Iterator[tuple[str, str, tuple[int, ...]]]


@dataclass(frozen=True)
class Sizes:
    """Widths and depths of a checkpoint; the real ones below, and the same with widths shrunken."""

    width: int
    mult: tuple[int, ...]
    depths: tuple[int, ...]
    """Transformer blocks at each level."""
    context: int
    linear: bool
    """Whether the projections around transformer blocks are linear; else 1 x 1 convolutions."""
    vae_width: int
    clip: tuple[int, int] | None = None
    """Width and layers of OpenAI's text encoder."""
    open_clip: tuple[int, int] | None = None
    """Width and layers of OpenCLIP's."""
    words: int = 49408
    labels: int = 0
    """Width of XL's other conditions."""


SD15 = Sizes(320, (1, 2, 4, 4), (1, 1, 1, 0), 768, False, 128, clip=(768, 12))
SD21 = Sizes(320, (1, 2, 4, 4), (1, 1, 1, 0), 1024, True, 128, open_clip=(1024, 24))
SDXL = Sizes(320, (1, 2, 4), (0, 2, 10), 2048, True, 128, clip=(768, 12), open_clip=(1280, 32), labels=2816)


def tiny(sizes: Sizes, words: int) -> Sizes:
    """The same blocks and depths at toy widths; heads of 64 channels where the real one has such."""
    mult, shrunk = (1, 1, 2, 2)[: len(sizes.mult)], {"vae_width": 32, "words": words, "depths": sizes.depths}
    if sizes.labels:
        return Sizes(64, mult, context=128, linear=True, clip=(64, 2), open_clip=(64, 2), labels=6 * 16 + 64, **shrunk)
    if sizes.linear:
        return Sizes(64, mult, context=64, linear=True, open_clip=(64, 3), **shrunk)
    return Sizes(32, mult, context=64, linear=False, clip=(64, 2), **shrunk)


def affine(there: str, here: str, out: int, *inputs: int) -> Named:
    """A weight (out, *inputs) and a bias."""
    yield f"{there}.weight", f"{here}.weight", (out, *inputs)
    yield f"{there}.bias", f"{here}.bias", (out,)


def unet(sizes: Sizes, in_channels: int) -> Named:
    """openaimodel.UNetModel and UNet2DConditionModel."""
    width, time = sizes.width, 4 * sizes.width
    yield from affine("time_embed.0", "time_embedding.linear_1", time, width)
    yield from affine("time_embed.2", "time_embedding.linear_2", time, time)
    if sizes.labels:
        yield from affine("label_emb.0.0", "add_embedding.linear_1", time, sizes.labels)
        yield from affine("label_emb.0.2", "add_embedding.linear_2", time, time)
    yield from affine("input_blocks.0.0", "conv_in", width, in_channels, 3, 3)
    place, now, skips, last = 1, width, [width], len(sizes.mult) - 1
    for level, (mult, depth) in enumerate(zip(sizes.mult, sizes.depths, strict=True)):
        for layer in range(2):
            there, here = f"input_blocks.{place}", f"down_blocks.{level}"
            yield from resnet(f"{there}.0", f"{here}.resnets.{layer}", now, mult * width, time)
            now = mult * width
            if depth:
                yield from transformer(f"{there}.1", f"{here}.attentions.{layer}", now, depth, sizes)
            skips.append(now)
            place += 1
        if level < last:
            yield from affine(f"input_blocks.{place}.0.op", f"down_blocks.{level}.downsamplers.0.conv", now, now, 3, 3)
            skips.append(now)
            place += 1
    yield from resnet("middle_block.0", "mid_block.resnets.0", now, now, time)
    yield from transformer("middle_block.1", "mid_block.attentions.0", now, max(1, sizes.depths[-1]), sizes)
    yield from resnet("middle_block.2", "mid_block.resnets.1", now, now, time)
    place = 0
    for level in reversed(range(len(sizes.mult))):
        out, depth = sizes.mult[level] * width, sizes.depths[level]
        for layer in range(3):
            there, here = f"output_blocks.{place}", f"up_blocks.{last - level}"
            yield from resnet(f"{there}.0", f"{here}.resnets.{layer}", now + skips.pop(), out, time)
            now = out
            if depth:
                yield from transformer(f"{there}.1", f"{here}.attentions.{layer}", now, depth, sizes)
            if level and layer == 2:
                yield from affine(f"{there}.{2 if depth else 1}.conv", f"{here}.upsamplers.0.conv", now, now, 3, 3)
            place += 1
    yield from affine("out.0", "conv_norm_out", width)
    yield from affine("out.2", "conv_out", 4, width, 3, 3)


def resnet(there: str, here: str, given: int, out: int, time: int) -> Named:
    yield from affine(f"{there}.in_layers.0", f"{here}.norm1", given)
    yield from affine(f"{there}.in_layers.2", f"{here}.conv1", out, given, 3, 3)
    yield from affine(f"{there}.emb_layers.1", f"{here}.time_emb_proj", out, time)
    yield from affine(f"{there}.out_layers.0", f"{here}.norm2", out)
    yield from affine(f"{there}.out_layers.3", f"{here}.conv2", out, out, 3, 3)
    if given != out:
        yield from affine(f"{there}.skip_connection", f"{here}.conv_shortcut", out, given, 1, 1)


def transformer(there: str, here: str, width: int, depth: int, sizes: Sizes) -> Named:
    kernel = () if sizes.linear else (1, 1)
    yield from affine(f"{there}.norm", f"{here}.norm", width)
    yield from affine(f"{there}.proj_in", f"{here}.proj_in", width, width, *kernel)
    for block in range(depth):
        inner = (f"{there}.transformer_blocks.{block}", f"{here}.transformer_blocks.{block}")
        for attention, context in (("attn1", width), ("attn2", sizes.context)):
            for name, given in (("to_q", width), ("to_k", context), ("to_v", context)):
                yield *(f"{one}.{attention}.{name}.weight" for one in inner), (width, given)
            yield from affine(*(f"{one}.{attention}.to_out.0" for one in inner), width, width)
        yield from affine(*(f"{one}.ff.net.0.proj" for one in inner), 8 * width, width)
        yield from affine(*(f"{one}.ff.net.2" for one in inner), width, 4 * width)
        for norm in ("norm1", "norm2", "norm3"):
            yield from affine(*(f"{one}.{norm}" for one in inner), width)
    yield from affine(f"{there}.proj_out", f"{here}.proj_out", width, width, *kernel)


def vae(width: int, mult: tuple[int, ...] = (1, 2, 4, 4)) -> Named:
    """model.Encoder and model.Decoder of AutoencoderKL."""
    last = len(mult) - 1
    top = mult[last] * width
    yield from affine("encoder.conv_in", "encoder.conv_in", width, 3, 3, 3)
    now = width
    for level in range(len(mult)):
        for layer in range(2):
            there, here = f"encoder.down.{level}.block.{layer}", f"encoder.down_blocks.{level}.resnets.{layer}"
            yield from vae_resnet(there, here, now, mult[level] * width)
            now = mult[level] * width
        if level < last:
            there, here = f"encoder.down.{level}.downsample.conv", f"encoder.down_blocks.{level}.downsamplers.0.conv"
            yield from affine(there, here, now, now, 3, 3)
    yield from vae_ends("encoder", top, width=top, out=8)
    yield from affine("decoder.conv_in", "decoder.conv_in", top, 4, 3, 3)
    for level in reversed(range(len(mult))):
        for layer in range(3):
            there, here = f"decoder.up.{level}.block.{layer}", f"decoder.up_blocks.{last - level}.resnets.{layer}"
            yield from vae_resnet(there, here, now, mult[level] * width)
            now = mult[level] * width
        if level:
            there, here = f"decoder.up.{level}.upsample.conv", f"decoder.up_blocks.{last - level}.upsamplers.0.conv"
            yield from affine(there, here, now, now, 3, 3)
    yield from vae_ends("decoder", top, width=width, out=3)
    yield from affine("quant_conv", "quant_conv", 8, 8, 1, 1)
    yield from affine("post_quant_conv", "post_quant_conv", 4, 4, 1, 1)


def vae_resnet(there: str, here: str, given: int, out: int) -> Named:
    yield from affine(f"{there}.norm1", f"{here}.norm1", given)
    yield from affine(f"{there}.conv1", f"{here}.conv1", out, given, 3, 3)
    yield from affine(f"{there}.norm2", f"{here}.norm2", out)
    yield from affine(f"{there}.conv2", f"{here}.conv2", out, out, 3, 3)
    if given != out:
        yield from affine(f"{there}.nin_shortcut", f"{here}.conv_shortcut", out, given, 1, 1)


def vae_ends(side: str, middle: int, *, width: int, out: int) -> Named:
    """The middle, and the last norm and convolution."""
    there, here = f"{side}.mid.attn_1", f"{side}.mid_block.attentions.0"
    for block in range(2):
        yield from vae_resnet(f"{side}.mid.block_{block + 1}", f"{side}.mid_block.resnets.{block}", middle, middle)
    yield from affine(f"{there}.norm", f"{here}.group_norm", middle)
    for old, new in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")):
        yield from affine(f"{there}.{old}", f"{here}.{new}", middle, middle, 1, 1)  # linear here
    yield from affine(f"{side}.norm_out", f"{side}.conv_norm_out", width)
    yield from affine(f"{side}.conv_out", f"{side}.conv_out", out, width, 3, 3)


def clip(words: int, width: int, layers: int) -> Named:
    """transformers' own names, below text_model."""
    yield *["embeddings.token_embedding.weight"] * 2, (words, width)
    yield *["embeddings.position_embedding.weight"] * 2, (77, width)
    for layer in range(layers):
        inner = f"encoder.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from affine(*[f"{inner}.self_attn.{name}"] * 2, width, width)
        yield from affine(*[f"{inner}.mlp.fc1"] * 2, 4 * width, width)
        yield from affine(*[f"{inner}.mlp.fc2"] * 2, width, 4 * width)
        for name in ("layer_norm1", "layer_norm2"):
            yield from affine(*[f"{inner}.{name}"] * 2, width)
    yield from affine(*["final_layer_norm"] * 2, width)


def open_clip(words: int, width: int, layers: int) -> Named:
    """OpenCLIP's text transformer; its in_proj is q, k and v in one, which transformers has apart."""
    yield "token_embedding.weight", "embeddings.token_embedding.weight", (words, width)
    yield "positional_embedding", "embeddings.position_embedding.weight", (77, width)
    yield "text_projection", "text_projection", (width, width)
    yield "logit_scale", "", ()
    for layer in range(layers):
        there, here = f"transformer.resblocks.{layer}", f"encoder.layers.{layer}"
        yield f"{there}.attn.in_proj_weight", f"{here}.self_attn.{{}}_proj.weight", (3 * width, width)
        yield f"{there}.attn.in_proj_bias", f"{here}.self_attn.{{}}_proj.bias", (3 * width,)
        yield from affine(f"{there}.attn.out_proj", f"{here}.self_attn.out_proj", width, width)
        yield from affine(f"{there}.mlp.c_fc", f"{here}.mlp.fc1", 4 * width, width)
        yield from affine(f"{there}.mlp.c_proj", f"{here}.mlp.fc2", width, 4 * width)
        yield from affine(f"{there}.ln_1", f"{here}.layer_norm1", width)
        yield from affine(f"{there}.ln_2", f"{here}.layer_norm2", width)
    yield from affine("ln_final", "final_layer_norm", width)


def names(sizes: Sizes, in_channels: int = 4) -> Iterator[tuple[str, str, str, tuple[int, ...]]]:
    """Every weight of a single file: name there, part of a diffusers folder, name in it, shape there."""
    xl = sizes.labels > 0
    sources = [("model.diffusion_model.", "unet", unet(sizes, in_channels))]
    sources += [("first_stage_model.", "vae", vae(sizes.vae_width))]
    if sizes.clip:
        prefix = "conditioner.embedders.0.transformer." if xl else "cond_stage_model.transformer."
        sources.append((f"{prefix}text_model.", "text_encoder", clip(sizes.words, *sizes.clip)))
    if sizes.open_clip:
        prefix = "conditioner.embedders.1.model." if xl else "cond_stage_model.model."
        part = "text_encoder_2" if xl else "text_encoder"
        sources.append((prefix, part, open_clip(sizes.words, *sizes.open_clip)))
    for prefix, part, found in sources:
        for there, here, shape in found:
            yield prefix + there, part, here, shape


def checkpoint(sizes: Sizes, in_channels: int = 4, *, device: str = "cpu", averaged: bool = False) -> dict:
    """Random weights by their compvis names, with the lists and buffers that LDM saves beside them."""
    generator = torch.Generator().manual_seed(0)

    def draw(shape: tuple[int, ...]) -> torch.Tensor:
        if device == "meta":
            return torch.empty(shape, device="meta")
        noise = 0.05 * torch.randn(shape, generator=generator)
        return noise + 1 if len(shape) == 1 else noise

    weights = {there: draw(shape) for there, _, _, shape in names(sizes, in_channels)}
    if averaged:  # LitEma's buffers
        trained = [name for name in weights if name.startswith("model.")]
        weights |= {f"model_ema.{name[6:].replace('.', '')}": 0.9 * weights[name] for name in trained}
        weights |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(22000)}
    weights |= {"betas": torch.zeros(1000), "alphas_cumprod": torch.zeros(1000), "logvar": torch.zeros(1000)}
    if sizes.clip and not sizes.labels:
        place = "cond_stage_model.transformer.text_model.embeddings.position_ids"
        weights[place] = torch.arange(77).unsqueeze(0)
    return weights
