"""Noise levels and steps against hand-computed values and plain formulas."""

import math

import pytest
import torch
from diffusers import DDIMScheduler

from hive_ray.diffusion.schedules import SCHEDULES, ancestral_step, denoise, euler_ancestral, interpolated_sigmas

CPU = torch.device("cpu")
STABLE_DIFFUSION = DDIMScheduler(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
    steps_offset=1,
).config  # fmt: skip


def test_sigmas_between_whole_timesteps_are_log_linear():
    alphas = torch.tensor([0.8, 0.5, 0.1])  # sigmas 1/2, 1, 3
    found = interpolated_sigmas(alphas, torch.tensor([2.0, 1.5, 1.0, 0.25, 0.0])).tolist()
    assert found == pytest.approx([3, math.sqrt(3), 1, 0.5**0.75, 0.5], rel=1e-6)


def test_a_terminal_alpha_of_zero_is_no_infinite_sigma():
    assert float(interpolated_sigmas(torch.tensor([0.5, 0.0]), torch.tensor([1.0]))) == pytest.approx(4096, rel=1e-4)


def test_euler_ancestral_has_the_noise_levels_of_stable_diffusion():
    """k-diffusion's get_sigmas(n) on Stable Diffusion: 14.61 at 999 down to 0.0292 at 0, and fractional timesteps."""
    schedule = euler_ancestral(STABLE_DIFFUSION, 4, CPU)
    assert schedule.timesteps.tolist() == [999, 666, 333, 0]
    assert schedule.init_noise_sigma == pytest.approx(14.6146, abs=1e-3)
    assert euler_ancestral(STABLE_DIFFUSION, 5, CPU).timesteps.tolist() == [999, 749.25, 499.5, 249.75, 0]
    ones = torch.ones(1, 1, 1, 1)
    last = 1 / math.sqrt(0.0291675**2 + 1)
    assert float(schedule.scale_model_input(ones, 3)) == pytest.approx(last, abs=1e-6)
    assert float(schedule.scale_model_input(ones, 0)) == pytest.approx(1 / math.sqrt(14.6146**2 + 1), abs=1e-5)


def test_an_ancestral_step_by_hand():
    down, up = ancestral_step(2.0, 1.0)  # up^2 = 1 (4 - 1) / 4
    assert (down, up) == pytest.approx((0.5, math.sqrt(0.75)))
    assert ancestral_step(2.0, 0.0) == (0.0, 0.0)


def test_a_euler_ancestral_step_is_k_diffusions():
    schedule = euler_ancestral(STABLE_DIFFUSION, 4, CPU)
    x, output, noise = (torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    alphas = DDIMScheduler.from_config(STABLE_DIFFUSION).alphas_cumprod
    sigma, following = (math.sqrt((1 - alphas[t]) / alphas[t]) for t in (666, 333))
    up = min(following, math.sqrt(following**2 * (sigma**2 - following**2) / sigma**2))
    down = math.sqrt(following**2 - up**2)
    expected = x + output * (down - sigma) + noise * up  # (x - denoised) / sigma is the predicted noise
    torch.testing.assert_close(schedule.step(output, 1, x, lambda: noise), expected, atol=1e-4, rtol=1e-4)


def test_no_noise_is_asked_for_in_the_last_step():
    schedule, x = euler_ancestral(STABLE_DIFFUSION, 2, CPU), torch.ones(1, 4, 2, 2)
    asked = []
    schedule.step(x, 0, x, lambda: asked.append(0) or x)
    schedule.step(x, 1, x, lambda: asked.append(1) or x)
    assert asked == [0]


@pytest.mark.parametrize("sigma", [0.03, 1.0, 14.6])
def test_both_predictions_of_one_picture_denoise_to_it(sigma):
    clean, noise = torch.randn(2, 1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    noisy = clean + sigma * noise
    v = (noise - sigma * clean) / math.sqrt(sigma**2 + 1)
    torch.testing.assert_close(denoise(noise, noisy, sigma, "epsilon"), clean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(denoise(v, noisy, sigma, "v_prediction"), clean, atol=1e-4, rtol=1e-4)


def test_a_prediction_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="'sample'"):
        denoise(torch.zeros(1), torch.zeros(1), 1.0, "sample")


@pytest.mark.parametrize(
    ("prediction_type", "zero_snr"), [("epsilon", False), ("v_prediction", False), ("v_prediction", True)]
)
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_perfect_prediction_ends_at_the_picture(name, zero_snr, prediction_type):
    """Every schedule asks at levels it can step from: a network that knows the picture is led to it."""
    trained = DDIMScheduler.from_config(
        STABLE_DIFFUSION, prediction_type=prediction_type, rescale_betas_zero_snr=zero_snr, timestep_spacing="trailing"
    )
    alphas = trained.alphas_cumprod.double().clamp_min(2**-24)
    schedule, picture = SCHEDULES[name](trained.config, 6, CPU), torch.full((1, 4, 2, 2), 0.7)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(picture.shape, generator=generator) * schedule.init_noise_sigma
    for step, timestep in enumerate(schedule.timesteps):
        sigma = float(interpolated_sigmas(alphas, timestep.float().view(1)))
        seen = schedule.scale_model_input(latents, step)
        alpha = 1 / math.sqrt(sigma**2 + 1)  # seen = alpha picture + alpha sigma noise
        noise = (seen - alpha * picture) / (alpha * sigma)
        output = noise if prediction_type == "epsilon" else alpha * noise - alpha * sigma * picture
        latents = schedule.step(output, step, latents, lambda: torch.randn(picture.shape, generator=generator))
    atol = 0.1 if name == "ddim" else 2e-3  # DDIM's last step keeps the noise of timestep 0
    torch.testing.assert_close(latents, picture, atol=atol, rtol=0)
