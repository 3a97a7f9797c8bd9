"""Local folders and s3:// addresses behind the same few functions. Paths are str; nothing else parses them.

Bytes stay as they are, whatever a name ends with. A file that exists is whole: local writes go beside the target
and are renamed, an S3 object appears when its upload ends (in parts, if it is large). How S3 is reached, and what its
answers mean, is in `s3.py`.
"""

import errno
import functools
import hashlib
import io
import itertools
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ParamSpec, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from hive_ray import s3

S3 = s3.PREFIX
S3_PATIENCE_S = 120.0
"""How long an S3 may be away before what needs it fails."""
UNREACHABLE_PATIENCE_S = 20.0
"""How long `check_storage` waits for an address at which nothing answers."""
CHECK_TIMEOUT_S = 10.0
"""How long a request of `check_storage` may be without an answer."""
PROBE = ".hive_ray-probe-"
SCRATCH = "part-"
SCRATCH_KEPT_S = 86_400.0
P, R = ParamSpec("P"), TypeVar("R")
MARKERS = ("manifest.json", "card.json")
"""Files that say that their folder is whole: written last, removed first."""
ALONE = (*MARKERS, "building.json")
"""Files whose removal from S3 is never one request with that of others."""


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
    return s3.file_system(inside.split("/")[0]), inside


def patient(act: Callable[P, R]) -> Callable[P, R]:
    """`act`, which may be done again, done again until S3 is back: for S3_PATIENCE_S, after 1, 2, 4, ... 15 s.

    Arrow's own retries do not reach every failure: an error that is longer than the bytes asked for ends a read. What
    waiting does not mend is raised at once, as `s3.S3Error`, which says what to do.
    """

    @functools.wraps(act)
    def patiently(*args: P.args, **kwargs: P.kwargs) -> R:
        address = next((value for value in args if isinstance(value, str) and value.startswith(S3)), S3)
        return _until_done(lambda: act(*args, **kwargs), address, S3_PATIENCE_S)

    return patiently


def _until_done(act: Callable[[], R], address: str, unreachable_s: float) -> R:
    """Do `act` again while S3 fails in a way that passes; an address at which nothing answers has `unreachable_s`."""
    started = time.monotonic()
    for attempt in itertools.count():
        try:
            return act()
        except OSError as error:
            text = str(error)
            if isinstance(error, s3.S3Error | FileNotFoundError) or not s3.is_error(text):
                raise
            patience_s = min(unreachable_s if "NETWORK_CONNECTION" in text else S3_PATIENCE_S, S3_PATIENCE_S)
            if s3.is_lasting(text) or time.monotonic() - started > patience_s:
                raise s3.explained(error, address) from error
            if attempt == 1:
                print(f"S3 does not answer, waiting for {patience_s:.0f} s: {error}", flush=True)
            time.sleep(min(2.0**attempt, 15.0))


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
    for name in objects:
        if any(part in ("", ".", "..") for part in name.split("/")):
            raise ValueError(f"{path} holds {name!r}, which is no name of a file: rename the object, or remove it")
    version = hashlib.blake2b(repr((path, sorted(objects.items()))).encode(), digest_size=8).hexdigest()
    target = _cache_path() / "folders" / version
    if target.is_dir():
        return target
    cache = cache_folder() / "folders"
    cache.mkdir(exist_ok=True)
    with _scratch(cache) as scratch:
        size = sum(size for _, size in objects.values())
        no_room = f"{cache} has no room for a copy of {path} ({size} bytes): make room, or set HIVE_RAY_CACHE"
        if shutil.disk_usage(cache).free < size:
            raise OSError(no_room)
        whole = scratch / "whole"
        for name, (_, listed) in objects.items():
            try:
                copy_file(join(path, name), str(whole / name))
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise OSError(no_room) from error
                raise
            if (copied := (whole / name).stat().st_size) != listed:
                raise OSError(
                    f"{join(path, name)} was listed with {listed} bytes and came with {copied}: it changed while it "
                    "was fetched; run the same command again"
                )
        try:
            whole.rename(target)
        except OSError:  # another process was first
            if not target.is_dir():
                raise
    return target


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder in `folder` for what this process makes, removed in the end; those of killed processes go first."""
    _sweep(folder)
    mine = folder / f"{SCRATCH}{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    mine.mkdir()
    try:
        yield mine
    finally:
        shutil.rmtree(mine, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Remove scratch folders whose process, of this machine, is gone, and any in which nothing changed for a day: a
    process of another machine that shares the folder cannot be asked."""
    for scratch in [*folder.glob(f"{SCRATCH}*"), *folder.glob("tmp*")]:  # tmp: as older versions named them
        machine, _, rest = scratch.name.removeprefix(SCRATCH).rpartition("-")[0].rpartition("-")
        gone = machine == _machine() and rest.isdecimal() and not _runs(int(rest))
        if gone or time.time() - _changed(scratch) > SCRATCH_KEPT_S:
            shutil.rmtree(scratch, ignore_errors=True)


def _machine() -> str:
    """This machine, or this container: processes that call it the same see each other's numbers."""
    namespace = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()}.{namespace.stat().st_ino if namespace.exists() else 0}"


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _changed(folder: Path) -> float:
    """When something in a folder was last changed; now, if it is removed meanwhile."""
    latest = 0.0
    with suppress(OSError):
        for place in [folder, *folder.rglob("*")]:
            latest = max(latest, place.stat().st_mtime)
        return latest
    return time.time()


