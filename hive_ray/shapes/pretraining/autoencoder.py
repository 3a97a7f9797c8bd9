"""The autoencoder of this domain, trained from scratch: 64x64 pictures to latents of 8x8x4."""

from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D
from torch import Tensor, nn
from torch.nn import functional as F

from hive_ray.shapes.pretraining.scene_pictures import crowded_scenes, to_batch
from hive_ray.shapes.pretraining.steps import Say, train_steps


def bias_of(conv: nn.Conv2d) -> Tensor:
    """The bias of a convolution that has one."""
    assert conv.bias is not None
    return conv.bias


def as_channels_last(model: nn.Module) -> None:
    """Use the channels-last memory format, which is faster on CPUs."""
    change: Any = model.to  # torch types this form for tensors alone
    change(memory_format=torch.channels_last)


def encode(model: AutoencoderKL, images: Tensor) -> DiagonalGaussianDistribution:
    """The posterior of the unscaled latents of images (B, 3, H, W) in -1..1."""
    return model.encode(images)[0]


def decode(model: AutoencoderKL, latents: Tensor) -> Tensor:
    """Unscaled latents (B, C, h, w) -> images (B, 3, H, W), about -1..1."""
    return model.decode(cast(torch.FloatTensor, latents))[0]


@torch.no_grad()
def init_as_block_average(model: AutoencoderKL) -> None:
    """Initialise an autoencoder so that it computes block averages: the initial error is 0.04 instead of 0.6.

    Ten channels carry red, green and blue, their negatives, and constants through every layer. Since
    silu(x) - silu(-x) = x, the last layers read the colours back; the constants keep the group norm's scale the same
    for every picture. Residual branches begin at zero and latent noise at a standard deviation of exp(-4).
    """
    carried = 10
    latents = model.config["latent_channels"]

    def pass_on(conv: nn.Conv2d, taps: dict[tuple[int, int], float]) -> None:
        conv.weight[:carried] = 0
        bias_of(conv)[:carried] = 0
        for channel in range(carried):
            for (row, column), share in taps.items():
                conv.weight[channel, channel, row, column] = share

    for module in model.modules():
        if isinstance(module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(bias_of(module.conv2))
            if module.conv_shortcut is not None:
                pass_on(module.conv_shortcut, {(0, 0): 1.0})
        elif isinstance(module, Downsample2D):
            pass_on(cast(nn.Conv2d, module.conv), {(0, 0): 0.25, (0, 1): 0.25, (1, 0): 0.25, (1, 1): 0.25})
        elif isinstance(module, Upsample2D):
            pass_on(cast(nn.Conv2d, module.conv), {(1, 1): 1.0})
    for conv in (model.encoder.conv_in, model.decoder.conv_in):
        bias = bias_of(conv)
        conv.weight[:carried] = 0
        bias[:6] = 0
        bias[6:carried] = torch.tensor([2.0, -2.0, 2.0, -2.0])
        for colour in range(3):
            conv.weight[colour, colour, 1, 1] = 1
            conv.weight[colour + 3, colour, 1, 1] = -1
    for conv in (model.encoder.conv_out, model.decoder.conv_out):
        conv.weight[:3] = 0
        bias_of(conv)[:] = 0
        for colour in range(3):
            conv.weight[colour, colour, 1, 1] = 1
            conv.weight[colour, colour + 3, 1, 1] = -1
    to_latents = cast(nn.Conv2d, model.quant_conv)
    from_latents = cast(nn.Conv2d, model.post_quant_conv)
    for conv in (to_latents, from_latents):
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(bias_of(conv))
        for channel in range(latents):
            conv.weight[channel, channel] = 1
    bias_of(to_latents)[latents:] = -8


def autoencoder() -> AutoencoderKL:
    """An untrained AutoencoderKL from 64x64x3 to 8x8x4 that begins as block averages.

    At 8x8 the latents contain much information about shapes. At 16x16 they contain little more than colours, and a
    U-Net of the same size learned no shapes.
    """
    model = AutoencoderKL(
        down_block_types=cast(Any, ("DownEncoderBlock2D",) * 4),
        up_block_types=cast(Any, ("UpDecoderBlock2D",) * 4),
        block_out_channels=cast(Any, (16, 32, 48, 64)),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1,
        mid_block_add_attention=False,
        sample_size=64,
    )
    as_channels_last(model)
    init_as_block_average(model)
    return model


def train_autoencoder(folder: Path, *, num_steps: int, seed: int, say: Say) -> None:
    """Train the autoencoder and save it in `folder`; its scaling factor gives the latents unit variance."""
    torch.manual_seed(seed)
    model, source = autoencoder(), crowded_scenes(seed)

    def loss_of(step: int) -> Tensor:
        images = to_batch([next(source) for _ in range(8)])
        posterior = encode(model, images)
        error = decode(model, posterior.sample()) - images
        return error.abs().mean() + error.square().mean() + 1e-6 * posterior.kl().mean()

    train_steps("autoencoder", list(model.parameters()), loss_of, num_steps=num_steps, lr=1e-3, say=say)
    with torch.no_grad():
        images = to_batch([next(source) for _ in range(256)])
        latents = encode(model, images).mean
        say(f"autoencoder: reconstruction error {F.mse_loss(decode(model, latents), images):.5f} (-1..1)")
        model.register_to_config(scaling_factor=float(1 / latents.std()))
    model.half().save_pretrained(folder, safe_serialization=True)
