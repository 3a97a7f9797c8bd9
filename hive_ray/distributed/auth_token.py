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

from hive_ray.distributed.forks import short_folder

TOKEN_FOLDER = "hive-ray-token-"

_token: tuple[Path, TextIO] | None = None
"""The folder of this process's token, and the file, whose lock says that the process lives."""


def keep_token() -> None:
    """Have clusters that this process starts use Ray's token authentication, with a token of this process, in a folder
    of its own that no other user can read. What the environment says about authentication stays."""
    global _token
    if _token and (_token[0] / "token").exists():  # Ray has read it, once for all
        os.environ.setdefault("RAY_AUTH_TOKEN_PATH", str(_token[0] / "token"))
        return
    given = os.environ.get("RAY_AUTH_TOKEN_PATH", "")
    left = f"/{TOKEN_FOLDER}" in given and not os.path.exists(given)  # by a process that started this one, and ended
    if not left and any(os.environ.get(f"RAY_AUTH_{name}") for name in ("MODE", "TOKEN", "TOKEN_PATH")):
        return
    _remove_old_tokens()
    folder = Path(tempfile.mkdtemp(prefix=TOKEN_FOLDER, dir=short_folder()))
    file = os.fdopen(os.open(folder / "new", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w")
    fcntl.flock(file, fcntl.LOCK_EX)
    file.write(secrets.token_hex(32))
    file.flush()
    path = (folder / "new").rename(folder / "token")  # only now can another process take it for an old one
    _token = folder, file
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)
    atexit.register(forget_token, os.getpid())


def forget_token(owner: int | None = None) -> None:
    """Remove this process's token: at its end, or before an end that runs no exit handlers."""
    if _token and owner in (None, os.getpid()):  # a fork of the owner may end earlier
        shutil.rmtree(_token[0], ignore_errors=True)


def _remove_old_tokens() -> None:
    """Remove the tokens of processes that were killed, which hold no lock any more."""
    for path in Path(short_folder()).glob(f"{TOKEN_FOLDER}*/token"):
        with suppress(OSError), path.open() as token:  # another user's, or one that its process removes just now
            fcntl.flock(token, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path.parent, ignore_errors=True)
