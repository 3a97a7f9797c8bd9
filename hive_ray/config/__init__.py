"""Settings of every stage. presets.py has values for them.

Functions take their own section, never the whole `Config`. Lengths of trainings are counted in images, not in steps.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from hive_ray.choices import choose_one_of

Precision = Literal["auto", "fp32", "bf16", "fp16"]


class Section(BaseModel):
    """A group of settings: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Remove the line breaks of the source from descriptions: the command line shows them as help."""
        super().__pydantic_init_subclass__(**kwargs)
        for field in cls.model_fields.values():
            field.description = field.description and " ".join(field.description.split())


class Resources(Section):
    """What one stage takes of the cluster. Changes the speed, never the rows."""

    num_actors: int = Field(default=1, ge=1)
    """Most actors (or training workers) that run at the same time."""
    least_actors: int = Field(default=0, ge=0)
    """Fewest actors, from 1 to `num_actors`: the stage waits for them and always keeps them. More join while there is
    work and room, and leave afterwards. 0 means `num_actors`, so the number is fixed. Training ignores this."""
    num_gpus: float = Field(default=1.0, ge=0)
    """GPUs per actor; a fraction shares a GPU, and 0 runs on the CPU."""
    num_cpus: float = Field(default=1.0, ge=0)
    """CPUs per actor. An actor without a GPU uses as many torch threads."""
    batch_size: int = Field(default=16, ge=1)
    """Rows that an actor processes at a time."""

    @model_validator(mode="after")
    def _ordered(self) -> "Resources":
        if self.least_actors > self.num_actors:
            raise ValueError(
                f"least_actors is {self.least_actors}, but num_actors is {self.num_actors}: lower least_actors, or "
                "raise num_actors"
            )
        return self


class Spending(Section):
    """Prices of a language model, and the budget for it. Changes when rows are written, never the rows."""

    prompt_price: float = Field(default=0.0, ge=0)
    """US dollars per million prompt tokens. With both prices at 0, as for your own endpoint, only tokens are
    counted."""
    completion_price: float = Field(default=0.0, ge=0)
    """US dollars per million completion tokens."""
    most_dollars: float | None = Field(default=None, gt=0)
    """Budget of the run in US dollars; None sets no limit. When it is spent, the stage stops. Answers are kept, and a
    run with a larger budget continues."""
    batch: bool = False
    """Use the Batch API: half the price, but answers take hours."""
    batch_discount: float = Field(default=0.5, ge=0, lt=1)
    """Discount of the Batch API as a share of the price, from 0 to below 1."""

    @model_validator(mode="after")
    def _priced(self) -> "Spending":
        if self.most_dollars is not None and not (self.prompt_price or self.completion_price):
            raise ValueError("most_dollars is set, but both prices are 0: set prompt_price and completion_price")
        return self


class Inspection(Section):
    """The page that shows kept and dropped pairs. Changes no rows."""

    dropped_per_shard: int = Field(default=2, ge=0)
    """Dropped pairs whose images are stored: the first ones of each reason in each shard of 32 instructions."""
    num_shown: int = Field(default=8, ge=1)
    """Pairs on the page: this many kept ones, and this many dropped ones for each reason."""


class Instructions(Section):
    """Captions -> edit instructions."""

    captions: str = "shapes"
    """A file (.txt, .jsonl, .csv, .tsv, .parquet) or a Hugging Face dataset folder, on disk or s3://. "shapes"
    generates random captions of the embedded domain."""
    caption_column: str = "caption"
    """Column with the caption; a text file has one caption per line."""
    num_captions: int = Field(default=1000, ge=1)
    """Captions to generate ("shapes"), or most captions to read."""
    writer: Literal["shapes", "openai"] = "shapes"
    """Who writes the instructions: the grammar of the embedded domain ("shapes") or a language model ("openai")."""
    per_caption: int = Field(default=1, ge=1)
    """Edits written for each caption."""
    llm: str = "gpt-4o-mini"
    """Model name for the "openai" writer. "finetuned" is the model that `finetune_writer` made in this run.
    OPENAI_BASE_URL and OPENAI_API_KEY set the endpoint and its key."""
    form: Literal["chat", "delimited"] = "chat"
    """Prompt format: JSON in a chat ("chat"), or completions with InstructPix2Pix's delimiters ("delimited")."""
    structure: Literal["json_schema", "json_object", "none"] = "json_schema"
    """Output format requested in "chat": a JSON schema, any JSON object, or nothing, for endpoints that support less.
    In each case the answer is searched for JSON."""
    temperature: float | None = Field(default=0.7, ge=0)
    """Sampling temperature of the language model. None omits the parameter, as is done for a model that rejects it."""
    send_seed: bool = True
    """Send a seed with each request, so that answers can be reproduced. It is omitted for a model that rejects it."""
    least_kept: float = Field(default=0.0, ge=0, le=1)
    """Least share of edits to keep, 0 to 1. If fewer are kept, the stage fails, lists the reasons and leaves its table
    unfinished. At 0 it fails only if nothing is kept."""
    moderation: bool = False
    """Send captions and edits to the endpoint's moderation first, and drop those that it flags."""
    rank_rate: float = Field(default=0.05, ge=0, lt=1)
    """Share of captions held out for people to rank."""
    test_rate: float = Field(default=0.05, ge=0, lt=1)
    """Share of captions held out for the evaluation."""
    examples: str = ""
    """JSONL file of few-shot examples, in the format of `writer.triplets`; "" sends none."""
    num_examples: int = Field(default=4, ge=1)
    """Number of few-shot examples, taken from the start of the file."""
    seed: int = 0
    """Seed of generated captions, edits and requests."""
    spending: Spending = Spending()
    resources: Resources = Resources(num_gpus=0)

    @model_validator(mode="after")
    def _moderated_first(self) -> "Instructions":
        if self.moderation and self.spending.batch:
            raise ValueError(
                "instructions.moderation looks at captions first, and a batch asks for all at once: unset one of them"
            )
        return self


