"""Scratch space in `cache_folder()`: each file or folder has an owner, and is removed after its owner has ended.

<cache>/scratch/<kind>-<owner>-<random>/    a folder of one process
<cache>/rows/<key>.arrow                    shared by several processes
<cache>/rows/.<key>.arrow.<owner>.claim     the claim of a process that uses it
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
"""Folders of the cache with claims."""
LEGACY_FOLDERS = ("checkpoints", "folders")
"""Folders of the cache in which earlier versions made scratch folders, named tmp*."""


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
    """An empty folder that is removed when the context ends."""
    made = new_folder(kind)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def claim(path: Path) -> None:
    """Claim a file or folder of the cache for this process, before it is made or read.

    Other processes do not remove it until this process ends or releases the claim.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _claim_of(path).touch()


def release(path: Path) -> None:
    """Release the claim of this process."""
    _claim_of(path).unlink(missing_ok=True)


def remove_abandoned() -> None:
    """Remove what dead processes have left in the cache."""
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
    """Remove claimed files and folders whose claims have all ended."""
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
    """The cache folder, for files that can be made again: $HIVE_RAY_CACHE, or ~/.cache/hive_ray.

    It is created if needed; OSError if it cannot be created or written to.
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
    """The path of the cache folder, which may not exist; OSError if there is no home folder."""
    try:
        return Path(os.environ.get("HIVE_RAY_CACHE") or Path.home() / ".cache" / "hive_ray").expanduser()
    except RuntimeError as error:
        raise OSError(f"there is no home folder ({error}): set HIVE_RAY_CACHE to a folder for the cache") from error
