"""Local folders and s3:// addresses behind the same few functions. Paths are str; nothing else parses them.

Bytes stay as they are, whatever a name ends with. A file that exists is whole: local writes go beside the target
and are renamed, an S3 object appears when its upload ends (in parts, if it is large). S3 credentials, region and
endpoint come from where the AWS tools look: variables, the profile's files, the machine's role.
"""

import functools
import hashlib
import io
import itertools
import os
import re
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar
from urllib.parse import urlparse

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from pyarrow import fs

S3 = "s3://"
S3_ATTEMPTS = 6
"""Times that a request is sent to an S3 that answers 500, 503 or nothing, within two seconds."""
S3_PATIENCE_S = 120.0
"""How long an S3 may be away before what needs it fails."""
LASTING = re.compile(r"AWS Error (ACCESS_DENIED|NO_SUCH_|INVALID_|MISSING_|UNRECOGNIZED_CLIENT|SIGNATURE_)")
"""Errors of S3 that waiting does not mend."""
AWS_SETTINGS = (
    "AWS_PROFILE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_REGION", "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3",
)  # fmt: skip
"""Where boto3 looks for the region and the endpoint."""
P, R = ParamSpec("P"), TypeVar("R")
MARKERS = ("manifest.json", "card.json")
"""Files that say that their folder is whole: written last, removed first."""


def join(root: str, *parts: str) -> str:
    """A path below `root`."""
    return "/".join([root.rstrip("/"), *parts])


def absolute(path: str) -> str:
    """The path as every process of the cluster reads it, whatever folder it works in."""
    return path.rstrip("/") if path.startswith(S3) else os.path.abspath(os.path.expanduser(path))


def filesystem(path: str) -> tuple[fs.FileSystem, str]:
    """The Arrow file system of a path, and the path inside it."""
    if not path.startswith(S3):
        return fs.LocalFileSystem(), absolute(path)
    inside = path.removeprefix(S3).rstrip("/")
    return _s3(inside.split("/")[0], tuple(map(os.environ.get, AWS_SETTINGS))), inside


@functools.cache
def _s3(bucket: str, settings: tuple[str | None, ...]) -> fs.S3FileSystem:
    """One file system for each bucket and state of the AWS_SETTINGS."""
    region, endpoint = boto3.Session().region_name, _client().meta.endpoint_url
    options = {
        "retry_strategy": fs.AwsDefaultS3RetryStrategy(max_attempts=S3_ATTEMPTS),
        "allow_delayed_open": True,  # a small file is one request, not the three of an upload in parts
    }
    if not endpoint.endswith(".amazonaws.com"):
        address = urlparse(endpoint)
        host = address.netloc + address.path
        return fs.S3FileSystem(endpoint_override=host, scheme=address.scheme, region=region or "us-east-1", **options)
    return fs.S3FileSystem(region=region or fs.resolve_s3_region(bucket), **options)


def _client():
    return boto3.Session().client("s3", config=Config(retries={"mode": "standard", "max_attempts": S3_ATTEMPTS}))


def patient(act: Callable[P, R]) -> Callable[P, R]:
    """`act`, which may be done again, done again until S3 is back: for S3_PATIENCE_S, after 1, 2, 4, ... 15 s.

    Arrow's own retries do not reach every failure: an error that is longer than the bytes asked for ends a read.
    """

    @functools.wraps(act)
    def patiently(*args: P.args, **kwargs: P.kwargs) -> R:
        started = time.monotonic()
        for attempt in itertools.count():
            try:
                return act(*args, **kwargs)
            except OSError as error:
                waited = time.monotonic() - started
                if "AWS Error" not in str(error) or LASTING.search(str(error)) or waited > S3_PATIENCE_S:
                    raise
                if attempt == 1:
                    print(f"S3 does not answer, waiting for {S3_PATIENCE_S:.0f} s: {error}", flush=True)
                time.sleep(min(2.0**attempt, 15.0))

    return patiently


@patient
def exists(path: str) -> bool:
    """Is there a file or a folder?"""
    files, inside = filesystem(path)
    return files.get_file_info(inside).type != fs.FileType.NotFound


def list_files(path: str) -> list[str]:
    """Names of all files below a folder, relative to it and sorted; none if there is no such folder."""
    return list(list_sizes(path))


def list_data(path: str, *endings: str) -> list[str]:
    """Those of `list_files` that end so, but none that is or lies in what a leading _ or . says is no data."""
    return [
        name
        for name in list_files(path)
        if name.endswith(endings) and not any(part[0] in "_." for part in name.split("/"))
    ]