def fetch_model(model: str | Path) -> str | Path:
    """A model to load: the local copy of an s3:// folder or file; a local one or a hub name as it is."""
    if not (isinstance(model, str) and model.startswith(S3)):
        return model
    return fetch_file(model) if is_file(model) else fetch_folder(model)


def cache_folder() -> Path:
    """Where this machine keeps what can be made again: $HIVE_RAY_CACHE, or ~/.cache/hive_ray.

    It is made if it is not there; OSError if it cannot be, or cannot be written to.
    """
    folder = _cache_path()
    remedy = "set HIVE_RAY_CACHE to a folder that can be written to"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"the cache folder {folder} cannot be made ({error.strerror}): {remedy}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OSError(f"the cache folder {folder} cannot be written to: {remedy}")
    return folder


def _cache_path() -> Path:
    try:
        return Path(os.environ.get("HIVE_RAY_CACHE") or Path.home() / ".cache" / "hive_ray").expanduser()
    except RuntimeError as error:
        raise OSError(f"there is no home folder ({error}): set HIVE_RAY_CACHE to a folder for the cache") from error


def check_storage(address: str) -> None:
    """Write, read, list and remove a small file below a run's folder, before a stage relies on it.

    OSError or ValueError says what failed and which setting to correct.

    On S3 that is five requests. An address at which nothing answers is waited for UNREACHABLE_PATIENCE_S, an S3 that
    asks to be asked later for S3_PATIENCE_S.
    """
    if address.startswith(S3):
        _check_s3(address.rstrip("/"))
    else:
        _check_folder(Path(absolute(address)))


def _probe_name() -> str:
    return f"{PROBE}{uuid.uuid4().hex}"


def _check_s3(address: str) -> None:
    path, content = join(address, _probe_name()), b"hive_ray looks whether it can write here"
    bucket, key = s3.split(path)
    files, inside = s3.file_system(bucket, attempts=1, timeout_s=CHECK_TIMEOUT_S), path.removeprefix(S3)

    def write() -> None:
        with files.open_output_stream(inside, compression=None) as stream:
            stream.write(content)

    def read() -> bytes:
        with files.open_input_stream(inside, compression=None) as stream:
            return stream.read()

    def names() -> list[str]:
        return [item["Key"] for item in s3.list_objects(bucket, key)]

    def attempt(what: str, act: Callable[[], R]) -> R:
        try:
            return _until_done(act, path, UNREACHABLE_PATIENCE_S)
        except OSError as error:
            raise type(error)(f"{address} cannot be used: {what} there failed. {error}") from error

    odd = f"the server at {s3.server().in_words(bucket)} is no S3, or one that shows late what was written: correct"
    attempt("writing", write)
    try:
        if attempt("reading", read) != content:
            raise OSError(f"{address} cannot be used: a file is read other than it was written; {odd} AWS_ENDPOINT_URL")
        if attempt("listing", names) != [key]:
            raise OSError(f"{address} cannot be used: a listing lacks a file just written; {odd} AWS_ENDPOINT_URL")
    except BaseException:
        with suppress(OSError):
            s3.remove_objects(bucket, [key])
        raise
    attempt("removing", lambda: s3.remove_objects(bucket, [key]))


def _check_folder(folder: Path) -> None:
    probe = folder / _probe_name()
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


@patient
def _s3_objects(path: str, start: str = "") -> dict[str, tuple[str, int]]:
    """Name below the folder -> (etag, bytes), of names that begin with `start`."""
    bucket, prefix = s3.split(f"{path.rstrip('/')}/")
    found = [item for item in s3.list_objects(bucket, prefix + start) if not item["Key"].endswith("/")]
    return {item["Key"].removeprefix(prefix): (item["ETag"], item["Size"]) for item in found}


@patient
def _s3_tree(path: str) -> list[str]:
    """Addresses of all objects below a folder, sorted: files, and the empty objects that stand for folders."""
    bucket, prefix = s3.split(f"{path.rstrip('/')}/")
    return [f"{S3}{bucket}/{item['Key']}" for item in s3.list_objects(bucket, prefix)]


def _remove_s3_files(addresses: list[str]) -> None:
    """Remove objects in this order. Neighbours may go together, but what is named in ALONE goes before what follows it
    and after what stands before it."""
    for bucket, group in itertools.groupby(addresses, lambda address: s3.split(address)[0]):
        for alone, neighbours in itertools.groupby(group, lambda address: address.rpartition("/")[2] in ALONE):
            keys = [s3.split(address)[1] for address in neighbours]
            size = 1 if alone else s3.DELETE_AT_ONCE
            for start in range(0, len(keys), size):
                _remove_objects(f"{S3}{bucket}", keys[start : start + size])


@patient
def _remove_objects(bucket: str, keys: list[str]) -> None:
    s3.remove_objects(s3.split(bucket)[0], keys)


@patient
def abort_uploads(path: str, older_than_s: float) -> int:
    """End the uploads in parts that killed processes left open below a path, if they began so long ago; how many.

    They cost what their parts hold, and are seen in no listing of files. A server that does not know the listing of
    uploads, and one that does not allow it, is passed over.
    """
    if not path.startswith(S3):
        return 0
    bucket, prefix = s3.split(f"{path.rstrip('/')}/")
    try:
        return s3.abort_uploads(bucket, prefix, older_than_s)
    except OSError as error:
        if not s3.is_lasting(str(error)):
            raise
        return 0


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
