"""Serving, the first form: an editor behind a page for people and `POST /edit` for programs.

    an editor folder -> HTTP: a picture and an instruction -> the edited picture

    HIVE_RAY_EDITOR=runs/quickstart/editors/finetuned serve run serve.editor:app
    serve run serve.editor:app editor=s3://bucket/run/editors/finetuned num_gpus=1

Two deployments: `EditorPage` checks requests, fits pictures and words errors; `EditorModel` (model.py) holds the
weights and denoises together what waits for it. Only encoded pictures and numbers go between them. The suffix in the
editor's card is appended to instructions here, so nobody who asks has to know it.
"""

import asyncio
import base64
import os
import re
import secrets
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from fastapi import Depends, FastAPI, File, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from pydantic import Field, model_validator
from ray import serve
from ray.serve import Application
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException

from hive_ray.annotation.database import Database, DatabaseUnavailableError
from hive_ray.annotation.feedback import store_feedback
from hive_ray.artifacts.model_store import model_digest
from hive_ray.cluster.this_machine import bind_replica_to_loopback
from hive_ray.config import Section
from hive_ray.editor.model import EditorCard, read_card
from hive_ray.images import ImageError, encode, size_of
from hive_ray.presets import sd15, shapes
from hive_ray.seeds import seed_for
from hive_ray.shapes.edits import write_edits
from hive_ray.shapes.scenes import RESOLUTION as SHAPES_RESOLUTION
from hive_ray.shapes.scenes import draw, place_things, random_description
from hive_ray.storage import absolute, fetch_folder
from serve.guard import (
    Guard,
    RefusedParameter,
    openai_error,
    openai_failure,
    openai_http_error,
    openai_invalid_request,
    require_form,
)
from serve.model import BATCH_ROWS, EditorModel, EditRequest
from serve.pictures import MAX_PICTURE_PIXELS, MAX_UPLOAD_BYTES, SMALL, fit

MAX_STEPS = 200
MAX_EDITS = 4
MAX_INSTRUCTION = 1000  # characters
MAX_SCALE = 30.0
MAX_SEED = 2**32 - 1  # a whole number in JavaScript, too
FORM_BYTES = 64 * 1024
"""What a form may hold beside its picture."""
RETRY_AFTER_S = 5
ENVIRONMENT = "HIVE_RAY_"
WEB = Path(__file__).parent / "web"
FILES = {"editor.css": "text/css", "editor.js": "text/javascript"}


# --- Settings ---------------------------------------------------------------------------------------------


class ServeSettings(Section):
    """Serving an editor: `serve run serve.editor:app key=value`, or HIVE_RAY_<KEY> in the environment."""

    editor: str = "runs/quickstart/editors/finetuned"
    """The editor's folder, a path or an s3:// address."""
    guidance_scale: float | None = Field(default=None, ge=0, le=MAX_SCALE)
    """What requests get that do not say; None is 2.0 for editors of at most 64 pixels, else 7.5."""
    image_guidance_scale: float | None = Field(default=None, ge=0, le=MAX_SCALE)
    """As `guidance_scale`; None is 1.4 or 1.5."""
    num_inference_steps: int | None = Field(default=None, ge=1, le=MAX_STEPS)
    """As `guidance_scale`; None is 10 or 50."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Seconds after which a request is given up and its denoising stopped."""
    max_ongoing: int = Field(default=BATCH_ROWS, ge=1)
    """Requests that the replica holds, in work or next in line."""
    max_queued: int = Field(default=8, ge=0)
    """Requests that wait beyond those; more are answered 503 with Retry-After."""
    feedback: str = ""
    """Database that takes people's thumbs with their pictures, as `annotation.database`; "" shows no thumbs."""
    num_replicas: int = Field(default=1, ge=1)
    num_gpus: float | None = Field(default=None, ge=0)
    """GPUs of a replica; None is one where this machine has any, else 0."""
    num_cpus: float = Field(default=1.0, ge=0)
    """CPUs of a replica; also its number of torch threads when it has no GPU."""

    @model_validator(mode="before")
    @classmethod
    def _from_environment(cls, given: dict[str, Any]) -> dict[str, Any]:
        names = {name: ENVIRONMENT + name.upper() for name in cls.model_fields}
        return {name: os.environ[key] for name, key in names.items() if key in os.environ} | given


class Defaults(Section):
    """What a request gets for what it does not say."""

    guidance_scale: float
    image_guidance_scale: float
    num_inference_steps: int