class Writer(Section):
    """Triplets that people wrote -> a language model fine-tuned to write instructions (InstructPix2Pix's step 1a)."""

    triplets: str = "triplets.jsonl"
    """JSONL file with caption, instruction and edited_caption (or input, edit and output) on each line."""
    base: str = "gpt-4o-mini-2024-07-18"
    """Model to fine-tune."""
    form: Literal["chat", "delimited"] = "chat"
    """Answer format that it learns: JSON in a chat, or completions with InstructPix2Pix's delimiters."""
    num_epochs: int = Field(default=1, ge=1)
    """Passes over the triplets."""
    seed: int = 0
    """Seed of the fine-tuning job."""


class SingleFile(Section):
    """What a diffusers folder says and a single-file checkpoint (.ckpt or .safetensors, CompVis layout) does not."""

    tokenizer: str = "openai/clip-vit-large-patch14"
    """CLIP tokenizer: its folder, the folder of any Stable Diffusion, or a hub name."""
    prediction_type: Literal["", "epsilon", "v_prediction"] = ""
    """What the U-Net predicts; "" means epsilon. Set it for a text-to-image Stable Diffusion 2, which exists with
    both."""


class Pairs(Section):
    """Instructions -> image pairs by Prompt-to-Prompt, filtered by CLIP; held-out instructions -> prompts."""

    base: str
    """Text-to-image model: a diffusers folder, a hub name, or a single file (.ckpt or .safetensors)."""
    single_file: SingleFile = SingleFile()
    clip: str = "openai/clip-vit-large-patch14"
    """CLIP model of the filter: a transformers folder or a hub name."""
    resolution: int = Field(default=512, ge=8)
    """Side of the square images in pixels."""
    samples_per_instruction: int = Field(default=8, ge=1)
    """Pairs sampled per instruction, each with its own seed, guidance scale and shared attention."""
    keep_per_instruction: int = Field(default=4, ge=1)
    """Most pairs kept per instruction: those with the highest `clip_direction`."""
    num_inference_steps: int = Field(default=50, ge=1)
    """Number of denoising steps."""
    schedule: Literal["ddim", "euler_ancestral", "dpm_solver++"] = "ddim"
    """Sampler: DDIM, k-diffusion's Euler ancestral (InstructPix2Pix uses 100 steps), or DPM-Solver++ (about 25
    steps)."""
    guidance_scale: tuple[float, float] = (7.5, 15.0)
    """Range of the classifier-free guidance scale, sampled uniformly for each pair."""
    shared_attention: tuple[float, float] = (0.1, 0.9)
    """Range of the share of steps, 0 to 1, in which the edited image uses the source's attention. It is sampled for
    each pair. Google's kinds of `sharing` use the same draw as a position within each of the ranges below."""
    sharing: Literal["self", "cross_and_self", "replace", "refine", "replace_or_refine"] = "self"
    """Attention that both images share: self-attention maps ("self", InstructPix2Pix), or also cross-attention maps of
    unchanged words ("cross_and_self"). Google's Prompt-to-Prompt: word swap ("replace", which drops pairs whose
    captions differ in their number of words), refinement ("refine"), or word swap where possible and refinement
    otherwise ("replace_or_refine")."""
    self_replace_steps: tuple[float, float] = (0.4, 0.4)
    """Google's kinds: range of the share of steps that use the source's self-attention, in the layers of
    `control_side`."""
    cross_replace_steps: tuple[float, float] = (0.8, 0.8)
    """Google's kinds: range of the share of steps that use the source's cross-attention."""
    changed_replace_steps: tuple[float, float] | None = None
    """Google's kinds: the same range for changed words; None uses `cross_replace_steps`."""
    changed_scale: float = 1.0
    """Google's attention re-weighting: factor on the cross-attention of changed words in those steps; 1 disables it."""
    local_blend: float = Field(default=0.0, ge=0, lt=1)
    """Local blending: keep the source where the attention to changed words is at most this share of its maximum in both
    images (Google uses 0.3). 0 disables it. Not available with sharing "self"."""
    local_blend_start: float = Field(default=0.2, ge=0, le=1)
    """Share of the steps, 0 to 1, before local blending starts."""
    control_side: float = Field(default=0.25, gt=0, le=1)
    """Side of the largest attention layers that Google's kinds and local blending use, as a share of the latent's side
    (Google uses 16 of 64)."""
    least_clip_image: float = 0.7
    """Lowest CLIP similarity of the two images, -1 to 1."""
    least_clip_direction: float = 0.2
    """Lowest CLIP directional similarity of the edit, -1 to 1."""
    least_clip_source_text: float = 0.2
    """Lowest CLIP similarity of the source image to its caption, -1 to 1."""
    least_clip_edited_text: float = 0.2
    """Lowest CLIP similarity of the edited image to its caption, -1 to 1."""
    least_contrast: float = Field(default=5.0, ge=0)
    """Lowest contrast of an image: the largest standard deviation of its colour channels, 0 to 127.5. It drops the
    black images of a failed decoder or a safety checker. 0 disables it."""
    least_difference: float = Field(default=8.0, ge=0)
    """Lowest difference of two images: the largest difference of mean colour (0 to 255) in a cell of a 16 x 16 grid. It
    drops edits that change nothing, and pairs that repeat a better pair of the same instruction. 0 disables it."""
    safety_checker: str = ""
    """Stable Diffusion safety checker for both images of each pair that passes: a folder or hub name with safetensors,
    such as CompVis/stable-diffusion-safety-checker. "" disables it."""
    cycle: bool = True
    """Add a cycle-consistency twin of each kept pair: edited -> source, with the inverse instruction."""
    prompts: Literal["generated", "shapes"] = "generated"
    """Source images of held-out prompts: sampled from the base model, or drawn by the embedded domain."""
    precision: Precision = "auto"
    """Floating point format for sampling. "auto" is fp16 on a GPU, bf16 on a CPU with matrix instructions for it,
    otherwise fp32."""
    least_kept: float = Field(default=0.0, ge=0, le=1)
    """Least share of sampled pairs, twins included, to keep, 0 to 1. If fewer are kept, the stage fails and lists the
    reasons. At 0 it fails only if nothing is kept."""
    seed: int = 0
    """Seed of the sampled pairs."""
    inspection: Inspection = Inspection()
    resources: Resources = Resources(batch_size=4)

    @model_validator(mode="after")
    def _ranges(self) -> "Pairs":
        shares = ("shared_attention", "self_replace_steps", "cross_replace_steps", "changed_replace_steps")
        for name in ("guidance_scale", *shares):
            least, most = getattr(self, name) or (0, 0)
            if least > most:
                raise ValueError(f"pairs.{name} is {least}..{most}: give the smaller number first")
        if self.local_blend and self.sharing == "self":
            raise ValueError(
                f"pairs.local_blend is {self.local_blend}, but sharing 'self' uses no attention to words: set "
                "local_blend to 0, or choose another pairs.sharing"
            )
        return self


