"""The token with which the processes of a cluster on this machine authenticate. Its owner can run code as this user.

a private folder -> RAY_AUTH_TOKEN_PATH -> Ray's processes and the workers
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
"""This process's folder, and an open file in it whose lock shows that the process is alive."""


def use_private_token() -> None:
    """Make clusters that this process starts use Ray's token authentication, with a token in `private_folder`.

    Does nothing if the environment already configures authentication.
    """
    path = os.environ.get("RAY_AUTH_TOKEN_PATH", "")
    is_stale = f"/{FOLDER_PREFIX}" in path and not os.path.exists(path)  # set by a parent process that has ended
    if not is_stale and any(os.environ.get(f"RAY_AUTH_{name}") for name in ("MODE", "TOKEN", "TOKEN_PATH")):
        return
    # One path for all clusters of this process, since Ray reads the variable once.
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(private_folder() / TOKEN_FILE)


def private_folder() -> Path:
    """A folder with a token that no other user can read. It is removed when this process ends."""
    global _folder
    if _folder is None or not _folder[0].exists():
        _remove_old_folders()
        folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=socket_folder()))  # mkdtemp sets mode 0700
        file = os.fdopen(os.open(folder / "new", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w")
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(secrets.token_hex(32))
        file.flush()
        (folder / "new").rename(
            folder / TOKEN_FILE
        )  # before that, no other process can mistake the folder for an old one
        _folder = folder, file
        atexit.register(remove_private_folder, os.getpid())
    return _folder[0]


def remove_private_folder(owner: int | None = None) -> None:
    """Remove the folder of this process. Must be called before an exit that skips exit handlers."""
    if _folder and owner in (None, os.getpid()):  # a fork of the owner must not remove it
        shutil.rmtree(_folder[0], ignore_errors=True)


def _remove_old_folders() -> None:
    """Remove the folders of killed processes, whose locks are released."""
    for path in Path(socket_folder()).glob(f"{FOLDER_PREFIX}*/{TOKEN_FILE}"):
        with suppress(OSError), path.open() as token:  # it belongs to another user, or is being removed or used
            fcntl.flock(token, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path.parent, ignore_errors=True)
