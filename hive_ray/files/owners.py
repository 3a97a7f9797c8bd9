"""Names of unfinished files that say which process writes them: what a killed one left is known by it, and removed.

    .part-00000.parquet.1f0c2a7e-4711-1790000000-9c.unfinished

The owner is a host, a process, and when that process started, since numbers of processes are used again.
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
"""How earlier versions named them: without an owner."""
ABANDONED_AFTER_S = 24 * 3600.0
"""A host cannot see whether a process of another one lives: what such a one left untouched for so long is given up."""
MAX_NAME_PREFIX = 180
"""Characters of a file's name that its unfinished name begins with: most file systems take 255 in all."""
START_TOLERANCE_S = 2
"""Clocks that are set move the time at which a process seems to have started."""


def current_owner() -> str:
    """Names this process."""
    return _named(os.getpid())


@cache
def _named(process: int) -> str:
    return f"{_host()}-{process}-{int(psutil.Process(process).create_time())}"


@cache
def _host() -> str:
    """This machine, or this container: processes that call it the same see each other's numbers."""
    namespace = Path("/proc/self/ns/pid")
    name = f"{socket.gethostname()} {namespace.stat().st_ino if namespace.exists() else 0}"
    return hashlib.blake2b(name.encode(), digest_size=4).hexdigest()


def unfinished_name(name: str) -> str:
    """A new name beside the file `name`, for this process to write into before it is renamed."""
    return f".{name[:MAX_NAME_PREFIX]}.{current_owner()}-{uuid.uuid4().hex[:8]}.unfinished"


def is_unfinished(name: str) -> bool:
    """Whether a file's name is one that `unfinished_name` has given, now or in an earlier version."""
    return bool(UNFINISHED.fullmatch(name) or LEGACY_UNFINISHED.fullmatch(name))


def owner_is_gone(owner: str, path: Path) -> bool:
    """Whether the process of this name has ended, which wrote `path`; of another host, whether it seems so."""
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
    """Whether this is an unfinished file whose process is gone."""
    match = UNFINISHED.fullmatch(path.name)
    if match:
        return owner_is_gone(match["owner"], path)
    return bool(LEGACY_UNFINISHED.fullmatch(path.name)) and is_old(path)


def is_old(path: Path) -> bool:
    """Whether nothing has changed a file or folder for OTHERS_LAST_S."""
    try:
        return time.time() - path.stat().st_mtime > ABANDONED_AFTER_S
    except FileNotFoundError:
        return False
