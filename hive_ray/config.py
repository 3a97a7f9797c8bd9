"""Settings: one frozen section a stage, unknown keys refused, a sentence on every field (presets.py fills them).

Functions take their own section, never the whole `Config`. Horizons are counted in images, not steps.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from hive_ray.choices import choose_one_of

Precision = Literal["auto", "fp32", "bf16", "fp16"]


class Section(BaseModel):
    """Frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Descriptions without the line breaks of the source, for the command line's help."""
        super().__pydantic_init_subclass__(**kwargs)
        for field in cls.model_fields.values():
            field.description = field.description and " ".join(field.description.split())


class Resources(Section):
    """What one stage may take of the cluster. Changes speed, never the rows."""

    num_actors: int = Field(default=1, ge=1)
    """Actors (or training workers) at work at the same time, at most."""
    least_actors: int = Field(default=0, ge=0)
    """Actors that a stage waits for and always keeps; more join while there is work and room for them, and leave when
    there is not. 0 is `num_actors`: no fewer, no more. Training has no use for it."""
    num_gpus: float = Field(default=1.0, ge=0)
    """GPUs an actor holds; 0 runs on the CPU."""
    num_cpus: float = Field(default=1.0, ge=0)
    """CPUs an actor holds; also its number of torch threads when it has no GPU."""
    batch_size: int = Field(default=16, ge=1)
    """Rows an actor maps at a time."""

    @model_validator(mode="after")
    def _ordered(self) -> "Resources":
        if self.least_actors > self.num_actors:
            raise ValueError(f"least_actors is {self.least_actors}, above num_actors, which is {self.num_actors}")
        return self


class Spending(Section):
    """What answers of a language model cost, and how much they may. Changes when rows are written, never the rows."""

    prompt_price: float = Field(default=0.0, ge=0)
    """Dollars for a million prompt tokens; 0 and 0 count tokens alone, as for an endpoint of your own."""
    completion_price: float = Field(default=0.0, ge=0)
    """Dollars for a million completion tokens."""
    most_dollars: float | None = Field(default=None, gt=0)
    """Ask no more once the run has spent this; answers are kept, and a run with a higher limit goes on."""
    batch: bool = False
    """Ask through the Batch API: slower by hours, at half the price."""
    batch_discount: float = Field(default=0.5, ge=0, lt=1)
    """The share of the price that the Batch API saves."""

    @model_validator(mode="after")
    def _priced(self) -> "Spending":
        if self.most_dollars is not None and not (self.prompt_price or self.completion_price):
            raise ValueError("most_dollars needs the endpoint's prices: set prompt_price and completion_price")
        return self


class Inspection(Section):
    """What there is to look at afterwards. Changes no rows."""

    dropped_per_shard: int = Field(default=2, ge=0)
    """Dropped pairs whose pictures are kept, the first of each reason in each shard (32 instructions)."""
    num_shown: int = Field(default=8, ge=1)
    """Pairs on the page: kept ones, and dropped ones of each reason."""


class Instructions(Section):
    """Captions -> edits in words."""

    captions: str = "shapes"
    """A file (.txt, .jsonl, .csv, .tsv, .parquet) or a Hugging Face dataset folder, on disk or s3://, or "shapes" for
    random captions of the embedded domain."""
    caption_column: str = "caption"
    """Where a caption stands in a row; a text file has one a line."""
    num_captions: int = Field(default=1000, ge=1)
    """Captions to draw ("shapes"), or the most to take."""
    writer: Literal["shapes", "openai"] = "shapes"
    """Who writes the instructions."""
    per_caption: int = Field(default=1, ge=1)
    """Edits written for each caption."""
    llm: str = "gpt-4o-mini"
    """Model name for the "openai" writer, or "finetuned" for what `finetune_writer` made in this run; its address and
    key come from OPENAI_BASE_URL and OPENAI_API_KEY."""
    form: Literal["chat", "delimited"] = "chat"
    """How it is asked: for JSON in a conversation, or for completions with InstructPix2Pix's delimiters."""
    structure: Literal["json_schema", "json_object", "none"] = "json_schema"
    """What "chat" answers are held to: a JSON schema, any JSON where the endpoint knows no schemas, or nothing where
    it knows neither; the JSON is looked for in what comes."""
    temperature: float | None = Field(default=0.7, ge=0)
    """Sampling temperature of the answers; None sends none. It is also left out for a model that refuses it."""
    send_seed: bool = True
    """Whether requests carry a seed, for the same answers on another day. It is also left out for a model that refuses
    it."""
    least_kept: float = Field(default=0.0, ge=0, le=1)
    """Least share of edits that are kept of all that came of the captions; with less the stage fails with the reasons,
    and its table is not kept as finished. At 0 it fails where nothing is kept."""
    moderation: bool = False
    """Whether captions and edits are shown to the endpoint's moderation first, and dropped where it flags them."""
    rank_rate: float = Field(default=0.05, ge=0, lt=1)
    """Share of captions held out for people to rank."""
    test_rate: float = Field(default=0.05, ge=0, lt=1)
    """Share of captions held out for the evaluation."""
    examples: str = ""
    """A JSONL file of triplets as `writer.triplets`, shown to the model before a caption (few-shot); "" shows none."""
    num_examples: int = Field(default=4, ge=1)
    """The first so many of them that are shown."""
    seed: int = 0
    spending: Spending = Spending()
    resources: Resources = Resources(num_gpus=0)

    @model_validator(mode="after")
    def _moderated_first(self) -> "Instructions":
        if self.moderation and self.spending.batch:
            raise ValueError("instructions.moderation looks at captions first, and a batch asks for all: unset one")
        return self


