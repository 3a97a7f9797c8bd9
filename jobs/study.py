"""What feedback adds: every arm, three seeds, written to docs/study.md with a figure.

sft       fine-tuned on pairs, from the shipped editor or (`--start base`) from the text-to-image base alone
control   sft, trained on the same pairs for as many images as the two arms with rewards see
conditional, weighted    sft, trained on as many scored pairs (HIVE's two ways)
dpo       sft, trained on the rankings themselves, with no reward model between (Diffusion-DPO)
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import tyro

from hive_ray import storage
from hive_ray.charts import line_chart
from hive_ray.config import Config, Instructions
from hive_ray.distributed.cluster import start_ray
from hive_ray.distributed.tables import read_rows
from hive_ray.evaluation.metrics import compare, summarize, trade_off_curve, win_rates
from hive_ray.presets import SHAPES_WEIGHTS, shapes
from hive_ray.schemas import EVALUATION, Rows
from jobs import evaluate_editor, pipeline, score_pairs, train_editor
from jobs.evaluate_editor import METRICS
from jobs.run import Run, in_one_line

SPARE = 1.1
"""Captions of the test split for each prompt that is wanted: how many fall into a split is a matter of chance."""
ARMS = ("sft", "control", "conditional", "weighted", "dpo")


@dataclass(frozen=True)
class Study:
    """How long the study is; what is not given is the quickstart's."""

    run: str = "runs/study"
    seeds: tuple[int, ...] = (0, 1, 2)
    start: Literal["editor", "base"] = "editor"
    """Where supervised fine-tuning starts; the base has never seen a source picture and needs many more images."""
    num_captions: int | None = None
    """Without those of the held-out prompts; shared between training and rankings as in the quickstart."""
    num_prompts: int = 600
    """Held-out prompts of each seed that the arms are compared on: more than the quickstart has, to tell more apart."""
    sft_images: int | None = None
    sft_learning_rate: float | None = None
    """From the base, more than the preset's, which is for an editor that is good already."""
    finetune_images: int | None = None
    """Rows that the control and the two arms with rewards see; `dpo` has its own number, of rankings."""
    out: Path = Path("docs/study.md")


def configured(study: Study, seed: int) -> Config:
    """The shapes preset with the study's sizes, and another seed in every stage that draws."""
    preset = shapes()
    instructions = with_test_captions(
        preset.instructions.model_copy(
            update={"seed": seed, "num_captions": study.num_captions or preset.instructions.num_captions}
        ),
        math.ceil(study.num_prompts * SPARE),
    )
    sft, finetune = (
        training.model_copy(update={"seed": seed, "total_images": images or training.total_images})
        for training, images in ((preset.editor.sft, study.sft_images), (preset.editor.finetune, study.finetune_images))
    )
    if study.sft_learning_rate:
        sft = sft.model_copy(update={"learning_rate": study.sft_learning_rate})
    dpo, nft = (
        section.model_copy(update={"training": section.training.model_copy(update={"seed": seed})})
        for section in (preset.editor.dpo, preset.editor.nft)
    )
    return preset.changed({
        "instructions": dict(instructions),
        "pairs": {"seed": seed},
        "editor": {
            "start": str(SHAPES_WEIGHTS / study.start), "sft": sft, "finetune": finetune, "dpo": dpo, "nft": nft
        },
        "candidates": {"seed": seed},
        "choosing": {"seed": seed},
        "rankings": {"seed": seed},
        "reward": {"training": preset.reward.training.model_copy(update={"seed": seed})},
        "evaluation": {"seed": seed, "editors": ARMS, "num_prompts": study.num_prompts},
    })  # fmt: skip


def with_test_captions(settings: Instructions, count: int) -> Instructions:
    """About `count` captions in the test split, and the others' splits as large as they were."""
    captions = round(settings.num_captions * (1 - settings.test_rate)) + count
    rates = {
        "rank_rate": settings.rank_rate * settings.num_captions / captions,
        "test_rate": count / captions,
    }
    return settings.model_copy(update={"num_captions": captions, **rates})


def run_seed(run: Run) -> None:
    """Every arm of one seed, evaluated."""
    for stage in pipeline.TO_REWARD:
        stage(run)
    for shaping in ("conditional", "weighted"):
        score_pairs.build(run, shaping)
    for arm in ARMS[1:]:
        train_editor.build(run, arm)
    evaluate_editor.build(run)


