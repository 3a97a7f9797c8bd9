"""The overview page: how far the work is, who does it how, and how well people agree."""

from collections import defaultdict
from collections.abc import Mapping
from html import escape
from types import MappingProxyType

from hive_ray.annotation.database import Database
from hive_ray.annotation.exports import Answered, answered
from hive_ray.annotation.models import ANNOTATOR
from hive_ray.annotation.progress import Progress, progress
from hive_ray.annotation.quality import Agreement, Standing, agreement, flagged, standings
from hive_ray.annotation.study import OUTCOMES, Comparison, results
from hive_ray.annotation.yields import LONGEST_S, preference_yield
from hive_ray.config import Annotation
from hive_ray.pages import charts, html
from hive_ray.statistics.intervals import Interval

MOST_LINES = 6
"""People with a line of their own in a chart: those with the most answers."""
WORDS = {"follows": "Follows the instruction better", "preserves": "Keeps the rest better"}


def overview(
    database: Database, settings: Annotation, probabilities: Mapping[str, float] = MappingProxyType({})
) -> str:
    """The whole page as HTML. probabilities: as `preference_yield`'s."""
    answers, people = answered(database, settings.mode), standings(database, settings)
    done, agreed = progress(database, settings.mode), agreement(answers)
    said = [one for one in answers if "skipped" not in one.verdict]
    sections = [
        ("Agreement", _agreement(agreed, answers, people, settings)),
        ("What people's time gave", _yield(answers, probabilities, settings)),
        ("What the study finds", _study(results(answers, flagged(people)))),
        ("People", _people(people, settings)),
        ("Over time", _over_time(said)),
        ("Time for a task", _times(said)),
        ("What was said", _verdicts(answers)),
        ("Tasks that cannot be shown", "".join(html.note(why) for why in done.broken)),
    ]
    return html.page(f"Annotation: {settings.mode}", _finding(done, people), sections)


def _finding(done: Progress, people: list[Standing]) -> str:
    doubtful, annotators = len(flagged(people)), sum(one.role == ANNOTATOR for one in people)
    share = f" ({done.answers / done.wanted:.0%})" if done.wanted else ""
    return (
        f"{done.answers:,} of {done.wanted:,} answers are in{share}; {done.finished:,} of {done.tasks:,} tasks are"
        f" finished. {doubtful} of {annotators} annotators {'is' if doubtful == 1 else 'are'} flagged."
    )


def _number(value: float | None, digits: int = 2, unit: str = "") -> str:
    return "–" if value is None else f"{value:.{digits}f}{unit}"


def _agreement(agreed: Agreement, answers: list[Answered], people: list[Standing], settings: Annotation) -> str:
    if not agreed.tasks:
        return html.note("No task has been done by two people yet.")
    kept = agreement(one for one in answers if one.annotator not in flagged(people))
    head = ("", "Kendall's tau-b" if settings.mode == "rank" else "same answers", "Krippendorff's alpha", "tasks")
    rows = [
        (name, _number(one.tau), _number(one.alpha), f"{one.tasks:,}")
        for name, one in (("everybody", agreed), ("without flagged people", kept))
    ]
    return html.table(head, rows) + html.note(
        "Over tasks that several people did. Alpha is 1 in full agreement and 0 where people agree by chance."
    )


def _yield(answers: list[Answered], probabilities: Mapping[str, float], settings: Annotation) -> str:
    gave = preference_yield((one for one in answers if one.present), probabilities)
    if settings.mode != "rank" or not gave.hours:
        return ""
    note = (
        "A preference is two edits of a prompt that one person ranked apart. Time is that of all answers, known tasks, "
        f"repeats and skips too; more than {LONGEST_S:g} s for one count as {LONGEST_S:g}."
    )
    if gave.ties_of_all is not None:
        note += (
            " The estimate for all prompts weights each ranked prompt by 1 / the probability with which it was chosen; "
            "until all chosen prompts are ranked it leans towards those that come first."
        )
    return html.note(f"{gave}.") + html.note(note)


