"""What the study found, in words, tables and charts.

scores of editors by seed and prompt -> comparisons -> Markdown and SVG

Nothing here reads a run: tests give it scores that they made by hand.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from hive_ray.evaluation.metrics import differences_by_prompt, outcomes_by_prompt, prompt_means, win_rate
from hive_ray.pages.charts import interval_chart, line_chart
from hive_ray.statistics.intervals import Interval, hierarchical_interval
from jobs.evaluate_editor import TIE_WITHIN

METRICS = ("right", "preserved", "overall")
"""What the study reads of every edit; `overall` decides who wins."""
LEAST_GAIN = 0.04
"""Gain in right edits over the control that the study was asked to show."""
LEAST_WINS_PER_LOSS = 2
"""How many times as often as it loses the best arm was asked to win."""
NO_ARMS = ("sft", "control", "shuffled", "second round")
"""What learns from no feedback, or from that of two rounds; the best of several edits is no arm either."""
SECOND_ROUND_OF = "dpo+rejection"
"""The arm that the second round starts from."""
SHAPED_ARMS = ("conditional", "weighted", "level", "conditional_sft")
"""Arms that learn from scored pairs."""

TITLES = {
    "feedback": "Every arm",
    "weak": "From a weak start",
    "curve": "By the number of rankings",
    "ablations": "One thing changed",
}
"""Of the document's sections, by part."""
WORDS = {
    "feedback": (
        "All are trained from `sft`: `control` on the pairs again, without feedback, `weighted` on the same pairs by "
        "rewards, `dpo` on people's and the reward model's rankings of its own edits, `shuffled` on the same with "
        "ranks at random, `nft` and `rejection` on its own edits by the reward model. An editor with a + in its name "
        "is `sft` with all that the arms of its name changed of it. `second round` goes on from `dpo+rejection` as "
        "`dpo`, with new rankings of that editor's edits."
    ),
    "weak": (
        "`sft` is the shipped editor trained on generated pairs that nothing filtered, as in the paper. All others go "
        "on from it, on the same pairs, scored by the first part's reward model, which has the denoising errors of an "
        "editor that learned from filtered pairs: a gain is in part that editor's. `conditional_sft` takes the place "
        "of `sft`: it heard the phrase of each pair from the beginning."
    ),
    "curve": (
        "`dpo` from `sft` on shipped rankings alone, always with the same number of images. Fewer rankings are among "
        "more; the last row adds what one more person says of the same pictures. Of one seed: how trainings differ is "
        "not in the intervals."
    ),
    "ablations": (
        "`dpo` with one setting changed; the reward model stays. `trained on, by the same rankings` goes on from `dpo` "
        "for as many images again. Of one seed: how trainings differ is not in the intervals."
    ),
}
"""What a section says of its editors, by part."""

SeedScores = Mapping[str, Mapping[str, np.ndarray]]
"""Metric -> prompt id -> values (N,) of its edits (0..1), as `draws_by_prompt` gives them."""
Scores = Mapping[str, Mapping[int, SeedScores]]
"""Editor -> seed -> what was measured."""


@dataclass(frozen=True)
class Comparison:
    """An editor against a baseline, paired by prompt, over the seeds that both were measured with.

    Shares are in 0..1. Intervals are over seeds and prompts (`hierarchical_interval`).
    """

    editor: str
    baseline: str
    right: Interval
    """Share of the editor's edits that are right."""
    right_gap: Interval
    """Editor minus baseline, as the next one."""
    preserved_gap: Interval
    decided_gap: Interval
    """Win minus loss."""
    win: float
    """Share of pairs of edits (`win_rate`), as the next two: means over seeds of means over prompts."""
    tie: float
    loss: float
    num_seeds: int


def compare(scores: Scores, editor: str, baseline: str) -> Comparison | None:
    """The comparison of two editors; None where no seed has both."""
    seeds = _common_seeds(scores, editor, baseline)
    if not seeds:
        return None
    ours, theirs = ([scores[name][seed] for seed in seeds] for name in (editor, baseline))
    decided = [(our["overall"], their["overall"], TIE_WITHIN) for our, their in zip(ours, theirs, strict=True)]
    rates = [win_rate(*of_seed) for of_seed in decided]
    return Comparison(
        editor=editor,
        baseline=baseline,
        right=hierarchical_interval([prompt_means(of_seed["right"]) for of_seed in ours]),
        right_gap=hierarchical_interval(_gaps(ours, theirs, "right")),
        preserved_gap=hierarchical_interval(_gaps(ours, theirs, "preserved")),
        decided_gap=hierarchical_interval([prompt_means(outcomes_by_prompt(*of_seed)) for of_seed in decided]),
        win=fmean([rate.win for rate in rates]),
        tie=fmean([rate.tie for rate in rates]),
        loss=fmean([rate.loss for rate in rates]),
        num_seeds=len(seeds),
    )


