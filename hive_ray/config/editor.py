"""Settings of the editor: its trainings, one for each way of learning, and averages of editors."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, field_validator, model_validator

from hive_ray.choices import choose_one_of
from hive_ray.config.data import SingleFile
from hive_ray.config.section import Resources, Section
from hive_ray.config.training import Training


class EditorFile(SingleFile):
    """What an editor's folder says and a single-file checkpoint of one does not."""

    instruction_suffix: str = ""
    """Suffix that the editor expects after every instruction: ", image quality is five out of five" for HIVE's
    conditional editors."""


class Dpo(Section):
    """Rankings -> a better editor, without a reward model (Diffusion-DPO, Wallace et al. 2023)."""

    beta: float = Field(default=5000.0, gt=0)
    """Strength of the KL penalty towards the reference model. The published value is 5000; it includes the number of
    timesteps."""
    pairs: Literal["any", "best_worst"] = "any"
    """Which two edits of a ranking are compared at each use: any two, or one of the best and one of the worst."""
    min_rank_gap: int = Field(default=1, ge=1)
    """Compare only edits at least this many ranks apart, counted without gaps (1, 2, 2, 5 are three ranks). Rankings
    without such a pair are skipped."""
    timesteps: tuple[float, float] = (0.0, 1.0)
    """Range of timesteps as shares of the noise schedule: (0.3, 1) samples 300 to 999 of 1000."""
    safeguard: float = Field(default=0.0, ge=0, le=1)
    """How far to scale down the gradient of the rejected edit's error so that the chosen edit's error does not rise
    (Diffusion-SDPO, Fu et al. 2025): 0 not at all, 1 as published, between them a mean of both."""
    safeguard_margin: float = Field(default=0.0, ge=0, le=1)
    """Share of the decrease of the chosen edit's error that the safeguard preserves: mu in Diffusion-SDPO, 0.9 for its
    Stable Diffusion 1.5. At 0 the error only must not rise."""
    imported_rankings: bool = True
    """In the first round, also train on imported rankings and thumbs. They rank other editors' edits, which teaches
    less than rankings of the editor's own (docs/choices.md)."""
    shuffled: bool = False
    """Shuffle the ranks of each ranking: a control that learns nothing from people (arm `shuffled`)."""
    tie_threshold: float = Field(default=1.0, ge=1)
    """Tie parameter of Rao and Kupper (1967). At 1 there are no ties, as published. At 3, half of equally good edits
    tie (Chen et al. 2024); ties keep the editor close to its start."""
    training: Training = Training(
        total_images=256 * 250, batch_size=256, micro_batch_size=8, learning_rate=2.56e-6, warmup_images=256 * 62,
        ema_decay=0.0, checkpoint_images=256 * 50, workers=Resources(num_actors=8, num_cpus=4), precision="bf16",
    )  # fmt: skip
    """A row is a ranking, of which one comparison is used. The published learning rate is 1e-8 times the batch size."""

    @model_validator(mode="after")
    def _span(self) -> "Dpo":
        least, most = self.timesteps
        if not 0 <= least < most <= 1:
            raise ValueError(
                f"editor.dpo.timesteps is {least}..{most}: give two shares of the schedule in 0..1, the "
                "smaller one first"
            )
        return self


class Nft(Section):
    """Scored candidates -> a better editor (DiffusionNFT, Zheng et al. 2025)."""

    beta: float = Field(default=1.0, gt=0)
    """Distance of the implicit policies from the start. 1 / beta is the strength of the learned guidance. The paper
    uses 1 and 0.1."""
    training: Training = Training(
        total_images=256 * 250, batch_size=256, micro_batch_size=8, learning_rate=1e-5, warmup_images=256 * 25,
        ema_decay=0.0, checkpoint_images=256 * 50, workers=Resources(num_actors=8, num_cpus=4), precision="bf16",
    )  # fmt: skip
    """A row is one edit."""


class Preview(Section):
    """How edits are sampled for previews during training. Changes no weights."""

    num_inference_steps: int = Field(default=20, ge=1)
    """Number of denoising steps."""
    guidance_scale: float = 7.5
    """Text guidance scale."""
    image_guidance_scale: float = 1.5
    """Image guidance scale."""


SUMMABLE_ARMS = ("weighted", "dpo", "nft", "rejection")
"""Arms whose editors have the same inputs as their start, so that their weight changes can be added up."""


FEEDBACK_ARMS = ("scored", "conditional", "level", *SUMMABLE_ARMS)


