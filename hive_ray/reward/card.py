"""The card of a reward model: what it was trained on, and how well it predicts rankings that it never saw.

<reward model>/card.json    written last
"""

from typing import Any

from pydantic import BaseModel, Field, model_validator

from hive_ray import storage
from hive_ray.files.model_folders import ModelFolderError
from hive_ray.files.versioned import Versioned, read_versioned
from hive_ray.statistics.intervals import Interval

PREDICTORS = (
    "another_person", "all_others", "clip_direction", "clip_image", "clip", "blip_start", "blip", "denoising_error",
    "sum",
)  # fmt: skip
"""Names of other predictors. Early cards hold their measures at the top level, and not in `beside`."""
Measures = dict[str, Any]
"""Measures of predictions by name. "intervals" maps names of accuracies to their intervals, if it is there."""


class CalibrationBin(BaseModel):
    """The preferences of which a model is about equally sure."""

    predicted: float
    """Mean probability that the model gives to the edit with the greater reward, 0.5..1."""
    observed: float
    """Share of these preferences that the model predicts correctly, 0..1."""
    preferences: int = 0


class RewardCard(Versioned):
    """What a reward model's card.json holds. Without held-out rankings there is a warning, and no measure of them."""

    rankings: str = ""
    """Digest of the tables of rankings."""
    bad_rankings: int = 0
    """Rankings that could not be used."""
    features: list[str] = Field(default_factory=list)
    """Names of the features of a linear head."""
    cost: dict[str, int | float] = Field(default_factory=dict)
    """Network evaluations that it takes to score an edit, and to sample one."""
    train: Measures = Field(default_factory=dict)
    """Measures on the rankings that it learned from."""
    train_rankings: int = 0
    train_prompts: int = 0
    held_out: Measures = Field(default_factory=dict)
    """Measures on the held-out rankings."""
    held_out_before_training: Measures = Field(default_factory=dict)
    beside: dict[str, Measures] = Field(default_factory=dict)
    """Measures of other predictors on the held-out rankings, by the name of the predictor."""
    minus: dict[str, Measures] = Field(default_factory=dict)
    """The model's measures minus those of each other predictor, paired by prompt. Empty without a common prompt."""
    shared: Measures = Field(default_factory=dict)
    """Measures on the clear preferences, which several people have and nobody contradicts."""
    across_prompts: dict[str, float | None] = Field(default_factory=dict)
    held_out_rankings: int = 0
    held_out_prompts: int = 0
    kinds: dict[str, Measures] = Field(default_factory=dict)
    """Measures by the first word of the instruction."""
    noticed: dict[str, Interval | float] = Field(default_factory=dict)
    """Probe -> how often the true edit has the greater reward. Early cards have no intervals."""
    calibration: list[CalibrationBin] = Field(default_factory=list)
    calibration_error: float = 0.0
    warning: str = ""
    remarks: list[str] = Field(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _gather_comparisons(cls, card: Any) -> Any:
        early = {name: card[name] for name in PREDICTORS if name in card} if isinstance(card, dict) else {}
        if not early:
            return card
        rest = {name: value for name, value in card.items() if name not in early}
        return rest | {"beside": card.get("beside", {}) | early}

    def to_json(self) -> dict[str, Any]:
        """The content of card.json: what is known of the model, and the version."""
        return self.model_dump(exclude_unset=True) | {"format_version": self.format_version}


def read_reward_card(folder: str) -> RewardCard | None:
    """The card of a reward model's folder; None if the model is not finished.

    Raises ModelFolderError if the card is not a reward model's, or of a later version.
    """
    address = storage.join(folder, "card.json")
    return read_versioned(
        address, RewardCard, called="the card of a reward model", remedy="train the model again",
        error=ModelFolderError,
    )  # fmt: skip