class Importing(Section):
    """An existing dataset -> `pairs` and `prompts`, in place of `write_instructions` and `make_pairs`."""

    dataset: str = ""
    """Folder or file, on disk or s3://: an InstructPix2Pix folder (seeds.json), HIVE's training folder, JSONL, CSV or
    TSV files of image paths, a Hugging Face dataset folder (Parquet, `save_to_disk`, or images with metadata.jsonl or
    .csv), or WebDataset shards. Changes are detected by the names, sizes and modification times (on S3: ETags) of its
    files."""
    split_name: str = "train"
    """In a folder, read only files whose name or folder starts with this, so that test splits are not trained on. ""
    reads all. JSONL and CSV files are all read if none is named after a split."""
    pictures: str = "."
    """Folder that image paths start from, relative to the file that lists them. "." looks there, in the dataset's
    folder and in its `images`."""
    least_kept: float = Field(default=0.0, ge=0, le=1)
    """Least share of rows to keep, 0 to 1. If fewer are kept, the import fails and lists the reasons."""
    prompts: str = ""
    """JSONL or CSV file with instruction and source_img (HIVE's test.jsonl), whose prompts are added to the test split;
    "" adds none."""
    prompt_pictures: str = "evaluation"
    """Folder that image paths in `prompts` start from, relative to that file (HIVE uses `evaluation`)."""
    rankings: str = ""
    """Existing rankings of edits for `import_rankings`: a folder or file, on disk or s3://, or "shapes" for those of
    the embedded domain. Reward models and DPO learn from them in addition to the run's own rankings. "" imports
    none."""
    num_pairs: int = Field(default=10_000_000, ge=1)
    """Most pairs to import."""
    cycle: bool = True
    """Add a cycle-consistency twin of each pair whose inverse instruction the dataset has (HQ-Edit's inverse_edit)."""
    drop_swapped: bool = True
    """Drop pairs with a negative clip_direction: by their captions, the two images are swapped."""
    rank_rate: float = Field(default=0.05, ge=0, lt=1)
    """Share of sources held out as prompts for people to rank."""
    test_rate: float = Field(default=0.05, ge=0, lt=1)
    """Share of sources held out as prompts for the evaluation."""
    clip: str = "openai/clip-vit-large-patch14"
    """CLIP model that measures the pairs: a transformers folder or a hub name."""
    resources: Resources = Resources()


