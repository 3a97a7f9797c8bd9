"""Make tasks from candidates, and gold tasks with a known answer.

The key of a task depends on its content: loading the same candidates again adds no tasks.
"""

import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import Session

from hive_ray.annotation.database import Database
from hive_ray.annotation.models import Project, Task
from hive_ray.console import warn
from hive_ray.files.text_files import SAMPLE_CHARS, JsonLine, LineCount, TextError
from hive_ray.seeds import id_for, uniform_for

BATCH_ROWS = 1000
GOLD_WANTED = 1_000_000
"""How many people should answer a gold task: everybody."""
GOLD_SHARE = 0.1
"""Automatic gold tasks: this share of the prompts, but at least `MIN_GOLD` if there are so many prompts."""
MIN_GOLD = 10
UNCHANGED_PREFIX, OTHER_SOURCE_PREFIX = "unchanged:", "another:"
"""Prefixes of the ids of known bad edits: the unedited source, and the source of another prompt."""


class GoldError(ValueError):
    """A file of known answers that does not fit the candidates."""


@dataclass(frozen=True)
class Prompt:
    """A prompt and the edits that people judge."""

    prompt_id: str
    instruction: str
    edit_ids: tuple[str, ...]
    editors: tuple[str, ...]
    gold: dict[str, list[str]] | None = field(default=None, hash=False)

    def key(self, kind: str) -> str:
        """The content id of its task."""
        return id_for("task", kind, self.prompt_id, *self.edit_ids, "gold" if self.gold else "")


def automatic_gold(prompts: Sequence[Prompt]) -> Iterator[Prompt]:
    """Yield gold prompts, whose last edit is replaced by a known bad one.

    Alternately this is the unedited source, which does not follow the instruction, and the source of another prompt,
    which preserves nothing.
    """
    num_known = min(len(prompts), max(MIN_GOLD, round(GOLD_SHARE * len(prompts))))
    chosen = sorted(prompts, key=lambda prompt: uniform_for("gold", prompt.prompt_id))[:num_known]
    for number, prompt in enumerate(chosen):
        other = chosen[(number + 1) % len(chosen)].prompt_id
        bad = (
            f"{OTHER_SOURCE_PREFIX}{other}"
            if number % 2 and other != prompt.prompt_id
            else f"{UNCHANGED_PREFIX}{prompt.prompt_id}"
        )
        kept = prompt.edit_ids[:-1]
        yield Prompt(
            prompt.prompt_id, prompt.instruction, (*kept, bad), prompt.editors,
            {"better": list(kept), "worse": [bad]},
        )  # fmt: skip


def read_gold(lines: Iterable[JsonLine], name: str, prompts: Sequence[Prompt]) -> list[Prompt]:
    """Read gold prompts from JSON lines {"prompt_id": ..., "better": edit id, "worse": edit id}.

    Lines that do not fit a prompt are skipped with a warning; GoldError if they are more than half.
    """
    by_id = {prompt.prompt_id: prompt for prompt in prompts}
    prompt_of: dict[str, Prompt] = {}
    place_of: dict[str, str] = {}
    count = LineCount(name)
    for line in lines:
        try:
            known = _gold_prompt(line, by_id)
            if known.prompt_id in prompt_of:
                first = place_of[known.prompt_id]
                raise GoldError(f"{known.prompt_id} is in {first}, too, which counts; keep one of them")
        except GoldError as error:
            count.add(f"{line.place}: {error}")
        else:
            count.add()
            prompt_of[known.prompt_id], place_of[known.prompt_id] = known, line.place
    try:
        count.raise_if_mostly_bad(
            "Give prompt_id (of a candidate), better and worse (ids of its edits), an object a line"
        )
    except TextError as error:
        raise GoldError(str(error)) from error
    if count.bad:
        warn(f"known answers {name}: {count}")
    return list(prompt_of.values())


