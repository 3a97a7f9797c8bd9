"""Scratch of this machine below `cache_folder()`: each piece has an owner, and is removed once that is gone.

<cache>/scratch/<kind>-<owner>-<random>/    a folder of one process
<cache>/rows/<key>.arrow                    what several processes share, beside
<cache>/rows/.<key>.arrow.<owner>.claim     a claim of each process that uses it
"""

import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hive_ray.files.owners import OWNER, current_owner, is_old, owner_is_gone

FOLDER_NAME = re.compile(rf"\w+-(?P<owner>{OWNER})-[0-9a-f]+")
CLAIM_NAME = re.compile(rf"\.(?P<name>.+)\.(?P<owner>{OWNER})\.claim")
CLAIMED_FOLDERS = ("rows", "universal", "folders")
"""Folders of the cache in which there are claims."""
LEGACY_FOLDERS = ("checkpoints", "folders")
"""Folders of the cache in which earlier versions had scratch, named tmp*."""


def new_folder(kind: str) -> Path:
    """Make an empty folder for this process alone, after `remove_abandoned`.

    The caller removes it. If the process dies first, a later `remove_abandoned` does.
    """
    remove_abandoned()
    folder = cache_folder() / "scratch" / f"{kind}-{current_owner()}-{uuid.uuid4().hex[:8]}"
    folder.mkdir(parents=True)
    return folder


@contextmanager
def temporary_folder(kind: str) -> Iterator[Path]:
    """An empty folder for as long as this lasts."""
    made = new_folder(kind)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def claim(path: Path) -> None:
    """Say that this process uses a file or folder of the cache, before it is made or read: until it ends, or gives the
    claim up, no other sweeps it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _claim_of(path).touch()


def release(path: Path) -> None:
    """Take this process's claim back."""
    _claim_of(path).unlink(missing_ok=True)


def remove_abandoned() -> None:
    """Remove what processes that are gone have left in the cache."""
    for path in _entries(_scratch()):
        named = FOLDER_NAME.fullmatch(path.name)
        if named and owner_is_gone(named["owner"], path):
            shutil.rmtree(path, ignore_errors=True)
    for kind in CLAIMED_FOLDERS:
        _remove_unclaimed(cache_path() / kind)
    for kind in LEGACY_FOLDERS:
        for path in _entries(cache_path() / kind):
            if path.name.startswith("tmp") and is_old(path):
                _remove(path)


def _remove_unclaimed(shared: Path) -> None:
    """Remove what was claimed and is used by nobody any more."""
    claims: dict[str, list[tuple[Path, bool]]] = {}
    for path in _entries(shared):
        named = CLAIM_NAME.fullmatch(path.name)
        if named:
            claims.setdefault(named["name"], []).append((path, owner_is_gone(named["owner"], path)))
    for name, of_it in claims.items():
        if all(gone for _, gone in of_it):
            _remove(shared / name)
        for file, gone in of_it:
            if gone:
                file.unlink(missing_ok=True)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []


def _scratch() -> Path:
    return cache_path() / "scratch"


def _claim_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.{current_owner()}.claim")


def cache_folder() -> Path:
    """Where this machine keeps what can be made again: $HIVE_RAY_CACHE, or ~/.cache/hive_ray.

    It is made if it is not there; OSError if it cannot be, or cannot be written to.
    """
    folder = cache_path()
    remedy = "set HIVE_RAY_CACHE to a folder that can be written to"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"the cache folder {folder} cannot be made ({error.strerror}): {remedy}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OSError(f"the cache folder {folder} cannot be written to: {remedy}")
    return folder


def cache_path() -> Path:
    """Where that folder is, whether or not it is there; OSError where no home folder says so."""
    try:
        return Path(os.environ.get("HIVE_RAY_CACHE") or Path.home() / ".cache" / "hive_ray").expanduser()
    except RuntimeError as error:
        raise OSError(f"there is no home folder ({error}): set HIVE_RAY_CACHE to a folder for the cache") from error
