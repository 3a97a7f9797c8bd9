"""Clients for S3 of Amazon and other providers, configured like the AWS tools.

Credentials, region, endpoint, checksums, addressing and certificates come from the places where the AWS tools look:
environment variables, profiles, and the role of the machine. Arrow's client reads only some of them, so it is created
with the settings that botocore found. For endpoints other than Amazon's, requests carry no checksums unless they are
configured, since R2, Ceph and others refuse them. HIVE_RAY_S3_ADDRESSING (auto, path or virtual) overrides the
profile's `addressing_style`.
"""

import base64
import functools
import hashlib
import os
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlparse

import botocore.session
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.utils import get_environ_proxies
from pyarrow import fs

from hive_ray.files.s3_errors import (
    ADDRESSING,
    CHECKSUMS,
    S3Error,
    advice,
    error_code,
    is_permanent,
    translated_errors,
)

PREFIX = "s3://"

MAX_ATTEMPTS = 6
"""How often a request is sent if S3 returns 500 or 503 or does not answer; the retries take two seconds."""
REQUEST_TIMEOUT_S = 20.0
"""Timeout of a request. Arrow's default of 3 s is too short for some servers to complete a large upload."""
CONNECT_TIMEOUT_S = 5.0
AMAZON_HOST = re.compile(r"(^|\.)(amazonaws\.com(\.cn)?|api\.aws)$")
"""Hosts of Amazon."""
REGION_HOST = re.compile(r"s3([.-][a-z0-9-]+)?\.amazonaws\.com(\.cn)?")
"""Amazon's host of a region, which Arrow's client finds by itself."""
OTHER_VARIABLES = ("HOME", ADDRESSING, "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
"""Variables that configure the connection, besides AWS_* and *_PROXY."""
BUCKET = re.compile(r"[A-Za-z0-9._-]{1,255}")
STRIPPED_VARIABLES = (
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3",
)  # fmt: skip
MAX_DELETE_KEYS = 1000
"""Most keys in one DeleteObjects request."""


CLIENT_LIFETIME_S = 300.0

_connecting = threading.RLock()
_environment_lock = threading.Lock()
_endpoints_without_batches: set[str] = set()


@dataclass(frozen=True)
class S3Server:
    """The connection settings of an S3 server."""

    endpoint: str
    region: str | None
    checksums: tuple[tuple[str, str], ...]
    """The variables of CHECKSUMS and their values, for both clients."""
    signed: bool
    """Whether there are credentials; otherwise requests are unsigned, for public buckets."""
    certificates: str | None
    """A file of certificate authorities that replaces the system's."""

    @property
    def is_amazon(self) -> bool:
        """Whether the endpoint is Amazon's."""
        return bool(AMAZON_HOST.search(urlparse(self.endpoint).hostname or ""))

    def describe(self, bucket: str) -> str:
        """Endpoint without credentials, bucket, addressing style and region, for messages."""
        style = "virtual" if uses_virtual_host(bucket) else "path"
        address = urlparse(self.endpoint)
        place = f"{address.scheme}://{address.netloc.rpartition('@')[2]}{address.path}"
        return f"{place}, bucket {bucket!r}, {style} addresses, region {self.region or 'unset'}"


def server() -> S3Server:
    """The connection settings of the environment and the profile."""
    return _connected(_settings())[0]


def client() -> Any:
    """botocore's S3 client; it is thread-safe."""
    return _connected(_settings())[1]


def _settings() -> str:
    """A digest of the environment's S3 settings; a digest, since secret keys are among them."""
    names = sorted(name for name in os.environ if name.startswith("AWS_") or name.lower().endswith("_proxy"))
    values = [(name, os.environ.get(name)) for name in [*names, *OTHER_VARIABLES]]
    return hashlib.blake2b(repr(values).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def _connected(settings: str) -> tuple[S3Server, Any]:
    """The result of `_connect`, cached for CLIENT_LIFETIME_S, since credential files may change while a job runs."""
    with _connecting:
        return _connect(settings, os.getpid(), int(time.monotonic() // CLIENT_LIFETIME_S))


@functools.lru_cache(maxsize=8)
def _connect(settings: str, process: int, period: int) -> tuple[S3Server, Any]:
    for name in STRIPPED_VARIABLES:
        value = os.environ.get(name, "")
        if value != value.strip():
            raise ValueError(f"{name} begins or ends with white space: set it without")
    try:
        session = botocore.session.Session()
        profile = session.get_scoped_config()
        chosen = {name: os.environ.get(variable) or profile.get(name) for name, variable in CHECKSUMS.items()}
        region = os.environ.get("AWS_DEFAULT_REGION") or os.environ.get("AWS_REGION")
        region = region or session.get_config_variable("region")
        certificates = session.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE")
        signed = session.get_credentials() is not None
        options: dict[str, Any] = {
            "retries": {"mode": "standard", "max_attempts": MAX_ATTEMPTS},
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": REQUEST_TIMEOUT_S,
        }
        if not signed:
            options["signature_version"] = UNSIGNED
        if addressing := _addressing():
            options["s3"] = {"addressing_style": addressing}
        checksums = {name: value or "when_required" for name, value in chosen.items()}
        made = session.create_client("s3", region_name=region, config=Config(**options, **checksums))
        s3_server = S3Server(made.meta.endpoint_url, region, (), signed, certificates or None)
        if s3_server.is_amazon:
            checksums = {name: value or "when_supported" for name, value in chosen.items()}
            made = session.create_client("s3", region_name=region, config=Config(**options, **checksums))
        else:
            made.meta.events.register("before-sign.s3.DeleteObjects", _with_md5)
    except ValueError as error:
        remedy = "; AWS_ENDPOINT_URL begins with http:// or https://" if "endpoint" in str(error) else ""
        raise ValueError(f"the AWS settings cannot be used: {error}{remedy}") from error
    except BotoCoreError as error:
        raise ValueError(
            f"the AWS settings cannot be used: {error}; look at AWS_PROFILE, AWS_CONFIG_FILE, "
            "AWS_SHARED_CREDENTIALS_FILE and AWS_REGION"
        ) from error
    variables = tuple((CHECKSUMS[name], value.lower()) for name, value in checksums.items())
    return S3Server(s3_server.endpoint, region, variables, signed, s3_server.certificates), made


def _addressing() -> str | None:
    style = os.environ.get(ADDRESSING)
    if style and style not in ("auto", "path", "virtual"):
        raise ValueError(f"{ADDRESSING} is {style!r}; it is auto, path or virtual")
    return style or None


def _with_md5(request: Any, **_: Any) -> None:
    """Sign a DeleteObjects with Content-MD5, which all servers know, instead of a checksum that only Amazon knows."""
    for name in [name for name in request.headers if name.lower().startswith(("x-amz-checksum", "x-amz-sdk-check"))]:
        del request.headers[name]
    body = request.data if isinstance(request.data, bytes) else request.data.encode()
    digest = hashlib.md5(body, usedforsecurity=False).digest()
    request.headers["Content-MD5"] = base64.b64encode(digest).decode()


def uses_virtual_host(bucket: str) -> bool:
    """Whether requests go to <bucket>.<host>; botocore decides it by settings, host and bucket name."""
    return bool(BUCKET.fullmatch(bucket)) and _virtual_host(bucket, _settings())


@functools.lru_cache(maxsize=64)
def _virtual_host(bucket: str, settings: str) -> bool:
    session, s3_server = botocore.session.Session(), server()
    options = {"s3": {"addressing_style": _addressing()}} if _addressing() else {}
    unsigned = session.create_client(
        "s3", region_name=s3_server.region, config=Config(signature_version=UNSIGNED, **options)
    )
    address = unsigned.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "key"})
    return (urlparse(address).hostname or "").startswith(f"{bucket.lower()}.")


def file_system(bucket: str, attempts: int | None = None, timeout_s: float | None = None) -> fs.S3FileSystem:
    """Arrow's client for a bucket, cached by settings; the defaults are MAX_ATTEMPTS and REQUEST_TIMEOUT_S."""
    if not BUCKET.fullmatch(bucket):
        raise ValueError(f"{PREFIX}{bucket} names no bucket: an address is {PREFIX}bucket/folder")
    with _connecting:
        return _file_system(bucket, attempts or MAX_ATTEMPTS, timeout_s or REQUEST_TIMEOUT_S, _settings())


@functools.cache
def _file_system(bucket: str, attempts: int, timeout_s: float, settings: str) -> fs.S3FileSystem:
    s3_server = server()
    options: dict[str, Any] = {
        "allow_delayed_open": True,  # a small file takes one request, not the three of a multipart upload
        "connect_timeout": CONNECT_TIMEOUT_S,
        "request_timeout": timeout_s,
        "anonymous": not s3_server.signed,
    }
    if s3_server.certificates and os.path.isfile(s3_server.certificates):
        options["tls_ca_file_path"] = s3_server.certificates
    if proxy := _proxy(s3_server.endpoint):
        options["proxy_options"] = proxy
    address, virtual = urlparse(s3_server.endpoint), uses_virtual_host(bucket)
    if REGION_HOST.fullmatch(address.netloc) and virtual:
        options["region"] = s3_server.region or fs.resolve_s3_region(bucket)
    else:
        options["region"] = s3_server.region or "us-east-1"
        options["scheme"] = address.scheme
        options["endpoint_override"] = address.netloc + address.path.rstrip("/")
        options["force_virtual_addressing"] = virtual
    return _made(options, attempts, s3_server.checksums)


def _proxy(endpoint: str) -> dict[str, Any] | None:
    """The proxy options for this endpoint by *_PROXY and NO_PROXY, as botocore chooses."""
    address = get_environ_proxies(endpoint).get(urlparse(endpoint).scheme)
    if not address:
        return None
    proxy = urlparse(address if "://" in address else f"http://{address}")
    port = proxy.port or (443 if proxy.scheme == "https" else 80)
    options = {"scheme": proxy.scheme, "host": proxy.hostname, "port": port}
    if proxy.username:
        options |= {"username": proxy.username, "password": proxy.password or ""}
    return options


class _FileSystem(fs.S3FileSystem):
    """Arrow's client, which keeps checksums and attempts when it is pickled."""

    def __reduce__(self):
        return _made, self.made_from


def _made(options: dict[str, Any], attempts: int, checksums: tuple[tuple[str, str], ...]) -> _FileSystem:
    with _environment(dict(checksums)):  # Arrow's client reads these variables only here, when it is created
        files = _FileSystem(**options, retry_strategy=fs.AwsDefaultS3RetryStrategy(max_attempts=attempts))
    files.made_from = (options, attempts, checksums)
    return files


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables temporarily."""
    with _environment_lock:
        before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def split(address: str) -> tuple[str, str]:
    """Bucket and key of an s3:// address."""
    bucket, _, key = address.removeprefix(PREFIX).partition("/")
    return bucket, key


def explain(error: OSError, address: str) -> S3Error:
    """An S3Error with the error, the server, and advice."""
    bucket, key = split(address)
    text = str(error)
    if "No response body" in text and is_permanent(text):
        text += _words_of_listing(bucket, key)
    used = server()
    what_to_do = advice(
        text, signed=used.signed, virtual_host=uses_virtual_host(bucket), checksums=dict(used.checksums)
    )
    return S3Error(f"{text}. It was sent to {used.describe(bucket)}: {what_to_do}")


def _words_of_listing(bucket: str, key: str) -> str:
    """The error text of a listing, since a response to HEAD has a status but no text."""
    try:
        with translated_errors(""):
            client().list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)
    except OSError as error:
        return f" A listing{error}"
    return ""


def list_objects(bucket: str, prefix: str) -> Iterator[dict[str, Any]]:
    """Yield Key, ETag, Size and more of all objects with a key prefix; raises OSError in Arrow's form."""
    with translated_errors(f"{PREFIX}{bucket}/{prefix} cannot be listed"):
        for page in client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            yield from page.get("Contents", [])


def remove_objects(bucket: str, keys: list[str]) -> None:
    """Remove at most MAX_DELETE_KEYS objects in any order; missing objects are ignored.

    If a server does not support DeleteObjects, each object gets its own request, also in later calls.
    """
    s3_client, endpoint = client(), server().endpoint
    in_one = len(keys) > 1 and endpoint not in _endpoints_without_batches
    what = f"{PREFIX}{bucket}/{keys[0]}{f' and {len(keys) - 1} more' if len(keys) > 1 else ''} cannot be removed"
    if in_one:
        try:
            with translated_errors(what):
                named = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
                answer = s3_client.delete_objects(Bucket=bucket, Delete=named)
        except OSError as error:
            if not is_permanent(str(error)):
                raise
        else:
            for left in answer.get("Errors", []):
                if left.get("Code") not in ("NoSuchKey", "NoSuchVersion"):
                    raise OSError(
                        f"{PREFIX}{bucket}/{left.get('Key')} cannot be removed: AWS Error "
                        f"{left.get('Code')}: {left.get('Message')}"
                    )
            return

    def remove(key: str) -> None:
        with translated_errors(f"{PREFIX}{bucket}/{key} cannot be removed"):
            try:
                s3_client.delete_object(Bucket=bucket, Key=key)
            except ClientError as error:
                if error_code(error) != "NoSuchKey":
                    raise

    if len(keys) == 1:
        return remove(keys[0])
    with ThreadPoolExecutor(min(8, len(keys))) as pool:
        list(pool.map(remove, keys))
    _endpoints_without_batches.add(endpoint)


def abort_uploads(bucket: str, prefix: str, older_than_s: float) -> int:
    """Abort multipart uploads below a prefix that began more than `older_than_s` ago, and return how many.

    The server's clock decides the age.
    """
    s3_client, ended = client(), 0
    with translated_errors(f"open uploads of {PREFIX}{bucket}/{prefix} cannot be ended"):
        for page in s3_client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix):
            now = _time_of(page)
            for upload in page.get("Uploads", []):
                if (now - upload["Initiated"]).total_seconds() < older_than_s or not upload["Key"].startswith(prefix):
                    continue
                try:
                    s3_client.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
                except ClientError as error:
                    if error_code(error) != "NoSuchUpload":
                        raise
                ended += 1
    return ended


def _time_of(answer: dict[str, Any]) -> datetime:
    """The server's time in its response, or this machine's time if the response has none."""
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    return parsedate_to_datetime(date).astimezone(UTC) if date else datetime.now(UTC)
