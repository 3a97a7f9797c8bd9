import math

import numpy as np
import pytest

from hive_ray.training.early_warnings import EarlyWarnings

RNG = np.random.default_rng(0)
NOISE = 0.29
"""Standard deviation of the shapes editor's batch losses, as a share of their mean."""


def warned(series: dict[str, list[float]]) -> list[tuple[int, str]]:
    """(step, words) of a run of these measures, one row a step."""
    steps = len(next(iter(series.values())))
    warnings, said = EarlyWarnings(total_images=steps), []
    for step in range(steps):
        measures = {name: values[step] for name, values in series.items()}
        said += [(step + 1, words) for words in warnings.update(step + 1, measures)]
    return said


def losses(steps: int, fall: float) -> list[float]:
    """Noisy losses that end `fall` lower than they began, most of it at first."""
    course = 0.13 * (1 - fall * (1 - np.exp(-4 * np.linspace(0, 1, steps))))
    return (course * (1 + NOISE * RNG.standard_normal(steps))).tolist()


def test_a_noisy_loss_that_falls_is_let_alone():
    assert sum(bool(warned({"train/loss": losses(200, 0.05)})) for _ in range(200)) <= 2
    assert not any(warned({"train/loss": losses(2000, 0.05)}) for _ in range(20))


def test_a_loss_that_rises_is_said_once():
    said = warned({"train/loss": losses(2000, -0.5)})
    assert len(said) == 1
    step, words = said[0]
    assert step in (500, 1000)
    assert "the loss does not fall: 0.1" in words
    assert "lower the learning rate" in words


def test_a_loss_that_stands_still_to_the_last_digit_is_said_at_a_quarter():
    assert [step for step, _ in warned({"train/loss": [0.5] * 400})] == [100]


def test_a_short_training_is_not_judged():
    assert not warned({"train/loss": [0.5] * 39})


def test_a_reward_model_that_guesses_is_told_so_and_one_that_learns_is_not():
    chance = [math.log(2)] * 200
    guesses = [0.693 + 0.01 * RNG.standard_normal() for _ in range(200)]
    learns = [0.69 - 0.2 * step / 200 + 0.03 * RNG.standard_normal() for step in range(200)]
    said = warned({"train/loss": guesses, "reward/chance_loss": chance})
    assert [step for step, words in said if "that of guessing is 0.6931: nothing is learned" in words] == [100]
    assert not warned({"train/loss": learns, "reward/chance_loss": chance})


def test_a_gradient_spike_is_measured_against_the_running_median():
    norms = (0.5 * np.exp(0.5 * RNG.standard_normal(1000))).tolist()  # heavy tails, as gradients have
    assert not warned({"train/gradient_norm": norms})
    norms[500] = norms[501] = 20.0
    [(step, words)] = warned({"train/gradient_norm": norms})
    assert step == 501
    assert "norm is 20 at 501 images, and its median is 0.5" in words
    assert not warned({"train/gradient_norm": [100.0 / (step + 1) for step in range(1000)]})  # a falling start


def test_gradients_that_are_no_number_count_when_they_come_in_a_row():
    usual, bad = [1.0] * 30, math.inf
    assert not warned({"train/gradient_norm": [bad] * 15 + usual})  # fp16's loss scale finds its place
    assert not warned({"train/gradient_norm": [*usual, bad, 1.0, bad, 1.0, bad]})
    [(step, words)] = warned({"train/gradient_norm": [*usual, bad, bad, bad, bad]})
    assert step == 33
    assert "Such steps change no weight" in words


def test_a_gradient_of_zero_says_that_nothing_is_learned():
    [(step, words)] = warned({"train/gradient_norm": [0.0] * 50})
    assert step == 21
    assert "nothing is learned" in words


@pytest.mark.parametrize(("later", "warns"), [(0.19, []), (0.2, [50]), (0.25, [50])])
def test_the_held_out_loss_has_to_be_below_its_start_at_half_of_the_run(later, warns):
    warnings, said = EarlyWarnings(total_images=100), []
    for images, loss in ((0, 0.2), (25, 0.3), (50, later), (75, later)):
        said += [images for _ in warnings.update(images, {"validation/loss": loss})]
    assert said == warns