class Exporting(Section):
    """The run's pairs -> a dataset for other programs."""

    table: Literal["pairs", "scored_pairs"] = "pairs"
    """Table to export: the pairs alone, or with their rewards, weights and quality phrases."""
    format: Literal["parquet", "instruct_pix2pix", "webdataset"] = "parquet"
    """Dataset format: a Hugging Face folder for diffusers' train_instruct_pix2pix.py ("parquet"), InstructPix2Pix's
    folders (JPEG, without weights), or WebDataset shards."""
    folder: str = ""
    """Output folder, on disk or s3://; "" is exports/<format> in the run folder."""
    shard_megabytes: int = Field(default=256, ge=1)
    """Approximate size of a Parquet file or shard in MiB; this much is held in memory."""


class Watching(Section):
    """Logging and validation during training. Changes no weights."""

    tracker: Literal["tensorboard", "wandb", "mlflow", "none"] = "tensorboard"
    """Experiment tracker. <run>/metrics/<name>.jsonl is always written. Install W&B or MLflow yourself; they read their
    usual variables (WANDB_API_KEY, MLFLOW_TRACKING_URI, ...)."""
    project: str = "hive-ray"
    """W&B project or MLflow experiment."""
    validation_images: int | None = Field(default=None, ge=1)
    """Images between two validations; None validates after each quarter of the training. The start and the end are
    always validated."""
    num_previews: int = Field(default=4, ge=0)
    """Held-out rows whose edits are sampled at each validation."""


