"""Thumbs up and down from the page of a served editor: store them, and turn them into rankings.

The database holds the pictures, since they exist nowhere else: the page sends them with the thumb.
"""

import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from hive_ray.annotation.database import Database
from hive_ray.annotation.models import Feedback
from hive_ray.files.text_files import replace_surrogates
from hive_ray.schemas import Dropped, Result, Row
from hive_ray.seeds import id_for

BATCH_ROWS = 50
THUMBS_ANNOTATOR = "thumbs"
MAX_LIKED, MAX_DISLIKED = 5, 4
"""Most liked and disliked edits in one ranking; together as many as people rank in one task."""


def store_feedback(
    database: Database, *, key: str, editor: str, instruction: str, liked: bool, settings: dict[str, Any],
    source_image: bytes, edited_image: bytes, now: float | None = None,
) -> bool:  # fmt: skip
    """Store a thumb for an edit; returns whether it is the first one for this edit.

    `key` identifies the edit on the page: a later thumb replaces an earlier one. Characters that a database cannot
    store become U+FFFD.
    """
    key = replace_surrogates(key).replace("\0", "\ufffd")
    instruction = replace_surrogates(instruction).replace("\0", "\ufffd")

    def store(session: Session) -> bool:
        known = session.scalars(select(Feedback).where(Feedback.key == key).with_for_update()).first()
        if known is not None:
            known.liked = liked
            known.at = now or time.time()
            return False
        session.add(
            Feedback(
                key=key, at=now or time.time(), editor=editor, instruction=instruction, liked=liked, settings=settings,
                source_image=source_image, edited_image=edited_image,
            )
        )  # fmt: skip
        return True

    return database.write(store)


def read_feedback(database: Database, editor: str | None = None) -> Iterator[Feedback]:
    """Yield all feedback, or that on one editor (by its digest), oldest first."""
    query = select(Feedback).order_by(Feedback.id).limit(BATCH_ROWS)
    if editor is not None:
        query = query.where(Feedback.editor == editor)
    last = 0
    while batch := database.read(partial(_rows, query=query.where(Feedback.id > last))):
        yield from batch
        last = batch[-1].id


def _rows(session: Session, query: Select) -> list[Feedback]:
    return list(session.scalars(query))


@dataclass(frozen=True)
class Thumb:
    """A thumb with content ids in place of its pictures."""

    id: int
    key: str
    prompt_id: str
    """Depends on the bytes of the source picture and the instruction, not on the editor."""
    edit_id: str
    liked: bool


def read_thumbs(database: Database) -> list[Thumb]:
    """All current thumbs, oldest first."""
    all_thumbs = []
    for row in read_feedback(database):
        prompt_id = id_for("prompt", THUMBS_ANNOTATOR, replace_surrogates(row.instruction), row.source_image)
        all_thumbs.append(Thumb(row.id, row.key, prompt_id, id_for("thumb", prompt_id, row.edited_image), row.liked))
    return all_thumbs


def rankings_from_thumbs(database: Database, thumbs: list[Thumb]) -> Iterator[Result]:
    """Yield a RANKINGS row for each picture and instruction, and a `Dropped` for each thumb that is in none.

    Edits with more thumbs up than down have rank 1, edits with fewer have rank 2. A ranking needs at least one of each.
    The annotator is "thumbs". Pictures have the editor's resolution; captions are "".
    """
    of_prompt: dict[str, dict[str, list[Thumb]]] = defaultdict(lambda: defaultdict(list))
    for thumb in thumbs:
        of_prompt[thumb.prompt_id][thumb.edit_id].append(thumb)
    for edits in of_prompt.values():
        balance = {edit_id: _balance(thumbs_of_edit) for edit_id, thumbs_of_edit in edits.items()}
        liked = [edit_id for edit_id in edits if balance[edit_id] > 0][-MAX_LIKED:]
        disliked = [edit_id for edit_id in edits if balance[edit_id] < 0][-MAX_DISLIKED:]
        ranked = [*liked, *disliked] if liked and disliked else []
        for edit_id in edits.keys() - set(ranked):
            alone = "too_many_edits" if ranked else "nothing_to_compare_with"
            reason = alone if balance[edit_id] else "as_many_up_as_down"
            yield from (Dropped(reason) for _ in edits[edit_id])
        if ranked:
            rows = database.read(partial(_by_id, ids=[edits[edit_id][-1].id for edit_id in ranked]))
            yield _ranking(dict(zip(ranked, rows, strict=True)), edits[ranked[0]][0].prompt_id, len(liked))


def _balance(thumbs_of_edit: list[Thumb]) -> int:
    """Thumbs up minus thumbs down."""
    return sum(1 if thumb.liked else -1 for thumb in thumbs_of_edit)


def _ranking(edits: dict[str, Feedback], prompt_id: str, num_liked: int) -> Row:
    first = next(iter(edits.values()))
    edit_rows: list[Row] = []
    for edit_id, edit in edits.items():
        sampled = {name: edit.settings.get(name) or 0 for name in ("seed", "guidance_scale", "image_guidance_scale")}
        edit_rows.append({"edit_id": edit_id, "image": edit.edited_image, **sampled})
    return {
        "ranking_id": id_for("ranking", prompt_id, THUMBS_ANNOTATOR, *edits),
        "prompt_id": prompt_id,
        "instruction": first.instruction,
        "source_caption": "",
        "edited_caption": "",
        "source_image": first.source_image,
        "split": "rank",
        "edits": edit_rows,
        "editor": " ".join(sorted({edit.editor for edit in edits.values()})),
        "annotator": THUMBS_ANNOTATOR,
        "ranks": [1] * num_liked + [2] * (len(edits) - num_liked),
    }


def _by_id(session: Session, ids: list[int]) -> list[Feedback]:
    """Feedback in the order of `ids`."""
    by_id = {row.id: row for row in session.scalars(select(Feedback).where(Feedback.id.in_(ids)))}
    return [by_id[row_id] for row_id in ids]
