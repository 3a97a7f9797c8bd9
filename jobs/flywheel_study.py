"""What a second round adds, and what fewer rankings cost: over the study's seeds, written to docs/flywheel.md.

sft          fine-tuned on pairs; as in the study, whose finished runs are gone on from
round 1      sft, trained on pairs weighted by a reward model of the rankings of sft's edits (the study's `weighted`)
few          the same with the rankings of a tenth of the prompts
trained on   round 1, trained on as long as round 2, but by the rewards of round 1: what is not due to new feedback
round 2      round 1, trained on by a reward model of the rankings of both rounds
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from hive_ray import storage
from hive_ray.distributed.cluster import start_ray
from hive_ray.distributed.tables import count_rows, read_rows
from hive_ray.evaluation.metrics import compare, win_rates
from hive_ray.reward.objective import is_held_out, pairwise_accuracy
from hive_ray.reward.worth import scored
from hive_ray.schemas import RANKINGS, Rows
from jobs import evaluate_editor, pipeline, score_pairs, train_editor
from jobs.judging import load_reward
from jobs.run import SHARED, Run, in_one_line
from jobs.study import Study, configured, line, means, minutes_of
from jobs.train_reward import COLUMNS

METRICS = evaluate_editor.METRICS[:-1]  # each has a reward model of its own
ARM = "weighted"
COMPARED = (
    ("round 1", "sft"),
    ("few", "sft"),
    ("few", "round 1"),
    ("trained on", "round 1"),
    ("round 2", "round 1"),
    ("round 2", "trained on"),
    ("round 2", "sft"),
)
"""An editor, and what it is compared with."""


@dataclass(frozen=True)
class Flywheel(Study):
    """Which study's runs are gone on from: sizes as it was given them."""

    few: float = 0.1
    """Share of the ranked prompts that `few` has."""
    out: Path = Path("docs/flywheel.md")


def runs_of(study: Flywheel, seed: int) -> dict[str, Run]:
    """The runs of a seed by what they make: `round 1` is the study's own, the others lie in its folder rounds/."""
    first = Run(storage.join(storage.absolute(study.run), f"seed{seed}"), configured(study, seed), "rebuild")
    second, again = first.after(ARM), {name: first.path(name) for name in (f"scored_pairs_{ARM}", "reward")}
    return {
        "round 1": first,
        "few": replace(
            first,
            root=storage.join(first.root, "rounds", "1-few"),
            elsewhere={name: first.path(name) for name in SHARED},
        ),
        "trained on": replace(
            second, root=storage.join(first.root, "rounds", "2-trained-on"), elsewhere={**second.elsewhere, **again}
        ),
        "round 2": second,
    }


def with_fewer(run: Run, ranked: int, share: float) -> Run:
    """The run with rankings of a share of the prompts: the first of the `ranked` candidates, as they lie in the table,
    of which as large a share is chosen."""
    num_chosen = run.config.choosing.num_ranked
    smaller = {
        "candidates": {"num_prompts": max(2, round(share * ranked))},
        "choosing": {"num_ranked": num_chosen and max(2, round(share * num_chosen))},
    }
    return replace(run, config=run.config.changed(smaller))


def run_seed(study: Flywheel, seed: int) -> dict[str, Run]:
    """Make everything of one seed; what is finished is kept. Returns its runs by name."""
    runs = runs_of(study, seed)
    for stage in pipeline.TO_EDITOR:
        stage(runs["round 1"])
    _learn(runs["round 1"])
    runs["few"] = with_fewer(runs["few"], count_rows(runs["round 1"].path("candidates")), study.few)
    _learn(runs["few"])
    train_editor.build(runs["trained on"], ARM)
    _learn(runs["round 2"])
    for run, editor in _editors(runs).values():
        settings = run.config.evaluation
        scales = (settings.image_guidance_scale,)
        evaluate_editor.measure(run, editor, f"evaluation/{editor}", scales, settings.num_prompts)
    return runs


def _learn(run: Run) -> None:
    for stage in pipeline.FEEDBACK:
        stage(run)
    score_pairs.build(run, ARM)
    train_editor.build(run, ARM)