@patient
def list_sizes(path: str) -> dict[str, int]:
    """Name -> bytes of all files below a folder, relative to it and sorted."""
    files, inside = filesystem(path)
    found = files.get_file_info(fs.FileSelector(inside, allow_not_found=True, recursive=True))
    return dict(sorted((os.path.relpath(info.path, inside), info.size) for info in found if info.is_file))


@patient
def list_versions(path: str, passed_over: Callable[[str], bool] = lambda name: False) -> dict[str, str]:
    """Name -> version (`file_version`) of all files below a folder, relative to it and sorted; none if there is none.

    Files and folders whose own name is `passed_over` are left out, and such folders are not looked into. Links are
    followed. On disk this takes a look at each file, on S3 a request for each 1,000 objects.
    """
    if path.startswith(S3):
        found = {name: f"{size} {etag}" for name, (etag, size) in _s3_objects(path).items()}
        return {name: found[name] for name in sorted(found) if not any(map(passed_over, name.split("/")))}
    top = absolute(path)
    found, walked = {}, set()
    for folder, folders, names in os.walk(top, onerror=_raise, followlinks=True):
        place = os.path.realpath(folder)
        folders[:] = [] if place in walked else [name for name in folders if not passed_over(name)]
        for name in names if place not in walked else ():
            file = os.path.join(folder, name)
            version = None if passed_over(name) else file_version(file)
            if version is not None:
                found[os.path.relpath(file, top)] = version
        walked.add(place)
    return dict(sorted(found.items()))


def _raise(error: OSError) -> None:
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise error


@patient
def file_version(path: str) -> str | None:
    """Bytes of a file and when it was changed last, in ns (on S3: its ETag); None if there is no such file."""
    if path.startswith(S3):
        folder, _, last = path.rpartition("/")
        etag, size = _s3_objects(folder, last).get(last, ("", None))
        return None if size is None else f"{size} {etag}"
    try:
        state = os.stat(absolute(path))
    except (OSError, ValueError):  # not there, a broken link, or a name that no file can have
        return None
    return f"{state.st_size} {state.st_mtime_ns}" if stat.S_ISREG(state.st_mode) else None


def is_file(path: str) -> bool:
    """Is it a file? FileNotFoundError if there is nothing."""
    return file_size(path) is not None


@patient
def file_size(path: str) -> int | None:
    """Bytes of a file, None of a folder; FileNotFoundError if there is nothing."""
    files, inside = filesystem(path)
    found = files.get_file_info(inside)
    if found.type == fs.FileType.NotFound:
        raise FileNotFoundError(f"{path} does not exist; correct the path")
    return found.size if found.is_file else None


@patient
def read_bytes(path: str) -> bytes:
    """The content of a file."""
    files, inside = filesystem(path)
    with files.open_input_stream(inside, compression=None) as stream:
        return stream.read()


def read_text(path: str) -> str:
    """The content of a UTF-8 file."""
    return read_bytes(path).decode()


def open_text(path: str) -> io.TextIOWrapper:
    """The lines of a UTF-8 file, unpacked as its ending says, without a byte order mark; line ends stay; close it."""
    files, inside = filesystem(path)
    return io.TextIOWrapper(files.open_input_stream(inside), encoding="utf-8-sig", newline="")


@patient
def write_bytes(path: str, data: bytes) -> None:
    """Write a file that is either absent (or the old one) or whole, whenever the process is killed."""
    files, inside = filesystem(path)
    if path.startswith(S3):
        with files.open_output_stream(inside, compression=None) as stream:
            stream.write(data)
        return
    target = Path(inside)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    beside.write_bytes(data)
    beside.replace(target)


def write_text(path: str, text: str) -> None:
    """Write a UTF-8 file as `write_bytes` does."""
    write_bytes(path, text.encode())


@patient
def read_columns(path: str, columns: list[str]) -> pa.Table:
    """Some columns of a Parquet file."""
    with open_parquet(path) as parquet:
        return parquet.read(columns=columns)


def open_parquet(path: str) -> pq.ParquetFile:
    """A Parquet file to read from; close it."""
    files, inside = filesystem(path)
    return pq.ParquetFile(files.open_input_file(inside))


@patient
def remove_file(path: str) -> None:
    """Remove a file that exists."""
    files, inside = filesystem(path)
    files.delete_file(inside)


@patient
def remove_tree(path: str) -> None:
    """Remove a folder and all below it, the markers first: half removed, it is not taken for whole."""
    for marker in MARKERS:
        if exists(join(path, marker)):
            remove_file(join(path, marker))
    if exists(path):
        files, inside = filesystem(path)
        files.delete_dir(inside)