def split_arm(name: str, alone: Sequence[str]) -> list[str]:
    """The arms in a name such as dpo+rejection, or the single arm that it names.

    alone: arms that may be named on their own; SUMMABLE_ARMS may be joined. ValueError for any other arm, and for a
    repeated one.
    """
    parts = name.split("+")
    known = alone if len(parts) == 1 else SUMMABLE_ARMS
    for part in parts:
        if part not in known:
            raise ValueError(
                f"arm {part!r} is unknown; {choose_one_of(known, part)}, or several of "
                f"{', '.join(SUMMABLE_ARMS)}, joined by +"
            )
    if len({*parts}) < len(parts):
        raise ValueError(f"arm {name!r} names an arm twice: name each once")
    return parts


class Editor(Section):
    """Pairs -> an instruction-conditioned editor (InstructPix2Pix's recipe)."""

    start: str
    """Model that supervised fine-tuning starts from, text-to-image or editor: a folder, a hub name, or a single file
    (.ckpt or .safetensors, such as InstructPix2Pix's and HIVE's releases)."""
    single_file: EditorFile = EditorFile()
    resolution: int = Field(default=256, ge=8)
    """Side of the square training images in pixels."""
    condition_dropout: float = Field(default=0.05, ge=0, le=1 / 3)
    """Probability of dropping the text only, the image only, and both: at most 1/3 each."""
    min_snr_gamma: float = Field(default=0.0, ge=0)
    """Gamma of the Min-SNR loss weighting (Hang et al. 2023); 0 disables it."""
    train_text_encoder: bool = False
    """Train the text encoder, too."""
    lora_rank: int = Field(default=0, ge=0)
    """Rank of LoRA adapters that are trained instead of the weights; 0 trains the weights."""
    lora_alpha: float = Field(default=0.0, ge=0)
    """Scale of LoRA: adapter outputs are multiplied by lora_alpha / lora_rank. 0 multiplies by 1."""
    lora_targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    """Suffixes of U-Net layers that get adapters; a trained text encoder gets them in its projections."""
    level_rate_factor: float = Field(default=100.0, gt=0)
    """Arm `level`: learning rate of the level embedding, which starts at 0, over the editor's."""
    level_guidance_scale: float = Field(default=0.0, ge=0)
    """Arm `level`: scale of the guidance from the worst to the best level when editing; it is stored in the card. It
    costs one more U-Net evaluation per step; 0 disables it."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    flip: bool = True
    """Flip both images of half of the pairs, unless the instruction says left or right."""
    crop: Literal["none", "center", "random"] = "none"
    """What is used of a pair's images: everything, resized without keeping the aspect ratio (InstructPix2Pix), or the
    same square of both, at the centre or at random, with the shorter side's length."""
    latents: Literal["none", "fp32", "fp16"] = "none"
    """Precision of latents that are encoded once, into the table `latents`, for all epochs and arms. "none" encodes the
    images at every step."""
    preview: Preview = Preview()
    sft: Training
    """Supervised fine-tuning on the pairs."""
    finetune: Training
    """Fine-tuning from the editor `sft`, or of the round before: arms on pairs, the control and rejection."""
    dpo: Dpo = Dpo()
    nft: Nft = Nft()
    arm: str = "scored"
    """What the pipeline's editor `finetuned` learns from: scored pairs as `scoring.shaping` says ("scored") or in one
    of its ways ("conditional", "weighted", "level"), rankings ("dpo"), its own scored edits ("nft"), or the best of
    them ("rejection"). "dpo+rejection" adds up the weight changes of both; weighted and nft can be added, too."""
    resources: Resources = Resources()
    """Resources for encoding latents; training has its own."""

    @field_validator("arm")
    @classmethod
    def _known_arm(cls, arm: str) -> str:
        if arm == "weighted_dpo":
            raise ValueError("editor.arm 'weighted_dpo' is gone: 'weighted+dpo' adds up the changes of both")
        split_arm(arm, FEEDBACK_ARMS)
        return arm

    @model_validator(mode="after")
    def _encoded_once(self) -> "Editor":
        if self.crop == "random" and self.latents != "none":
            raise ValueError(
                f"editor.crop 'random' crops another square each time, but editor.latents {self.latents!r} encodes "
                "each image once: set crop to 'center' or 'none', or latents to 'none'"
            )
        return self


class Averaging(Section):
    """Editors -> one editor with the mean of their weights (model soups, Wortsman et al. 2022)."""

    editors: tuple[str, ...] = ()
    """Names under editors/: two or more, trained from the same start."""
    name: str = "average"
    """Name under editors/ of the averaged editor."""
