"""Check that a run folder, local or on S3, can be written, read and listed."""

import errno
import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from hive_ray.files import s3
from hive_ray.files.owners import current_owner, owner_is_gone, unfinished_name
from hive_ray.storage import S3, absolute, join, retry

R = TypeVar("R")
UNREACHABLE_TIMEOUT_S = 20.0
"""How long `check_storage` waits for an address that does not answer."""
CHECK_TIMEOUT_S = 10.0
"""Timeout of a request of `check_storage`."""
PROBE_PREFIX = ".hive_ray-probe-"
"""Prefix of the files that `check_storage` writes."""


def check_storage(address: str) -> None:
    """Check that a run folder is usable: write, read, list and remove a small file.

    Raises OSError or ValueError, which says what failed and which setting to correct.

    On S3 this takes five requests. It waits UNREACHABLE_TIMEOUT_S for an address that does not answer, and S3_TIMEOUT_S
    for a server that asks to retry later.
    """
    if address.startswith(S3):
        _check_s3(address.rstrip("/"))
    else:
        _check_folder(Path(absolute(address)))


def _check_s3(address: str) -> None:
    path = join(address, f"{PROBE_PREFIX}{current_owner()}-{uuid.uuid4().hex[:8]}")
    content = b"hive_ray looks whether it can write here"
    bucket, key = s3.split(path)
    files, inside = s3.file_system(bucket, attempts=1, timeout_s=CHECK_TIMEOUT_S), path.removeprefix(S3)

    def write() -> None:
        with files.open_output_stream(inside, compression=None) as stream:
            stream.write(content)

    def read() -> bytes:
        with files.open_input_stream(inside, compression=None) as stream:
            return stream.read()

    def names() -> list[str]:
        return [item["Key"] for item in s3.list_objects(bucket, key.rpartition(PROBE_PREFIX)[0] + PROBE_PREFIX)]

    def attempt(what: str, act: Callable[[], R]) -> R:
        try:
            return retry(act, path, UNREACHABLE_TIMEOUT_S)
        except OSError as error:
            raise type(error)(f"{address} cannot be used: {what} there failed. {error}") from error

    odd = f"the server at {s3.server().describe(bucket)} is no S3, or one that shows late what was written: correct"
    attempt("writing", write)
    try:
        if attempt("reading", read) != content:
            raise OSError(f"{address} cannot be used: a file is read other than it was written; {odd} AWS_ENDPOINT_URL")
        found = attempt("listing", names)
        if key not in found:
            raise OSError(f"{address} cannot be used: a listing lacks a file just written; {odd} AWS_ENDPOINT_URL")
    except BaseException:
        with suppress(OSError):
            s3.remove_objects(bucket, [key])
        raise
    left = [name for name in found if owner_is_gone(name.rpartition(PROBE_PREFIX)[2].rpartition("-")[0], Path(name))]
    attempt("removing", lambda: s3.remove_objects(bucket, [key, *left]))


def _check_folder(folder: Path) -> None:
    probe = folder / unfinished_name("probe")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with probe.open("wb") as stream:
                stream.write(bytes(1 << 16))
                stream.flush()
                os.fsync(stream.fileno())
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        why = "make room there, or give" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "give"
        raise OSError(
            f"{folder} cannot be written to ({error.strerror}): {why} another folder, or an s3:// address, by --run"
        ) from error