class Writer(Section):
    """Triplets that people wrote -> a language model fine-tuned to write instructions (InstructPix2Pix's step 1a)."""

    triplets: str = "triplets.jsonl"
    """A JSONL file of caption, instruction and edited_caption (or input, edit and output)."""
    base: str = "gpt-4o-mini-2024-07-18"
    """The model that is fine-tuned."""
    form: Literal["chat", "delimited"] = "chat"
    """What it learns to answer: JSON in a conversation, or completions with InstructPix2Pix's delimiters."""
    num_epochs: int = Field(default=1, ge=1)
    seed: int = 0


class SingleFile(Section):
    """What a single-file checkpoint (.ckpt or .safetensors by compvis names) does not say, and a folder does."""

    tokenizer: str = "openai/clip-vit-large-patch14"
    """CLIP's tokenizer: a folder, the folder of any Stable Diffusion, or a hub name."""
    prediction_type: Literal["", "epsilon", "v_prediction"] = ""
    """What its U-Net predicts; "" is epsilon, and must be set for a text-to-image Stable Diffusion 2, of which there
    are both."""


class Pairs(Section):
    """Instructions -> pairs of pictures by Prompt-to-Prompt, filtered by CLIP; held-out ones -> prompts."""

    base: str
    """Text-to-image model: a diffusers folder, a Hugging Face hub name, or a single file (.ckpt or .safetensors)."""
    single_file: SingleFile = SingleFile()
    clip: str = "openai/clip-vit-large-patch14"
    """CLIP for the filter: a transformers folder or a hub name."""
    resolution: int = Field(default=512, ge=8)
    samples_per_instruction: int = Field(default=8, ge=1)
    """Pairs drawn for each instruction, each with its own seed, guidance and shared attention."""
    keep_per_instruction: int = Field(default=4, ge=1)
    """The best of them by `clip_direction` that are kept."""
    num_inference_steps: int = Field(default=50, ge=1)
    schedule: Literal["ddim", "euler_ancestral", "dpm_solver++"] = "ddim"
    """How the noise is taken out: DDIM, k-diffusion's Euler-ancestral (InstructPix2Pix, 100 steps), or DPM-Solver++
    (about 25 steps)."""
    guidance_scale: tuple[float, float] = (7.5, 15.0)
    """Least and greatest classifier-free guidance scale, drawn uniformly for each sample."""
    shared_attention: tuple[float, float] = (0.1, 0.9)
    """Least and greatest share of the steps in which the edited picture takes the source's attention, drawn for each
    sample; the spans below are for Google's kinds of sharing, and the same draw places a sample in each."""
    sharing: Literal["self", "cross_and_self", "replace", "refine", "replace_or_refine"] = "self"
    """What is shared: self-attention maps (InstructPix2Pix), or cross-attention maps of kept words as well; or Google's
    Prompt-to-Prompt: word swap (drops pairs whose captions differ in their number of words), refinement, or word swap
    where it can be and else refinement."""
    self_replace_steps: tuple[float, float] = (0.4, 0.4)
    """Google's: the share of the steps in which self-attention is the source's, in layers of `control_side`."""
    cross_replace_steps: tuple[float, float] = (0.8, 0.8)
    """Google's: the share of the steps in which words look where the source's look."""
    changed_replace_steps: tuple[float, float] | None = None
    """Google's: the same for the changed words alone; None is `cross_replace_steps`."""
    changed_scale: float = 1.0
    """Google's re-weighting: what the changed words' cross-attention is multiplied by in those steps; 1 is none."""
    local_blend: float = Field(default=0.0, ge=0, lt=1)
    """Local blending: the edited picture is the source's where neither looks at a changed word by more than this
    share of the most (Google's: 0.3); 0 is none. Not for "self", which looks at no words."""
    local_blend_start: float = Field(default=0.2, ge=0, le=1)
    """The share of the steps before local blending begins."""
    control_side: float = Field(default=0.25, gt=0, le=1)
    """Side, over the latent's, of the largest layers whose self-attention Google's kinds replace, and of the layers
    whose words local blending looks at (Google's: 16 of 64)."""
    least_clip_image: float = 0.7
    least_clip_direction: float = 0.2
    least_clip_source_text: float = 0.2
    least_clip_edited_text: float = 0.2
    least_contrast: float = Field(default=5.0, ge=0)
    """Least contrast of a picture, the standard deviation of its most varied colour channel (0..127.5): pictures that
    a decoder or a safety checker left black have none. At 0 all pass."""
    least_difference: float = Field(default=8.0, ge=0)
    """Pictures of which no cell of a 16x16 grid differs by this in mean colour (0..255) show the same: an edit that
    changed nothing, or a second pair of an instruction that shows what a better one shows. At 0 all pass."""
    safety_checker: str = ""
    """A Stable Diffusion safety checker (a folder or a hub name, with safetensors, for example
    CompVis/stable-diffusion-safety-checker) that sees both pictures of each pair that passes; "" is none."""
    cycle: bool = True
    """Add the cycle-consistency twin (edited -> source, by the inverse instruction) of each kept pair."""
    prompts: Literal["generated", "shapes"] = "generated"
    """Source pictures of held-out prompts: from the base model, or drawn by the embedded domain."""
    precision: Precision = "auto"
    """Numbers that pictures are sampled in; "auto" is fp16 on a GPU, bf16 on a CPU with a matrix unit for it, else
    fp32."""
    least_kept: float = Field(default=0.0, ge=0, le=1)
    """Share of the drawn pairs, twins among them, that must be kept: with fewer the stage fails, and says why they were
    dropped. At 0 it fails where none is kept."""
    seed: int = 0
    inspection: Inspection = Inspection()
    resources: Resources = Resources(batch_size=4)

    @model_validator(mode="after")
    def _ranges(self) -> "Pairs":
        shares = ("shared_attention", "self_replace_steps", "cross_replace_steps", "changed_replace_steps")
        for name in ("guidance_scale", *shares):
            least, most = getattr(self, name) or (0, 0)
            if least > most:
                raise ValueError(f"pairs.{name} is {least}..{most}: the least comes first")
        if self.local_blend and self.sharing == "self":
            raise ValueError(
                f"pairs.local_blend is {self.local_blend}, but sharing 'self' looks at no words: set it to 0"
            )
        return self


