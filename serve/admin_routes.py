"""What the administrator's page asks: who works, how well they agree, and the answers as files."""

import hmac
import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Query, Request
from fastapi.responses import HTMLResponse, Response, StreamingResponse
from pydantic import Field
from starlette.exceptions import HTTPException

from hive_ray.annotation import label_studio
from hive_ray.annotation.exports import csv_lines, ranking_lines, read_answers
from hive_ray.annotation.models import RANK
from hive_ray.annotation.overview import overview
from hive_ray.annotation.people import invite, set_paused
from hive_ray.annotation.quality import annotator_stats, flagged_names
from hive_ray.annotation.task_counts import count_tasks
from hive_ray.annotation.tasks import project_name, project_secret
from serve.annotation_routes import RequestBody
from serve.gallery import for_browser
from serve.guard import POLICY
from serve.sessions import Administrator

BODY_LIMITS = {"/admin/label-studio": 2**30}
"""Bytes that may come: every task with all that was said of it."""
CHARTS_POLICY = POLICY.replace("style-src 'self'", "style-src 'unsafe-inline'").replace("script-src 'self'; ", "")
"""For a page of charts, which carry their styles with them; nothing runs there."""
LeaveOut = Annotated[bool, Query()]
routes = APIRouter()


class InviteBody(RequestBody):
    name: str = Field(max_length=64)
    role: Literal["annotator", "administrator"] = "annotator"


class PauseBody(RequestBody):
    person: int
    paused: bool


@routes.get("/api/admin/people")
def people(_: Administrator, request: Request) -> dict[str, Any]:
    """Everybody's standing, and how far the work is."""
    state = request.app.state
    found = annotator_stats(state.database, state.settings)
    done = count_tasks(state.database, state.settings.mode)
    return {"people": [vars(one) for one in found], "progress": vars(done), "mode": state.settings.mode}


@routes.post("/api/admin/invite")
def invite_person(body: InviteBody, _: Administrator, request: Request) -> dict[str, str]:
    """A new personal link; a link that the person had ends."""
    token = invite(request.app.state.database, body.name, body.role)
    return {"link": f"{'admin' if body.role == 'administrator' else ''}#{token}"}


@routes.post("/api/admin/pause")
def pause(body: PauseBody, _: Administrator, request: Request) -> dict[str, bool]:
    """Stop a person's work, or let it go on."""
    set_paused(request.app.state.database, body.person, body.paused)
    return {"paused": body.paused}


@routes.get("/admin/overview")
def overview_page(_: Administrator, request: Request) -> HTMLResponse:
    """Progress, people and agreement, with charts."""
    state = request.app.state
    page = overview(state.database, state.settings, state.gallery.probabilities)
    return HTMLResponse(page, headers={"Content-Security-Policy": CHARTS_POLICY})


def _without(request: Request, leave_out_flagged: bool) -> set[str]:
    state = request.app.state
    return flagged_names(annotator_stats(state.database, state.settings)) if leave_out_flagged else set()


def _attached(name: str) -> dict[str, str]:
    return {"Content-Disposition": f'attachment; filename="{name}"'}


@routes.get("/admin/export/rankings.jsonl")
def export_rankings(_: Administrator, request: Request, leave_out_flagged: LeaveOut = False) -> Response:
    """What `rankings.annotations` takes."""
    lines = ranking_lines(read_answers(request.app.state.database, RANK), _without(request, leave_out_flagged))
    return StreamingResponse(lines, media_type="application/x-ndjson", headers=_attached("rankings.jsonl"))


@routes.get("/admin/export/answers.csv")
def export_csv(_: Administrator, request: Request, leave_out_flagged: LeaveOut = False) -> Response:
    """Every answer, known tasks, repeats and skips too."""
    lines = csv_lines(read_answers(request.app.state.database), _without(request, leave_out_flagged))
    return StreamingResponse(lines, media_type="text/csv", headers=_attached("answers.csv"))


@routes.get("/admin/export/label-studio.json")
def export_label_studio(_: Administrator, request: Request, leave_out_flagged: LeaveOut = False) -> Response:
    """Tasks with the addresses of their pictures on this server as it was asked, and the answers so far."""
    state = request.app.state
    without = _without(request, leave_out_flagged)
    answers = [one for one in read_answers(state.database, RANK) if one.annotator not in without]

    secret, picture = project_secret(state.database), request.url_for("signed_picture")

    def address(prompt_id: str, edit_id: str) -> str:
        signed = label_studio.picture_signature(secret, prompt_id, edit_id)
        return str(picture.include_query_params(prompt=prompt_id, edit=edit_id, signature=signed))

    rows = label_studio.export_tasks(state.database, project_name(state.database), address, answers)
    return StreamingResponse(rows, media_type="application/json", headers=_attached("label-studio.json"))


@routes.get("/admin/export/label-studio.xml")
def export_configuration(_: Administrator, request: Request) -> Response:
    """The labeling configuration that those tasks need."""
    found = label_studio.labeling_config(request.app.state.database)
    return Response(found, media_type="text/xml", headers=_attached("label-studio.xml"))


@routes.get("/label-studio/picture")
def signed_picture(prompt: str, edit: str, signature: str, request: Request) -> Response:
    """A picture for Label Studio's page, which is signed in nowhere here: whoever has its address may see it."""
    state = request.app.state
    wanted = label_studio.picture_signature(project_secret(state.database), prompt, edit)
    if not hmac.compare_digest(wanted.encode(), signature.encode()):
        raise HTTPException(403, "this address is not signed by this project; export the tasks for Label Studio again")
    content, media_type = for_browser(state.gallery.edit(prompt, edit) if edit else state.gallery.source(prompt))
    return Response(content, media_type=media_type, headers={"Access-Control-Allow-Origin": "*"})


@routes.post("/admin/label-studio")
def take_in(given: Annotated[Any, Body()], _: Administrator, request: Request) -> dict[str, Any]:
    """Take in what was exported from Label Studio as JSON; the first answers that are left out are named."""
    database = request.app.state.database
    taken = label_studio.import_answers(database, project_name(database), given, time.time())
    reasons = taken.left_out[: label_studio.MAX_REASONS_SHOWN]
    return {"imported": taken.new, "known": taken.known, "left_out": len(taken.left_out), "reasons": reasons}