def _common_seeds(scores: Scores, *editors: str) -> list[int]:
    return sorted(set.intersection(*(set(scores.get(editor, {})) for editor in editors)))


def _gaps(ours: Sequence[SeedScores], theirs: Sequence[SeedScores], metric: str) -> list[dict[str, float]]:
    """Seed by seed, each prompt's mean over our edits minus that over theirs."""
    return [
        differences_by_prompt(prompt_means(our[metric]), prompt_means(their[metric]))
        for our, their in zip(ours, theirs, strict=True)
    ]


# --- Words ------------------------------------------------------------------------------------------------------------


def findings(feedback: Scores, weak: Scores, curve: Scores, ablations: Scores) -> str:
    """The first paragraph: a sentence for each question, with its answer as the numbers give it."""
    sentences = [
        best_arm(feedback),
        *(gain(feedback, name) for name in feedback if name == "second round" or "best of" in name),
        second_round(feedback),
        *(shaped_arm(weak, name) for name in SHAPED_ARMS),
        more_rankings(curve),
        changed_settings(ablations),
    ]
    return "\n".join(f"- {sentence}" for sentence in sentences)


def best_arm(feedback: Scores) -> str:
    """Which of the arms that every seed has gains most over the control, and whether that is what was asked for."""
    names = [name for name in feedback if name not in NO_ARMS and "best of" not in name]
    found = [compare(feedback, name, "control") for name in names]
    arms = [one for one in found if one is not None and one.num_seeds == len(feedback["control"])]
    if not arms:
        return "The best arm over the control: not measured."
    best = max(arms, key=lambda one: one.right_gap.value)
    return f"Best of {in_words([one.editor for one in arms])}: {_gain_in_words(best)}"


def gain(feedback: Scores, editor: str) -> str:
    """Whether one editor gains over the control what was asked for."""
    found = compare(feedback, editor, "control")
    return f"{editor} over the control: not measured." if found is None else _gain_in_words(found)


def _gain_in_words(found: Comparison) -> str:
    return (
        f"{found.editor} makes {points(found.right_gap)} points more edits right than the control, wins "
        f"{percent(found.win)} of the pairs of edits and loses {percent(found.loss)}. At least "
        f"{100 * LEAST_GAIN:.0f} points, an interval above 0 and {LEAST_WINS_PER_LOSS} wins for each loss: "
        f"{verdict(_missing(found))}."
    )


def _missing(found: Comparison) -> list[str]:
    """What a comparison lacks of the gain that was asked for."""
    missing = []
    if found.right_gap.value < LEAST_GAIN - 1e-9:
        missing.append(f"the gain is less than {100 * LEAST_GAIN:.0f} points")
    missing += _missing_evidence(found)
    if found.win == 0 or found.win < LEAST_WINS_PER_LOSS * found.loss - 1e-9:
        missing.append(f"it wins less than {LEAST_WINS_PER_LOSS} times as often as it loses")
    return missing


def _missing_evidence(found: Comparison) -> list[str]:
    """What a comparison lacks of any gain in right edits."""
    return [] if found.right_gap.low > 0 else ["the interval is not above 0"]


def second_round(feedback: Scores) -> str:
    """Whether the second round adds to the first."""
    found = compare(feedback, "second round", SECOND_ROUND_OF)
    if found is None:
        return f"What a second round adds to {SECOND_ROUND_OF}: not measured."
    return (
        f"The second round makes {points(found.right_gap)} points more edits right than {SECOND_ROUND_OF}. That it "
        f"adds: {verdict(_missing_evidence(found))}."
    )


def shaped_arm(weak: Scores, arm: str) -> str:
    """Whether an arm on scored pairs is above its control in right or in preserved; the control of what takes the place
    of supervised fine-tuning is that."""
    control = "sft" if arm == "conditional_sft" else "control"
    found = compare(weak, arm, control)
    if found is None:
        return f"From the weak start, {arm} over {control}: not measured."
    above = [
        name
        for name, gap in (("right", found.right_gap), ("preserved", found.preserved_gap))
        if gap.low > 0
    ]  # fmt: skip
    missing = [] if above else ["neither interval is above 0"]
    where = f" in {in_words(above)}" if above else ""
    return (
        f"From the weak start, {arm} differs from {control} by {points(found.right_gap)} points in right and "
        f"{points(found.preserved_gap)} in preserved. That it is above it in one of them: {verdict(missing)}{where}."
    )


def more_rankings(curve: Scores) -> str:
    """Whether the most rankings teach more than the fewest."""
    names = [name for name in curve if name != "sft"]
    found = compare(curve, names[-1], names[0]) if len(names) > 1 else None
    if found is None:
        return "What more rankings add: not measured."
    return (
        f"dpo on {found.editor} makes {points(found.right_gap)} points more edits right than on {found.baseline}. "
        f"That more rankings add: {verdict(_missing_evidence(found))}."
    )


