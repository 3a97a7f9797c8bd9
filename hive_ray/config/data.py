"""Settings of the stages from captions to pairs, and of datasets that come and go."""

from typing import Literal

from pydantic import Field, model_validator

from hive_ray.config.section import Precision, Resources, Section


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
