"""Early warnings: what the measures of a training say before it is over. Pure: steps in, words out.

step after step of measures -> EarlyWarnings.update -> sentences, each kind once

Batch losses of a diffusion model vary by a quarter of themselves, so the rules ask for evidence, at few places: each
look is one more chance of a false alarm. With the noise of 12 real trainings of the shapes editor (200 steps of 32,
standard deviation 29 %) resampled, the rule of the loss warns of 2 in 1000 trainings whose loss falls by 5 %, of 8 in
1000 where it falls by 1 %, and of 84 % where it rises by half; over 2000 steps of none, none and all. It did not warn
of any of the 12. The loss on held-out rows (validation/loss) is far the sharper eye.
"""

import math
from collections import deque
from collections.abc import Mapping
from statistics import fmean, median, variance

CHECK_SHARES = (0.25, 0.5, 0.75, 1.0)
"""Shares of the run after which the loss is looked at."""
WINDOW_SHARE = 0.1
"""Share of the run in each of the two windows that are compared."""
MIN_STEPS = 20
"""Steps that a window holds at least, and that a median of gradient norms needs."""
MIN_FALL = 0.005
"""A loss that has fallen by less than this share of itself has not fallen."""
MIN_STANDARD_ERRORS = 3.0
"""Standard errors by which a fall has to stay below MIN_FALL: one false alarm in 700 looks at a loss that fell so."""
CHANCE_MARGIN = 0.02
"""A loss within this share of what guessing costs is a guess (as reward/objective.py's `warning_for`)."""
SPIKE_RATIO = 10.0
"""A gradient norm is a spike at so many times the running median."""
MEDIAN_STEPS = 100
"""Steps of that median."""
NOT_FINITE_STEPS = 3
"""Gradients in a row that are no number: fp16's loss scale makes one now and then, and several as it begins."""


class EarlyWarnings:
    """Sees every step's measures and says, once each, that a training goes wrong and what to do."""

    def __init__(self, total_images: int) -> None:
        self.total_images = total_images
        self.given: set[str] = set()
        self.losses: list[float] = []
        self.chances: list[float] = []
        self.images: list[int] = []
        self.norms: deque[float] = deque(maxlen=MEDIAN_STEPS)
        self.steps = self.not_finite = 0
        self.first_validation: float | None = None

    def update(self, images: int, measures: Mapping[str, float]) -> list[str]:
        """Take in the measures at `images` rows seen (train/loss, train/gradient_norm, validation/loss,
        .../chance_loss, what there is of them); the warnings that are new."""
        found = {"gradient": self._gradient(images, measures.get("train/gradient_norm"))}
        found["validation"] = self._validation(images, measures.get("validation/loss"))
        if "train/loss" in measures:
            before = self.images[-1] if self.images else 0
            self.images.append(images)
            self.losses.append(measures["train/loss"])
            self.chances += [value for name, value in measures.items() if name.endswith("/chance_loss")]
            if any(before < share * self.total_images <= images for share in CHECK_SHARES):
                found |= {"loss": self._loss(), "chance": self._chance()}
        new = {kind: words for kind, words in found.items() if words and kind not in self.given}
        self.given |= new.keys()
        return list(new.values())

    def _gradient(self, images: int, norm: float | None) -> str | None:
        if norm is None:
            return None
        self.steps += 1
        if not math.isfinite(norm):
            self.not_finite += self.steps > MIN_STEPS
            return _not_finite(images, norm) if self.not_finite == NOT_FINITE_STEPS else None
        self.not_finite = 0
        usual = median(self.norms) if len(self.norms) >= MIN_STEPS else None
        self.norms.append(norm)
        if usual == norm == 0:
            return (
                f"the gradient is 0 at {images} images: nothing is learned. Check that some weights are trained "
                "and that the rows' weights are not all 0"
            )
        if usual is None or norm <= SPIKE_RATIO * usual:
            return None
        return (
            f"the gradient's norm is {norm:.3g} at {images} images, and its median {usual:.3g}. Clipping takes the "
            "edge off one such step (max_grad_norm); if the curve shows many, lower the learning rate, lengthen the "
            "warm-up, or look for broken rows"
        )

    def _validation(self, images: int, loss: float | None) -> str | None:
        """The same rows, noise and timesteps each time: a fall needs no statistics."""
        if loss is None:
            return None
        if self.first_validation is None:
            self.first_validation = loss
            return None
        if images < self.total_images / 2 or loss < self.first_validation:
            return None
        return (
            f"the loss on held-out rows is {loss:.4f} after {images} images and was {self.first_validation:.4f} at the "
            "start: what is learned does not carry over. Train less, lower the learning rate, or bring more rows"
        )

    def _window(self) -> int:
        """Steps of a window."""
        steps_of_run = len(self.losses) * self.total_images / self.images[-1]
        return max(MIN_STEPS, round(WINDOW_SHARE * steps_of_run))

    def _loss(self) -> str | None:
        """Compares the means of the first and the last window by Welch's standard error."""
        size = self._window()
        if len(self.losses) < 2 * size:
            return None
        first, last = self.losses[:size], self.losses[-size:]
        fall = fmean(first) - fmean(last)
        error = math.sqrt((variance(first) + variance(last)) / size)
        if not math.isfinite(fall + error) or fall + MIN_STANDARD_ERRORS * error >= MIN_FALL * abs(fmean(first)):
            return None
        return (
            f"the loss does not fall: {fmean(first):.4f} over the first {size} steps, {fmean(last):.4f} over the last, "
            "and chance hardly explains that. If it rises, lower the learning rate; if it stands still, raise it, or "
            "check that the weights are trained at all. A training that goes on from a finished one may have nothing "
            "left to learn"
        )

    def _chance(self) -> str | None:
        """Where the objective says what guessing costs: from half of the run on, the last half of the steps so far must
        be better by CHANCE_MARGIN, or not surely worse than that."""
        size = len(self.losses) // 2
        early = 2 * self.images[-1] < self.total_images
        if early or size < MIN_STEPS or len(self.chances) != len(self.losses):
            return None
        losses, chances = self.losses[-size:], self.chances[-size:]
        gains = [guess - loss for loss, guess in zip(losses, chances, strict=True)]
        if fmean(gains) + MIN_STANDARD_ERRORS * math.sqrt(variance(gains) / size) >= CHANCE_MARGIN * fmean(chances):
            return None
        return (
            f"the loss is {fmean(losses):.4f} over the last {size} steps, and guessing costs {fmean(chances):.4f}: "
            "nothing is learned yet. Raise the learning rate, train longer, or check that the rankings are not random"
        )


def _not_finite(images: int, norm: float) -> str:
    return (
        f"the gradient's norm is {norm} at {images} images, for the third time in a row, though the loss is a number: "
        "such steps are lost. Use bf16 or fp32, or lower the learning rate"
    )
