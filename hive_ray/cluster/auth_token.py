"""The token by which processes of a cluster of this machine know each other: whoever has it may run code as this user.

a folder of its own, that no other user can read -> RAY_AUTH_TOKEN_PATH -> Ray's processes and the workers
"""

import atexit
import fcntl
import os
import secrets
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from hive_ray.cluster.addresses import socket_folder

FOLDER_PREFIX = "hive-ray-token-"
TOKEN_FILE = "token"

_folder: tuple[Path, TextIO] | None = None
"""This process's folder, and a file in it whose lock says that the process lives."""


def use_private_token() -> None:
    """Have clusters that this process starts use Ray's token authentication, with a token of this process in its
    private folder. What the environment says about authentication stays."""
    given = os.environ.get("RAY_AUTH_TOKEN_PATH", "")
    left = f"/{FOLDER_PREFIX}" in given and not os.path.exists(given)  # by a process that started this one, and ended
    if not left and any(os.environ.get(f"RAY_AUTH_{name}") for name in ("MODE", "TOKEN", "TOKEN_PATH")):
        return
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(
        private_folder() / TOKEN_FILE
    )  # the same for all clusters: Ray reads it once


def private_folder() -> Path:
    """A folder that no other user can read, with a token in it; gone once this process has ended."""
    global _folder
    if _folder is None or not _folder[0].exists():
        _remove_old_folders()
        folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=socket_folder()))  # of mode 0700
        file = os.fdopen(os.open(folder / "new", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w")
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(secrets.token_hex(32))
        file.flush()
        (folder / "new").rename(folder / TOKEN_FILE)  # only now can another process take the folder for an old one
        _folder = folder, file
        atexit.register(remove_private_folder, os.getpid())
    return _folder[0]


def remove_private_folder(owner: int | None = None) -> None:
    """Remove this process's folder: at its end, or before an end that runs no exit handlers."""
    if _folder and owner in (None, os.getpid()):  # a fork of the owner may end earlier
        shutil.rmtree(_folder[0], ignore_errors=True)


def _remove_old_folders() -> None:
    """Remove the folders of processes that were killed, which hold no lock any more."""
    for path in Path(socket_folder()).glob(f"{FOLDER_PREFIX}*/{TOKEN_FILE}"):
        with suppress(OSError), path.open() as token:  # another user's, or one that its process removes just now
            fcntl.flock(token, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path.parent, ignore_errors=True)
