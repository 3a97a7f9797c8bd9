"""What every answer carries, and what no request may exceed."""

from collections.abc import Callable, Mapping

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class Guard:
    """ASGI middleware: the security headers on every answer that does not set its own, and no body beyond what is
    allowed: `max_bytes`, or the number in `limits` by path, plus `form_overhead` for the form around a file."""

    def __init__(
        self,
        inner: Callable,
        max_bytes: int,
        *,
        limits: Mapping[str, int] | None = None,
        form_overhead: int = 0,
        headers: Mapping[str, str] = HEADERS,
    ) -> None:
        self.inner = inner
        self.max_bytes = max_bytes
        self.limits = dict(limits or {})
        self.form_overhead = form_overhead
        self.headers = [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            await self.inner(scope, receive, send)
            return
        seen, most = 0, self.limits.get(scope["path"], self.max_bytes)

        async def counted() -> dict:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > most + self.form_overhead:
                raise HTTPException(413, f"the request has at least {seen:,} bytes; {most:,} are taken here")
            return message

        async def guarded(message: dict) -> None:
            if message["type"] == "http.response.start":
                own = {name for name, _ in message["headers"]}
                added = [(name, value) for name, value in self.headers if name not in own]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        await self.inner(scope, counted, guarded)


def error_response(
    status: int, message: str, headers: Mapping[str, str] | None = None, **more: str | None
) -> JSONResponse:
    """An error as every program of this house words it: {"error": {"message": ...}}."""
    return JSONResponse({"error": {"message": message, **more}}, status_code=status, headers=dict(headers or {}))


async def answer_http_error(_: Request, error: HTTPException) -> JSONResponse:
    """An HTTPException in that form."""
    return error_response(error.status_code, str(error.detail), error.headers)


async def answer_invalid_request(_: Request, error: RequestValidationError) -> JSONResponse:
    """What was seen and what was wanted, a field at a time."""
    return error_response(400, describe_invalid(error))


def describe_invalid(error: RequestValidationError) -> str:
    """What of a request was seen and what was wanted, a field at a time."""
    parts = [
        f"{one['loc'][-1]} is missing"
        if one["type"] == "missing"
        else f"{one['loc'][-1]} is {str(one['input'])[:60]!r}: {one['msg'][:1].lower()}{one['msg'][1:]}"
        for one in error.errors()
    ]
    return "; ".join(parts)


async def answer_failure(_: Request, error: Exception) -> JSONResponse:
    """Any other exception, which the log says more of."""
    return error_response(500, f"the server failed with {type(error).__name__}; its log says more")


# --- As OpenAI words errors -------------------------------------------------------------------------------


class RefusedParameter(HTTPException):
    """A parameter that is refused, by its name."""

    def __init__(self, param: str, message: str, status: int = 400) -> None:
        super().__init__(status, message)
        self.param = param


def openai_error(
    status: int,
    message: str,
    headers: Mapping[str, str] | None = None,
    param: str | None = None,
    code: str | None = None,
) -> JSONResponse:
    """An error as clients of OpenAI read it: {"error": {"message", "type", "param", "code"}}."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return error_response(status, message, headers, type=kind, param=param, code=code)


async def openai_http_error(_: Request, error: HTTPException) -> JSONResponse:
    """As `answer_http_error`, with the parameter where one is at fault."""
    return openai_error(error.status_code, str(error.detail), error.headers, getattr(error, "param", None))


async def openai_invalid_request(_: Request, error: RequestValidationError) -> JSONResponse:
    """As `answer_invalid_request`, with the first field's name."""
    return openai_error(400, describe_invalid(error), param=str(error.errors()[0]["loc"][-1]))


async def openai_failure(_: Request, error: Exception) -> JSONResponse:
    """As `answer_failure`."""
    return openai_error(500, f"the server failed with {type(error).__name__}; its log says more")


async def require_form(request: Request) -> None:
    """Refuse a body that is no form, and fields that the route does not know, which would be passed over silently."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("multipart/form-data", "application/x-www-form-urlencoded"):
        raise HTTPException(
            415,
            f"the request is of type {kind or 'none'!r}; send multipart/form-data, as the openai client and curl -F do",
        )
    known = {field.alias for field in request.scope["route"].dependant.body_params}
    unknown = sorted(set(await request.form()) - known)
    if unknown:
        raise RefusedParameter(
            unknown[0], f"unknown field {', '.join(map(repr, unknown))}; the fields are {', '.join(sorted(known))}"
        )
