"""What the ranking page asks: the next task, its pictures, and where to put the answer."""

import logging
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import State
from starlette.exceptions import HTTPException

from hive_ray.annotation.people import SESSION_S, SignedIn, session_owner, sign_in, sign_out
from hive_ray.annotation.task_counts import num_answered
from hive_ray.annotation.task_queue import ShownTask
from serve.gallery import SOURCE, PictureError, for_browser
from serve.sessions import COOKIE, Person, from_this_site

logger = logging.getLogger(__name__)

MAX_BROKEN = 20
"""Tasks that cannot be shown and are passed over for one request."""

routes = APIRouter()


class RequestBody(BaseModel):
    """What a request may hold: these fields and no others."""

    model_config = ConfigDict(extra="forbid", strict=True)


class SignInBody(RequestBody):
    token: str = Field(min_length=1, max_length=200)


class NextBody(RequestBody):
    holding: list[int] = Field(default=[], max_length=10)


class UndoBody(RequestBody):
    before: int | None = None


class RenewBody(RequestBody):
    assignments: list[int] = Field(max_length=10)


class AnswerBody(RequestBody):
    assignment: int
    key: str = Field(min_length=8, max_length=64)
    answer: dict[str, Any]
    seconds: float = Field(ge=0, le=1e6, allow_inf_nan=False, strict=False)
    corrects: int | None = None


def _about(request: Request, person: SignedIn) -> dict[str, Any]:
    state = request.app.state
    return {
        "name": person.name,
        "role": person.role,
        "paused": person.paused,
        "forgery_token": person.forgery_token,
        "mode": state.settings.mode,
        "lease_s": state.desk.policy.lease_s,
        "done": num_answered(state.database, person.id),
    }


@routes.post("/sign-in", dependencies=[Depends(from_this_site)])
def begin(body: SignInBody, request: Request) -> JSONResponse:
    """A session for the owner of a personal link."""
    database = request.app.state.database
    cookie = sign_in(database, body.token)
    person = session_owner(database, cookie) if cookie else None
    if cookie is None or person is None:
        raise HTTPException(401, "this link is not valid (any more); ask the administrator for a new one")
    answer = JSONResponse(_about(request, person))
    secure = request.url.scheme == "https"
    answer.set_cookie(COOKIE, cookie, max_age=int(SESSION_S), httponly=True, samesite="strict", secure=secure)
    return answer


@routes.post("/sign-out")
def end(_: Person, request: Request) -> JSONResponse:
    """End this browser's session."""
    sign_out(request.app.state.database, request.cookies[COOKIE])
    answer = JSONResponse({})
    answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return answer


@routes.get("/api/me")
def me(person: Person, request: Request) -> dict[str, Any]:
    """Who is signed in, and what the page has to know."""
    return _about(request, person)


def _described(showing: ShownTask | None) -> dict[str, Any]:
    """A task as the page gets it: nothing in it says which editor made what."""
    if showing is None:
        return {"task": None}
    pictures = f"api/pictures/{showing.assignment_id}"
    return {
        "task": {
            "assignment": showing.assignment_id,
            "kind": showing.task.kind,
            "instruction": showing.task.instruction,
            "source": f"{pictures}/{SOURCE}",
            "edits": [f"{pictures}/{place}" for place in range(len(showing.shown))],
            "answer": showing.answer,
            "corrects": showing.answer_id,
        }
    }


@routes.post("/api/next")
def next_task(body: NextBody, person: Person, request: Request) -> dict[str, Any]:
    """The next task, leased; null when none is left for this person."""
    state = request.app.state
    showing, passed = _readable(state, person.id, body.holding)
    if passed:
        logger.warning("tasks passed over, which other processes may show: %s", "; ".join(map(str, passed.values())))
        state.desk.release(person.id, passed)
    return _described(showing)


def _readable(state: State, person_id: int, holding: list[int]) -> tuple[ShownTask | None, dict[int, PictureError]]:
    """The next task whose pictures can be shown, and the leases that were passed over, with why.

    A task with a picture that cannot be read is set aside for everybody. One with a picture that this process does not
    find is passed over: a process with newer tables, or other settings, may show it.
    """
    passed: dict[int, PictureError] = {}
    for _ in range(MAX_BROKEN):
        showing = state.desk.next(person_id, holding, passed)
        if showing is None:
            break
        try:
            why = state.gallery.unreadable(showing.task.prompt_id, showing.task.edit_ids)
        except PictureError as error:
            passed[showing.assignment_id] = error
            continue
        if not why:
            return showing, passed
        state.desk.mark_broken(showing.task.id, why)
    return None, passed


@routes.post("/api/undo")
def undo(body: UndoBody, person: Person, request: Request) -> dict[str, Any]:
    """The last task that this person answered, with the answer."""
    return _described(request.app.state.desk.last_answered(person.id, body.before))


@routes.post("/api/renew")
def renew(body: RenewBody, person: Person, request: Request) -> dict[str, list[int]]:
    """Hold on to tasks that are on the screen."""
    return {"renewed": request.app.state.desk.renew_leases(person.id, body.assignments)}


@routes.post("/api/answers")
def answer(body: AnswerBody, person: Person, request: Request) -> dict[str, Any]:
    """Store an answer; it is on the disk when this returns."""
    state = request.app.state
    stored = state.desk.submit(person.id, body.assignment, body.key, body.answer, body.seconds, body.corrects)
    return {
        "stored": stored.answer_id,
        "repeated": stored.already_stored,
        "done": num_answered(state.database, person.id),
    }


@routes.get("/api/pictures/{assignment}/{place}")
def picture(assignment: int, place: str, person: Person, request: Request) -> Response:
    """A picture of one of this person's own tasks, by its place on the screen."""
    state = request.app.state
    showing: ShownTask = state.showing(person.id, assignment)
    task = showing.task
    if place == SOURCE:
        image = state.gallery.source(task.prompt_id)
    elif place.isdecimal() and int(place) < len(showing.shown):
        image = state.gallery.edit(task.prompt_id, task.edit_ids[showing.shown[int(place)]])
    else:
        raise HTTPException(
            404, f"there is no picture {place[:20]!r} in this task; it has source and 0 to {len(showing.shown) - 1}"
        )
    content, media_type = for_browser(image)
    return Response(content, media_type=media_type)
