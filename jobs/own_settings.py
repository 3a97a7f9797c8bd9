"""Settings of the jobs that belong to no run, apart from what these jobs work with: help comes at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from hive_ray.config import Section, SingleFile
from hive_ray.presets import SHAPES_WEIGHTS

Part = Literal["feedback", "weak", "curve", "ablations"]
PARTS: tuple[Part, ...] = ("feedback", "weak", "curve", "ablations")


class Conversion(SingleFile):
    """What is converted, and where to."""

    checkpoint: str
    """The file, on disk or s3://; or a folder or hub name in the diffusers layout, which gets a card."""
    folder: str
    """The editor folder to write, on disk or s3://; what was there is replaced."""


class Comparison(Section):
    """Which runs are compared, and how that is shown."""

    runs: tyro.conf.Positional[tuple[str, str]]
    """Two run folders, or later rounds of them: local paths or s3:// addresses."""
    html: str = ""
    """Write a page there, on disk or s3://, too."""
    as_json: bool = False
    """Print one JSON object in place of the table."""


@dataclass(frozen=True)
class Study:
    """How long the study is; all else is the shapes preset's."""

    run: str = "runs/study"
    seeds: tuple[int, ...] = (102, 103, 104)
    """Of every stage that draws, and so of the prompts. Nothing was ever chosen on the prompts of these."""
    parts: tuple[Part, ...] = PARTS
    """What is made. The document tells of all that is finished."""
    num_prompts: int = 150
    """Held-out prompts of each seed that all editors are compared on."""
    best_of: int = 4
    """Edits of each prompt, all of which count. Above 1, the one of them that the reward model likes best is told of
    `sft`, `dpo` and `dpo+rejection`, too."""
    arms: tuple[str, ...] = ("control", "dpo", "rejection", "dpo+rejection")
    """What is trained from `sft` in the feedback part, or added up. The second round needs dpo+rejection."""
    first_seed_arms: tuple[str, ...] = ("weighted", "shuffled", "nft")
    """What the first seed alone has besides."""
    second_round_prompts: int = 1_600
    """Prompts that the second round's editor edits; the first round's are as many as the preset's, and among them."""
    second_round_ranked: int = 540
    """Prompts of these that people rank."""
    weak_arms: tuple[str, ...] = ("control", "weighted", "conditional", "level", "conditional_sft")
    """What is trained from the weak start, and `conditional_sft`, which takes its place: it hears the phrase from the
    beginning."""
    weak_sft_images: int = 6_400
    """Rows that the weak start sees."""
    weak_images: int = 4_800
    """Rows that each arm from the weak start sees."""
    curve: tuple[int, ...] = (100, 500)
    """Numbers of shipped rankings of the learning curve, before all of them."""
    rebuild: bool = False
    """Delete and make again what other settings made, instead of refusing."""
    out: Path = Path("docs/study.md")
    """Its charts lie beside it."""


@dataclass(frozen=True)
class ShippedRankings:
    """How many rankings there are, and of what."""

    run: str = "runs/shapes-rankings"
    """Where the tables on the way lie."""
    seed: int = 1009
    """Of captions, edits and people: none of the quickstart's or the study's prompts are among them."""
    num_prompts: int = 6000
    """Prompts that are edited."""
    num_ranked: int = 2000
    """Prompts that people rank: those whose edits differ most, and a share at random."""
    people: int = 8
    """How many people there are. One of them ranks each prompt: two prompts teach more than two people do."""
    jpeg_quality: int = 90
    """Of the pictures, whose colours are not sampled down."""
    out: Path = SHAPES_WEIGHTS.parent / "rankings"


@dataclass(frozen=True)
class Pretraining:
    """Sizes of each part's training; the defaults made what is shipped."""

    out: Path = SHAPES_WEIGHTS
    work: Path = Path("runs/pretrain_shapes")
    autoencoder_steps: int = 4000
    draft_steps: tuple[int, ...] = (4500, 2000)
    draft_pool: int = 6000
    editing_steps: int = 6500
    editing_pool: int = 12_000
    phrase_steps: int = 800
    phrase_pool: int = 6000
    matching_pool: int = 8000
    clip_steps: int = 3000
    blip_steps: int = 1500
    threads: int = 2
    rebuild: bool = False
    """Make again what is there already."""
