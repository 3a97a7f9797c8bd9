"""What feedback adds: every arm, three seeds, from the text-to-image base alone, written to docs/study.md.

sft       fine-tuned on pairs
control   sft, trained on the same pairs for as many images as the arms below see
conditional, weighted    sft, trained on as many scored pairs (HIVE's two ways)
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from hive_ray import storage
from hive_ray.config import SHAPES_WEIGHTS, Config, shapes
from hive_ray.distributed.cluster import start_ray
from jobs import (
    collect_rankings,
    evaluate_editor,
    make_pairs,
    sample_candidates,
    score_pairs,
    train_editor,
    train_reward,
    write_instructions,
)
from jobs.run import Run

ARMS = ("sft", "control", "conditional", "weighted")


@dataclass(frozen=True)
class Study:
    """How long the study is; the defaults take about an hour on two cores for each seed."""

    run: str = "runs/study"
    seeds: tuple[int, ...] = (0, 1, 2)
    num_captions: int = 3000
    sft_images: int = 60_000
    finetune_images: int = 20_000
    out: Path = Path("docs/study.md")


def configured(study: Study, seed: int) -> Config:
    """The shapes preset from the base alone, with another seed in every stage that draws."""
    preset = shapes()
    sft, finetune = preset.editor.sft, preset.editor.finetune
    changes = {
        "instructions": {"seed": seed, "num_captions": study.num_captions},
        "pairs": {"seed": seed},
        "editor": {
            "start": str(SHAPES_WEIGHTS / "base"),
            "sft": sft.model_copy(update={"seed": seed, "total_images": study.sft_images, "learning_rate": 1e-3}),
            "finetune": finetune.model_copy(update={"seed": seed, "total_images": study.finetune_images}),
        },
        "candidates": {"seed": seed},
        "rankings": {"seed": seed},
        "reward": {"training": preset.reward.training.model_copy(update={"seed": seed})},
        "evaluation": {"seed": seed, "editors": ARMS},
    }
    sections = {name: getattr(preset, name).model_copy(update=update) for name, update in changes.items()}
    return preset.model_copy(update=sections)


def run_seed(run: Run) -> dict:
    """Every arm of one seed; the summary of its evaluation."""
    for stage in (write_instructions, make_pairs, train_editor, sample_candidates, collect_rankings, train_reward):
        stage.build(run)
    for shaping in ("conditional", "weighted"):
        score_pairs.build(run, shaping)
    for arm in ARMS[1:]:
        train_editor.build(run, arm)
    return evaluate_editor.build(run)


def table(summaries: list[dict]) -> str:
    """Markdown: each arm's mean over seeds by metric, with the least and greatest seed, and the mean win rates."""
    metrics = list(summaries[0]["editors"][0]["metrics"])
    lines = [f"| editor | {' | '.join(metrics)} |", f"|---|{'---|' * len(metrics)}"]
    for index, arm in enumerate(ARMS):
        cells = []
        for metric in metrics:
            values = [summary["editors"][index]["metrics"][metric]["value"] for summary in summaries]
            cells.append(f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    lines += ["", "| against control | win | tie | loss |", "|---|---|---|---|"]
    for arm in (arm for arm in ARMS if arm != "control"):
        rates = [summary["win_rates"][arm] for summary in summaries]
        means = [np.mean([rate[name] for rate in rates]) for name in ("win", "tie", "loss")]
        lines.append(f"| {arm} | {' | '.join(f'{mean:.1%}' for mean in means)} |")
    return "\n".join(lines)


def main(study: Study) -> None:
    """Run every seed (finished parts are kept) and write the table."""
    start_ray()
    started, summaries = time.monotonic(), []
    for seed in study.seeds:
        root = storage.join(storage.absolute(study.run), f"seed{seed}")
        summaries.append(run_seed(Run(root, configured(study, seed), "rebuild")))
    minutes = (time.monotonic() - started) / 60
    text = (
        f"# Study\n\nMade by `make study`: seeds {', '.join(map(str, study.seeds))}, {minutes:.0f} minutes."
        f" Mean over seeds, least and greatest seed in brackets.\n\n{table(summaries)}\n\n"
        f"Settings: `{json.dumps({key: value for key, value in vars(study).items() if key != 'out'})}`\n"
    )
    study.out.parent.mkdir(parents=True, exist_ok=True)
    study.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main(tyro.cli(Study))
