"""The forward process of diffusion: noisy latents, and what the U-Net predicts from them.

B batch, C latent channels, h w latent height and width
"""

from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor


def add_noise(scheduler: DDIMScheduler | DDPMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """Noisy latents (B, C, h, w) at whole timesteps (B,): sqrt(alpha) latents + sqrt(1 - alpha) noise."""
    return scheduler.add_noise(latents, noise, timesteps)  # pyright: ignore[reportArgumentType] - wants IntTensor


def velocity(scheduler: DDIMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """The velocity (B, C, h, w): sqrt(alpha) noise - sqrt(1 - alpha) latents (Salimans and Ho 2022)."""
    return scheduler.get_velocity(latents, noise, timesteps)  # pyright: ignore[reportArgumentType] - wants IntTensor


def denoising_target(scheduler: DDIMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """The training target of the U-Net (B, C, h, w): the noise, or the velocity for a v-prediction model."""
    if scheduler.config["prediction_type"] == "v_prediction":
        return velocity(scheduler, latents, noise, timesteps)
    return noise