class Recovery(Section):
    """Checkpoints and fault tolerance of a training. Changes no weights."""

    keep_last: int = Field(default=2, ge=1)
    """Newest checkpoints to keep during training. Keep more than one, since a file may get lost."""
    keep_best: int = Field(default=0, ge=0)
    """Checkpoints to keep in addition, those with the lowest validation loss. Above 0, the loss is measured before each
    checkpoint."""
    max_failures: int = Field(default=2, ge=0)
    """Most automatic restarts after a worker has died. Announced preemptions of nodes do not count."""
    wait_minutes: float = Field(default=30.0, gt=0)
    """Minutes in total to wait for nodes that join late; after that the training stops with a message."""
    most_bad_rows: float = Field(default=0.01, ge=0, le=1)
    """Largest share of rows, 0 to 1, that may be bad, such as a broken image. Bad rows are reported, skipped and
    counted. One row more stops the run."""


class Training(Section):
    """How a model is trained: shared by the editor and the reward model."""

    total_images: int = Field(ge=1)
    """Rows to train on in total, over all workers, rounded up to full batches."""
    batch_size: int = Field(ge=1)
    """Rows per optimiser step, over all workers and accumulation steps."""
    micro_batch_size: int = Field(ge=1)
    """Rows per worker and forward pass; `batch_size` must be a multiple of this times the number of workers."""
    learning_rate: float = Field(gt=0)
    """Peak learning rate of AdamW."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up: constant, or cosine decay to 0."""
    warmup_images: int = Field(default=0, ge=0)
    """Images of linear learning-rate warm-up."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Weight decay of AdamW."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Clip gradients to this norm; 0 disables clipping (InstructPix2Pix)."""
    ema_decay: float = Field(default=0.9999, ge=0, lt=1)
    """Largest decay of the exponential moving average (EMA) of the weights, min(ema_decay, (1 + n) / (10 + n)); 0
    disables the EMA."""
    ema_rule: Literal["step", "micro_batch", "diffusers"] = "step"
    """What n in the EMA decay counts: optimiser steps; micro-batches of a worker ("micro_batch", InstructPix2Pix),
    though weights change only at steps; or steps after the first, which copies the weights ("diffusers")."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Floating point format of the forward and backward passes; fp32 master weights are kept."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """What DeepSpeed ZeRO partitions among workers: nothing (0), optimiser states (1), also gradients (2), also weights
    (3)."""
    offload: Literal["none", "optimizer", "weights"] = "none"
    """What is kept in CPU memory instead of GPU memory: optimiser states (from stage 1), or also weights (stage 3)."""
    compile: bool = False
    """Use torch.compile: it takes minutes at the start and makes steps faster. Not available at ZeRO stage 3."""
    checkpoint_images: int = Field(ge=1)
    """Images between two checkpoints."""
    validation_rows: int = Field(default=0, ge=0)
    """Rows held out to measure the validation loss, at most a tenth of all; 0 holds out none."""
    seed: int = 0
    """Seed of the order of rows and of all noise."""
    watching: Watching = Watching()
    workers: Resources = Resources()
    """Training workers: `num_actors` is their number; `batch_size` and `least_actors` are not used."""
    recovery: Recovery = Recovery()

    @model_validator(mode="after")
    def _possible(self) -> "Training":
        least = {"none": 0, "optimizer": 1, "weights": 3}[self.offload]
        if self.zero_stage < least:
            raise ValueError(
                f"offload is {self.offload!r} and zero_stage {self.zero_stage}: set zero_stage to {least} or more, or "
                "offload to 'none'"
            )
        if self.compile and self.zero_stage == 3:
            raise ValueError("compile is true and zero_stage 3, which cannot be compiled: choose one of them")
        return self

    @model_validator(mode="after")
    def _divisible(self) -> "Training":
        step = self.micro_batch_size * self.workers.num_actors
        if self.batch_size % step:
            raise ValueError(
                f"batch_size is {self.batch_size}, which is not a multiple of micro_batch_size x workers = {step}: "
                "change one of them"
            )
        return self


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
    """Which two edits of a ranking are compared, sampled anew at each use: any two, or one of the best and one of the
    worst."""
    min_rank_gap: int = Field(default=1, ge=1)
    """Compare only edits at least this many ranks apart, counted without gaps (1, 2, 2, 5 are three ranks). Rankings
    without such a pair are skipped."""
    timesteps: tuple[float, float] = (0.0, 1.0)
    """Range of training timesteps as shares of the noise schedule: (0.3, 1) samples 300 to 999 of 1000."""
    safeguard: float = Field(default=0.0, ge=0, le=1)
    """How far to scale down the gradient of the rejected edit's error so that the chosen edit's error does not rise
    (Diffusion-SDPO, Fu et al. 2025). 0 does not scale, 1 is as published, values between interpolate."""
    safeguard_margin: float = Field(default=0.0, ge=0, le=1)
    """Share of the decrease of the chosen edit's error that the safeguard preserves: mu in Diffusion-SDPO, 0.9 for its
    Stable Diffusion 1.5. At 0 the error only must not rise."""
    imported_rankings: bool = True
    """In the first round, also train on imported rankings and thumbs. They rank other editors' edits, which teaches
    less than rankings of the editor's own (docs/results.md)."""
    shuffled: bool = False
    """Shuffle the ranks within each ranking: a control that learns nothing from people. The arm `shuffled` sets it."""
    tie_threshold: float = Field(default=1.0, ge=1)
    """Tie parameter of Rao and Kupper (1967), from 1. At 1 there are no ties, as published. At 3, half of the
    comparisons of equally good edits are ties (Chen et al. 2024); ties keep the editor close to its start."""
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
    """Probability of dropping the text only, the image only, and both; one uniform draw per row decides, so at most
    1/3."""
    min_snr_gamma: float = Field(default=0.0, ge=0)
    """Gamma of the Min-SNR loss weighting (Hang et al. 2023); 0 disables it."""
    train_text_encoder: bool = False
    """Train the text encoder, too."""
    lora_rank: int = Field(default=0, ge=0)
    """Rank of LoRA adapters that are trained instead of the weights; 0 trains the weights."""
    lora_alpha: float = Field(default=0.0, ge=0)
    """Scale of LoRA: adapter outputs are multiplied by lora_alpha / lora_rank. 0 multiplies by 1."""
    lora_targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    """Suffixes of the U-Net layers that get adapters. A trained text encoder gets them in its attention projections."""
    level_rate_factor: float = Field(default=100.0, gt=0)
    """Arm `level`: learning rate of the level embedding, which starts at zero, as a multiple of the editor's."""
    level_guidance_scale: float = Field(default=0.0, ge=0)
    """Arm `level`: scale of the guidance from the worst to the best level when editing; it is stored in the card. It
    costs one more U-Net evaluation per step; 0 disables it."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    flip: bool = True
    """Flip both images of half of the pairs horizontally, unless the instruction mentions left or right."""
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


class Candidates(Section):
    """Prompts -> several edits each, for people to rank."""

    num_edits: int = Field(default=4, ge=2, le=9)
    """Edits per prompt."""
    num_inference_steps: int = Field(default=50, ge=1)
    """Number of denoising steps."""
    guidance_scale: tuple[float, float] = (7.5, 7.5)
    """Range of the text guidance scale, sampled uniformly for each edit."""
    image_guidance_scale: tuple[float, float] = (1.5, 1.5)
    """Range of the image guidance scale, sampled uniformly for each edit; 1 disables it."""
    num_prompts: int = Field(default=4000, ge=1)
    """Most prompts of the rank split to sample edits for."""
    precision: Precision = "auto"
    """As `pairs.precision`."""
    least_kept: float = Field(default=0.0, ge=0, le=1)
    """Least share of prompts that must get edits, as `pairs.least_kept`."""
    seed: int = 0
    """Seed of the edits."""
    resources: Resources = Resources(batch_size=8)


class CandidateScoring(Section):
    """Candidates -> scored candidates for the arms `nft` and `rejection`, and rankings by the reward model for
    `dpo`."""

    judge: Literal["reward", "people"] = "reward"
    """`nft`: who scores the edits: the run's reward model, or people's rankings of them (mean rank). People rank no
    unguided edits, so `rejection` always uses the reward model."""
    clip: float = Field(default=1.0, gt=0)
    """`nft`: standard deviations above its prompt's mean at which a reward counts as certainly optimal (DiffusionNFT's
    Z)."""
    least_advantage: float = 0.5
    """`rejection`: least distance of the best edit from its prompt's mean, in standard deviations."""
    ranked_rate: float = Field(default=0.0, ge=0, le=1)
    """`dpo`: share of prompts, 0 to 1, whose edits the reward model also ranks (AI feedback, Bai et al. 2022): those
    with the largest spread of rewards. 0 disables it."""
    least_kept: float = Field(default=0.0, ge=0, le=1)
    """Least share of edits that must get a reward, as `pairs.least_kept`."""
    resources: Resources = Resources(batch_size=8)