class Importing(Section):
    """Somebody else's pairs -> `pairs` and `prompts`, in place of `write_instructions` and `make_pairs`."""

    dataset: str = ""
    """A folder or file, on disk or s3://: an InstructPix2Pix folder (seeds.json), HIVE's training folder, JSONL, CSV or
    TSV files of picture paths, a Hugging Face dataset folder (Parquet, of `save_to_disk`, or pictures with
    metadata.jsonl or .csv), or WebDataset shards. It is known by the names, sizes and modification times (on S3: ETags)
    of its files."""
    split_name: str = "train"
    """Of a folder, only the files whose name or folder begins with this are read, so that nobody's test split is
    trained on; "" reads all of them. JSONL and CSV files of which none is named like a split are all read."""
    pictures: str = "."
    """Where the picture paths in rows begin, seen from the folder of the file that has them. "." looks there, in the
    dataset's folder and in its `images`."""
    least_kept: float = Field(default=0.0, ge=0, le=1)
    """The smallest share of the rows that has to be kept, else the import stops with the reasons."""
    prompts: str = ""
    """A JSONL or CSV file of instruction and source_img (HIVE's test.jsonl) whose prompts join the test split."""
    prompt_pictures: str = "evaluation"
    """Where the picture paths in `prompts` begin, seen from that file's own folder (HIVE's are in `evaluation`)."""
    rankings: str = ""
    """Somebody else's rankings of edits, from which `import_rankings` makes the table `imported_rankings`: a folder or
    file, on disk or s3://, or "shapes" for those of the embedded domain. Rewards and DPO learn from it beside the run's
    own rankings."""
    num_pairs: int = Field(default=10_000_000, ge=1)
    """The most pairs to take."""
    cycle: bool = True
    """Add the cycle-consistency twin of each pair whose inverse the dataset gives (HQ-Edit's inverse_edit)."""
    drop_swapped: bool = True
    """Drop a pair whose captions say that its pictures are the other way round: whose clip_direction is below 0."""
    rank_rate: float = Field(default=0.05, ge=0, lt=1)
    """Share of sources held out as prompts for people to rank."""
    test_rate: float = Field(default=0.05, ge=0, lt=1)
    """Share of sources held out as prompts for the evaluation."""
    clip: str = "openai/clip-vit-large-patch14"
    """CLIP that measures the pairs: a transformers folder or a hub name."""
    resources: Resources = Resources()


class Exporting(Section):
    """This run's pairs -> a dataset for other programs."""

    table: Literal["pairs", "scored_pairs"] = "pairs"
    """Which pairs: as they are, or with their rewards, weights and quality phrases."""
    format: Literal["parquet", "instruct_pix2pix", "webdataset"] = "parquet"
    """A Hugging Face folder that diffusers' train_instruct_pix2pix.py trains from, InstructPix2Pix's folders (JPEG, the
    weights left out), or WebDataset shards."""
    folder: str = ""
    """Where to write, on disk or s3://; "" is exports/<format> in the run folder."""
    shard_megabytes: int = Field(default=256, ge=1)
    """About how large a Parquet file or a shard becomes; also what is held in memory."""


class Watching(Section):
    """How a training is watched. Changes no weights."""

    tracker: Literal["tensorboard", "wandb", "mlflow", "none"] = "tensorboard"
    """Who draws the curves; <run>/metrics/<name>.jsonl is always written. W&B and MLflow have to be installed, and find
    their server and key as ever (WANDB_API_KEY, MLFLOW_TRACKING_URI, ...)."""
    project: str = "hive-ray"
    """The W&B project or the MLflow experiment."""
    validation_images: int | None = Field(default=None, ge=1)
    """Held-out rows are looked at every so many images, and at the start and the end; None is each quarter."""
    num_previews: int = Field(default=4, ge=0)
    """Held-out rows whose edits are drawn then."""


class Recovery(Section):
    """What a training keeps and bears, so that it goes on. Changes no weights."""

    keep_last: int = Field(default=2, ge=1)
    """Checkpoints that are kept while it runs, the newest: more than one, since a file may get lost."""
    keep_best: int = Field(default=0, ge=0)
    """Checkpoints kept besides those: the ones of least validation loss, which is then measured before each."""
    max_failures: int = Field(default=2, ge=0)
    """Times that it goes on by itself after a worker has died; announced preemptions of nodes do not count."""
    wait_minutes: float = Field(default=30.0, gt=0)
    """Minutes that it waits in all for nodes that join late, before it stops with a message."""
    most_bad_rows: float = Field(default=0.01, ge=0, le=1)
    """Share of a table's rows that may be bad (a broken picture, say): they are named, skipped and counted; one more
    stops the run."""