def _people(people: list[Standing], settings: Annotation) -> str:
    head = ("", "answers", "skipped", "seconds", "known right", "with others", "with themselves", "")
    rows = [
        (
            escape(one.name), f"{one.answers:,}", f"{one.skipped:,}", _number(one.median_seconds, 1),
            f"{one.known_right} of {one.known_answers}", _number(one.with_others), _number(one.with_self),
            escape(one.flag or (one.state if one.state != "active" else "")),
        )
        for one in people if one.answers or one.skipped or one.role == ANNOTATOR
    ]  # fmt: skip
    return html.table(head, rows, kind="words") + html.note(
        "Seconds is the median. Known right: tasks whose answer is known. With others, with themselves: "
        + ("Kendall's tau-b" if settings.mode == "rank" else "share of same answers")
        + " with other people's answers, and with their own when a task came again."
    )


def _busiest(said: list[Answered]) -> dict[str, list[Answered]]:
    groups: dict[str, list[Answered]] = defaultdict(list)
    for one in said:
        groups[one.annotator].append(one)
    return dict(sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))[:MOST_LINES])


def _over_time(said: list[Answered]) -> str:
    if len(said) < 2:
        return ""
    start = min(one.at for one in said)
    groups = {"everybody": said} | (_busiest(said) if len({one.annotator for one in said}) > 1 else {})
    lines = {
        name: [((at - start) / 3600, count) for count, at in enumerate(sorted(one.at for one in group), 1)]
        for name, group in groups.items()
    }
    return html.chart(charts.line_chart(lines, "hours since the first answer", "answers"))


def _times(said: list[Answered]) -> str:
    if len(said) < 2:
        return ""
    groups = {name: [min(one.seconds, LONGEST_S) for one in group] for name, group in _busiest(said).items()}
    drawn = html.chart(charts.histogram(groups, "seconds", "share of answers"))
    return drawn + html.note(f"More than {LONGEST_S:g} s count as {LONGEST_S:g}.")


def _verdicts(answers: list[Answered]) -> str:
    counts: dict[str, int] = defaultdict(int)
    for one in answers:
        counts[_kind(one)] += 1
    return html.chart(charts.bar_chart(dict(counts), "answers", "in order")) if counts else ""


def _kind(one: Answered) -> str:
    if "skipped" in one.verdict:
        return "skipped"
    if "ranks" not in one.verdict:
        return "compared"
    if one.verdict["none_acceptable"]:
        return "none acceptable"
    ranks = one.verdict["ranks"]
    if len(set(ranks)) == 1:
        return "all the same"
    return "in order" if len(set(ranks)) == len(ranks) else "with ties"


def _share(one: Interval) -> str:
    return f"{100 * one.value:.1f} % <small>{100 * one.low:.1f} to {100 * one.high:.1f}</small>"


def _study(found: list[Comparison]) -> str:
    if not found:
        return ""
    head = ("", "win", "tie", "loss", "win - loss", "win - loss, by person")
    rows = [
        (
            f"{WORDS[one.question]}", *(_share(one.by_prompt[name]) for name in (*OUTCOMES, "net")),
            _share(one.by_annotator["net"]),
        )
        for one in found
    ]  # fmt: skip
    each = [
        (f"{escape(name)}: {WORDS[one.question].lower()}", *(f"{100 * shares[side]:.0f} %" for side in OUTCOMES))
        for one in found
        for name, shares in one.people.items()
    ]  # fmt: skip
    first = found[0]
    note = html.note(
        f"{first.editor} against {first.baseline}, {first.num_answers} answers to {first.num_prompts} prompts, flagged"
        " people left out; 95 % bootstrap intervals by prompt, and by person."
    )
    return html.table(head, rows) + note + html.table(("", "win", "tie", "loss"), each)