class Choosing(Section):
    """Candidates -> the prompts that people rank, in ranking order."""

    num_ranked: int = Field(default=0, ge=0)
    """Prompts to choose. 0 chooses all candidates and only sorts them."""
    by: Literal["spread", "disagreement", "both", "random"] = "spread"
    """Selection criterion: spread of a prompt's edits in the editor's latent space, uncertainty of the round's reward
    model about their order ("disagreement", which also prefers edits that look the same), the mean of both ranks, or
    random."""
    random_rate: float = Field(default=0.1, ge=0, le=1)
    """Share of `num_ranked`, 0 to 1, that is sampled at random from the other prompts. At 0, no statistic of all
    prompts can be estimated from the chosen ones."""
    least_kind_rate: float = Field(default=0.5, ge=0, le=1)
    """Least share, 0 to 1, of its proportional number of places that each kind of edit gets. A kind is the first word
    of the instruction."""
    seed: int = 0
    """Seed of the random choices."""


class Rankings(Section):
    """Candidates -> one person's order of each prompt's edits."""

    annotator: Literal["shapes", "people"] = "people"
    """Who ranks: simulated annotators of the embedded domain ("shapes"), or people, from a file of their rankings."""
    annotators_per_prompt: int = Field(default=1, ge=1)
    """"shapes": annotators who rank each prompt."""
    num_annotators: int = Field(default=0, ge=0)
    """"shapes": number of annotators in total, of whom `annotators_per_prompt` are sampled for each prompt. 0 means
    `annotators_per_prompt`."""
    annotations: str = ""
    """"people": JSONL file that the annotation page exports; "" is annotations.jsonl in the run folder, where
    `export_annotations` writes it."""
    least_kept: float = Field(default=0.5, ge=0, le=1)
    """Least share of the file's lines, 0 to 1, that must match the candidates. If fewer do, the file belongs to another
    run, and the stage stops."""
    thumbs: str = ""
    """Database of the serving page's thumbs (its `feedback`), as `annotation.database`. Thumbs up and down for edits of
    the same image and instruction become rankings. Each round takes those given so far; "" takes none."""
    seed: int = 0
    """Seed of the simulated annotators."""

    @model_validator(mode="after")
    def _enough_people(self) -> "Rankings":
        if 0 < self.num_annotators < self.annotators_per_prompt:
            raise ValueError(
                f"rankings.num_annotators is {self.num_annotators}, but each prompt needs {self.annotators_per_prompt} "
                "different people: raise it, or lower rankings.annotators_per_prompt"
            )
        return self


