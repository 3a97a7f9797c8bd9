"""Rankings: reading them from annotation files, checking them, and preferences and agreement from them.

candidates, annotations -> rankings
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hive_ray.files.text_files import SAMPLE_CHARS, JsonLine
from hive_ray.schemas import Counted, Dropped, Result, Row, Rows
from hive_ray.seeds import id_for
from hive_ray.statistics.agreement import RankingError, check_ranks, mean_kendall_tau

UNKNOWN_PROMPT = "unknown_prompt"
OTHER_EDITS = "other_edits"
RANKED_AGAIN = "ranked_again"
MAX_RANK = 127
"""The greatest rank: `rankings` stores ranks as int8."""
MAX_SAMPLES, SAMPLE_LENGTH = 3, 300
"""Dropped lines that are kept as samples for each reason, and characters of each."""


def preference_pairs(ranks: list[int]) -> list[tuple[int, int]]:
    """(chosen, rejected) places of all pairs of edits with different ranks; ties give no preference."""
    places = range(len(ranks))
    return [(chosen, rejected) for chosen in places for rejected in places if ranks[chosen] < ranks[rejected]]


def mean_agreement(rankings: Rows) -> float | None:
    """Kendall's tau-b, a mean over pairs of annotators of a prompt, then over prompts; None without pairs."""
    ranks_of: dict[str, list[list[int]]] = defaultdict(list)
    for row in rankings:
        ranks_of[row["prompt_id"]].append(row["ranks"])
    return mean_kendall_tau(ranks_of.values())


def ranking_row(candidate: Row, annotator: str, ranks: list[int]) -> Row:
    """A RANKINGS row: one person's ranks of the edits of a CANDIDATES row. RankingError for invalid ranks."""
    check_ranks(ranks, len(candidate["edits"]))
    edit_ids = [edit["edit_id"] for edit in candidate["edits"]]
    ranking_id = id_for("ranking", candidate["prompt_id"], annotator, *edit_ids)
    return candidate | {"ranking_id": ranking_id, "annotator": annotator, "ranks": ranks}


@dataclass(frozen=True)
class Annotation:
    """One person's ranking of one prompt."""

    prompt_id: str
    annotator: str
    ranks: tuple[int, ...]
    """Aligned with the candidate's edits; 1 is best."""
    place: str
    """File and line, for messages."""