def defaults_for(settings: ServeSettings, resolution: int) -> Defaults:
    """The settings where given, else the scales at which editors of this resolution are compared."""
    small = resolution <= SHAPES_RESOLUTION
    compared = (shapes if small else sd15)().evaluation
    suited = {
        "guidance_scale": compared.guidance_scale,
        "image_guidance_scale": compared.image_guidance_scale,
        "num_inference_steps": 10 if small else compared.num_inference_steps,
    }
    given = {name: getattr(settings, name) for name in suited if getattr(settings, name) is not None}
    return Defaults(**suited | given)


# --- HTTP -------------------------------------------------------------------------------------------------


async def _answer_image_error(_: Request, error: ImageError) -> JSONResponse:
    return openai_error(400, str(error), param="image")


web = FastAPI(
    title="hive_ray editor",
    docs_url=None,  # the pages of /docs and /redoc load scripts from elsewhere
    redoc_url=None,
    exception_handlers={
        HTTPException: openai_http_error,
        ImageError: _answer_image_error,
        RequestValidationError: openai_invalid_request,
        Exception: openai_failure,
    },
)
web.add_middleware(Guard, max_bytes=MAX_UPLOAD_BYTES, form_overhead=FORM_BYTES)

Instruction = Annotated[str, Form(min_length=1, max_length=MAX_INSTRUCTION)]
Scale = Annotated[float | None, Form(ge=0, le=MAX_SCALE, allow_inf_nan=False)]
Steps = Annotated[int | None, Form(ge=1, le=MAX_STEPS)]
Seed = Annotated[int | None, Form(ge=0, le=MAX_SEED)]
Count = Annotated[int, Form(ge=1, le=MAX_EDITS)]
Word = Annotated[str | None, Form(max_length=200)]


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _example(index: int) -> dict:
    """A scene of the embedded domain: picture, caption, and instructions that fit it."""
    rng = np.random.default_rng(seed_for("example", index))
    description = random_description(rng, num_things=1 + index % 3)
    return {
        "image": _base64(encode(draw(place_things(description, rng)))),
        "caption": description.caption,
        "instructions": [edit.instruction for edit in write_edits(description.caption, 3, rng)],
    }


