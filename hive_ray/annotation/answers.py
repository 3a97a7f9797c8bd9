"""Check a person's answer to a task and bring it into the order of the task's edits.

rank    {"ranks": [2, 1, 1, 3], "none_acceptable": false}      1 is best, ties allowed; all 1 is "all the same"
study   {"follows": 0, "preserves": null}                      index of the better edit; null is about the same
skip    {"skipped": "the instruction makes no sense"}

An answer with "none acceptable" still has ranks; all edits may tie.
"""

from collections.abc import Sequence
from typing import Any

from hive_ray.annotation.models import RANK, STUDY
from hive_ray.files.text_files import replace_surrogates
from hive_ray.statistics.agreement import RankingError, check_ranks, dense_ranks

QUESTIONS = ("follows", "preserves")
"""Questions of the user study: which edit follows the instruction better, and which preserves the rest better."""
MAX_REASON_LENGTH = 300
Verdict = dict[str, Any]


class AnswerError(ValueError):
    """An answer that does not fit its task."""


def to_verdict(kind: str, answer: Any, shown: Sequence[int]) -> Verdict:
    """Check an answer and convert it from the order on the screen to the order of the task.

    `shown[i]` is the index in the task of the edit at position i on the screen. Raises AnswerError if the answer does
    not fit the task.
    """
    if not isinstance(answer, dict):
        raise AnswerError(f"the answer is a {type(answer).__name__}; wanted an object with ranks, or skipped")
    if "skipped" in answer:
        return _skipped(answer)
    return {RANK: _ranked, STUDY: _compared}[kind](answer, list(shown))


def _skipped(answer: Verdict) -> Verdict:
    reason = answer["skipped"]
    if (
        set(answer) != {"skipped"}
        or not isinstance(reason, str)
        or not reason.strip()
        or len(reason) > MAX_REASON_LENGTH
    ):
        raise AnswerError(
            f"skipped is {str(reason)[:60]!r} beside {sorted(set(answer) - {'skipped'})}; give a reason of 1 to"
            f" {MAX_REASON_LENGTH} characters, and nothing else"
        )
    return {"skipped": replace_surrogates(reason.strip()).replace("\0", "\ufffd")}


def _ranked(answer: Verdict, shown: list[int]) -> Verdict:
    ranks, none_acceptable = answer.get("ranks"), answer.get("none_acceptable", False)
    if (
        set(answer) - {"ranks", "none_acceptable"}
        or not isinstance(ranks, list)
        or not isinstance(none_acceptable, bool)
    ):
        raise AnswerError(f"the answer has {sorted(answer)}; wanted ranks (a list) and none_acceptable (true or false)")
    try:
        check_ranks(ranks, len(shown))
    except RankingError as error:
        raise AnswerError(str(error)) from error
    rank_of = dict(zip(shown, dense_ranks(ranks), strict=True))
    return {"ranks": [rank_of[place] for place in range(len(shown))], "none_acceptable": none_acceptable}


def _compared(answer: Verdict, shown: list[int]) -> Verdict:
    if set(answer) != set(QUESTIONS):
        raise AnswerError(f"the answer has {sorted(answer)}; wanted {' and '.join(QUESTIONS)}")
    verdict: Verdict = {}
    for question in QUESTIONS:
        choice = answer[question]
        if choice is not None and (type(choice) is not int or choice not in range(len(shown))):
            raise AnswerError(
                f"{question} is {choice!r}; give 0 for the left edit, 1 for the right, null for about the same"
            )
        verdict[question] = None if choice is None else shown[choice]
    return verdict


def to_answer(verdict: Verdict, shown: Sequence[int]) -> Verdict:
    """Convert a verdict from the order of the task to the order on the screen: the inverse of `to_verdict`."""
    if "ranks" in verdict:
        return verdict | {"ranks": [verdict["ranks"][place] for place in shown]}
    if "skipped" in verdict:
        return verdict
    place_of = {place: index for index, place in enumerate(shown)}
    return {name: None if verdict[name] is None else place_of[verdict[name]] for name in QUESTIONS}


def agrees_with_gold(gold: dict[str, list[str]], edit_ids: Sequence[str], verdict: Verdict) -> bool | None:
    """Whether a verdict agrees with the known answer of a gold task.

    For ranks, the best-ranked of the better edits must have a better rank than the best-ranked of the worse ones. None
    if the person skipped the task.
    """
    if "skipped" in verdict:
        return None
    better = [edit_ids.index(edit_id) for edit_id in gold["better"]]
    worse = [edit_ids.index(edit_id) for edit_id in gold["worse"]]
    if "ranks" in verdict:
        ranks = verdict["ranks"]
        return min(ranks[place] for place in better) < min(ranks[place] for place in worse)
    return verdict["follows"] in better