@dataclass
class Annotations:
    """People's rankings of a table of candidates, and the dropped lines of their file."""

    by_prompt: dict[str, list[Annotation]] = field(default_factory=dict)
    lines: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """Reason -> number of dropped lines."""
    samples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Reason -> descriptions of the first of these lines."""

    @property
    def num_accepted(self) -> int:
        """Lines with a valid ranking of a candidate, including those that the same person corrected later."""
        return self.lines - self.dropped.total() + self.dropped[RANKED_AGAIN]

    def drop(self, reason: str, sample: str) -> None:
        """Count a dropped line, and keep the first samples of a reason."""
        self.dropped[reason] += 1
        if self.dropped[reason] <= MAX_SAMPLES:
            self.samples[reason].append(sample[:SAMPLE_LENGTH])

    def as_rows(self) -> list[Result]:
        """The counts for a table's manifest: `Dropped` for each dropped line, the first ones with a sample, and
        `Counted` with the number of all lines."""
        dropped = [Dropped(reason, sample=sample) for reason, samples in self.samples.items() for sample in samples]
        for reason, count in self.dropped.items():
            dropped += [Dropped(reason)] * (count - len(self.samples[reason]))
        return [*dropped, Counted({"lines": self.lines})]

    def __str__(self) -> str:
        left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(self.dropped.items()))
        shown = "".join(f"\n  {reason}: {sample}" for reason, samples in self.samples.items() for sample in samples)
        fit = f"{self.num_accepted} of {self.lines} lines fit the candidates"
        return f"{fit}; left out: {left_out}{shown}" if left_out else fit


def join_annotations(lines: Iterable[JsonLine], edits_of: Mapping[str, Sequence[str]]) -> Annotations:
    """The annotations in the lines of a file; invalid lines are dropped and counted.

    edits_of: prompt_id -> ids of its edits, in order.

    A line has `prompt_id`, `annotator` and one of
        "order": ["e3", ["e1", "e2"], "e4"]   edit ids, best first, ties in an inner list
        "ranks": [2, 2, 1, 4]      aligned with "edit_ids" if given, else with the candidate's edits
    Other keys are ignored. If a person ranked a prompt again, the later line counts ("ranked_again").
    """
    annotations = Annotations()
    latest: dict[tuple[str, str], Annotation] = {}
    for line in lines:
        annotations.lines += 1
        try:
            annotation = _annotation(line, edits_of)
        except RankingError as error:
            annotations.drop(error.reason, f"{line.place}: {error}")
            continue
        key = annotation.prompt_id, annotation.annotator
        if key in latest:
            older = latest[key]
            sample = f"{older.place}: {older.annotator} ranked {older.prompt_id} again in {line.place}"
            annotations.drop(RANKED_AGAIN, sample)
        latest[key] = annotation
    for annotation in latest.values():
        annotations.by_prompt.setdefault(annotation.prompt_id, []).append(annotation)
    return annotations


def rankings_from_people(candidate: Row, annotations: Mapping[str, Sequence[Annotation]]) -> Rows:
    """The RANKINGS rows of a candidates row, one for each person who ranked its prompt."""
    of_prompt = annotations.get(candidate["prompt_id"], ())
    return [ranking_row(candidate, annotation.annotator, list(annotation.ranks)) for annotation in of_prompt]


def _annotation(line: JsonLine, edits_of: Mapping[str, Sequence[str]]) -> Annotation:
    if line.problem:
        raise RankingError(f"{line.detail}: {line.text[:SAMPLE_CHARS]!r}", line.problem)
    record = line.value
    prompt_id, annotator = _text(record, "prompt_id"), _text(record, "annotator")
    if prompt_id not in edits_of:
        raise RankingError(f"prompt {prompt_id!r} is none of the {len(edits_of)} candidates", UNKNOWN_PROMPT)
    try:
        ranks = _ranks_of(record, edits_of[prompt_id])
    except RankingError as error:
        raise RankingError(f"prompt {prompt_id}: {error}", error.reason) from error
    return Annotation(prompt_id, annotator, tuple(ranks), line.place)


def _ranks_of(record: dict[str, Any], edit_ids: Sequence[str]) -> list[int]:
    """The ranks of a line, aligned with `edit_ids`."""
    if (record.get("order") is None) == (record.get("ranks") is None):
        keys = ", ".join(record)[:SAMPLE_CHARS]
        raise RankingError(f"the line has {keys}; give either order or ranks", "order_missing")
    if record.get("order") is not None:
        tiers = _tiers(record["order"])
        named = [edit_id for tier in tiers for edit_id in tier]
        ranks = [rank for rank, tier in enumerate(tiers, start=1) for _ in tier]
    else:
        ranks = _list_of(record, "ranks", int)
        named = _list_of(record, "edit_ids", str) if record.get("edit_ids") else list(edit_ids)
    if sorted(named) != sorted(edit_ids):
        raise RankingError(
            f"ranks the edits {named}, but the candidates are {list(edit_ids)}; rank each of them once", OTHER_EDITS
        )
    check_ranks(ranks, len(named))
    if max(ranks, default=1) > MAX_RANK:
        raise RankingError(f"there are {max(ranks)} ranks; a table holds {MAX_RANK}")
    rank_of = dict(zip(named, ranks, strict=True))
    return [rank_of[edit_id] for edit_id in edit_ids]


def _text(record: dict[str, Any], key: str) -> str:
    if not isinstance(record.get(key), str) or not record[key].strip():
        raise RankingError(f"{key} is {repr(record.get(key))[:SAMPLE_CHARS]}; give a text", f"{key}_missing")
    return record[key]


def _list_of(record: dict[str, Any], key: str, kind: type) -> list[Any]:
    values = record[key]
    if not isinstance(values, list) or not all(type(value) is kind for value in values):
        raise RankingError(f"{key} is {repr(values)[:SAMPLE_CHARS]}; give a list of {kind.__name__}")
    return values


def _tiers(order: Any) -> list[list[str]]:
    """["a", ["b", "c"]] -> [["a"], ["b", "c"]]."""
    tiers = [tier if isinstance(tier, list) else [tier] for tier in order] if isinstance(order, list) else []
    edit_ids = [edit_id for tier in tiers for edit_id in tier]
    if not tiers or not all(tiers) or not all(isinstance(edit_id, str) for edit_id in edit_ids):
        shown = repr(order)[:SAMPLE_CHARS]
        raise RankingError(f"order is {shown}; give a list of edit ids, best first, ties in an inner list")
    return tiers