def _editors(runs: Mapping[str, Run]) -> dict[str, tuple[Run, str]]:
    """The editors that are compared: the run that measures each, and its name there."""
    return {"sft": (runs["round 1"], "sft")} | {name: (run, ARM) for name, run in runs.items()}


def measured(runs: Mapping[str, Run]) -> Rows:
    """The evaluation of one seed's editors, by the names that they have here."""
    return [
        row | {"editor": name}
        for name, (run, editor) in _editors(runs).items()
        for row in evaluate_editor.without_pictures(run.path(f"evaluation/{editor}"))
    ]


def findings(seeds: list[Rows]) -> str:
    """Markdown: every editor over all seeds' prompts with intervals, paired differences, and wins and losses."""
    rows, lines = [row for one in seeds for row in one], means(seeds, METRICS)
    shown = ("right", "followed", "preserved")
    lines += ["", line(["difference", *shown, "win, tie, loss"]), line(["---"] * (len(shown) + 2))]
    for ours, theirs in COMPARED:
        two = [row for row in rows if row["editor"] in (ours, theirs)]
        gaps = compare(two, theirs, shown)[ours]
        rate = win_rates(two, theirs, "overall", evaluate_editor.TIE_WITHIN)[ours]
        cells = [f"{gap:+.3f}" for gap in gaps.values()]
        shares = ", ".join(f"{share:.1%}" for share in (rate.win, rate.tie, rate.loss))
        lines.append(line([f"{ours} minus {theirs}", *cells, shares]))
    return "\n".join(lines)


def reward_models(seeds: list[dict[str, Run]]) -> str:
    """Markdown: what each reward model was given, and how it orders the same held-out rankings of both rounds."""
    lines = [
        line(["reward model", "rankings, seed by seed", "held-out preferences in order, seed by seed"]),
        line(["---"] * 3),
    ]
    unseen = [_held_out(runs["round 2"]) for runs in seeds]
    for name in ("few", "round 1", "round 2"):
        models = [load_reward(runs[name].path("reward")) for runs in seeds]
        found = [scored(model, rows) for model, rows in zip(models, unseen, strict=True)]
        right = [pairwise_accuracy(one.rewards, one.ranks) for one in found]
        given = [sum(map(count_rows, runs[name].rankings_so_far())) for runs in seeds]
        lines.append(line([name, ", ".join(map(str, given)), ", ".join(f"{share:.3f}" for share in right)]))
    return "\n".join(lines)


def _held_out(run: Run) -> Rows:
    where = {"prompt_id": lambda name: is_held_out(name, run.config.reward.held_out_rate)}
    return list(read_rows(run.rankings_so_far(), RANKINGS, COLUMNS, where=where))


def main(study: Flywheel) -> None:
    """Run every seed (finished parts are kept), and write the tables."""
    start_ray(workers_import=pipeline.WORKERS_IMPORT)
    seeds = [run_seed(study, seed) for seed in study.seeds]
    minutes = sum(minutes_of(run) for runs in seeds for name, run in runs.items() if name != "round 1")
    told = json.dumps({key: value for key, value in vars(study).items() if key != "out"})
    words = (__doc__ or "").partition("\n\n")[2].strip()
    text = (
        f"# The flywheel\n\nMade by `python -m jobs.flywheel_study` from the shipped {study.start}: seeds "
        f"{', '.join(map(str, study.seeds))}, {minutes:.0f} minutes of work on {os.cpu_count()} cores beside the "
        f"study's. Means over the prompts of all seeds, with 95 % bootstrap intervals by prompt; differences, wins and "
        f"losses are paired by prompt.\n\n```\n{words}\n```\n\n{findings([measured(runs) for runs in seeds])}\n\n"
        f"{reward_models(seeds)}\n\nSettings: `{told}`\n"
    )
    study.out.parent.mkdir(parents=True, exist_ok=True)
    study.out.write_text(text)
    print(text)


if __name__ == "__main__":
    in_one_line(lambda: main(tyro.cli(Flywheel)))
