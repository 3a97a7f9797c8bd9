"""What a person says of a task, checked, in the order of the task's edits.

rank    {"ranks": [2, 1, 1, 3], "none_acceptable": false}      1 is best, ties allowed; all 1 is "all the same"
study   {"follows": 0, "preserves": null}                      the place of the better edit; None is about the same
skip    {"skipped": "the instruction makes no sense"}

"None is acceptable" is said beside the order, which may tie everything.
"""

from collections.abc import Sequence
from typing import Any

from hive_ray.annotation.models import RANK, STUDY
from hive_ray.files.text_files import repaired
from hive_ray.statistics.agreement import RankingError, check_ranks, dense_ranks

QUESTIONS = ("follows", "preserves")
"""Of the user study: which edit follows the instruction better, and which keeps the rest better."""
MAX_REASON = 300
Verdict = dict[str, Any]


class AnswerError(ValueError):
    """An answer that says nothing about its task."""


def checked(kind: str, given: Any, shown: Sequence[int]) -> Verdict:
    """An answer about edits in the order `shown` as a verdict about them in the task's order; or an AnswerError.

    `shown[i]` is the place in the task of the edit that was shown at place i.
    """
    if not isinstance(given, dict):
        raise AnswerError(f"the answer is a {type(given).__name__}; wanted an object with ranks, or skipped")
    if "skipped" in given:
        return _skipped(given)
    return {RANK: _ranked, STUDY: _compared}[kind](given, list(shown))


def _skipped(given: Verdict) -> Verdict:
    reason = given["skipped"]
    if set(given) != {"skipped"} or not isinstance(reason, str) or not reason.strip() or len(reason) > MAX_REASON:
        raise AnswerError(
            f"skipped is {str(reason)[:60]!r} beside {sorted(set(given) - {'skipped'})}; give a reason of 1 to"
            f" {MAX_REASON} characters, and nothing else"
        )
    return {"skipped": repaired(reason.strip()).replace("\0", "\ufffd")}


def _ranked(given: Verdict, shown: list[int]) -> Verdict:
    ranks, none_acceptable = given.get("ranks"), given.get("none_acceptable", False)
    if (
        set(given) - {"ranks", "none_acceptable"}
        or not isinstance(ranks, list)
        or not isinstance(none_acceptable, bool)
    ):
        raise AnswerError(f"the answer has {sorted(given)}; wanted ranks (a list) and none_acceptable (true or false)")
    try:
        check_ranks(ranks, len(shown))
    except RankingError as error:
        raise AnswerError(str(error)) from error
    rank_of = dict(zip(shown, dense_ranks(ranks), strict=True))
    return {"ranks": [rank_of[place] for place in range(len(shown))], "none_acceptable": none_acceptable}


def _compared(given: Verdict, shown: list[int]) -> Verdict:
    if set(given) != set(QUESTIONS):
        raise AnswerError(f"the answer has {sorted(given)}; wanted {' and '.join(QUESTIONS)}")
    verdict: Verdict = {}
    for question in QUESTIONS:
        said = given[question]
        if said is not None and (type(said) is not int or said not in range(len(shown))):
            raise AnswerError(
                f"{question} is {said!r}; give 0 for the left edit, 1 for the right, null for about the same"
            )
        verdict[question] = None if said is None else shown[said]
    return verdict


def as_shown(verdict: Verdict, shown: Sequence[int]) -> Verdict:
    """A verdict about the task's edits as an answer about them in the order `shown`: undoes `checked`."""
    if "ranks" in verdict:
        return verdict | {"ranks": [verdict["ranks"][place] for place in shown]}
    if "skipped" in verdict:
        return verdict
    return {name: None if verdict[name] is None else list(shown).index(verdict[name]) for name in QUESTIONS}


def knows_better(gold: dict[str, list[str]], edit_ids: Sequence[str], verdict: Verdict) -> bool | None:
    """Whether an answer agrees with what is known: the best of the better edits is above the best of the worse ones.

    None where the person skipped the task.
    """
    if "skipped" in verdict:
        return None
    better = [edit_ids.index(one) for one in gold["better"]]
    worse = [edit_ids.index(one) for one in gold["worse"]]
    if "ranks" in verdict:
        ranks = verdict["ranks"]
        return min(ranks[place] for place in better) < min(ranks[place] for place in worse)
    return verdict["follows"] in better
