"""The overview page: progress, people's work, and agreement."""

from collections import defaultdict
from collections.abc import Mapping
from html import escape
from types import MappingProxyType

from hive_ray.annotation.database import Database
from hive_ray.annotation.exports import AnswerRecord, read_answers
from hive_ray.annotation.models import ANNOTATOR
from hive_ray.annotation.productivity import MAX_ANSWER_S, measure_productivity
from hive_ray.annotation.quality import AgreementStats, AnnotatorStats, agreement, annotator_stats, flagged_names
from hive_ray.annotation.task_counts import TaskCounts, count_tasks
from hive_ray.annotation.user_study import OUTCOMES, EditorComparison, compare_editors
from hive_ray.config import Annotation
from hive_ray.pages import charts, html
from hive_ray.statistics.intervals import Interval

MAX_LINES = 6
"""How many people have their own line in a chart: those with the most answers."""
QUESTION_TEXTS = {"follows": "Follows the instruction better", "preserves": "Keeps the rest better"}


def overview(
    database: Database, settings: Annotation, probabilities: Mapping[str, float] = MappingProxyType({})
) -> str:
    """The page as HTML; `probabilities` as in `measure_productivity`."""
    answers = read_answers(database, settings.mode)
    people = annotator_stats(database, settings)
    done = count_tasks(database, settings.mode)
    agreed = agreement(answers)
    judged = [answer for answer in answers if "skipped" not in answer.verdict]
    sections = [
        ("Agreement", _agreement(agreed, answers, people, settings)),
        ("Productivity", _yield(answers, probabilities, settings)),
        ("User study", _study(compare_editors(answers, flagged_names(people)))),
        ("People", _people(people, settings)),
        ("Over time", _over_time(judged)),
        ("Time for a task", _times(judged)),
        ("Answers", _verdicts(answers)),
        ("Tasks that cannot be shown", "".join(html.note(why) for why in done.broken)),
    ]
    return html.page(f"Annotation: {settings.mode}", _finding(done, people), sections)


def _finding(done: TaskCounts, people: list[AnnotatorStats]) -> str:
    doubtful = len(flagged_names(people))
    annotators = sum(person.role == ANNOTATOR for person in people)
    share = f" ({done.answers / done.wanted:.0%})" if done.wanted else ""
    return (
        f"{done.answers:,} of {done.wanted:,} answers are in{share}; {done.finished:,} of {done.tasks:,} tasks are"
        f" finished. {doubtful} of {annotators} annotators {'is' if doubtful == 1 else 'are'} flagged."
    )


def _number(value: float | None, digits: int = 2, unit: str = "") -> str:
    return "–" if value is None else f"{value:.{digits}f}{unit}"


def _agreement(
    agreed: AgreementStats, answers: list[AnswerRecord], people: list[AnnotatorStats], settings: Annotation
) -> str:
    if not agreed.tasks:
        return html.note("No task has answers from two people yet.")
    kept = agreement(answer for answer in answers if answer.annotator not in flagged_names(people))
    head = ("", "Kendall's tau-b" if settings.mode == "rank" else "same answers", "Krippendorff's alpha", "tasks")
    rows = [
        (name, _number(result.tau), _number(result.alpha), f"{result.tasks:,}")
        for name, result in (("everybody", agreed), ("without flagged people", kept))
    ]
    return html.table(head, rows) + html.note(
        "Over tasks with answers from several people. Alpha is 1 for full agreement and 0 for agreement by chance."
    )


def _yield(answers: list[AnswerRecord], probabilities: Mapping[str, float], settings: Annotation) -> str:
    gave = measure_productivity((answer for answer in answers if answer.present), probabilities)
    if settings.mode != "rank" or not gave.hours:
        return ""
    note = (
        "A preference is a pair of edits of a prompt that one person ranked differently. Time includes gold tasks, "
        f"repeats and skips; answers that took more than {MAX_ANSWER_S:g} s count as {MAX_ANSWER_S:g} s."
    )
    if gave.estimated_tie_rate is not None:
        note += (
            " The estimate for all prompts weights each ranked prompt by 1 / its inclusion probability. Until all "
            "chosen prompts are ranked, it is biased towards the prompts that are assigned first."
        )
    return html.note(f"{gave}.") + html.note(note)


