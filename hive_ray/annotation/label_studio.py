"""Export ranking tasks to Label Studio, and import its results.

Edits are items of a `List` that people sort into one bucket for each rank; edits in the same bucket tie. A task's
`data` names its project, so that a file of another project is refused. The user study is not supported. Label Studio
1.23 shows pictures by URL only, not from data in the task.
"""

import hashlib
import hmac
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from html import escape
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from hive_ray.annotation.database import Database
from hive_ray.annotation.exports import AnswerRecord
from hive_ray.annotation.models import ACTIVE, ANNOTATOR, ANSWERED, RANK, SKIPPED, Answer, Assignment, Person, Task
from hive_ray.files.text_files import replace_surrogates
from hive_ray.seeds import id_for
from hive_ray.statistics.agreement import dense_ranks

BUCKET_PREFIX = "rank_"
MAX_EDITS = 9
MAX_SECONDS = 1e9
MAX_ID = 2**63 - 1
MAX_NAME_LENGTH = 200
MAX_REASONS_SHOWN, MAX_REASON_SHOWN = 5, 300
"""How many reasons an error shows, and how many characters of each."""
SKIP_REASON = "skipped in Label Studio"


class LabelStudioError(ValueError):
    """A file that is not a Label Studio export of this project's tasks."""


def picture_signature(secret: str, prompt_id: str, edit_id: str) -> str:
    """Signature of a picture's URL, which lets its holder see the picture: HMAC-SHA256, 32 hex digits.

    `edit_id` is "" for the source picture.
    """
    return hmac.new(secret.encode(), json.dumps([prompt_id, edit_id]).encode(), hashlib.sha256).hexdigest()[:32]


def labeling_config(database: Database) -> str:
    """The labeling configuration (XML): as many buckets as the largest task has edits."""
    query = select(Task.edit_ids).where(Task.kind == RANK)
    edit_ids_of_tasks = database.read(lambda session: list(session.scalars(query)))
    num_edits = max(map(len, edit_ids_of_tasks), default=MAX_EDITS)
    buckets = "".join(f'<Bucket name="{BUCKET_PREFIX}{rank}" title="Rank {rank}"/>' for rank in range(1, num_edits + 1))
    return (
        '<View><Header value="$instruction"/><Image name="picture" value="$source_image" maxWidth="360px"/>'
        f'<List name="edits" value="$edits" title="Edits"/><Ranker name="ranks" toName="edits">{buckets}</Ranker>'
        '<Choices name="none_acceptable" toName="picture"><Choice value="None is acceptable"/></Choices></View>'
    )


def export_tasks(
    database: Database, project: str, address: Callable[[str, str], str], answers: list[AnswerRecord]
) -> Iterator[str]:
    """Yield the pieces of a JSON file with all available tasks except gold ones, their picture URLs and their answers.

    `address` returns the URL of a picture for a prompt id and an edit id; "" is the source picture. Answers carry no
    person, since Label Studio refuses files that name unknown people. `import_id` identifies them on import.
    """
    by_task: dict[int, list[AnswerRecord]] = {}
    for answer in answers:
        if not answer.attempt and not answer.gold:
            by_task.setdefault(answer.task_id, []).append(answer)
    query = select(Task).where(Task.kind == RANK, Task.gold.is_(None), Task.present, Task.broken.is_(None))
    open_tasks = database.read(lambda session: list(session.scalars(query.order_by(Task.position))))
    rows = (_task(task, project, address, by_task.get(task.id, [])) for task in open_tasks)
    return _array(json.dumps(row, ensure_ascii=False) for row in rows)


def _array(rows: Iterable[str]) -> Iterator[str]:
    yield "["
    for number, row in enumerate(rows):
        yield f"{',' if number else ''}\n{row}"
    yield "\n]\n"


def _task(task: Task, project: str, address: Callable[[str, str], str], answers: list[AnswerRecord]) -> dict[str, Any]:
    def shown(edit_id: str) -> str:
        return f'<img src="{escape(address(task.prompt_id, edit_id), quote=True)}" alt="an edit" width="100%">'

    edits = [{"id": edit_id, "html": shown(edit_id)} for edit_id in task.edit_ids]
    data = {
        "hive_ray_project": project, "hive_ray_task": task.key, "prompt_id": task.prompt_id,
        "instruction": task.instruction, "source_image": address(task.prompt_id, ""), "edits": edits,
    }  # fmt: skip
    return {"data": data, "annotations": [_annotation(answer) for answer in answers]}


