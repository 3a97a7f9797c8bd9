"""The openai client for OPENAI_BASE_URL and OPENAI_API_KEY, and messages for its errors.

Messages never contain the key, or the user and password of an address.
"""

import json
import os
import re
import socket
import ssl
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from openai import APIConnectionError, APIStatusError, APITimeoutError, OpenAI, OpenAIError

from hive_ray.console import warn
from hive_ray.files.text_files import parse_json, replace_surrogates

BASE_URL, API_KEY = "OPENAI_BASE_URL", "OPENAI_API_KEY"
DEFAULT_ADDRESS = "https://api.openai.com/v1"
CHECK_TIMEOUT_S = 10.0
"""Timeout of the request for the list of models, which is tried twice."""
MAX_MESSAGE_LENGTH = 300
"""How many characters of an endpoint's text a message shows."""
MAX_MODELS_SHOWN = 5
REQUEST_PATHS = ("/chat/completions", "/completions", "/models")
URL_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]*@")
"""The user and password of an address."""
MIN_KEY_LENGTH = 8
"""A shorter key is a placeholder such as "none" and not a secret."""


class EndpointError(OSError):
    """The endpoint's address or key is invalid, or the endpoint refused, failed or timed out."""


def client(*, timeout: float, max_retries: int) -> OpenAI:
    """Make a client for the address and key in the environment; EndpointError if one is invalid.

    timeout: seconds to wait for the next bytes of the endpoint.
    """
    base_url, api_key = address(), _key()
    try:
        return OpenAI(base_url=base_url, api_key=api_key, timeout=timeout, max_retries=max_retries)
    except Exception as error:  # such as an invalid proxy address in the environment
        message = _without_secrets(str(error))
        raise EndpointError(
            f"the client of {redact_url(base_url)} cannot be made: {message}{_proxy_words()}"
        ) from error


def address() -> str:
    """The endpoint's address without surrounding white space; EndpointError if it is not an address."""
    value = os.environ.get(BASE_URL)
    if value is None:
        return DEFAULT_ADDRESS
    url = value.strip().rstrip("/")
    expected = f"{BASE_URL} has to be the address below which /chat/completions lies, such as http://localhost:8000/v1"
    if not url:
        raise EndpointError(f"{BASE_URL} is empty. {expected}; unset it for OpenAI's own, {DEFAULT_ADDRESS}")
    current = f"{BASE_URL} is {redact_url(url)!r}"
    try:
        parts = urlsplit(url)
        named = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError as error:
        raise EndpointError(f"{current}, which is no address ({error}). {expected}") from error
    if not named:
        raise EndpointError(f"{current}, without http:// or https:// and a host. {expected}")
    if not url.isprintable() or " " in url:
        raise EndpointError(f"{current}, with a blank or another character that no address has. {expected}")
    for end in REQUEST_PATHS:
        if parts.path.endswith(end):
            raise EndpointError(f"{current}, and the client adds {end} by itself. {expected}")
    return url


def redact_url(url: str) -> str:
    """An address without user, password and query, for messages."""
    return URL_CREDENTIALS.sub("", url).partition("?")[0]