def _gold_prompt(line: JsonLine, by_id: dict[str, Prompt]) -> Prompt:
    if line.problem:
        raise GoldError(f"{line.detail}: {line.text[:SAMPLE_CHARS]!r}")
    record = line.value
    missing = [key for key in ("prompt_id", "better", "worse") if not isinstance(record.get(key), str)]
    if missing:
        raise GoldError(f"{', '.join(missing)} must be a text: {line.text[:SAMPLE_CHARS]!r}")
    prompt = by_id.get(record["prompt_id"])
    if prompt is None:
        raise GoldError(f"prompt {record['prompt_id'][:SAMPLE_CHARS]!r} is none of the {len(by_id)} candidates")
    better, worse = record["better"], record["worse"]
    unknown = [edit_id[:SAMPLE_CHARS] for edit_id in (better, worse) if edit_id not in prompt.edit_ids]
    if unknown:
        raise GoldError(f"{unknown} are no edits of {prompt.prompt_id}, which has {list(prompt.edit_ids)}")
    if better == worse:
        raise GoldError(f"{better} is better and worse; name two edits")
    gold = {"better": [better], "worse": [worse]}
    return Prompt(prompt.prompt_id, prompt.instruction, prompt.edit_ids, prompt.editors, gold)


def load_tasks(database: Database, kind: str, prompts: Iterable[Prompt], people_per_task: int) -> int:
    """Add tasks for new prompts, mark tasks whose prompts are gone, and set how many people should answer each.

    Returns the number of new tasks. Regular tasks are assigned in the order of `prompts`. Gold tasks go to everybody,
    and their known answers are updated. Tasks marked as broken are enabled again, since their pictures may have been
    repaired.
    """
    by_key = {prompt.key(kind): prompt for prompt in prompts}

    def store(session: Session) -> int:
        session.execute(update(Task).where(Task.kind == kind).values(present=False))
        first = 1 + (session.scalar(select(func.max(Task.position))) or 0)
        added = 0
        keys = list(by_key)
        for start in range(0, len(keys), BATCH_ROWS):
            chunk = keys[start : start + BATCH_ROWS]
            known = set(session.scalars(select(Task.key).where(Task.key.in_(chunk))))
            session.execute(update(Task).where(Task.key.in_(known)).values(present=True, broken=None))
            work = (Task.key.in_(known), Task.gold.is_(None))
            session.execute(update(Task).where(*work).values(wanted=people_per_task))
            for task in session.scalars(select(Task).where(Task.key.in_(known), Task.gold.is_not(None))):
                task.gold = by_key[task.key].gold
            new = [key for key in chunk if key not in known]
            rows = [
                _row(key, kind, by_key[key], first + added + index, people_per_task) for index, key in enumerate(new)
            ]
            if rows:
                session.execute(insert(Task), rows)
            added += len(rows)
        _put_in_order(session, kind, [key for key, prompt in by_key.items() if not prompt.gold])
        return added

    return database.write(store)


def _put_in_order(session: Session, kind: str, keys: Sequence[str]) -> None:
    """Assign these tasks in this order from now on.

    They get positions after all others, so that every person finds them again; tasks that a person has had are skipped.
    """
    present = select(Task.key, Task.id, Task.position).where(Task.kind == kind, Task.present)
    by_key = {key: (task_id, position) for key, task_id, position in session.execute(present)}
    positions = [by_key[key][1] for key in keys]
    if positions == sorted(positions):
        return
    first = 1 + (session.scalar(select(func.max(Task.position))) or 0)
    rows = [{"id": by_key[key][0], "position": first + place} for place, key in enumerate(keys)]
    session.execute(update(Task), rows)


def _row(key: str, kind: str, prompt: Prompt, position: int, people_per_task: int) -> dict[str, Any]:
    return {
        "key": key, "kind": kind, "prompt_id": prompt.prompt_id, "instruction": prompt.instruction,
        "edit_ids": list(prompt.edit_ids), "editors": list(prompt.editors), "gold": prompt.gold, "position": position,
        "wanted": GOLD_WANTED if prompt.gold else people_per_task, "taken": 0, "present": True, "broken": None,
    }  # fmt: skip


def project_name(database: Database) -> str:
    """The random name of this database's project, created on first use."""

    def name(session: Session) -> str:
        project = session.get(Project, 1)
        if project is None:
            project = Project(id=1, name=secrets.token_hex(8), created=time.time())
            session.add(project)
        return project.name

    return database.write(name)


def project_secret(database: Database) -> str:
    """The key that signs URLs of this project's pictures, created on first use; it is never shown."""
    kept = database.read(lambda session: session.scalar(select(Project.secret)))
    if kept:
        return kept
    project_name(database)  # which makes the project

    def secret(session: Session) -> str:
        project = session.get_one(Project, 1, with_for_update=True)
        made = project.secret or secrets.token_hex(16)
        project.secret = made
        return made

    return database.write(secret)