class Training(Section):
    """How a model is fitted: shared by the editor and the reward model."""

    total_images: int = Field(ge=1)
    """Rows seen in all, over every worker; the last batch is whole."""
    batch_size: int = Field(ge=1)
    """Rows in one optimiser step, over every worker and every accumulation."""
    micro_batch_size: int = Field(ge=1)
    """Rows of one worker in one forward pass; `batch_size` is a multiple of it times the workers."""
    learning_rate: float = Field(gt=0)
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_images: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.01, ge=0)
    max_grad_norm: float = Field(default=1.0, ge=0)
    """The greatest norm of a gradient, a longer one is shortened to it; 0 is any (InstructPix2Pix)."""
    ema_decay: float = Field(default=0.9999, ge=0, lt=1)
    """Greatest decay of the averaged weights, min(ema_decay, (1 + n) / (10 + n)); 0 disables them."""
    ema_rule: Literal["step", "micro_batch", "diffusers"] = "step"
    """What the decay's n counts: optimiser steps; a worker's micro-batches, between which weights only move at a step
    (InstructPix2Pix); or steps after the first, which copies the weights (diffusers)."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    zero_stage: Literal[0, 1, 2, 3] = 2
    """What DeepSpeed parts among workers: nothing, the optimiser's state (1), gradients too (2), weights too (3)."""
    offload: Literal["none", "optimizer", "weights"] = "none"
    """What lies in the machine's memory instead of the GPU's: the optimiser's state, or the weights too (stage 3)."""
    compile: bool = False
    """Whether the model goes through torch.compile: minutes at the start, for faster steps (not at stage 3)."""
    checkpoint_images: int = Field(ge=1)
    """A checkpoint every so many images."""
    validation_rows: int = Field(default=0, ge=0)
    """Rows kept out of training, but never more than a tenth, whose loss is measured on the way; 0 keeps none."""
    seed: int = 0
    watching: Watching = Watching()
    workers: Resources = Resources()
    """`num_actors` is the number of training workers; `batch_size` is not used here."""
    recovery: Recovery = Recovery()

    @model_validator(mode="after")
    def _possible(self) -> "Training":
        least = {"none": 0, "optimizer": 1, "weights": 3}[self.offload]
        if self.zero_stage < least:
            raise ValueError(f"offload {self.offload!r} needs zero_stage {least} or more, not {self.zero_stage}")
        if self.compile and self.zero_stage == 3:
            raise ValueError("compile is true, but at zero_stage 3 the weights come and go: choose one of them")
        return self

    @model_validator(mode="after")
    def _divisible(self) -> "Training":
        step = self.micro_batch_size * self.workers.num_actors
        if self.batch_size % step:
            raise ValueError(
                f"batch_size is {self.batch_size}, which is not a multiple of micro_batch_size x workers = {step}"
            )
        return self


class EditorFile(SingleFile):
    """What a single-file checkpoint of an editor does not say."""

    instruction_suffix: str = ""
    """What an editor's instructions must end in: ", image quality is five out of five" for HIVE's conditional ones."""


class Dpo(Section):
    """Rankings -> a better editor with no reward model between (Diffusion-DPO, Wallace et al. 2023)."""

    beta: float = Field(default=5000.0, gt=0)
    """How dear it is to leave the start: the published 5000, which holds the number of timesteps."""
    pairs: Literal["any", "best_worst"] = "any"
    """Which two edits of a ranking are compared, drawn anew each time: any, or one of the best and one of the worst."""
    min_rank_gap: int = Field(default=1, ge=1)
    """Compare edits that are at least this many ranks apart, counted without gaps (1, 2, 2, 5 are three ranks). A
    ranking that has no such pair is left out."""
    timesteps: tuple[float, float] = (0.0, 1.0)
    """Least and greatest share of the noise schedule to draw timesteps from: (0.3, 1) draws 300 to 999 of 1000."""
    safeguard: float = Field(default=0.0, ge=0, le=1)
    """How far the gradient of the rejected edit's error is scaled down so that the chosen edit's error does not rise
    (Diffusion-SDPO, Fu et al. 2025): 0 is not at all, 1 as published, between them a mean of both."""
    safeguard_margin: float = Field(default=0.0, ge=0, le=1)
    """Share of the fall of the chosen edit's error that the safeguard keeps: mu in Diffusion-SDPO, whose Stable
    Diffusion 1.5 has 0.9. At 0 the error only does not rise."""
    imported_rankings: bool = True
    """Also learn from imported rankings and thumbs in the first round. They are of other editors' edits, and teach an
    editor less than those of its own (docs/results.md)."""
    shuffled: bool = False
    """Shuffle the ranks of each ranking: a control that learns nothing from people. The arm `shuffled` sets it."""
    tie_threshold: float = Field(default=1.0, ge=1)
    """How near two edits seem equal (Rao and Kupper 1967): 1 is never, as published; at 3 half of equally good edits
    tie (Chen et al. 2024), and ties hold the editor to its start."""
    training: Training = Training(
        total_images=256 * 250, batch_size=256, micro_batch_size=8, learning_rate=2.56e-6, warmup_images=256 * 62,
        ema_decay=0.0, checkpoint_images=256 * 50, workers=Resources(num_actors=8, num_cpus=4), precision="bf16",
    )  # fmt: skip
    """A row is a ranking, of which it sees one comparison. The published rate is 1e-8 times the batch size."""

    @model_validator(mode="after")
    def _span(self) -> "Dpo":
        least, most = self.timesteps
        if not 0 <= least < most <= 1:
            raise ValueError(
                f"editor.dpo.timesteps is {least}..{most}: give two shares of the schedule in 0..1, the least first"
            )
        return self