def _annotation(answer: AnswerRecord) -> dict[str, Any]:
    same = {"id": answer.answer_id, "import_id": answer.answer_id, "lead_time": round(answer.seconds, 2)}
    if "skipped" in answer.verdict:
        return {**same, "was_cancelled": True, "result": []}
    ranks = answer.verdict["ranks"]
    buckets: dict[str, list[str]] = {f"{BUCKET_PREFIX}{rank}": [] for rank in sorted(set(ranks))}
    for edit_id, rank in zip(answer.edit_ids, ranks, strict=True):
        buckets[f"{BUCKET_PREFIX}{rank}"].append(edit_id)
    result = [{"from_name": "ranks", "to_name": "edits", "type": "ranker", "value": {"ranker": buckets}}]
    if answer.verdict["none_acceptable"]:
        chosen = {"choices": ["None is acceptable"]}
        result.append({"from_name": "none_acceptable", "to_name": "picture", "type": "choices", "value": chosen})
    return {**same, "was_cancelled": False, "result": result}


@dataclass
class ImportResult:
    """Counts of the answers in an imported file."""

    new: int = 0
    known: int = 0
    """Answers that the database had already: a person answers a task once, here or in Label Studio."""
    left_out: list[str] = field(default_factory=list)
    """Why each unusable answer or task was left out."""


def import_answers(database: Database, project: str, export: Any, now: float) -> ImportResult:
    """Store the answers of a Label Studio JSON export, and report those that cannot be used.

    Raises LabelStudioError, and stores nothing, if the file is not a list or most of its answers cannot be used.
    Annotators are added by their e-mail address or number, without a personal link.
    """
    if not isinstance(export, list):
        raise LabelStudioError(f"the file holds a {type(export).__name__}; export the tasks as JSON, which is a list")
    try:
        rows = replace_surrogates(export)
    except RecursionError as error:
        raise LabelStudioError("the file is nested too deeply to be an export of tasks") from error

    def store(session: Session) -> ImportResult:
        taken = ImportResult()
        for number, row in enumerate(rows):
            try:
                task = _known_task(session, project, row, number)
                annotations = _annotations_of(row, f"task {number} ({task.prompt_id})")
            except LabelStudioError as error:
                taken.left_out += [str(error)] * _num_answers(row)
                continue
            for place, annotation in annotations:
                _import_annotation(session, task, annotation, place, now, taken)
        if len(taken.left_out) > taken.new + taken.known:
            raise LabelStudioError(_mostly_unusable(taken))
        return taken

    return database.write(store)


def _mostly_unusable(taken: ImportResult) -> str:
    usable = taken.new + taken.known
    shown = "; ".join(list(dict.fromkeys(taken.left_out))[:MAX_REASONS_SHOWN])
    return (
        f"{len(taken.left_out)} of {len(taken.left_out) + usable} answers and tasks cannot be used, and nothing is "
        f"taken in: {shown}"
    )


def _num_answers(row: Any) -> int:
    """Number of answers of an unusable task, at least one for the task itself."""
    annotations = row.get("annotations") if isinstance(row, dict) else None
    return max(1, len(annotations)) if isinstance(annotations, list) else 1


def _annotations_of(row: dict[str, Any], place: str) -> list[tuple[str, Any]]:
    annotations = row.get("annotations") or []
    if not isinstance(annotations, list):
        raise LabelStudioError(f"{place}: annotations is a {type(annotations).__name__}; wanted a list")
    return [(f"{place}, annotation {number}", annotation) for number, annotation in enumerate(annotations)]


def _import_annotation(
    session: Session, task: Task, annotation: Any, place: str, now: float, taken: ImportResult
) -> None:
    """Store one answer if it is new and valid, and count it."""
    try:
        if _is_ours(session, task, annotation):
            taken.known += 1
            return
        name = _name(annotation.get("completed_by"))
        verdict, seconds = _verdict(task, annotation), _seconds(annotation.get("lead_time"))
    except (AttributeError, KeyError, TypeError) as error:
        taken.left_out.append(f"{place} is not as Label Studio writes it: {error!r}"[:MAX_REASON_SHOWN])
    except ValueError as error:
        taken.left_out.append(f"{place}: {error}"[:MAX_REASON_SHOWN])
    else:
        is_new = _store(session, task, name, verdict, seconds, now)
        taken.new += is_new
        taken.known += not is_new