def findings(runs: list[Run]) -> str:
    """Markdown: every arm over all seeds' prompts with intervals, each seed alone; differences and win rates against
    the control and against `sft`."""
    seeds = [
        [row for name in ARMS for row in evaluate_editor.without_pictures(run.path(f"evaluation/{name}"))]
        for run in runs
    ]
    rows = list(chain.from_iterable(seeds))
    lines = means(seeds, METRICS)
    for other in ("control", "sft"):
        lines += ["", line([f"minus {other}", *METRICS]), line(["---"] * (len(METRICS) + 1))]
        for name, gaps in compare(rows, other, METRICS).items():
            lines.append(line([name, *(f"{gap:+.3f}" for gap in gaps.values())]))
        lines += ["", line([f"against {other}", "win", "tie", "loss"]), line(["---"] * 4)]
        for name, rate in win_rates(rows, other, "overall", evaluate_editor.TIE_WITHIN).items():
            lines.append(line([name, *(f"{share:.1%}" for share in (rate.win, rate.tie, rate.loss))]))
    cards = [json.loads(storage.read_text(run.path("reward/card.json"))) for run in runs]
    after, before = (
        ", ".join(f"{card[name]['reward/accuracy']:.3f}" for card in cards)
        for name in ("held_out", "held_out_before_training")
    )
    lines += [
        "",
        "Preferences of held-out rankings that the reward model orders as the annotator did, seed by seed: "
        f"{after}; before it saw any ranking: {before}.",
    ]
    return "\n".join(lines)


def means(seeds: Sequence[Rows], metrics: Sequence[str]) -> list[str]:
    """A Markdown table of every editor over all seeds' prompts, with intervals, and its right edits seed by seed."""
    right = [{one.editor: one.metrics["right"].value for one in summarize(each, ("right",))} for each in seeds]
    lines = [line(["editor", *metrics, "right, seed by seed"]), line(["---"] * (len(metrics) + 2))]
    for one in summarize(list(chain.from_iterable(seeds)), metrics):
        by_seed = ", ".join(f"{each[one.editor]:.3f}" for each in right)
        lines.append(line([one.editor, *(f"{seen:.3f}" for seen in one.metrics.values()), by_seed]))
    return lines


def minutes_of(run: Run) -> float:
    """The time that the run's tables and models took, whenever they were made; later rounds have their own."""
    made = [name for name in storage.list_files(run.root) if name.endswith(("manifest.json", "made.json"))]
    own = [storage.join(run.root, name) for name in made if not name.startswith("rounds/")]
    return sum(json.loads(storage.read_text(address))["seconds"] for address in own) / 60


def line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def curve(runs: list[Run]) -> str:
    """The trade-off of every arm over all seeds, as SVG."""
    columns = ["editor", "image_guidance_scale", "clip_direction", "clip_image"]
    tables = [run.path(f"curves/{name}") for run in runs for name in ARMS]
    points = trade_off_curve([row for table in tables for row in read_rows(table, EVALUATION, columns)])
    lines = {name: [(one.clip_direction, one.clip_image) for one in points if one.editor == name] for name in ARMS}
    return line_chart(lines, across="CLIP direction", upwards="CLIP image", dots=True)


def main(study: Study) -> None:
    """Run every seed (finished parts are kept), and write the tables and the figure."""
    start_ray(workers_import=pipeline.WORKERS_IMPORT)
    runs = [
        Run(storage.join(storage.absolute(study.run), f"seed{seed}"), configured(study, seed), "rebuild")
        for seed in study.seeds
    ]
    for run in runs:
        run_seed(run)
    picture = study.out.with_suffix(".svg")
    text = (
        f"# Study\n\nMade by `jobs/study.py` (settings below) from the shipped {study.start}: "
        f"seeds {', '.join(map(str, study.seeds))}, {sum(map(minutes_of, runs)):.0f} minutes of work on "
        f"{os.cpu_count()} cores. Means over the prompts of all seeds, with 95 % bootstrap intervals by prompt.\n\n"
        f"{findings(runs)}\n\n"
        f"CLIP image against CLIP direction at image guidance scales 1.0 to 2.2:\n\n![]({picture.name})\n\n"
        f"Settings: `{json.dumps({key: value for key, value in vars(study).items() if key != 'out'})}`\n"
    )
    study.out.parent.mkdir(parents=True, exist_ok=True)
    picture.write_text(curve(runs))
    study.out.write_text(text)
    print(text)


if __name__ == "__main__":
    in_one_line(lambda: main(tyro.cli(Study)))
