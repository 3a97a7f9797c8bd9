"""python tests/kill_at_each_call.py

Reads lines of JSON: {"arguments": [<scenario>, <folder>] or [..., <s3 root>, <door>], "environment": {...}}. It imports
once what all of them need; each is then done in a fork, whose result is a line of JSON.

Does a scenario of kill_scenarios.py again and again, in a fork each time that is killed at the next one of its calls:
system calls that change something on disk (kill_at_a_call.cpp is preloaded), or requests that change something on S3
(the door kills). After each kill the same command is given again, undisturbed, and must leave what it leaves where
nothing was killed. The result: how many kills there were, and what was wrong after which, or "failed" and why.

A scenario is done over what it left with another seed, so that removals are among the calls.
"""

import ctypes
import gc
import json
import os
import shutil
import signal
import sys
import traceback
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas  # noqa: F401 (by pyarrow, when it first reads: once, and not in each fork)
import pyarrow.dataset  # noqa: F401
from kill_scenarios import SCENARIOS, digest

from hive_ray import storage
from hive_ray.artifacts.manifest import git_commit

BY_THE_CLOCK = ("seconds", "rows_timed", "git_commit")


def main() -> None:
    git_commit()  # once, and not in each fork
    gc.freeze()  # else each fork looks through all that was imported
    for line in sys.stdin:
        request = json.loads(line)
        try:
            fork(lambda request=request: answer(**request), silent=False)
        except RuntimeError as error:
            print(json.dumps({"failed": str(error)}), flush=True)


def answer(arguments: list[str], environment: dict[str, str]) -> None:
    """Do a scenario as this file's words have it, in this environment, and print the result."""
    os.environ.update(environment)
    print(json.dumps(results(*arguments)), flush=True)


def results(name: str, folder: str, *remote: str) -> dict[str, Any]:
    """Kill at each call of the scenario: how many there are, and what was wrong after which."""
    target = OnS3(*remote, Path(folder)) if remote else OnDisk(Path(folder))
    scenario = SCENARIOS[name]
    target.begin()
    fork(lambda: scenario(target.root, 0))
    target.remember()
    wanted = snapshot_after(target, lambda: target.count(lambda: scenario(target.root, 1)))
    calls = target.counted()
    wrong = []
    for at in range(1, calls + 1):
        target.empty()

        def die(at: int = at) -> None:
            target.restore()
            target.killed_at(at, lambda: scenario(target.root, 1))

        killed = fork(die, may_die=True)
        try:
            left = snapshot_after(target, lambda: scenario(target.root, 1))
            if left != wanted:
                wrong.append(f"call {at}: {differences(wanted, left)}")
        except RuntimeError as error:
            wrong.append(f"call {at}: {error}")
        if not killed:
            wrong.append(f"call {at}: nothing was killed")
    return {"kills": calls, "wrong": wrong}


def fork(act: Callable[[], None], *, may_die: bool = False, silent: bool = True) -> bool:
    """Do something in a fork, which prints nothing if it is `silent`; whether it was killed. RuntimeError where it
    failed, or was killed and may not be."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        if silent:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try:
            act()
        except BaseException:
            os.write(writer, traceback.format_exc()[-2000:].encode())
            os._exit(1)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        said = stream.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    died = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    if (died and not may_die) or (not died and status):
        raise RuntimeError(said or f"status {status}")
    return died


def snapshot_after(target: "OnDisk | OnS3", act: Callable[[], None]) -> dict[str, str]:
    """Do something in a fork and take the `snapshot` there: each later fork would inherit this process's connections to
    S3."""
    file = target.folder.with_name("snapshot.json")

    def act_and_look() -> None:
        act()
        file.write_text(json.dumps(snapshot(target.root, target.cache)))

    fork(act_and_look)
    return json.loads(file.read_text())


def snapshot(root: str, cache: Path) -> dict[str, str]:
    """Every file and what is in it, but for what the clock says; files of the cache, too."""
    files = {}
    for name in storage.list_files(root):
        data = storage.read_bytes(storage.join(root, name))
        if name.endswith("manifest.json"):
            kept = {key: value for key, value in json.loads(data).items() if key not in BY_THE_CLOCK}
            data = json.dumps(kept).encode()
        files[name] = digest(data)
    left = [str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file()]
    return files | {f"cache/{name}": "" for name in left if not name.startswith("folders/")}


def differences(wanted: dict[str, str], left: dict[str, str]) -> str:
    names = sorted(name for name in wanted.keys() | left.keys() if wanted.get(name) != left.get(name))
    return ", ".join(f"{name} was {wanted.get(name)}, is {left.get(name)}" for name in names)


class OnDisk:
    """Kills at system calls below a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.before = folder, folder.with_name(f"{folder.name}-before")
        self.root, self.cache = str(folder / "run"), folder / "cache"
        self.shim = ctypes.CDLL(None)
        self.shim.counted.restype = ctypes.c_long

    def begin(self) -> None:
        self.folder.mkdir()
        os.environ["HIVE_RAY_CACHE"] = str(self.cache)

    def remember(self) -> None:
        shutil.copytree(self.folder, self.before)

    def empty(self) -> None:
        shutil.rmtree(self.folder)

    def restore(self) -> None:
        shutil.copytree(self.before, self.folder)

    def count(self, act: Callable[[], None]) -> None:
        self._arm(0)
        act()
        self.folder.with_name("calls").write_text(str(self.shim.counted()))

    def counted(self) -> int:
        return int(self.folder.with_name("calls").read_text())

    def killed_at(self, at: int, act: Callable[[], None]) -> None:
        self._arm(at)
        act()

    def _arm(self, at: int) -> None:
        self.shim.arm(str(self.folder).encode(), ctypes.c_long(at))


class OnS3:
    """Kills at requests of PUT, POST and DELETE: every other time once the server has done what was asked."""

    def __init__(self, root: str, door: str, folder: Path) -> None:
        self.base, self.door, self.cache = root, door, folder / "cache"
        self.number = 0
        self.root = root
        self.folder = folder
        self.files: dict[str, bytes] = {}

    def begin(self) -> None:
        self.folder.mkdir()
        os.environ["HIVE_RAY_CACHE"] = str(self.cache)

    def remember(self) -> None:
        keep = self.folder / "before.json"

        def read() -> None:
            files = {name: storage.read_bytes(f"{self.root}/{name}").hex() for name in storage.list_files(self.root)}
            keep.write_text(json.dumps(files))

        fork(read)
        self.files = {name: bytes.fromhex(data) for name, data in json.loads(keep.read_text()).items()}

    def empty(self) -> None:
        self.number += 1
        self.root = f"{self.base}-{self.number}"
        shutil.rmtree(self.cache, ignore_errors=True)

    def restore(self) -> None:
        for name, data in self.files.items():
            storage.write_bytes(f"{self.root}/{name}", data)

    def count(self, act: Callable[[], None]) -> None:
        self._tell(at=0)
        act()

    def counted(self) -> int:
        return int(self._tell(at=-1))

    def killed_at(self, at: int, act: Callable[[], None]) -> None:
        self._tell(at=at)
        act()

    def _tell(self, at: int) -> str:
        with urllib.request.urlopen(f"{self.door}/kill?at={at}&process={os.getpid()}", timeout=30) as answer:
            return answer.read().decode()


if __name__ == "__main__":
    main()
