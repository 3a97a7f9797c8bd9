"""Sampling schedules: the noise levels of the steps, and the step from one level to the next.

A schedule does not call the network. It gives the timestep for the network and takes its (guided) output. The noise of
a step is passed in, so that a picture depends only on its own noise.

    N steps, m pictures, C h w latent channels, height and width; all latents in fp32
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from hive_ray.diffusion.typed import from_config

MIN_ALPHA = 2**-24
"""Replaces a terminal alpha of zero, whose sigma is infinite (as in diffusers' schedulers)."""

NoiseSource = Callable[[], Tensor]
"""Each call gives the next standard normal noise (m, C, h, w)."""


@dataclass
class Schedule:
    """The steps from noise to a picture. Each batch needs a new one, since multistep solvers have a state."""

    timesteps: Tensor
    """Timesteps (N,) for the network, 999..0; they may be fractional."""
    init_noise_sigma: float
    """Standard deviation of the first latents."""
    scale_model_input: Callable[[Tensor, int], Tensor]
    """(latents, step) -> the network's input."""
    step: Callable[[Tensor, int, Tensor, NoiseSource], Tensor]
    """(network output, step, latents, noise) -> latents of the next step."""


def ddim(config: Any, num_steps: int, device: torch.device) -> Schedule:
    """DDIM with eta 0 (Song et al. 2021), with the timestep spacing of the model's scheduler config."""
    return _of_diffusers(from_config(DDIMScheduler, config), num_steps, device)


def dpm_solver(config: Any, num_steps: int, device: torch.device) -> Schedule:
    """DPM-Solver++ 2M (Lu et al. 2022), with the timestep spacing of the model's scheduler config: as good in half the
    steps."""
    return _of_diffusers(from_config(DPMSolverMultistepScheduler, config), num_steps, device)


def euler_ancestral(config: Any, num_steps: int, device: torch.device) -> Schedule:
    """k-diffusion's Euler-ancestral on its own sigmas, as InstructPix2Pix drew its pairs."""
    trained = from_config(DDIMScheduler, config)
    timesteps = torch.linspace(len(trained.alphas_cumprod) - 1, 0, num_steps)
    sigmas = [*interpolated_sigmas(trained.alphas_cumprod, timesteps).tolist(), 0.0]

    def step(output: Tensor, step: int, latents: Tensor, noise: NoiseSource) -> Tensor:
        denoised = denoise(output, latents, sigmas[step], trained.config["prediction_type"])
        down, up = ancestral_step(sigmas[step], sigmas[step + 1])
        # k-diffusion's latents + (latents - denoised) / sigma (down - sigma) loses digits at large sigmas.
        latents = denoised + (latents - denoised) * (down / sigmas[step])
        return latents + noise().to(latents) * up if sigmas[step + 1] > 0 else latents

    return Schedule(
        timesteps=timesteps.to(device),
        init_noise_sigma=sigmas[0],
        scale_model_input=lambda latents, step: latents / (sigmas[step] ** 2 + 1) ** 0.5,
        step=step,
    )


SCHEDULES: dict[str, Callable[[Any, int, torch.device], Schedule]] = {
    "ddim": ddim,
    "euler_ancestral": euler_ancestral,
    "dpm_solver++": dpm_solver,
}


def interpolated_sigmas(alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor:
    """Sigmas sqrt((1 - a) / a) at fractional timesteps, log-linear between whole ones (k-diffusion, external.py).

    alphas_cumprod: (1000,) of the training; timesteps: (N,) in 0..999.
    """
    alphas = alphas_cumprod.double().clamp_min(MIN_ALPHA)
    logs = ((1 - alphas) / alphas).log() / 2
    low, high = timesteps.floor().long(), timesteps.ceil().long()
    return torch.lerp(logs[low], logs[high], timesteps.double().frac()).exp().float()


def ancestral_step(sigma: float, following: float) -> tuple[float, float]:
    """The sigma to step down to, and that of the noise to add, to reach `following` (k-diffusion, eta 1).

    Their squares add up to following^2.
    """
    up = min(following, following * (1 - (following / sigma) ** 2) ** 0.5)
    return (following**2 - up**2) ** 0.5, up


def denoise(output: Tensor, latents: Tensor, sigma: float, prediction_type: str) -> Tensor:
    """The clean latents that a network's output implies, where latents = clean + sigma noise.

    ValueError for another prediction type than epsilon and v_prediction.
    """
    if prediction_type == "epsilon":
        return latents - sigma * output
    if prediction_type == "v_prediction":  # v = (noise - sigma clean) / sqrt(sigma^2 + 1)
        return latents / (sigma**2 + 1) - output * sigma / (sigma**2 + 1) ** 0.5
    raise ValueError(f"the model predicts {prediction_type!r}; euler_ancestral takes epsilon or v_prediction")


def _of_diffusers(scheduler: Any, num_steps: int, device: torch.device) -> Schedule:
    scheduler.set_timesteps(num_steps, device=device)
    return Schedule(
        timesteps=scheduler.timesteps,
        init_noise_sigma=float(scheduler.init_noise_sigma),
        scale_model_input=lambda latents, step: scheduler.scale_model_input(latents, scheduler.timesteps[step]),
        step=lambda output, step, latents, noise: (
            scheduler.step(output, scheduler.timesteps[step], latents).prev_sample
        ),
    )
