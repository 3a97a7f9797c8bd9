"""What there is to rank in the tests of the annotation app, and people who rank it."""

from hive_ray.annotation.database import Database
from hive_ray.annotation.models import RANK, Person
from hive_ray.annotation.people import invite
from hive_ray.annotation.tasks import Prompt, load_tasks


def prompts(count: int, num_edits: int = 4) -> list[Prompt]:
    """`count` prompts p0, p1, ... with edits p0e0, p0e1, ..."""
    return [_prompt(f"p{number}", f"make it {number}", num_edits) for number in range(count)]


def _prompt(prompt_id: str, instruction: str, num_edits: int) -> Prompt:
    edits = tuple(f"{prompt_id}e{place}" for place in range(num_edits))
    return Prompt(prompt_id, instruction, edits, ("sft",) * num_edits)


def loaded(database: Database, count: int, people_per_task: int = 1, num_edits: int = 4, kind: str = RANK) -> None:
    """`count` tasks of that kind."""
    load_tasks(database, kind, prompts(count, num_edits), people_per_task)


def hired(database: Database, name: str) -> int:
    """The id of a new annotator."""
    invite(database, name)
    return database.read(lambda session: session.query(Person.id).filter(Person.name == name).scalar())
