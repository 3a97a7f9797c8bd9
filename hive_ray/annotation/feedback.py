"""Thumbs up and down from the page of a served editor, beside the rankings.

Here pictures are in the database, since they are nowhere else; a person who presses a thumb gives them.
"""

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from hive_ray.annotation.database import Database
from hive_ray.annotation.models import Feedback

AT_ONCE = 50


def record(
    database: Database, *, key: str, editor: str, instruction: str, liked: bool, settings: dict[str, Any],
    source_image: bytes, edited_image: bytes, now: float | None = None,
) -> bool:  # fmt: skip
    """Store what somebody thinks of one edit; whether it was new. `key` names the edit on the page: a thumb that is
    pressed again, or the other one, takes the place of the first."""

    def store(session: Session) -> bool:
        found = session.scalars(select(Feedback).where(Feedback.key == key).with_for_update()).first()
        if found is not None:
            found.liked, found.at = liked, now or time.time()
            return False
        session.add(
            Feedback(
                key=key, at=now or time.time(), editor=editor, instruction=instruction, liked=liked, settings=settings,
                source_image=source_image, edited_image=edited_image,
            )
        )  # fmt: skip
        return True

    return database.write(store)


def recorded(database: Database, editor: str | None = None) -> Iterator[Feedback]:
    """All feedback, or that on one version of an editor (its digest), in the order in which it came."""
    query = select(Feedback).order_by(Feedback.id).limit(AT_ONCE)
    if editor is not None:
        query = query.where(Feedback.editor == editor)
    last = 0
    while found := database.read(partial(_rows, query=query.where(Feedback.id > last))):
        yield from found
        last = found[-1].id


def _rows(session: Session, query: Select) -> list[Feedback]:
    return list(session.scalars(query))
