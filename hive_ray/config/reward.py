"""Settings of the reward model, and of the rewards of pairs."""

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from hive_ray.config.data import Spending
from hive_ray.config.section import Precision, Resources, Section
from hive_ray.config.training import Training


class LearningCurve(Section):
    """Accuracy of the reward model by number of rankings (`reward_curve`). Does not change the run's reward model."""

    shares: tuple[float, ...] = Field(default=(0.1, 0.25, 0.5, 1.0), min_length=1)
    """Shares of the training prompts to learn from, ascending, each contained in the next. All models see the same
    number of images (`reward.training`). 1 is the run's own reward model."""

    @field_validator("shares")
    @classmethod
    def _ascending(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        if list(shares) != sorted(set(shares)) or not 0 < shares[0] <= shares[-1] <= 1:
            raise ValueError(f"reward.curve.shares is {shares}: give ascending numbers above 0 and at most 1")
        return shares


ErrorCondition = Literal["instruction", "source", "nothing"]


class DenoisingError(Section):
    """The editor's own denoising errors of an edit, for `reward.features`. All rounds use the editor `sft`, so that
    rewards are comparable."""

    levels: tuple[int, ...] = Field(default=(250, 450, 650), min_length=1)
    """Timesteps at which edits are noised; Stable Diffusion has 0 to 999."""
    draws: int = Field(default=3, ge=1)
    """Noise samples per level, the same for every edit; the errors are averaged. Another level is as informative as
    another sample, and costs as much."""
    conditions: tuple[ErrorCondition, ...] = ("instruction", "source", "nothing")
    """Conditioning of the editor, one feature each: source and instruction, the source alone, or neither. The first is
    the best predictor within a prompt; the others help to compare edits of different prompts."""
    log: bool = False
    """Use the logarithm of the error, so that relative differences count."""
    clip_image: bool = False
    """Add the CLIP similarity of an edit to its source, by the model of `evaluation.clip`, as a feature. It needs no
    caption, and measures what is preserved."""
    ridge: float = Field(default=1000.0, gt=0)
    """Precision of the Gaussian prior on the head's corrections, for features of unit spread. Larger values keep the
    head closer to its prior form: one weight for the mean error of each condition, one for the CLIP similarity, one for
    BLIP's reward."""
    learned_rate: float = Field(default=1.0, gt=0, le=1)
    """Share of the training prompts whose rankings fit the head; edits of the others are not measured. Below 1, BLIP
    trains on the other prompts, so that the head learns how reliable BLIP is on unseen prompts."""
    train_blip: bool = True
    """Features "both": train BLIP on the rankings first, or use `reward.start` unchanged. At a `learned_rate` of 1 both
    see the same rankings, and the head trusts an overfitted BLIP too much."""
    precision: Precision = "auto"
    """As `pairs.precision`."""

    @field_validator("levels")
    @classmethod
    def _different(cls, levels: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(levels)) < len(levels) or min(levels) < 0:
            raise ValueError(f"reward.denoising_error.levels is {levels}: give different timesteps, 0 or above")
        return levels

    @field_validator("conditions")
    @classmethod
    def _with_instruction(cls, conditions: tuple[ErrorCondition, ...]) -> tuple[ErrorCondition, ...]:
        if len(set(conditions)) < len(conditions) or "instruction" not in conditions:
            raise ValueError(
                f"reward.denoising_error.conditions is {conditions}: give different ones, 'instruction' among them"
            )
        return conditions


class Reward(Section):
    """Rankings -> a reward model."""

    features: Literal["blip", "denoising_error", "both"] = "blip"
    """Input of the reward model: the images through BLIP, the editor's denoising errors through a linear head, or
    both."""
    denoising_error: DenoisingError = DenoisingError()

    start: str = "Salesforce/blip-itm-base-coco"
    """Initial BLIP weights: a folder or a hub name. "shapes" initialises a small model at random."""
    tokenizer: str = "Salesforce/blip-itm-base-coco"
    """Tokenizer: a folder or a hub name. In a diffusers folder, its tokenizer is used."""
    resolution: int = Field(default=224, ge=8)
    """Side of BLIP's square input images in pixels."""
    max_tokens: int = Field(default=35, ge=8)
    """Most tokens of the text; longer texts are cut."""
    frozen_rate: float = Field(default=0.0, ge=0, le=1)
    """Share of encoder layers, from the bottom, that are frozen (ImageReward uses 0.7)."""
    loss: Literal["plackett_luce", "bradley_terry", "rao_kupper"] = "plackett_luce"
    """Likelihood of people's ranks given the rewards: orders of all edits of a prompt ("plackett_luce"), pairwise
    preferences ("bradley_terry", ImageReward), or pairwise comparisons with ties ("rao_kupper", see
    `tie_threshold`)."""
    tie_threshold: float = Field(default=2.0, gt=1)
    """"rao_kupper": tie parameter t, above 1; equally good edits tie with probability (t - 1) / (t + 1)."""
    temperature: float = Field(default=1.0, gt=0)
    """Rewards are divided by this in the loss."""
    held_out_rate: float = Field(default=0.15, ge=0, lt=1)
    """Share of ranked prompts held out to measure the reward model's accuracy."""
    training: Training
    """A row is a ranking."""
    curve: LearningCurve = LearningCurve()
    resources: Resources = Resources(batch_size=32)
    """Resources for measuring edits; training has its own."""


JUDGES = ("model", "clip_direction", "clip_image", "clip", "openai")
"""Names of judges. Any other judge is a function, named as module:function."""


class VisionJudge(Section):
    """A vision-language model behind an OpenAI-compatible endpoint that scores edits, as EditScore does."""

    llm: str = "gpt-4o-mini"
    """Model name. OPENAI_BASE_URL and OPENAI_API_KEY set the endpoint and its key."""
    score_range: int = Field(default=25, ge=1)
    """Highest score; the lowest is 0."""
    num_passes: int = Field(default=1, ge=1)
    """Times that each edit is scored, each with another seed; the reward is the mean."""
    temperature: float | None = Field(default=0.7, ge=0)
    """Sampling temperature of the model. None omits the parameter, as is done for a model that rejects it."""
    send_seed: bool = True
    """As `instructions.send_seed`; without a seed, a model may give the same scores in each pass."""
    max_attempts: int = Field(default=3, ge=1)
    """Attempts per pass to get usable scores, each with another seed, before the edit stays unscored."""
    structure: Literal["json_schema", "json_object", "none"] = "json_schema"
    """Requested output format, as `instructions.structure`."""
    seed: int = 0
    """Seed of the requests."""
    spending: Spending = Spending()

    @model_validator(mode="after")
    def _one_at_a_time(self) -> "VisionJudge":
        if self.spending.batch:
            raise ValueError("scoring.vision does not use the Batch API: unset scoring.vision.spending.batch")
        return self


class Scoring(Section):
    """Pairs and judges -> scored pairs: how feedback enters the training on pairs."""

    judges: tuple[str, ...] = Field(default=("model",), min_length=1)
    """Who gives the rewards: "model" (the run's reward model), "clip_direction", "clip_image", "clip" (their sum),
    "openai" (a vision-language model, see `vision`), or "module:function", your own function from rows of pairs to
    numbers."""
    combine: Literal["mean", "min"] = "mean"
    """How rewards of several judges, each standardised over the table, are combined: mean or minimum."""
    clip: str = "openai/clip-vit-large-patch14"
    """CLIP model of the clip judges: a transformers folder or a hub name."""
    vision: VisionJudge = VisionJudge()
    """The "openai" judge."""
    shaping: Literal["conditional", "weighted", "level"] = "conditional"
    """How a reward is used. HIVE's two ways: a quality phrase in the instruction ("conditional"), or the loss weight
    exp(reward / beta) ("weighted"). "level" learns an embedding of the quality level (Multi-Reward, Gu et al. 2024)."""
    beta: float = Field(default=1.0, gt=0)
    """Temperature of the loss weights exp(reward / beta)."""
    normalize: Literal["none", "mean1", "clip"] = "mean1"
    """Normalisation of the weights: none (HIVE), to mean 1, or to mean 1 with a maximum of 5 ("clip")."""
    levels: Literal["quantile", "equal_width", "given"] = "quantile"
    """Borders of the five quality levels: quantiles of the rewards, equal widths, or given by `edges`."""
    edges: tuple[float, float, float, float] | None = None
    """"given": least rewards of levels two to five, ascending. With a `baseline`, they apply to the remaining
    reward."""
    baseline: Literal["none", "words"] = "none"
    """What is subtracted from a reward: nothing (HIVE), or the reward predicted from the instruction's words ("words"),
    so that easy edits do not get high levels for being easy."""
    phrase: str = ", image quality is {level} out of five"
    """Phrase appended to the instruction; `{level}` becomes one to five."""
    least_kept: float = Field(default=0.0, ge=0, le=1)
    """Least share of pairs, 0 to 1, that must get a reward. If fewer do, the stage fails, lists the reasons and leaves
    its table unfinished. At 0 it fails only if no pair gets one."""
    resources: Resources = Resources(batch_size=32)

    @field_validator("judges")
    @classmethod
    def _known_and_different(cls, judges: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in judges if name not in JUDGES and not re.fullmatch(r"[\w.]+:\w+", name)]
        if unknown or len(set(judges)) < len(judges):
            raise ValueError(
                f"judges {judges}: name each once, as one of {', '.join(JUDGES)} or a function as module:function"
            )
        return judges

    @model_validator(mode="after")
    def _given(self) -> "Scoring":
        if (self.levels == "given") != (self.edges is not None):
            raise ValueError(
                f"scoring.levels is {self.levels!r} and scoring.edges {self.edges}: give four edges with levels "
                "'given', and none without"
            )
        if self.edges and not all(low < high for low, high in zip(self.edges, self.edges[1:], strict=False)):
            raise ValueError(f"scoring.edges is {self.edges}: give four ascending numbers")
        return self
