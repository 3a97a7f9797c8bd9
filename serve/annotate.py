"""The annotation app: people rank edits, or compare two editors, in the browser.

    a finished `candidates` table (or two of `evaluation`) -> answers in a database -> rankings

    make annotate RUN=runs/quickstart
    python -m serve.annotate --run s3://bucket/run --database postgresql://user:password@host/name --people-per-task 3
    serve run serve.annotate:app run=runs/quickstart                on Ray Serve

All that it knows is in the database and in the run folder: it may be stopped at any time, and several of it may
share a PostgreSQL database. The settings are those of the run's config.yaml (`annotation`), with flags on top.
"""

import logging
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import anyio.to_thread
import tyro
import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from pydantic import Field
from ray import serve
from ray.serve import Application
from starlette.exceptions import HTTPException

from hive_ray import storage
from hive_ray.annotation import tasks
from hive_ray.annotation.answers import AnswerError
from hive_ray.annotation.database import Database, DatabaseUnavailableError, open_database
from hive_ray.annotation.label_studio import LabelStudioError
from hive_ray.annotation.models import ADMINISTRATOR, ANNOTATOR
from hive_ray.annotation.people import PersonError, invite
from hive_ray.annotation.task_queue import AssignmentPolicy, RequestRefusedError, TaskQueue
from hive_ray.cluster.this_machine import bind_replica_to_loopback
from hive_ray.config import Annotation
from hive_ray.files.settings_file import read_settings
from hive_ray.files.text_files import read_json_lines
from hive_ray.images import ImageError
from serve import admin_routes, annotation_routes
from serve.gallery import Gallery, PictureError
from serve.guard import HEADERS, Guard, answer_failure, answer_http_error, answer_invalid_request, error_response
from serve.listening import warning_for

logger = logging.getLogger(__name__)

BODY_BYTES = 64 * 1024
RETRY_AFTER_S = 2
HTTP: dict[str, Any] = {
    "log_level": "warning",
    "proxy_headers": True,
    "server_header": False,
    "timeout_keep_alive": 120,  # longer than a person looks at a task: their next request needs no new connection
}
"""How uvicorn serves the app."""
THREADS = 6
"""Requests that are in work at the same time; more wait."""
REMEMBERED = 10_000
"""Tasks in people's hands whose pictures need no look into the database."""
WEB = Path(__file__).parent / "web"
FILES = {
    "annotate.css": "text/css",
    **dict.fromkeys(
        ("annotate.js", "admin.js", "comparison.js", "connection.js", "ranking.js", "zoom.js"), "text/javascript"
    ),
}
STATUS = {"paused": 403, "not_yours": 404, "answered": 409, "stale": 409, "lease_gone": 409}


class AnnotateSettings(Annotation):
    """The annotation app of one run: its `annotation` settings, and where it answers."""

    run: str = "runs/quickstart"
    """Run folder: a local path or an s3:// address."""
    host: str = "127.0.0.1"
    """Address that it listens on; 0.0.0.0 for all of this machine's."""
    port: int = Field(default=8001, ge=0, le=65535)
    public_address: str = ""
    """How people reach it, for the links that are printed, such as https://rank.example.org behind a proxy; "" is
    http://<host>:<port>."""


def settings_of(run: str) -> dict[str, Any]:
    """The `annotation` settings that a run was given; none where its config.yaml has none."""
    path = storage.join(storage.absolute(run), "config.yaml")
    if not storage.exists(path):
        return {}
    return read_settings(path).get("annotation") or {}


def prepare(run: str, settings: Annotation) -> tuple[Database, Gallery]:
    """The database with the tables of this version and the tasks of this run, and the pictures."""
    gallery = Gallery(storage.absolute(run), settings)
    database = open_database(run, settings)
    database.migrate()
    gold = []
    if settings.gold == "automatic":
        gold = list(tasks.automatic_gold(gallery.prompts))
    elif settings.gold:
        gold = tasks.read_gold(read_json_lines(settings.gold, objects=True), settings.gold, gallery.prompts)
    added = tasks.load_tasks(database, settings.mode, [*gallery.prompts, *gold], settings.people_per_task)
    known = f"{len(gold)} tasks of known answer"
    print(f"annotation: {len(gallery.prompts)} prompts and {known}, {added} new; {database}", flush=True)
    return database, gallery