# `serve.ingress` pickles the methods on the spot, so what they call stands above them.
@serve.deployment
@serve.ingress(web)
class EditorPage:
    """The page and the API: checks, fits, asks the model, and answers."""

    def __init__(
        self, model: DeploymentHandle, name: str, card: EditorCard, version: str, settings: ServeSettings
    ) -> None:
        bind_replica_to_loopback()
        self.model, self.name, self.card, self.timeout_s = model, name, card, settings.timeout_s
        self.defaults, self.version = defaults_for(settings, card.resolution), version
        self.since = int(time.time())
        self.feedback = Database(settings.feedback) if settings.feedback else None

    @web.get("/")
    async def page(self) -> FileResponse:
        """The page for people."""
        return FileResponse(WEB / "index.html")

    @web.get("/web/{name}")
    async def file(self, name: str) -> FileResponse:
        """What the page loads."""
        if name not in FILES:
            raise HTTPException(404, f"there is no {name!r} here; the page has {', '.join(FILES)}")
        return FileResponse(WEB / name, media_type=FILES[name])

    @web.get("/health")
    async def health(self) -> dict:
        """Whether a replica of the model answers."""
        model = await self._wait(self.model.describe.remote())
        return {"status": "ok", "editor": self.name, **model}

    @web.get("/editor")
    async def describe_editor(self) -> dict:
        """The editor's card, and what requests may hold."""
        limits = {
            "image_bytes": MAX_UPLOAD_BYTES,
            "image_pixels": MAX_PICTURE_PIXELS,
            "instruction": MAX_INSTRUCTION,
            "num_inference_steps": MAX_STEPS,
            "num_edits": MAX_EDITS,
            "guidance_scale": MAX_SCALE,
            "seed": MAX_SEED,
        }
        return {
            "editor": self.name,
            "card": self.card.model_dump(),
            "defaults": self.defaults.model_dump(),
            "limits": limits,
            "feedback": self.feedback is not None,
            "fit": "stretch" if self.card.resolution < SMALL else "crop",
        }

    @web.get("/examples")
    async def examples(self, count: int = 6) -> list[dict]:
        """Pictures to try, with instructions: scenes of the embedded domain for editors of its resolution."""
        if self.card.resolution != SHAPES_RESOLUTION:
            return []
        return await asyncio.to_thread(lambda: [_example(index) for index in range(min(max(count, 0), 24))])

    @web.post("/edit", dependencies=[Depends(require_form)])
    async def edit(
        self,
        request: Request,
        image: Annotated[UploadFile, File()],
        instruction: Instruction,
        guidance_scale: Scale = None,
        image_guidance_scale: Scale = None,
        num_inference_steps: Steps = None,
        seed: Seed = None,
        num_edits: Count = 1,
    ) -> Response:
        """The edited picture as PNG; with `Accept: application/json`, one or several as base64 in JSON."""
        as_json = "application/json" in request.headers.get("accept", "")
        if num_edits > 1 and not as_json:
            raise HTTPException(400, f"num_edits is {num_edits}, but a PNG holds one; send Accept: application/json")
        asked = await self._checked(
            image, instruction, seed, num_edits, guidance_scale, image_guidance_scale, num_inference_steps
        )
        started = time.monotonic()
        edits = await self._edits(asked)
        if as_json:
            pairs = zip(edits, asked.seeds, strict=True)
            return JSONResponse(
                {
                    "edits": [{"image": _base64(edit), "seed": own} for edit, own in pairs],
                    "instruction": asked.instruction,
                    "editor": self.name,
                    **asked.model_dump(include=set(Defaults.model_fields)),
                    "seconds": round(time.monotonic() - started, 3),
                }
            )
        headers = {"X-Seed": str(asked.seeds[0]), "X-Editor": self.name}
        return Response(edits[0], media_type="image/png", headers=headers)

    @web.post("/feedback", dependencies=[Depends(require_form)])
    async def take_feedback(
        self,
        image: Annotated[UploadFile, File()],
        edited: Annotated[UploadFile, File()],
        instruction: Instruction,
        liked: Annotated[bool, Form()],
        key: Annotated[str, Form(min_length=8, max_length=64)],
        guidance_scale: Scale = None,
        image_guidance_scale: Scale = None,
        num_inference_steps: Steps = None,
        seed: Seed = None,
    ) -> dict:
        """Store what somebody thinks of an edit, with both pictures; `key` names the edit: a later thumb replaces an
        earlier one."""
        feedback = self.feedback
        if feedback is None:
            raise HTTPException(404, "this editor takes no feedback; start it with feedback=sqlite:///path")
        asked = {
            "guidance_scale": guidance_scale,
            "image_guidance_scale": image_guidance_scale,
            "num_inference_steps": num_inference_steps,
            "seed": seed,
        }
        source, after = await image.read(), await edited.read()

        def store() -> bool:
            return store_feedback(
                feedback, key=key, editor=self.version, instruction=instruction.strip(), liked=liked,
                settings=asked, source_image=fit(source, self.card.resolution),
                edited_image=fit(after, self.card.resolution),
            )  # fmt: skip

        try:
            return {"new": await asyncio.to_thread(store)}
        except DatabaseUnavailableError as error:
            raise HTTPException(503, error.summary, {"Retry-After": str(RETRY_AFTER_S)}) from error

    @web.get("/v1/models")
    async def list_models(self) -> dict:
        """The editor, as OpenAI lists models."""
        return {"object": "list", "data": [self._as_model()]}

    @web.get("/v1/models/{name:path}")
    async def describe_model(self, name: str) -> Response:
        """The editor, as OpenAI describes a model."""
        if name != self.name:
            words = f"there is no model {name[:60]!r} here; the editor that is served is {self.name!r}"
            return openai_error(404, words, param="model", code="model_not_found")
        return JSONResponse(self._as_model())

    def _as_model(self) -> dict:
        return {"id": self.name, "object": "model", "created": self.since, "owned_by": "hive_ray"}

    @web.post("/v1/images/edits", dependencies=[Depends(require_form)])
    async def openai_edits(
        self,
        prompt: Instruction,
        image: Annotated[list[UploadFile] | None, File()] = None,
        images: Annotated[list[UploadFile] | None, File(alias="image[]")] = None,
        mask: Annotated[UploadFile | None, File()] = None,
        markup: Annotated[UploadFile | None, File()] = None,
        model: Word = None,
        n: Count = 1,
        size: Word = None,
        response_format: Word = None,
        output_format: Word = None,
        output_compression: Annotated[int | None, Form()] = None,
        background: Word = None,
        stream: Annotated[bool | None, Form()] = None,
        partial_images: Annotated[int | None, Form()] = None,
        quality: Word = None,
        input_fidelity: Word = None,
        complexity: Word = None,
        moderation: Word = None,
        user: Word = None,
        safety_identifier: Word = None,
        guidance_scale: Scale = None,
        image_guidance_scale: Scale = None,
        num_inference_steps: Steps = None,
        seed: Seed = None,
    ) -> dict:
        """The same for OpenAI's `client.images.edit`; the last four are this editor's own (`extra_body`).

        Each edit is an opaque PNG in base64, at the editor's size for this picture; `size` of the answer says which.
        `size` of the request may be "auto" or any size, and `model` any name: the editor that is served answers.
        `quality`, `input_fidelity`, `complexity`, `moderation`, `user` and `safety_identifier` are accepted and change
        nothing. Masks, markup, streaming, other formats and backgrounds, and unknown fields are refused by name.
        """
        pictures = [*(image or []), *(images or [])]
        if len(pictures) != 1:
            raise RefusedParameter("image", f"{len(pictures)} pictures came as 'image'; this editor takes one")
        if mask is not None or markup is not None:
            name = "mask" if mask is not None else "markup"
            raise RefusedParameter(name, f"a {name} came; this editor edits by instruction alone: leave it out")
        if size not in (None, "auto") and not re.fullmatch(r"\d{1,5}x\d{1,5}", size):
            raise RefusedParameter("size", f"size is {size!r}; say 'auto' or a size such as '1024x1024'")
        if stream:
            raise RefusedParameter("stream", "stream is true; this editor answers when an edit is done: leave it out")
        supported = {
            "response_format": (response_format, ("b64_json",)),
            "output_format": (output_format, ("png",)),
            "output_compression": (output_compression, (100,)),
            "background": (background, ("auto", "opaque")),
            "partial_images": (partial_images, (0,)),
        }
        for name, (value, choices) in supported.items():
            if value is not None and value not in choices:
                words = " or ".join(map(repr, choices))
                raise RefusedParameter(name, f"{name} is {value!r}; this editor supports {words}: leave it out")
        request = await self._checked(
            pictures[0], prompt, seed, n, guidance_scale, image_guidance_scale, num_inference_steps
        )
        edits = await self._edits(request)
        width, height = size_of(request.image)
        return {
            "created": int(time.time()),
            "data": [{"b64_json": _base64(edit)} for edit in edits],
            "background": "opaque",
            "output_format": "png",
            "size": f"{width}x{height}",
        }

    async def _checked(
        self,
        image: UploadFile,
        instruction: str,
        seed: int | None,
        num_edits: int,
        guidance_scale: float | None,
        image_guidance_scale: float | None,
        num_inference_steps: int | None,
    ) -> EditRequest:
        """What goes to the model: defaults filled in, the picture fitted, a seed for each edit."""
        if not instruction.strip():
            raise HTTPException(400, "instruction is blank; say what to change, such as 'make the circle blue'")
        first = secrets.randbelow(MAX_SEED - MAX_EDITS) if seed is None else seed
        given = {
            "guidance_scale": guidance_scale,
            "image_guidance_scale": image_guidance_scale,
            "num_inference_steps": num_inference_steps,
        }
        known = {name: value for name, value in given.items() if value is not None}
        return EditRequest(
            image=await asyncio.to_thread(fit, await image.read(), self.card.resolution),
            instruction=instruction.strip(),
            seeds=tuple(range(first, first + num_edits)),
            **self.defaults.model_dump() | known,
        )

    async def _edits(self, request: EditRequest) -> list[bytes]:
        return await self._wait(self.model.edit.remote(request))

    async def _wait(self, response: Any) -> Any:
        """The model's answer; 503 where its line is full; 504, and denoising stopped, where it takes long."""
        try:
            return await asyncio.wait_for(response, self.timeout_s)
        except BackPressureError as error:
            raise HTTPException(
                503,
                f"the editor is busy and its line full; try again in {RETRY_AFTER_S} s",
                {"Retry-After": str(RETRY_AFTER_S)},
            ) from error
        except TimeoutError as error:
            response.cancel()
            raise HTTPException(
                504, f"no edit after {self.timeout_s:g} s; ask for fewer steps or edits, or try again later"
            ) from error


# --- The application --------------------------------------------------------------------------------------


def app(settings: ServeSettings) -> Application:
    """What `serve run serve.editor:app` runs; a folder that is no finished editor is refused before that."""
    folder = absolute(settings.editor)
    card = read_card(fetch_folder(folder))
    num_gpus = settings.num_gpus if settings.num_gpus is not None else float(torch.cuda.is_available())
    model = EditorModel.options(
        num_replicas=settings.num_replicas,
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": num_gpus},
        max_ongoing_requests=settings.max_ongoing,
        max_queued_requests=settings.max_queued,
        graceful_shutdown_timeout_s=settings.timeout_s,
    ).bind(folder, settings.num_cpus)
    page = EditorPage.options(
        max_ongoing_requests=4 * (settings.max_ongoing * settings.num_replicas + settings.max_queued),
        ray_actor_options={"num_cpus": 0},
    )
    version = ""
    if settings.feedback:
        version, database = model_digest(folder), Database(settings.feedback)
        database.migrate()
        database.close()
        settings = settings.model_copy(update={"feedback": database.connection_url})
    return page.bind(model, Path(folder).name, card, version, settings)
