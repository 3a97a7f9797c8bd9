"""How accurate the reward model is by the number of rankings that it learned from: do more of them help?

rankings -> reward_curve/<share>, reward -> reward_curve.json, reward_curve.svg
"""

from jobs.command import run_job

if __name__ == "__main__":  # before what the work needs is imported, which takes seconds
    run_job("reward_curve")

import json
from collections.abc import Sequence
from typing import Any

from hive_ray import storage
from hive_ray.artifacts.manifest import table_digest
from hive_ray.artifacts.selection import select
from hive_ray.console import say, tell_result
from hive_ray.pages.charts import line_chart
from hive_ray.reward.accuracies import ACCURACY, RANKING_ACCURACY, accuracy_differences, describe_difference
from hive_ray.reward.model_evaluation import COMPARISONS
from hive_ray.schemas import RANKINGS
from hive_ray.statistics.intervals import Interval
from jobs import train_reward
from jobs.run import Run
from jobs.stage import Stage

CURVE, CHART = "reward_curve.json", "reward_curve.svg"
BAND = "The band is the 95 % bootstrap interval by held-out prompt; every point was trained on as many images."


def build(run: Run) -> dict[str, Any]:
    """Train on every share of `reward.curve.shares`, and write what each is worth on the same held-out prompts."""
    shares = run.config.reward.curve.shares
    _refuse_too_few(run, shares)
    names = [_model_name(share) for share in shares]
    for share, name in zip(shares, names, strict=True):
        train_reward.build(run, name, share)
    found = curve(shares, [_read(run, name, "card.json") for name in names], [_counts(run, name) for name in names])
    found["rankings"] = table_digest(*run.ranking_tables())
    storage.write_text(run.path(CURVE), json.dumps(found, indent=2))
    storage.write_text(run.path(CHART), draw(found))
    for point in found["points"]:
        say(
            f"{point['rankings']} rankings of {point['prompts']} prompts: accuracy {Interval(**point[ACCURACY]):.3f}",
            stage="reward curve",
        )
    tell_result(f"reward curve: {found['finding']}\nreward curve: {run.path(CHART)}")
    return found


def stages(run: Run) -> list[Stage[Any]]:
    """The reward model of each share, and what is made for it."""
    models = [train_reward.stages(run, _model_name(share), share) for share in run.config.reward.curve.shares]
    return [stage for model in models for stage in model]


def _model_name(share: float) -> str:
    """The name in the run folder of the model of a share."""
    return "reward" if share == 1 else f"reward_curve/{share:g}"


def curve(shares: Sequence[float], cards: Sequence[dict[str, Any]], counts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The points of the curve from the models' cards and from what each had right by held-out prompt, the least share
    first; what else ranks the same prompts; and whether more rankings helped."""
    last = cards[-1]
    if not counts[-1][ACCURACY]:
        raise ValueError(
            f"all {last['held_out_rankings']} held-out rankings tie all of their edits: nobody can be right"
        )
    beside = {"held_out_before_training": last["held_out_before_training"]} | last["beside"]
    points = [
        {
            "share": share,
            "rankings": card["train_rankings"],
            "prompts": card["train_prompts"],
            **{name: card["held_out"]["intervals"][name] for name in (ACCURACY, RANKING_ACCURACY)},
            "most_minus_this": accuracy_differences(counts[-1], these),
        }
        for share, card, these in zip(shares, cards, counts, strict=True)
    ]
    return {
        "held_out_prompts": last["held_out_prompts"],
        "points": points,
        "beside": {name: one["intervals"] for name, one in beside.items()},
        "finding": finding(points),
    }


def finding(points: Sequence[dict[str, Any]]) -> str:
    """Whether the most rankings give a better model than the fewest, as far as the interval of the difference says."""
    fewest, most = points[0], points[-1]
    if fewest is most:
        return f"one model, of {most['rankings']} rankings: nothing to compare it with"
    gap = Interval(**fewest["most_minus_this"][ACCURACY])
    figures = (
        f"accuracy {most[ACCURACY]['value']:.2f} of {most['rankings']} rankings, {fewest[ACCURACY]['value']:.2f} of "
        f"{fewest['rankings']} ({describe_difference(fewest['most_minus_this'])})"
    )
    if not gap.excludes_zero:
        return f"that more rankings help cannot be told from chance: {figures}"
    return f"more rankings {'help' if gap.value > 0 else 'do harm'}: {figures}"


def draw(found: dict[str, Any]) -> str:
    """The curve as SVG, with the interval of each point and what else ranks the same prompts as levels."""
    points = found["points"]
    return line_chart(
        {"reward model": [(point["rankings"], point[ACCURACY]["value"]) for point in points]},
        x_label="rankings learned from",
        y_label="held-out preferences right",
        markers=True,
        bands={"reward model": [(point[ACCURACY]["low"], point[ACCURACY]["high"]) for point in points]},
        horizontal_lines={
            words: found["beside"][name][ACCURACY]["value"]
            for name, words in COMPARISONS.items()
            if name in found["beside"]
        },
    )


def _refuse_too_few(run: Run, shares: Sequence[float]) -> None:
    """Say before anything is trained that there is nothing to learn from, or to measure by."""
    rankings, rate = run.ranking_tables(), run.config.reward.held_out_rate
    unseen, fewest, all_learned = (
        len(select(rankings, RANKINGS, where=where))
        for where in (
            train_reward.rankings_where(rate, held_out=True),
            train_reward.rankings_where(rate, shares[0]),
            train_reward.rankings_where(rate),
        )
    )
    if not unseen:
        raise ValueError(f"none of {all_learned} rankings is held out at reward.held_out_rate {rate}: raise it")
    if not fewest:
        raise ValueError(
            f"a share of {shares[0]:g} of {all_learned} training rankings holds none: raise the least of "
            "reward.curve.shares, or collect more"
        )


def _read(run: Run, name: str, file: str) -> dict[str, Any]:
    return json.loads(storage.read_text(run.path(f"{name}/{file}")))


def _counts(run: Run, name: str) -> dict[str, Any]:
    if not storage.exists(run.path(f"{name}/{train_reward.HELD_OUT_FILE}")):
        raise FileNotFoundError(
            f"{run.path(name)} has no {train_reward.HELD_OUT_FILE}: an earlier version trained it; "
            "delete it and train again"
        )
    return _read(run, name, train_reward.HELD_OUT_FILE)