class Nft(Section):
    """Scored candidates -> a better editor (DiffusionNFT, Zheng et al. 2025)."""

    beta: float = Field(default=1.0, gt=0)
    """How far the implicit policies lie from the start; 1 / beta is the strength of the guidance that is learned (the
    paper's 1 and 0.1)."""
    training: Training = Training(
        total_images=256 * 250, batch_size=256, micro_batch_size=8, learning_rate=1e-5, warmup_images=256 * 25,
        ema_decay=0.0, checkpoint_images=256 * 50, workers=Resources(num_actors=8, num_cpus=4), precision="bf16",
    )  # fmt: skip
    """A row is one edit."""


class Preview(Section):
    """How the edits are drawn that a training shows on the way. Changes no weights."""

    num_inference_steps: int = Field(default=20, ge=1)
    guidance_scale: float = 7.5
    image_guidance_scale: float = 1.5


SUMMABLE_ARMS = ("weighted", "dpo", "nft", "rejection")
"""Arms whose editors hear and see the same as their start, so that what they changed of it can be added up."""
FEEDBACK_ARMS = ("scored", "conditional", "level", *SUMMABLE_ARMS)


def split_arm(name: str, alone: Sequence[str]) -> list[str]:
    """The arms that a name such as dpo+rejection adds up, or the one that it names.

    alone: the arms that may stand alone; SUMMABLE_ARMS may be added up. ValueError for any other, and for one twice.
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
    """What supervised fine-tuning starts from: a text-to-image or an editor folder, a hub name, or a single file (.ckpt
    or .safetensors; InstructPix2Pix's and HIVE's released ones are such)."""
    single_file: EditorFile = EditorFile()
    resolution: int = Field(default=256, ge=8)
    condition_dropout: float = Field(default=0.05, ge=0, le=1 / 3)
    """Rate of dropping the text alone, the image alone, and both (one uniform draw a row)."""
    min_snr_gamma: float = Field(default=0.0, ge=0)
    """Min-SNR weighting of the loss (Hang et al. 2023); 0 is none."""
    train_text_encoder: bool = False
    lora_rank: int = Field(default=0, ge=0)
    """Train adapters of this rank (LoRA) in place of the weights; 0 trains the weights."""
    lora_alpha: float = Field(default=0.0, ge=0)
    """What an adapter says is multiplied by lora_alpha / lora_rank; 0 is by 1."""
    lora_targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    """Ends of the names of the U-Net's layers that have adapters; a trained text encoder's are its projections."""
    level_rate_factor: float = Field(default=100.0, gt=0)
    """For the arm `level`: times the learning rate for the level embedding, which starts at zero."""
    level_guidance_scale: float = Field(default=0.0, ge=0)
    """For the arm `level`: guidance from the worst level to the best when editing, kept in the card. It costs one more
    evaluation a step; 0 disables it."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a third more time."""
    flip: bool = True
    """Mirror both pictures of half of the pairs, unless the instruction says left or right."""
    crop: Literal["none", "center", "random"] = "none"
    """What is seen of a pair's pictures: all, the aspect ratio ignored (InstructPix2Pix), or the same square of the
    short side's length of both, from the middle or from anywhere."""
    latents: Literal["none", "fp32", "fp16"] = "none"
    """Whether the pairs' latents are encoded once, for every epoch and arm, into the table `latents`, and in which
    precision; "none" encodes the pictures again in every step."""
    preview: Preview = Preview()
    sft: Training
    finetune: Training
    dpo: Dpo = Dpo()
    nft: Nft = Nft()
    arm: str = "scored"
    """What the pipeline's editor `finetuned` learns from: pairs as `scoring.shaping` says ("scored"), in one of its
    ways ("conditional", "weighted", "level"), rankings ("dpo"), its own scored edits ("nft"), or the best of them
    ("rejection"). "dpo+rejection" adds up what each changed of the same start; weighted and nft can be added, too."""
    resources: Resources = Resources()
    """What encoding latents may take; training has its own."""

    @field_validator("arm")
    @classmethod
    def _known_arm(cls, arm: str) -> str:
        if arm == "weighted_dpo":
            raise ValueError("editor.arm 'weighted_dpo' is gone: 'weighted+dpo' adds up what both change")
        split_arm(arm, FEEDBACK_ARMS)
        return arm

    @model_validator(mode="after")
    def _encoded_once(self) -> "Editor":
        if self.crop == "random" and self.latents != "none":
            raise ValueError(
                f"editor.crop 'random' sees another square each time, but editor.latents {self.latents!r} encodes "
                "each picture once: set crop to 'center' or 'none', or latents to 'none'"
            )
        return self


class Averaging(Section):
    """Editors -> one with the mean of their weights (model soups, Wortsman et al. 2022)."""

    editors: tuple[str, ...] = ()
    """Names under editors/, two or more of the same start."""
    name: str = "average"
    """The name under editors/ of their mean."""