def _people(people: list[AnnotatorStats], settings: Annotation) -> str:
    head = ("", "answers", "skipped", "seconds", "known right", "with others", "with themselves", "")
    rows = [
        (
            escape(person.name), f"{person.answers:,}", f"{person.skipped:,}", _number(person.median_seconds, 1),
            f"{person.known_right} of {person.known_answers}", _number(person.with_others), _number(person.with_self),
            escape(person.flag or (person.state if person.state != "active" else "")),
        )
        for person in people if person.answers or person.skipped or person.role == ANNOTATOR
    ]  # fmt: skip
    return html.table(head, rows, kind="words") + html.note(
        "Seconds: the median time for an answer. Known right: correct answers to gold tasks. With others, with "
        "themselves: "
        + ("Kendall's tau-b" if settings.mode == "rank" else "share of same answers")
        + " with other people's answers, and with their own answers to repeated tasks."
    )


def _busiest(answers: list[AnswerRecord]) -> dict[str, list[AnswerRecord]]:
    groups: dict[str, list[AnswerRecord]] = defaultdict(list)
    for answer in answers:
        groups[answer.annotator].append(answer)
    return dict(sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))[:MAX_LINES])


def _over_time(answers: list[AnswerRecord]) -> str:
    if len(answers) < 2:
        return ""
    start = min(answer.at for answer in answers)
    groups = {"everybody": answers}
    if len({answer.annotator for answer in answers}) > 1:
        groups |= _busiest(answers)
    lines = {}
    for name, group in groups.items():
        times = sorted(answer.at for answer in group)
        lines[name] = [((at - start) / 3600, count) for count, at in enumerate(times, 1)]
    return html.chart(charts.line_chart(lines, "hours since the first answer", "answers"))


def _times(answers: list[AnswerRecord]) -> str:
    if len(answers) < 2:
        return ""
    groups = {}
    for name, group in _busiest(answers).items():
        groups[name] = [min(answer.seconds, MAX_ANSWER_S) for answer in group]
    drawn = html.chart(charts.histogram(groups, "seconds", "share of answers"))
    return drawn + html.note(f"Times above {MAX_ANSWER_S:g} s count as {MAX_ANSWER_S:g} s.")


def _verdicts(answers: list[AnswerRecord]) -> str:
    counts: dict[str, int] = defaultdict(int)
    for answer in answers:
        counts[_kind(answer)] += 1
    return html.chart(charts.bar_chart(dict(counts), "answers", "in order")) if counts else ""


def _kind(answer: AnswerRecord) -> str:
    if "skipped" in answer.verdict:
        return "skipped"
    if "ranks" not in answer.verdict:
        return "compared"
    if answer.verdict["none_acceptable"]:
        return "none acceptable"
    ranks = answer.verdict["ranks"]
    if len(set(ranks)) == 1:
        return "all the same"
    return "in order" if len(set(ranks)) == len(ranks) else "with ties"


def _share(share: Interval) -> str:
    return f"{100 * share.value:.1f} % <small>{100 * share.low:.1f} to {100 * share.high:.1f}</small>"


def _study(comparisons: list[EditorComparison]) -> str:
    if not comparisons:
        return ""
    head = ("", "win", "tie", "loss", "win - loss", "win - loss, by person")
    rows: list[tuple[str, ...]] = []
    each: list[tuple[str, ...]] = []
    for comparison in comparisons:
        question = QUESTION_TEXTS[comparison.question]
        shares_of_prompts = [_share(comparison.by_prompt[name]) for name in (*OUTCOMES, "net")]
        rows.append((question, *shares_of_prompts, _share(comparison.by_annotator["net"])))
        for name, shares in comparison.people.items():
            percentages = [f"{100 * shares[outcome]:.0f} %" for outcome in OUTCOMES]
            each.append((f"{escape(name)}: {question.lower()}", *percentages))
    first = comparisons[0]
    note = html.note(
        f"{first.editor} against {first.baseline}, {first.num_answers} answers to {first.num_prompts} prompts, flagged"
        " people left out; 95 % bootstrap intervals by prompt, and by person."
    )
    return html.table(head, rows) + note + html.table(("", "win", "tie", "loss"), each)
