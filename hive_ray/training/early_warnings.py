"""Early warnings that a training goes wrong. No input or output: measures in, sentences out.

The batch losses of a diffusion model vary strongly, so a warning needs statistical evidence, and the loss is checked
only a few times: each check is one more chance of a false alarm. The loss on held-out rows (validation/loss) is far
more sensitive than the training loss.
"""

import math
from collections import deque
from collections.abc import Mapping
from statistics import fmean, median, variance

CHECK_SHARES = (0.25, 0.5, 0.75, 1.0)
"""Shares of the run after which the loss is checked."""
WINDOW_SHARE = 0.1
"""Share of the run in each of the two windows that are compared."""
MIN_STEPS = 20
"""Fewest steps in a window, and fewest steps for a median of gradient norms."""
MIN_FALL = 0.005
"""Smallest relative decrease of the loss that counts as a decrease."""
MIN_STANDARD_ERRORS = 3.0
"""A warning needs a decrease that is smaller than MIN_FALL by this many standard errors."""
CHANCE_MARGIN = 0.02
"""A loss within this share of the loss of guessing counts as guessing (as in hive_ray/reward/objective.py)."""
SPIKE_RATIO = 10.0
"""A gradient norm is a spike from this multiple of the running median on."""
MEDIAN_STEPS = 100
"""Number of steps in that median."""
NOT_FINITE_STEPS = 3
"""Steps in a row with a gradient that is not finite, before a warning. fp16's loss scale causes a few at the start."""


class EarlyWarnings:
    """Receives the measures of every step. Returns each kind of warning once, with advice."""

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
        """Add the measures after `images` rows seen and return the new warnings.

        Reads train/loss, train/gradient_norm, validation/loss and .../chance_loss (the loss of guessing). All are
        optional.
        """
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
                f"the gradient is 0 at {images} images, so nothing is learned. Check that some weights are trained "
                "and that the weights of the rows are not all 0"
            )
        if usual is None or norm <= SPIKE_RATIO * usual:
            return None
        return (
            f"the gradient's norm is {norm:.3g} at {images} images, and its median is {usual:.3g}. Clipping "
            "(max_grad_norm) limits the effect of one such step. If there are many, lower the learning rate, lengthen "
            "the warm-up, or look for broken rows"
        )

    def _validation(self, images: int, loss: float | None) -> str | None:
        """Rows, noise and timesteps are the same each time, so losses can be compared directly."""
        if loss is None:
            return None
        if self.first_validation is None:
            self.first_validation = loss
            return None
        if images < self.total_images / 2 or loss < self.first_validation:
            return None
        return (
            f"the loss on held-out rows is {loss:.4f} after {images} images and was {self.first_validation:.4f} at the "
            "start: the model does not generalise. Train for fewer images, lower the learning rate, or add rows"
        )

    def _window(self) -> int:
        """Number of steps in a window."""
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
            "which chance hardly explains. If it rises, lower the learning rate. If it is constant, raise the learning "
            "rate, or check that the weights are trained at all. A training that starts from a finished model may "
            "have nothing left to learn"
        )

    def _chance(self) -> str | None:
        """Compares with the loss of guessing, if the objective reports it.

        From half of the run on, warns if the second half of the steps so far is not better than guessing by
        CHANCE_MARGIN, with MIN_STANDARD_ERRORS standard errors.
        """
        size = len(self.losses) // 2
        early = 2 * self.images[-1] < self.total_images
        if early or size < MIN_STEPS or len(self.chances) != len(self.losses):
            return None
        losses, chances = self.losses[-size:], self.chances[-size:]
        gains = [guess - loss for loss, guess in zip(losses, chances, strict=True)]
        if fmean(gains) + MIN_STANDARD_ERRORS * math.sqrt(variance(gains) / size) >= CHANCE_MARGIN * fmean(chances):
            return None
        return (
            f"the loss is {fmean(losses):.4f} over the last {size} steps, and that of guessing is "
            f"{fmean(chances):.4f}: nothing is learned "
            "yet. Raise the learning rate, train longer, or check that the rankings are not random"
        )


def _not_finite(images: int, norm: float) -> str:
    return (
        f"the gradient's norm is {norm} at {images} images, for the third time in a row, although the loss is "
        "finite. Such steps change no weight. Use bf16 or fp32, or lower the learning rate"
    )