class Candidates(Section):
    """Prompts -> several edits each, for people to rank."""

    num_edits: int = Field(default=4, ge=2, le=9)
    num_inference_steps: int = Field(default=50, ge=1)
    guidance_scale: tuple[float, float] = (7.5, 7.5)
    """Least and greatest guidance_scale, drawn for each edit."""
    image_guidance_scale: tuple[float, float] = (1.5, 1.5)
    """Least and greatest image_guidance_scale, drawn for each edit; 1 is none."""
    num_prompts: int = Field(default=4000, ge=1)
    """The most prompts of the rank split that are sampled."""
    precision: Precision = "auto"
    """As `pairs.precision`."""
    least_kept: float = Field(default=0.0, ge=0, le=1)
    """Share of the prompts that must get edits, as `pairs.least_kept`."""
    seed: int = 0
    resources: Resources = Resources(batch_size=8)


class CandidateScoring(Section):
    """Candidates -> scored candidates for the arms `nft` and `rejection`, and the reward model's rankings for `dpo`."""

    judge: Literal["reward", "people"] = "reward"
    """Who says how good an edit is for `nft`: the run's reward model, or people's rankings of these edits (their mean
    rank). People rank no unguided edits, so `rejection` always takes the reward model."""
    clip: float = Field(default=1.0, gt=0)
    """For `nft`: by how many standard deviations the reward of an edit that is certainly optimal lies above the mean of
    its prompt (DiffusionNFT's Z)."""
    least_advantage: float = 0.5
    """For `rejection`: by how many standard deviations the best edit must lie above the mean of its prompt."""
    ranked_rate: float = Field(default=0.0, ge=0, le=1)
    """For `dpo`: share of the prompts whose edits the reward model ranks beside people (AI feedback, Bai et al. 2022).
    It is those on which its rewards differ most; 0 is none."""
    least_kept: float = Field(default=0.0, ge=0, le=1)
    """Share of the edits that must get a reward, as `pairs.least_kept`."""
    resources: Resources = Resources(batch_size=8)


class Choosing(Section):
    """Candidates -> the prompts that people rank, in the order in which they rank them."""

    num_ranked: int = Field(default=0, ge=0)
    """Prompts that are chosen. 0 chooses all candidates, so that only their order changes."""
    by: Literal["spread", "disagreement", "both", "random"] = "spread"
    """How: by how far a prompt's edits differ in the editor's latents, by how unsure the round's reward model is of
    their order (alone it also prefers edits that look the same), by the mean of both ranks, or at random."""
    random_rate: float = Field(default=0.1, ge=0, le=1)
    """Share of `num_ranked` that is drawn at random from the other prompts. At 0 no share of all prompts can be
    estimated from the chosen ones."""
    least_kind_rate: float = Field(default=0.5, ge=0, le=1)
    """Share of its proportional part of the places that each kind of edit gets at least. A kind is the first word of
    the instruction."""
    seed: int = 0


class Rankings(Section):
    """Candidates -> one person's order of each prompt's edits."""

    annotator: Literal["shapes", "people"] = "people"
    """Who ranks: simulated annotators of the embedded domain, or people (a file of their rankings)."""
    annotators_per_prompt: int = Field(default=1, ge=1)
    num_annotators: int = Field(default=0, ge=0)
    """For "shapes": how many people there are, of whom each prompt has `annotators_per_prompt`, drawn at random. 0 is
    as many as each prompt has."""
    annotations: str = ""
    """For "people": the JSONL file that the annotation page exports; "" is annotations.jsonl in the run folder, where
    `export_annotations` writes it."""
    least_kept: float = Field(default=0.5, ge=0, le=1)
    """Share of that file's lines that must fit the candidates: with fewer, it is the file of another run, and the stage
    stops."""
    thumbs: str = ""
    """Database that takes the served page's thumbs (its `feedback`), as `annotation.database`: thumbs up and down for
    edits of one picture by one instruction become rankings. Each round takes those that there are; "" takes none."""
    seed: int = 0

    @model_validator(mode="after")
    def _enough_people(self) -> "Rankings":
        if 0 < self.num_annotators < self.annotators_per_prompt:
            raise ValueError(
                f"rankings.num_annotators is {self.num_annotators}, but each prompt wants {self.annotators_per_prompt} "
                "different people: raise it, or lower rankings.annotators_per_prompt"
            )
        return self


class Annotation(Section):
    """The page on which people rank candidates, or compare two editors (`make annotate`)."""

    mode: Literal["rank", "study"] = "rank"
    """Edits of one prompt in order, or two editors side by side."""
    candidates: str = "candidates"
    """Table of the run that is ranked."""
    compared: tuple[str, str] = ("evaluation/sft", "evaluation/finetuned")
    """For "study": the tables of the two editors' edits; win and loss are the second one's."""
    num_tasks: int = Field(default=100_000, ge=1)
    """The most prompts that are taken from them."""
    people_per_task: int = Field(default=2, ge=1)
    """Different people who do each task."""
    lease_minutes: float = Field(default=15.0, gt=0)
    """How long a task waits for its person, after the page was last seen open, before somebody else gets it."""
    gold: str = "automatic"
    """Tasks whose answer is known: "automatic" (one edit is replaced by the source, or by another prompt's picture), a
    JSONL file of prompt_id, better and worse (edit ids), or "" for none."""
    gold_rate: float = Field(default=0.05, ge=0, lt=1)
    """Share of the handed out tasks whose answer is known."""
    least_known: float = Field(default=0.7, ge=0, le=1)
    """A person who gets a smaller share of those right is flagged."""
    least_golds: int = Field(default=4, ge=1)
    """Answers to such tasks before anybody is flagged."""
    leave_out_flagged: bool = False
    """Whether `export_annotations` leaves out the answers of flagged people."""
    repeat_rate: float = Field(default=0.05, ge=0, lt=1)
    """Share of tasks that a person gets a second time, to see how far they agree with themselves."""
    repeat_after: int = Field(default=20, ge=1)
    """Other tasks that lie between."""
    database: str = ""
    """Where people and answers are: sqlite:///path or postgresql://user:password@host/name; "" is annotation.sqlite in
    a run folder on this disk."""
    cache_megabytes: int = Field(default=512, ge=1)
    """Pictures that the server keeps in memory."""

    @model_validator(mode="after")
    def _possible(self) -> "Annotation":
        if self.gold_rate + self.repeat_rate >= 1:
            raise ValueError(f"gold_rate + repeat_rate is {self.gold_rate + self.repeat_rate:g}; leave room for work")
        return self


