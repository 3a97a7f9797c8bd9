"""Rankings: checked, read from people's files, turned into preferences, and compared between people.

candidates, annotations -> rankings
"""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hive_ray.agreement import RankingError, check_ranks, mean_tau
from hive_ray.schemas import Row, Rows
from hive_ray.seeds import id_for


def preference_pairs(ranks: list[int]) -> list[tuple[int, int]]:
    """(chosen, rejected) positions of every two edits that are ranked apart; ties imply no preference."""
    places = range(len(ranks))
    return [(chosen, rejected) for chosen in places for rejected in places if ranks[chosen] < ranks[rejected]]


def mean_agreement(rankings: Rows) -> float | None:
    """Kendall's tau-b, mean over pairs of annotators of a prompt, then over prompts; None without pairs."""
    ranks_of: dict[str, list[list[int]]] = defaultdict(list)
    for row in rankings:
        ranks_of[row["prompt_id"]].append(row["ranks"])
    return mean_tau(ranks_of.values())


def ranking_row(candidate: Row, annotator: str, ranks: list[int]) -> Row:
    """A RANKINGS row: one person's checked order of a candidates row's edits."""
    check_ranks(ranks, len(candidate["edits"]))
    edit_ids = [edit["edit_id"] for edit in candidate["edits"]]
    ranking_id = id_for("ranking", candidate["prompt_id"], annotator, *edit_ids)
    return candidate | {"ranking_id": ranking_id, "annotator": annotator, "ranks": ranks}


@dataclass(frozen=True)
class Annotation:
    """One line of an annotations file: what one person said of one prompt."""

    prompt_id: str
    annotator: str
    tiers: tuple[tuple[str, ...], ...] | None
    """Edit ids, best first, ties together; None if the line gives ranks."""
    ranks: tuple[int, ...] | None
    """Aligned with `edit_ids` if given, else with the candidate's edits; None if the line gives an order."""
    edit_ids: tuple[str, ...] | None
    place: str
    """File and line, for errors."""


def parse_annotations(lines: Iterable[str], name: str) -> dict[str, list[Annotation]]:
    """The JSON lines of the file `name` by prompt_id; blank lines are skipped.

    A line has `prompt_id`, `annotator` and one of
        "order": ["e3", ["e1", "e2"], "e4"]   edit ids, best first, ties in an inner list
        "ranks": [2, 2, 1, 4]      aligned with "edit_ids" if given, else with the candidate's edits
    Other keys are left alone. Where a person ranked a prompt again, the later line counts.
    """
    latest: dict[tuple[str, str], Annotation] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            annotation = _parse_line(line, f"{name}, line {number}")
            latest[annotation.prompt_id, annotation.annotator] = annotation
    by_prompt: dict[str, list[Annotation]] = defaultdict(list)
    for annotation in latest.values():
        by_prompt[annotation.prompt_id].append(annotation)
    return dict(by_prompt)


def rankings_from_people(candidate: Row, annotations: dict[str, list[Annotation]]) -> Rows:
    """The RANKINGS rows of one candidates row: one for each person who ranked its prompt."""
    return [_joined(candidate, annotation) for annotation in annotations.get(candidate["prompt_id"], [])]


def _joined(candidate: Row, annotation: Annotation) -> Row:
    edit_ids = [edit["edit_id"] for edit in candidate["edits"]]
    try:
        return ranking_row(candidate, annotation.annotator, _ranks_of(annotation, edit_ids))
    except RankingError as error:
        raise RankingError(f"{annotation.place}, prompt {annotation.prompt_id}: {error}") from error


def _ranks_of(annotation: Annotation, edit_ids: list[str]) -> list[int]:
    """The annotation's ranks aligned with `edit_ids`."""
    if annotation.tiers is not None:
        named = [edit_id for tier in annotation.tiers for edit_id in tier]
        ranks = [rank for rank, tier in enumerate(annotation.tiers, start=1) for _ in tier]
    else:
        assert annotation.ranks is not None
        named, ranks = list(annotation.edit_ids or edit_ids), list(annotation.ranks)
    if sorted(named) != sorted(edit_ids):
        raise RankingError(f"ranks the edits {named}, but the candidates are {edit_ids}; rank each of them once")
    if len(ranks) != len(named):
        raise RankingError(f"{len(ranks)} ranks {ranks} for {len(named)} edits; give one rank to each edit")
    rank_of = dict(zip(named, ranks, strict=True))
    return [rank_of[edit_id] for edit_id in edit_ids]


def _parse_line(line: str, place: str) -> Annotation:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise RankingError(f"{place}: not JSON ({error}); write one object a line") from error
    if not isinstance(record, dict):
        raise RankingError(f"{place}: a {type(record).__name__}, not an object with prompt_id, annotator and order")
    for key in ("prompt_id", "annotator"):
        if not isinstance(record.get(key), str) or not record[key]:
            raise RankingError(f"{place}: {key} is {record.get(key)!r}; give a text")
    if ("order" in record) == ("ranks" in record):
        raise RankingError(f"{place}: keys {sorted(record)}; give one of order and ranks")
    tiers = _tiers(record["order"], place) if "order" in record else None
    return Annotation(
        prompt_id=record["prompt_id"],
        annotator=record["annotator"],
        tiers=tiers,
        ranks=_list_of(record, "ranks", int, place),
        edit_ids=_list_of(record, "edit_ids", str, place),
        place=place,
    )


def _list_of(record: dict[str, Any], key: str, kind: type, place: str) -> Any:
    """record[key] as a tuple of `kind`, None where the key is absent."""
    if key not in record:
        return None
    values = record[key]
    if not isinstance(values, list) or not all(type(value) is kind for value in values):
        raise RankingError(f"{place}: {key} is {values!r}; give a list of {kind.__name__}")
    return tuple(values)


def _tiers(order: Any, place: str) -> tuple[tuple[str, ...], ...]:
    """["a", ["b", "c"]] -> (("a",), ("b", "c"))."""
    tiers = [tier if isinstance(tier, list) else [tier] for tier in order] if isinstance(order, list) else []
    if not tiers or not all(tier and all(isinstance(edit_id, str) for edit_id in tier) for tier in tiers):
        raise RankingError(f"{place}: order is {order!r}; give a list of edit ids, best first, ties in an inner list")
    return tuple(tuple(tier) for tier in tiers)