class Annotation(Section):
    """The page on which people rank candidates, or compare two editors (`make annotate`)."""

    mode: Literal["rank", "study"] = "rank"
    """Task: rank the edits of one prompt, or compare the edits of two editors side by side ("study")."""
    candidates: str = "candidates"
    """"rank": table of the run to rank."""
    compared: tuple[str, str] = ("evaluation/sft", "evaluation/finetuned")
    """"study": evaluation tables of the two editors; wins and losses are the second editor's."""
    num_tasks: int = Field(default=100_000, ge=1)
    """Most prompts to take from these tables."""
    people_per_task: int = Field(default=2, ge=1)
    """Different people who do each task."""
    lease_minutes: float = Field(default=15.0, gt=0)
    """Minutes that a task stays reserved for a person after their page was last seen open."""
    gold: str = "automatic"
    """Tasks with a known answer: "automatic" (one edit is replaced by the source, or by another prompt's image), a
    JSONL file with prompt_id, better and worse (edit ids), or "" for none."""
    gold_rate: float = Field(default=0.05, ge=0, lt=1)
    """Share of assigned tasks with a known answer."""
    least_known: float = Field(default=0.7, ge=0, le=1)
    """Flag people who answer a smaller share of those tasks correctly."""
    least_golds: int = Field(default=4, ge=1)
    """Answers to such tasks before a person can be flagged."""
    leave_out_flagged: bool = False
    """Leave answers of flagged people out of `export_annotations`."""
    repeat_rate: float = Field(default=0.05, ge=0, lt=1)
    """Share of tasks that a person gets again, to measure how far they agree with themselves."""
    repeat_after: int = Field(default=20, ge=1)
    """Other tasks between a task and its repetition."""
    database: str = ""
    """Database of people and answers: sqlite:///path or postgresql://user:password@host/name. "" is annotation.sqlite
    in the run folder, which must be on this disk."""
    cache_megabytes: int = Field(default=512, ge=1)
    """Images that the server keeps in memory, in MiB."""

    @model_validator(mode="after")
    def _possible(self) -> "Annotation":
        if self.gold_rate + self.repeat_rate >= 1:
            raise ValueError(
                f"gold_rate + repeat_rate is {self.gold_rate + self.repeat_rate:g}: lower them to a sum below 1"
            )
        return self


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