def _key() -> str:
    """The key without surrounding white space; EndpointError if it is not a valid key."""
    key = os.environ.get(API_KEY, "").strip()
    if not key:
        state = "empty" if API_KEY in os.environ else "not set"
        raise EndpointError(
            f"{API_KEY} is {state}; set it to the key of {redact_url(address())} (for an endpoint that needs no key, "
            "set any text)"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise EndpointError(f"{API_KEY} holds a blank or a character that is no ASCII, so it is no key; copy it again")
    return key


def check_endpoint(model: str, setting: str) -> None:
    """Request the list of models before a stage starts.

    Raises EndpointError if the address or key is invalid, or the endpoint is unreachable or refuses the key. An
    endpoint without a list of models passes the check.

    model: if the list lacks it, a warning is printed, since some lists are incomplete.
    setting: name of the setting that holds the model, for the warning.
    """
    try:
        answer = client(timeout=CHECK_TIMEOUT_S, max_retries=1).models.with_raw_response.list()
    except APIConnectionError as error:
        if any(type(cause).__name__ == "RemoteProtocolError" for cause in _causes(error)):
            warn(f"{redact_url(address())} hangs up when it is asked for its models: {describe_error(error)}")
            return
        raise EndpointError(f"the language model is out of reach: {describe_error(error)}") from error
    except APIStatusError as error:
        if error.status_code in (401, 407):
            raise EndpointError(
                f"{redact_url(address())} refuses the key ({API_KEY}): {describe_error(error)}"
            ) from error
        return
    names = _models(answer.http_response.content)
    if names is None:
        warn(
            f"{redact_url(address())} returned no list of models but {sample_text(answer.http_response.content)!r}: if "
            f"requests fail, see whether {BASE_URL} lacks a /v1, or a sign-in page stands between"
        )
    elif names and model not in names:
        others = ", ".join(names[:MAX_MODELS_SHOWN]) + (", ..." if len(names) > MAX_MODELS_SHOWN else "")
        warn(f"{redact_url(address())} does not list {model!r} ({setting}), but {others}")


def _models(content: bytes) -> list[str] | None:
    """The names in a list of models; None if the content is not such a list."""
    try:
        data = parse_json(content.decode(errors="replace"))["data"]
    except (ValueError, KeyError, TypeError, IndexError):
        return None
    if not isinstance(data, list):
        return None
    return [model["id"] for model in data if isinstance(model, dict) and isinstance(model.get("id"), str)]


def describe_error(error: OpenAIError) -> str:
    """Describe an error in one line: status and message of the endpoint, or why the connection failed."""
    if isinstance(error, APITimeoutError):
        return f"no answer in time from {redact_url(address())}{_proxy_words()}"
    if isinstance(error, APIConnectionError):
        return f"Connection error: {_cause(error)}"
    if isinstance(error, APIStatusError):
        words = error_message(error.body)
        advice = ""
        if error.status_code == 404:
            advice = f"; the model may have another name, or {BASE_URL} ({redact_url(address())}) lack a /v1"
        return _without_secrets(f"Error code: {error.status_code} - {words or 'no words'}{advice}")
    return _without_secrets(str(error))


def error_message(body: Any) -> str:
    """The message in the body of an error, cut to MAX_MESSAGE_LENGTH: JSON of OpenAI, FastAPI and others, or HTML."""
    try:
        words = _words(body) or (json.dumps(body) if body else "")
    except RecursionError:
        words = "JSON that is nested too deeply"
    return _without_secrets(" ".join(words.split()))[:MAX_MESSAGE_LENGTH]


def sample_text(content: bytes | str) -> str:
    """The first characters of an unexpected response, on one line."""
    text = content.decode(errors="replace") if isinstance(content, bytes) else replace_surrogates(content)
    return _without_secrets(" ".join(text.split()))[:MAX_MESSAGE_LENGTH]


def refused_arguments(error: APIStatusError, names: Collection[str]) -> set[str]:
    """Which of the arguments `names` an error of the endpoint refuses."""
    return refused_arguments_in(error.body, names)


def refused_arguments_in(body: Any, names: Collection[str]) -> set[str]:
    """As `refused_arguments`, for the body of an error, which names arguments in `param`, `loc` or its text."""
    try:
        text = json.dumps(body)
    except (RecursionError, ValueError):
        return set()
    return {name for name in names if re.search(rf"(?<![\w-]){name}(?![\w-])", text, re.IGNORECASE)}


def _words(body: Any) -> str:
    if isinstance(body, str):
        text = re.sub(r"(?is)<(script|style)\b.*?</\1\s*>", " ", body[: 1 << 14])
        return replace_surrogates(re.sub(r"<[^<>]{0,1000}>", " ", text) if "<" in text else text)
    if isinstance(body, list):
        return "; ".join(filter(None, map(_words, body)))
    if not isinstance(body, dict):
        return ""
    words = next(filter(None, (_words(body.get(key)) for key in ("error", "message", "detail", "msg"))), "")
    where = body.get("loc")
    return f"{'.'.join(map(str, where))}: {words}" if words and isinstance(where, list) else words


def _causes(error: BaseException) -> list[BaseException]:
    """The causes of an error, the root cause last."""
    causes: list[BaseException] = []
    cause = error.__cause__ or error.__context__
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    return causes


def _cause(error: BaseException) -> str:
    """Describe the root cause of a connection error, with advice."""
    host, causes = redact_url(address()), _causes(error)
    message = _without_secrets(str(causes[-1]) if causes else "its cause is not known")
    proxy = _proxy()
    if proxy and any(isinstance(cause, socket.gaierror | ConnectionRefusedError) for cause in causes):
        variable, where = proxy
        advice = f"correct {variable}, or set NO_PROXY for {host}"
        return f"the proxy {where} ({variable}) does not answer ({message}); {advice}"
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return f"no host is known by the name in {host} ({message}); correct {BASE_URL}"
    if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        return f"nothing listens at {host} ({message}); start the endpoint, or correct {BASE_URL}"
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
        return f"the certificate of {host} is not trusted ({message}); SSL_CERT_FILE may name its authority's"
    if any(isinstance(cause, ssl.SSLError) for cause in causes):
        return f"{host} does not speak TLS as it should ({message}); see whether {BASE_URL} should begin with http://"
    if "header value" in message:
        return f"a header cannot be sent ({message}); OPENAI_ORG_ID or OPENAI_PROJECT_ID may hold a line's end"
    return f"{host}: {message}{_proxy_words()}"


def _proxy() -> tuple[str, str] | None:
    """The variable that names a proxy for the endpoint, and the proxy's address; None if there is none."""
    try:
        parts = urlsplit(address())
        if not parts.hostname or proxy_bypass(parts.hostname):
            return None
    except (OSError, ValueError):
        return None
    proxies = getproxies()
    names = [name for name in (parts.scheme, "all") if proxies.get(name)]
    return (f"{names[0].upper()}_PROXY", redact_url(proxies[names[0]])) if names else None


def _proxy_words() -> str:
    """The proxy of the endpoint, for messages; "" without a proxy."""
    proxy = _proxy()
    return f"; requests go through the proxy {proxy[1]} ({proxy[0]})" if proxy else ""


def _without_secrets(text: str) -> str:
    key = os.environ.get(API_KEY, "").strip()
    return replace_surrogates(URL_CREDENTIALS.sub("", text.replace(key, "***") if len(key) >= MIN_KEY_LENGTH else text))