def _known_task(session: Session, project: str, row: Any, number: int) -> Task:
    data = row.get("data") if isinstance(row, dict) else None
    if not isinstance(data, dict):
        raise LabelStudioError(f"task {number} has no data; export the tasks as JSON (not JSON-MIN)")
    if data.get("hive_ray_project") != project:
        whose = repr(data.get("hive_ray_project"))[:MAX_NAME_LENGTH]
        raise LabelStudioError(
            f"task {number} is of the project {whose}, and this is {project!r}: give results of the tasks that were "
            "exported here"
        )
    key = data.get("hive_ray_task")
    query = select(Task).where(Task.key == key, Task.kind == RANK, Task.gold.is_(None))
    task = session.scalars(query).first() if _storable(key) else None
    if task is None:
        raise LabelStudioError(f"task {number} is {repr(key)[:MAX_NAME_LENGTH]}, which is unknown here")
    return task


def _storable(text: Any) -> bool:
    """Whether it is a string that both databases can store."""
    return isinstance(text, str) and "\0" not in text


def _is_ours(session: Session, task: Task, annotation: dict[str, Any]) -> bool:
    """Whether an answer was exported from here."""
    ours = annotation.get("import_id")
    if type(ours) is not int or not 0 < ours <= MAX_ID:
        return False
    known = select(Answer.id).join(Assignment).where(Answer.id == ours, Assignment.task_id == task.id)
    return session.scalars(known).first() is not None


def _store(
    session: Session, task: Task, name: str, verdict: dict[str, Any], seconds: float, now: float
) -> bool:  # fmt: skip
    """Store an answer unless this person has answered the task; returns whether it was stored."""
    person = _person(session, name, now)
    same = (Assignment.task_id == task.id, Assignment.person_id == person.id)
    if session.scalars(select(Assignment).where(*same)).first():
        return False
    session.refresh(task, with_for_update=True)
    skipped = "skipped" in verdict
    task.taken += not skipped
    order = list(range(len(task.edit_ids)))
    state = SKIPPED if skipped else ANSWERED
    assignment = Assignment(
        task_id=task.id, person_id=person.id, attempt=0, shown=order, state=state, handed=now, expires=now
    )
    session.add(assignment)
    session.flush()
    key = id_for("label studio", task.key, person.name)
    session.add(Answer(assignment_id=assignment.id, key=key, verdict=verdict, seconds=seconds, at=now))
    session.flush()
    return True


def _person(session: Session, name: str, now: float) -> Person:
    person = session.scalars(select(Person).where(Person.name == name)).first()
    if person is None:
        person = Person(name=name, role=ANNOTATOR, state=ACTIVE, handed=0, last_position=-1, created=now)
        session.add(person)
        session.flush()
    return person


def _name(completed_by: Any) -> str:
    """The annotator's name: their e-mail address, or "Label Studio <number>"."""
    name = completed_by.get("email") or completed_by.get("id") if isinstance(completed_by, dict) else completed_by
    if type(name) is int and 0 <= name <= MAX_ID:
        return f"Label Studio {name}"
    if not isinstance(name, str) or not _storable(name) or not name.strip() or len(name) > MAX_NAME_LENGTH:
        raise LabelStudioError(f"completed_by is {repr(completed_by)[:MAX_NAME_LENGTH]}; it names no person")
    return name


def _seconds(lead_time: Any) -> float:
    """Time for an answer in seconds; 0 if Label Studio did not measure it."""
    if lead_time is None:
        return 0.0
    if type(lead_time) not in (int, float) or not 0 <= lead_time <= MAX_SECONDS:
        raise LabelStudioError(f"lead_time is {str(lead_time)[:60]}; wanted 0 to {MAX_SECONDS:g} seconds")
    return float(lead_time)


def _verdict(task: Task, annotation: dict[str, Any]) -> dict[str, Any]:
    if annotation.get("was_cancelled"):
        return {"skipped": SKIP_REASON}
    results = annotation.get("result") or []
    buckets = next((result["value"]["ranker"] for result in results if result.get("type") == "ranker"), {})
    ranked = [
        (edit_id, int(name.removeprefix(BUCKET_PREFIX)))
        for name, edit_ids in buckets.items()
        if name.startswith(BUCKET_PREFIX) and name.removeprefix(BUCKET_PREFIX).isdecimal()
        for edit_id in edit_ids
    ]
    named = sorted(edit_id for edit_id, _ in ranked)
    if named != sorted(task.edit_ids):
        raise LabelStudioError(
            f"the edits {named} are ranked, and the task has {sorted(task.edit_ids)}: put each of them into one bucket"
        )
    none_acceptable = any(result.get("from_name") == "none_acceptable" for result in results)
    rank_of = dict(ranked)
    ranks = dense_ranks([rank_of[edit_id] for edit_id in task.edit_ids])
    return {"ranks": ranks, "none_acceptable": none_acceptable}