class Evaluation(Section):
    """Editors on held-out prompts -> metrics and the report."""

    editors: tuple[str, ...] = ("sft", "finetuned")
    """Names under editors/ to compare. The baseline is `control` if present, otherwise the first. Later rounds prepend
    `current`, the editor that the round started from."""
    num_prompts: int = Field(default=200, ge=1)
    """Prompts of the test split to edit."""
    num_inference_steps: int = Field(default=50, ge=1)
    """Number of denoising steps."""
    guidance_scale: float = 7.5
    """Text guidance scale at which editors are compared."""
    image_guidance_scale: float = 1.5
    """Image guidance scale at which editors are compared."""
    best_of: int = Field(default=1, ge=1)
    """Edits per prompt, which all count in every metric. Above 1, each editor except the controls gets one more row:
    the edit with the highest reward."""
    precision: Precision = "auto"
    """Precision of sampling, as `pairs.precision`; metrics are computed in fp32."""
    curve: tuple[float, ...] = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2)
    """Image guidance scales of the CLIP trade-off curve."""
    curve_prompts: int = Field(default=100, ge=0)
    """Prompts for the curve; 0 disables it."""
    clip: str = "openai/clip-vit-large-patch14"
    """CLIP model of the metrics: a transformers folder or a hub name."""
    judge: Literal["none", "shapes"] = "none"
    """Judge that knows the correct edit: none, or that of the embedded domain."""
    bootstrap: int = Field(default=1000, ge=1)
    """Bootstrap resamples of the prompts for each interval."""
    seed: int = 0
    """Seed of the edits and of the resamples."""
    resources: Resources = Resources(batch_size=8)


class Config(Section):
    """All settings of a run."""

    def changed(self, changes: Mapping[str, Mapping[str, Any]]) -> "Config":
        """A copy with some settings replaced, given by section and name."""
        sections = {name: getattr(self, name).model_copy(update=dict(others)) for name, others in changes.items()}
        return self.model_copy(update=sections)

    writer: Writer = Writer()
    importing: Importing = Importing()
    exporting: Exporting = Exporting()
    instructions: Instructions
    pairs: Pairs
    editor: Editor
    averaging: Averaging = Averaging()
    candidates: Candidates
    candidate_scoring: CandidateScoring = CandidateScoring()
    choosing: Choosing = Choosing()
    rankings: Rankings
    annotation: Annotation = Annotation()
    reward: Reward
    scoring: Scoring
    evaluation: Evaluation
