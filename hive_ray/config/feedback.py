"""Settings of the stages from prompts to people's rankings."""

from typing import Literal

from pydantic import Field, model_validator

from hive_ray.config.section import Precision, Resources, Section


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