def changed_settings(ablations: Scores) -> str:
    """Which changed settings make a difference in right edits."""
    found = [compare(ablations, name, "dpo") for name in ablations if name != "dpo"]
    changes = [one for one in found if one is not None]
    if not changes:
        return "What changed settings of dpo do: not measured."
    told = [one for one in changes if one.right_gap.excludes_zero]
    if not told:
        return f"Of {len(changes)} changed settings of dpo, none is shown to change the share of right edits."
    words = "; ".join(f"{one.editor} {points(one.right_gap)}" for one in told)
    return f"Of {len(changes)} changed settings of dpo, these are shown to change the share of right edits: {words}."


def verdict(missing: Sequence[str]) -> str:
    """ "shown", or "not shown" with what is missing."""
    return f"**not shown**, since {in_words(missing)}" if missing else "**shown**"


def in_words(names: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


# --- Tables and charts ------------------------------------------------------------------------------------------------


def table(scores: Scores, baseline: str) -> str:
    """Markdown: every editor against the baseline, which is the first row; "" where nothing is measured."""
    header = ["editor", "right", f"minus {baseline}", f"preserved, minus {baseline}", "win / tie / loss", "win - loss"]
    itself = compare(scores, baseline, baseline)
    if itself is None:
        return ""
    rows = [[baseline, share(itself.right), "", "", "", ""]]
    for one in against(scores, baseline):
        rows.append([_with_seeds(one.editor, one, itself.num_seeds), share(one.right), *_cells(one)])
    return _markdown(header, rows)


def _with_seeds(name: str, one: Comparison, num_seeds: int) -> str:
    """A row's name, with how many of the seeds it is of, where that is not all."""
    return name if one.num_seeds == num_seeds else f"{name} ({one.num_seeds} of the seeds)"


def further_table(scores: Scores, pairs: Sequence[tuple[str, str]]) -> str:
    """Markdown: the differences of these (editor, baseline); "" where none is measured."""
    found = [compare(scores, *pair) for pair in pairs]
    most = max((len(seeds) for seeds in scores.values()), default=0)
    rows = [
        [_with_seeds(f"{one.editor} minus {one.baseline}", one, most), *_cells(one)] for one in found if one is not None
    ]
    return _markdown(["difference", "right", "preserved", "win / tie / loss", "win - loss"], rows) if rows else ""


def against(scores: Scores, baseline: str) -> list[Comparison]:
    """The comparisons of all other editors with the baseline, in their order."""
    found = [compare(scores, name, baseline) for name in scores if name != baseline]
    return [one for one in found if one is not None]


def _cells(one: Comparison) -> list[str]:
    decided = f"{100 * one.win:.1f} / {100 * one.tie:.1f} / {100 * one.loss:.1f}"
    right, preserved, balance = map(_cell, (one.right_gap, one.preserved_gap, one.decided_gap))
    return [right, preserved, decided, balance]


def _cell(gap: Interval) -> str:
    """A difference in points, bold where the interval excludes 0."""
    return f"**{points(gap)}**" if gap.excludes_zero else points(gap)


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, ["---"] * len(header), *rows])


def gap_chart(scores: Scores, baseline: str) -> str:
    """SVG: right edits of every editor minus the baseline's, in points, with intervals."""
    gaps = {one.editor: _in_points(one.right_gap) for one in against(scores, baseline)}
    return interval_chart(
        {name: (gap.value, gap.low, gap.high) for name, gap in gaps.items()}, f"right minus {baseline}, points"
    )


def curve_chart(curve: Scores, num_rankings: Mapping[str, int]) -> str:
    """SVG: what editors gain over sft by the number of rankings that they learned from."""
    found = against(curve, "sft")
    gaps = {
        "right": [one.right_gap for one in found],
        "preserved": [one.preserved_gap for one in found],
        "win - loss": [one.decided_gap for one in found],
    }
    places = [num_rankings[one.editor] for one in found]
    values = {name: [_in_points(gap) for gap in each] for name, each in gaps.items()}
    lines = {
        name: [(place, gap.value) for place, gap in zip(places, each, strict=True)] for name, each in values.items()
    }
    bands = {name: [(gap.low, gap.high) for gap in each] for name, each in values.items()}
    return line_chart(lines, x_label="rankings", y_label="minus sft, points", markers=True, bands=bands)


def share(found: Interval) -> str:
    """ "69.8 % [66.2, 73.5]"."""
    scaled = _in_points(found)
    return f"{scaled.value:.1f} % [{scaled.low:.1f}, {scaled.high:.1f}]"


def points(found: Interval) -> str:
    """ "+1.2 [-0.3, 2.7]"."""
    scaled = _in_points(found)
    return f"{scaled.value:+.1f} [{scaled.low:.1f}, {scaled.high:.1f}]"


def percent(value: float) -> str:
    """ "12.3 %"."""
    return f"{100 * value:.1f} %"


def _in_points(found: Interval) -> Interval:
    return Interval(100 * found.value, 100 * found.low, 100 * found.high)