def web(database: Database, gallery: Gallery, settings: Annotation) -> FastAPI:
    """The app itself."""
    handlers: dict[Any, Callable[..., Any]] = {
        HTTPException: answer_http_error,
        RequestValidationError: answer_invalid_request,
        DatabaseUnavailableError: _answer_away,
        RequestRefusedError: lambda _, error: error_response(STATUS[error.reason], str(error), reason=error.reason),
        PictureError: lambda _, error: error_response(404, str(error)),
        Exception: answer_failure,
    }
    for kind in (AnswerError, ImageError, LabelStudioError, PersonError):
        handlers[kind] = lambda _, error: error_response(400, str(error))
    site = FastAPI(
        title="hive_ray annotation",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=_few_threads,
        exception_handlers=handlers,
    )
    plan = AssignmentPolicy(
        settings.mode, settings.lease_minutes * 60, settings.gold_rate, settings.repeat_rate, settings.repeat_after
    )
    site.state.database, site.state.gallery, site.state.settings = database, gallery, settings
    desk = site.state.desk = TaskQueue(database, plan)
    site.state.showing = lru_cache(REMEMBERED)(desk.shown_task)  # whose task it is and what it shows never changes
    site.add_middleware(
        Guard, max_bytes=BODY_BYTES, limits=admin_routes.BODY_LIMITS, headers={**HEADERS, "Cache-Control": "no-store"}
    )
    site.include_router(annotation_routes.routes)
    site.include_router(admin_routes.routes)

    @site.get("/")
    def page() -> FileResponse:
        """The page for annotators."""
        return FileResponse(WEB / "annotate.html")

    @site.get("/admin")
    def admin() -> FileResponse:
        """The page for administrators."""
        return FileResponse(WEB / "admin.html")

    @site.get("/web/{name}")
    def file(name: str) -> FileResponse:
        """What the pages load."""
        if name not in FILES:
            raise HTTPException(404, f"there is no {name[:40]!r} here; the pages have {', '.join(FILES)}")
        return FileResponse(WEB / name, media_type=FILES[name])

    @site.get("/health")
    def health() -> dict[str, str]:
        """Whether the database answers; 503 if it does not."""
        tasks.project_name(database)
        return {"status": "ok"}

    return site


@asynccontextmanager
async def _few_threads(_: FastAPI) -> AsyncIterator[None]:
    """Requests wait for a thread rather than for each other's: with many, whoever holds the database waits for all the
    others to give Python up, at each statement (3.6 s for a task instead of 0.1 s, with fifty people)."""
    anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
    yield


async def _answer_away(_: Request, error: DatabaseUnavailableError) -> JSONResponse:
    logger.warning("%s", error)
    return error_response(503, error.summary, {"Retry-After": str(RETRY_AFTER_S)}, reason="database_away")


def links(database: Database, address: str) -> str:
    """New personal links of the first administrator and the first annotator, for a person to open."""
    admin, first = invite(database, "admin", ADMINISTRATOR), invite(database, "first", ANNOTATOR)
    return (
        f"administrator   {address}/admin#{admin}\n"
        f"annotator       {address}/#{first}\n"
        "(these links replace those printed before; invite more people on the administrator's page)"
    )


def app(settings: AnnotateSettings) -> Application:
    """What `serve run serve.annotate:app run=...` runs: one replica, or as many as there are on PostgreSQL."""
    given = {name: value for name, value in settings.model_dump().items() if name in settings.model_fields_set}
    chosen = Annotation(**_own(settings_of(settings.run) | given))
    database, _ = prepare(settings.run, chosen)
    chosen = chosen.model_copy(update={"database": database.connection_url})
    print(links(database, settings.public_address or "http://127.0.0.1:8000"), flush=True)
    database.close()

    def build() -> FastAPI:
        bind_replica_to_loopback()
        return web(open_database(settings.run, chosen), Gallery(storage.absolute(settings.run), chosen), chosen)

    return serve.deployment(serve.ingress(build)(), name="Annotation").options(max_ongoing_requests=200).bind()


def _own(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name in Annotation.model_fields}


def main() -> None:
    """Serve one run's annotation app until it is stopped."""
    try:
        run = _run_of(sys.argv[1:])
        settings = tyro.cli(
            AnnotateSettings, default=AnnotateSettings(**settings_of(run)), prog="python -m serve.annotate"
        )
        database, gallery = prepare(settings.run, settings)
        address = settings.public_address or f"http://{settings.host}:{settings.port}"
        print(links(database, address.rstrip("/")), flush=True)
        if warning := warning_for(settings.host):
            print(warning, file=sys.stderr, flush=True)
    except (ValueError, OSError, DatabaseUnavailableError) as error:  # what a person can mend
        sys.exit(f"{type(error).__name__}: {error}")
    uvicorn.run(web(database, gallery, settings), host=settings.host, port=settings.port, **HTTP)


def _run_of(arguments: list[str]) -> str:
    """The run folder that a command line names, before its settings are known."""
    for place, argument in enumerate(arguments):
        if argument == "--run" and place + 1 < len(arguments):
            return arguments[place + 1]
        if argument.startswith("--run="):
            return argument.removeprefix("--run=")
    return AnnotateSettings.model_fields["run"].default


if __name__ == "__main__":
    main()