class LearningCurve(Section):
    """How accurate the reward model is by the number of rankings that it learns from (`reward_curve`). Changes no
    weights of the run's own reward model."""

    shares: tuple[float, ...] = Field(default=(0.1, 0.25, 0.5, 1.0), min_length=1)
    """Shares of the training prompts whose rankings are learned from, each among those of the next; all see as many
    images (`reward.training`). 1 is the run's own reward model."""

    @field_validator("shares")
    @classmethod
    def _ascending(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        if list(shares) != sorted(set(shares)) or not 0 < shares[0] <= shares[-1] <= 1:
            raise ValueError(f"reward.curve.shares is {shares}: give ascending numbers above 0 and up to 1")
        return shares


ErrorCondition = Literal["instruction", "source", "nothing"]


class DenoisingError(Section):
    """The editor's own denoising errors of an edit, for `reward.features`. The editor is that of `sft` in every round,
    so that a reward means the same in all of them."""

    levels: tuple[int, ...] = Field(default=(250, 450, 650), min_length=1)
    """Timesteps at which edits are noised; Stable Diffusion has 0 to 999."""
    draws: int = Field(default=3, ge=1)
    """Draws of noise at each level, the same ones for every edit; an error is their mean. Another level tells as much
    as another draw, and costs as much."""
    conditions: tuple[ErrorCondition, ...] = ("instruction", "source", "nothing")
    """What the editor is given, a feature each: source and instruction, the source alone, neither. The first tells most
    of which edit of a prompt is better; the others help to tell an edit of one prompt from that of another."""
    log: bool = False
    """Whether a feature is the logarithm of the error: then a small error that doubles says as much as a great one."""
    clip_image: bool = False
    """Whether the similarity of an edit to its source by the CLIP of `evaluation.clip` is one more feature. It needs no
    caption, and says what was kept."""
    ridge: float = Field(default=1000.0, gt=0)
    """How firmly the head holds to the form of what it believes before any ranking: one weight for the mean error under
    each condition, one for CLIP's similarity, one for BLIP's reward. It is the precision of corrections to these, for
    features of spread 1."""
    learned_rate: float = Field(default=1.0, gt=0, le=1)
    """Share of the prompts that are not held out to whose rankings the head is fitted. It has few numbers to learn, and
    edits of the other prompts are not measured. Where it is less than 1, BLIP is trained on the other prompts, so that
    the head sees how far BLIP can be trusted on what it does not know."""
    train_blip: bool = True
    """For "both": whether BLIP is trained on the rankings first, or is `reward.start` as it is. Where `learned_rate` is
    1 the head learns from the same rankings, and trusts a BLIP too much that knows them by heart."""
    precision: Precision = "auto"
    """As `pairs.precision`."""

    @field_validator("levels")
    @classmethod
    def _different(cls, levels: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(levels)) < len(levels) or min(levels) < 0:
            raise ValueError(f"reward.denoising_error.levels is {levels}: give different timesteps from 0")
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
    """What the reward model sees of an edit: its picture, through BLIP; the editor's own denoising errors, through a
    linear head; or both."""
    denoising_error: DenoisingError = DenoisingError()

    start: str = "Salesforce/blip-itm-base-coco"
    """BLIP weights to start from (folder or hub name), or "shapes" for a small one from nothing."""
    tokenizer: str = "Salesforce/blip-itm-base-coco"
    """Tokenizer of the text: a folder or hub name; a diffusers folder's tokenizer is found by itself."""
    resolution: int = Field(default=224, ge=8)
    max_tokens: int = Field(default=35, ge=8)
    frozen_rate: float = Field(default=0.0, ge=0, le=1)
    """Share of the encoder layers, from the bottom, that stay as they are (ImageReward: 0.7)."""
    loss: Literal["plackett_luce", "bradley_terry", "rao_kupper"] = "plackett_luce"
    """How likely people's ranks are by the rewards: as orders of all edits of a prompt, as preferences between two
    (ImageReward), or as comparisons of two in which a tie says that they are near (`tie_threshold`)."""
    tie_threshold: float = Field(default=2.0, gt=1)
    """For "rao_kupper": how near two edits seem equal; of equally good ones (t - 1) / (t + 1) tie."""
    temperature: float = Field(default=1.0, gt=0)
    """Divides rewards in the loss."""
    held_out_rate: float = Field(default=0.15, ge=0, lt=1)
    """Share of ranked prompts kept to measure the reward model's accuracy."""
    training: Training
    curve: LearningCurve = LearningCurve()
    resources: Resources = Resources(batch_size=32)


JUDGES = ("model", "clip_direction", "clip_image", "clip", "openai")
"""Names of judges; any other is a callable's, module:function."""


class VisionJudge(Section):
    """A vision model behind an OpenAI-compatible endpoint that scores edits, as EditScore does."""

    llm: str = "gpt-4o-mini"
    """Model name; its address and key come from OPENAI_BASE_URL and OPENAI_API_KEY."""
    score_range: int = Field(default=25, ge=1)
    """Scores are asked for from 0 to this."""
    num_passes: int = Field(default=1, ge=1)
    """How many times each edit is scored, with another seed; the reward is the mean."""
    temperature: float | None = Field(default=0.7, ge=0)
    """Sampling temperature of the answers; None sends none. It is also left out for a model that refuses it."""
    send_seed: bool = True
    """As `instructions.send_seed`; without one a model may give each pass the same scores."""
    max_attempts: int = Field(default=3, ge=1)
    """How many answers without usable scores a pass takes, each with another seed, before the edit goes unscored."""
    structure: Literal["json_schema", "json_object", "none"] = "json_schema"
    """What answers are held to, as `instructions.structure`."""
    seed: int = 0
    spending: Spending = Spending()

    @model_validator(mode="after")
    def _one_at_a_time(self) -> "VisionJudge":
        if self.spending.batch:
            raise ValueError("scoring.vision asks one edit at a time, not through the Batch API: unset spending.batch")
        return self


class Scoring(Section):
    """Pairs and a judge -> scored pairs: what feedback means for training."""

    judges: tuple[str, ...] = Field(default=("model",), min_length=1)
    """Whose reward it is: "model" (the run's reward model), "clip_direction", "clip_image", "clip" (their sum),
    "openai" (a vision model, see `vision`), or "module:function", a callable of yours: rows of pairs -> numbers."""
    combine: Literal["mean", "min"] = "mean"
    """What several judges' rewards become, each standardised over the table: their mean, or the least."""
    clip: str = "openai/clip-vit-large-patch14"
    """CLIP of the clip judges: a transformers folder or a hub name."""
    vision: VisionJudge = VisionJudge()
    """For the "openai" judge."""
    shaping: Literal["conditional", "weighted", "level"] = "conditional"
    """HIVE's two ways, the quality phrase in the instruction or exp(reward / beta) as the loss weight; or "level", a
    learned embedding of the quality level beside the instruction (Multi-Reward, Gu et al. 2024)."""
    beta: float = Field(default=1.0, gt=0)
    normalize: Literal["none", "mean1", "clip"] = "mean1"
    """What is done to the weights: nothing (HIVE), mean 1, or mean 1 with a greatest weight of 5."""
    levels: Literal["quantile", "equal_width", "given"] = "quantile"
    """Where the edges of the five quality levels lie: equally many pairs in each, the span of rewards cut into equal
    parts, or at `edges`."""
    edges: tuple[float, float, float, float] | None = None
    """For "given": the least rewards of levels two to five, ascending; with a `baseline`, of what it leaves."""
    baseline: Literal["none", "words"] = "none"
    """What is taken off a reward before it is shaped: nothing (HIVE), or what the instruction's words lead to expect,
    so that "five out of five" does not mean "an easy edit"."""
    phrase: str = ", image quality is {level} out of five"
    """What is appended to the instruction; `{level}` becomes one..five."""
    least_kept: float = Field(default=0.0, ge=0, le=1)
    """Least share of the pairs that get a reward; with less the stage fails with the reasons, and its table is not kept
    as finished. At 0 it fails where no pair gets one."""
    resources: Resources = Resources(batch_size=32)

    @field_validator("judges")
    @classmethod
    def _known_and_different(cls, judges: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in judges if name not in JUDGES and not re.fullmatch(r"[\w.]+:\w+", name)]
        if unknown or len(set(judges)) < len(judges):
            raise ValueError(
                f"judges {judges}: each is one of {', '.join(JUDGES)} or names a callable as module:function, once"
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
    """Editors on held-out prompts -> measures and the report."""

    editors: tuple[str, ...] = ("sft", "finetuned")
    """Names under editors/ that are compared; the baseline is `control` if it is among them, else the first. A later
    round puts `current`, the editor that it started from, before them."""
    num_prompts: int = Field(default=200, ge=1)
    num_inference_steps: int = Field(default=50, ge=1)
    guidance_scale: float = 7.5
    image_guidance_scale: float = 1.5
    """The scales at which editors are compared."""
    best_of: int = Field(default=1, ge=1)
    """Edits drawn of each prompt, all of which count in every measure. Above 1, each editor but the controls has one
    more row: the edit that the reward model likes best."""
    precision: Precision = "auto"
    """As `pairs.precision`, of the edits; what measures them calculates in fp32."""
    curve: tuple[float, ...] = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2)
    """Image guidance scales of the CLIP trade-off curve."""
    curve_prompts: int = Field(default=100, ge=0)
    """Prompts used for the curve; 0 draws none."""
    clip: str = "openai/clip-vit-large-patch14"
    judge: Literal["none", "shapes"] = "none"
    """Who knows the right answer: nobody, or the embedded domain's judge."""
    bootstrap: int = Field(default=1000, ge=1)
    """Resamples of the prompts behind each interval."""
    seed: int = 0
    resources: Resources = Resources(batch_size=8)


class Config(Section):
    """A whole run."""

    def changed(self, changes: Mapping[str, Mapping[str, Any]]) -> "Config":
        """These settings with others in place of some, by section and name."""
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