def fetch_folder(path: str) -> Path:
    """A local folder with the content of `path`: itself, or a copy of an s3:// folder, one for each version."""
    if not path.startswith(S3):
        return Path(absolute(path))
    objects = _s3_objects(path)
    if not objects:
        raise FileNotFoundError(f"{path} has no objects: give the address of a folder that exists")
    return _fetch(path, objects)


def fetch_file(path: str) -> Path:
    """A local file with the content of `path`: itself, or a copy of an S3 object, one for each version."""
    if not path.startswith(S3):
        return Path(absolute(path))
    folder, _, name = path.rpartition("/")
    objects = {key: version for key, version in _s3_objects(folder, name).items() if key == name}
    if not objects:
        raise FileNotFoundError(f"{path} is not there: give the address of a file that exists")
    return _fetch(folder, objects) / name


def _fetch(path: str, objects: dict[str, tuple[str, int]]) -> Path:
    """A local folder with these objects of an s3:// folder."""
    version = hashlib.blake2b(repr((path, sorted(objects.items()))).encode(), digest_size=8).hexdigest()
    cache = cache_folder() / "folders"
    target = cache / version
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, ignore_cleanup_errors=True) as temporary:
        whole = Path(temporary) / "whole"
        for name in objects:
            copy_file(join(path, name), str(whole / name))
        try:
            whole.rename(target)
        except OSError:  # another process was first
            if not target.is_dir():
                raise
    return target


def fetch_model(model: str | Path) -> str | Path:
    """A model to load: the local copy of an s3:// folder or file; a local one or a hub name as it is."""
    if not (isinstance(model, str) and model.startswith(S3)):
        return model
    return fetch_file(model) if is_file(model) else fetch_folder(model)


def cache_folder() -> Path:
    """Where this machine keeps what can be made again: $HIVE_RAY_CACHE, or ~/.cache/hive_ray."""
    return Path(os.environ.get("HIVE_RAY_CACHE") or Path.home() / ".cache" / "hive_ray")


@patient
def _s3_objects(path: str, start: str = "") -> dict[str, tuple[str, int]]:
    """Name below the folder -> (etag, bytes), of names that begin with `start`."""
    bucket, _, prefix = f"{path.removeprefix(S3).rstrip('/')}/".partition("/")
    pages = _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix + start)
    try:
        found = [item for page in pages for item in page.get("Contents", []) if not item["Key"].endswith("/")]
    except ClientError as error:
        away = error.response["ResponseMetadata"]["HTTPStatusCode"] >= 500
        raise OSError(f"{path} cannot be listed: {'AWS Error ' if away else ''}{error}") from error
    except BotoCoreError as error:
        raise OSError(f"{path} cannot be listed: AWS Error {error}") from error
    return {item["Key"].removeprefix(prefix): (item["ETag"], item["Size"]) for item in found}


def store_folder(local: Path, path: str) -> None:
    """Copy a local folder to `path` in place of what was there; card.json arrives last."""
    remove_tree(path)
    names = list_files(str(local))
    for name in sorted(names, key=lambda name: (name in MARKERS, name)):
        copy_file(str(local / name), join(path, name))


@patient
def copy_file(source: str, target: str) -> None:
    """Stream one file from any path to any other."""
    (from_files, from_inside), (to_files, to_inside) = filesystem(source), filesystem(target)
    if not target.startswith(S3):
        Path(to_inside).parent.mkdir(parents=True, exist_ok=True)
    with (
        from_files.open_input_stream(from_inside, compression=None) as reader,
        to_files.open_output_stream(to_inside, compression=None) as writer,
    ):
        shutil.copyfileobj(reader, writer, length=1 << 22)


def folder_digest(path: str) -> str:
    """Sixteen hexadecimal digits that depend on the name and the bytes of every file of a folder."""
    folder = fetch_folder(path)
    names = list_files(str(folder))
    if not names:
        raise FileNotFoundError(f"{path} is not a folder with files: make the model first, or correct the path")
    state = hashlib.blake2b(digest_size=8)
    for name in names:
        content = _content_digest(folder / name, 16).digest()
        state.update(len(name.encode()).to_bytes(4, "big") + name.encode() + content)
    return state.hexdigest()


def file_digest(path: str) -> str:
    """Sixteen hexadecimal digits that depend on the bytes of a file, and not on its name."""
    return _content_digest(fetch_file(path), 8).hexdigest()


def _content_digest(file: Path, size: int) -> "hashlib._Hash":
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=size))
