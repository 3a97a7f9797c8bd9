"""Names of unfinished files contain the process that writes them, so that files of dead processes can be removed.

    .part-00000.parquet.1f0c2a7e-4711-1790000000-9c.unfinished

The owner is a host, a process id, and the start time of the process, since process ids are reused.
"""

import hashlib
import os
import re
import socket
import time
import uuid
from functools import cache
from pathlib import Path

import psutil

OWNER = r"[0-9a-f]{8}-\d+-\d+"
UNFINISHED = re.compile(rf"\..+\.(?P<owner>{OWNER})-[0-9a-f]+\.unfinished")
LEGACY_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{8}")
"""Names that earlier versions used, without an owner."""
ABANDONED_AFTER_S = 24 * 3600.0
"""Age after which files of another host are abandoned, since this host cannot see whether their process is alive."""
MAX_NAME_PREFIX = 180
"""Characters of a file name that its unfinished name keeps; most file systems allow 255 in total."""
START_TOLERANCE_S = 2
"""Tolerance for start times, which change when the clock is set."""


def current_owner() -> str:
    """The owner name of this process."""
    return _named(os.getpid())


@cache
def _named(process: int) -> str:
    return f"{_host()}-{process}-{int(psutil.Process(process).create_time())}"


@cache
def _host() -> str:
    """A name of this machine or container: processes with the same name see each other's process ids."""
    namespace = Path("/proc/self/ns/pid")
    name = f"{socket.gethostname()} {namespace.stat().st_ino if namespace.exists() else 0}"
    return hashlib.blake2b(name.encode(), digest_size=4).hexdigest()


def unfinished_name(name: str) -> str:
    """A new name for this process to write to before it renames the file to `name`."""
    return f".{name[:MAX_NAME_PREFIX]}.{current_owner()}-{uuid.uuid4().hex[:8]}.unfinished"


def is_unfinished(name: str) -> bool:
    """Whether `unfinished_name`, of this or an earlier version, made this file name."""
    return bool(UNFINISHED.fullmatch(name) or LEGACY_UNFINISHED.fullmatch(name))


def owner_is_gone(owner: str, path: Path) -> bool:
    """Whether the process that wrote `path` has ended; for another host, whether `path` is old."""
    if not re.fullmatch(OWNER, owner):
        return False
    host, process, started = owner.split("-")
    if host != _host():
        return is_old(path)
    try:
        return abs(psutil.Process(int(process)).create_time() - int(started)) > START_TOLERANCE_S
    except (psutil.NoSuchProcess, OverflowError):
        return True
    except psutil.AccessDenied:
        return False


def is_abandoned(path: Path) -> bool:
    """Whether this is an unfinished file of a process that has ended."""
    match = UNFINISHED.fullmatch(path.name)
    if match:
        return owner_is_gone(match["owner"], path)
    return bool(LEGACY_UNFINISHED.fullmatch(path.name)) and is_old(path)


def is_old(path: Path) -> bool:
    """Whether a file or folder has not changed for ABANDONED_AFTER_S."""
    try:
        return time.time() - path.stat().st_mtime > ABANDONED_AFTER_S
    except FileNotFoundError:
        return False
