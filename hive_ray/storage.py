"""The same functions for local paths and s3:// addresses. Paths are str, and only this module parses them.

Files are read and written as raw bytes, whatever their names end with. A file that exists is complete: a local file is
written under another name and renamed, and an S3 object appears when its upload ends. `files/s3.py` holds the clients
of S3.
"""

import errno
import functools
import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, ParamSpec, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from hive_ray.console import warn
from hive_ray.files import s3, s3_errors, scratch
from hive_ray.files.owners import is_abandoned, unfinished_name
from hive_ray.files.scratch import cache_folder

S3 = s3.PREFIX
S3_TIMEOUT_S = 120.0
"""How long operations wait for an S3 server that is unavailable."""
COPY_BUFFER_BYTES = 1 << 22
"""Bytes."""
P = ParamSpec("P")
R = TypeVar("R")
FINISHED_FILES = ("manifest.json", "card.json")
"""Files that mark their folder as finished: written last, removed first."""
STARTED_FILES = ("building.json", "exporting.json")
"""Files that mark their folder as unfinished, and record its inputs: written first, removed last."""
ABANDONED_UPLOAD_S = 86_400.0
"""Multipart uploads that began longer ago are abandoned."""
ADVICE = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space, or have your quota raised",
    errno.EROFS: "choose a folder that can be written to",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.ENAMETOOLONG: "choose a shorter path",
}
"""Disk error -> advice."""


def join(root: str, *parts: str) -> str:
    """A path below `root`."""
    return "/".join([root.rstrip("/"), *parts])


def absolute(path: str) -> str:
    """The path as any process resolves it, whatever its working folder."""
    return path.rstrip("/") if path.startswith(S3) else os.path.abspath(os.path.expanduser(path))


def filesystem(path: str) -> tuple[fs.FileSystem, str]:
    """The Arrow file system of a path, and the path inside it."""
    if not path.startswith(S3):
        return fs.LocalFileSystem(), absolute(path)
    inside = path.removeprefix(S3).rstrip("/")
    return s3.file_system(inside.split("/")[0]), inside


def retry_s3(act: Callable[P, R]) -> Callable[P, R]:
    """Decorate an idempotent function: retry it for S3_TIMEOUT_S while S3 is unavailable, after 1, 2, 4, ... 15 s.

    Arrow's own retries miss some failures, such as an error response that is longer than the bytes of a read. Permanent
    errors are raised at once as `s3_errors.S3Error`, which says what to do.
    """

    @functools.wraps(act)
    def patiently(*args: P.args, **kwargs: P.kwargs) -> R:
        address = next((value for value in args if isinstance(value, str) and value.startswith(S3)), S3)
        return retry(lambda: act(*args, **kwargs), address, S3_TIMEOUT_S)

    return patiently


def retry(act: Callable[[], R], address: str, unreachable_s: float) -> R:
    """Retry `act` on transient errors of S3, for `unreachable_s` if the address does not answer at all."""
    started = time.monotonic()
    attempt = 0
    while True:
        try:
            return act()
        except OSError as error:
            text = str(error)
            if isinstance(error, s3_errors.S3Error | FileNotFoundError) or not s3_errors.is_error(text):
                raise
            patience_s = min(unreachable_s if "NETWORK_CONNECTION" in text else S3_TIMEOUT_S, S3_TIMEOUT_S)
            if s3_errors.is_permanent(text) or time.monotonic() - started > patience_s:
                raise s3.explain(error, address) from error
            if attempt == 1:
                warn(f"S3 does not answer, waiting for {patience_s:.0f} s: {error}")
            time.sleep(min(2.0**attempt, 15.0))
            attempt += 1


@retry_s3
def exists(path: str) -> bool:
    """Whether there is a file or a folder."""
    files, inside = filesystem(path)
    return files.get_file_info(inside).type != fs.FileType.NotFound


def list_files(path: str) -> list[str]:
    """Names of all files below a folder, relative to it and sorted; none if there is no such folder."""
    return list(list_sizes(path))


def list_data(path: str, *endings: str) -> list[str]:
    """The files of `list_files` with one of these endings, without names and folders that begin with _ or `.`."""
    return [name for name in list_files(path) if name.endswith(endings) and not _is_hidden(name)]


def _is_hidden(name: str) -> bool:
    """Whether a part of a relative path begins with _ or `.`."""
    return any(part[0] in "_." for part in name.split("/"))


@retry_s3
def list_sizes(path: str) -> dict[str, int]:
    """Name -> bytes of all files below a folder, relative to it and sorted."""
    files, inside = filesystem(path)
    found = files.get_file_info(fs.FileSelector(inside, allow_not_found=True, recursive=True))
    return dict(sorted((os.path.relpath(info.path, inside), info.size) for info in found if info.is_file))


@retry_s3
def list_versions(path: str, skipped: Callable[[str], bool] = lambda name: False) -> dict[str, str]:
    """Name -> version (`file_version`) of all files below a folder, relative to it and sorted; none if there is none.

    Files and folders whose own name is `skipped` are left out, with all that such folders contain. Links are
    followed. This costs one stat for each file on disk, or one request for each 1,000 objects on S3.
    """
    if path.startswith(S3):
        found = {name: f"{size} {etag}" for name, (etag, size) in _s3_objects(path).items()}
        return {name: found[name] for name in sorted(found) if not any(map(skipped, name.split("/")))}
    top = absolute(path)
    found, walked = {}, set()
    for folder, folders, names in os.walk(top, onerror=_raise, followlinks=True):
        place = os.path.realpath(folder)
        folders[:] = [] if place in walked else [name for name in folders if not skipped(name)]
        for name in names if place not in walked else ():
            file = os.path.join(folder, name)
            version = None if skipped(name) else file_version(file)
            if version is not None:
                found[os.path.relpath(file, top)] = version
        walked.add(place)
    return dict(sorted(found.items()))


def _raise(error: OSError) -> None:
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise error


@retry_s3
def file_version(path: str) -> str | None:
    """Size in bytes and modification time in ns of a file (on S3 its ETag) as text; None if there is no such file."""
    if path.startswith(S3):
        folder, _, last = path.rpartition("/")
        etag, size = _s3_objects(folder, last).get(last, ("", None))
        return None if size is None else f"{size} {etag}"
    try:
        state = os.stat(absolute(path))
    except (OSError, ValueError):  # not there, a broken link, or a name that no file can have
        return None
    return f"{state.st_size} {state.st_mtime_ns}" if stat.S_ISREG(state.st_mode) else None


def is_file(path: str) -> bool:
    """Whether the path is a file; FileNotFoundError if it does not exist."""
    return file_size(path) is not None


@retry_s3
def file_size(path: str) -> int | None:
    """Size of a file in bytes, None for a folder; FileNotFoundError if the path does not exist."""
    files, inside = filesystem(path)
    found = files.get_file_info(inside)
    if found.type == fs.FileType.NotFound:
        raise FileNotFoundError(f"{path} does not exist; correct the path")
    return found.size if found.is_file else None


@retry_s3
def read_bytes(path: str) -> bytes:
    """The content of a file."""
    files, inside = filesystem(path)
    with files.open_input_stream(inside, compression=None) as stream:
        return stream.read()


def read_text(path: str) -> str:
    """The content of a UTF-8 file; ValueError if it is not UTF-8."""
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from error


def read_json(path: str) -> Any:
    """The JSON value of a file; None if there is no file or it is not valid JSON.

    An earlier version, or a power failure, may have left an empty file.
    """
    try:
        return json.loads(read_bytes(path))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


@retry_s3
def write_bytes(path: str, data: bytes) -> None:
    """Write a file atomically: after a crash the old content, if any, or the new one is there.

    Raises an OSError that names the file and says what to do.
    """
    if path.startswith(S3):
        return _upload(path, lambda stream: stream.write(data))
    _write_atomically(path, lambda stream: stream.write(data))


def _write_atomically(path: str, write: Callable[[BinaryIO], object]) -> None:
    """Write a local file under another name, sync it to disk, and rename it."""
    target = Path(absolute(path))
    temporary = target.with_name(unfinished_name(target.name))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(target)
        _sync_folder(target.parent)
    except OSError as error:
        _remove_if_possible(temporary)
        if error.errno not in ADVICE:
            raise
        what_to_do = f"{ADVICE[error.errno]}, and give the same command again"
        raise OSError(error.errno, f"{path} cannot be written: {os.strerror(error.errno)}; {what_to_do}") from error
    except BaseException:
        _remove_if_possible(temporary)
        raise


def _remove_if_possible(file: Path) -> None:
    """Remove a file, and ignore errors."""
    with suppress(OSError):
        file.unlink()


def _sync_folder(folder: Path) -> None:
    """Sync the entries of a folder to disk, if its file system supports it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems do not support it
        pass
    finally:
        os.close(descriptor)


def write_text(path: str, text: str) -> None:
    """Write a UTF-8 file atomically, as `write_bytes`."""
    write_bytes(path, text.encode())


@retry_s3
def read_columns(path: str, columns: list[str]) -> pa.Table:
    """Some columns of a Parquet file."""
    with open_parquet(path) as parquet:
        return parquet.read(columns=columns)


def open_parquet(path: str) -> pq.ParquetFile:
    """Open a Parquet file for reading; the caller closes it."""
    files, inside = filesystem(path)
    return pq.ParquetFile(files.open_input_file(inside))


def remove_file(path: str) -> None:
    """Remove a file that exists."""
    if path.startswith(S3):  # Arrow's client would leave an empty object for the folder
        return _remove_s3_files([path])
    Path(absolute(path)).unlink()


@retry_s3
def remove_tree(path: str) -> None:
    """Remove a folder and everything in it, in an order that is safe to interrupt.

    The mark that the folder is finished goes first, and the mark that it is unfinished goes last.
    """
    if path.startswith(S3):
        addresses = {address: _removal_turn(address[len(path.rstrip("/")) + 1 :]) for address in _s3_tree(path)}
        for turn in sorted(set(addresses.values())):
            _remove_s3_files([address for address, its_turn in addresses.items() if its_turn == turn])
        return
    folder = Path(absolute(path))
    for name in sorted(list_files(path), key=_removal_turn):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _removal_turn(name: str) -> int:
    """The turn in which a file is removed. Shards go before the record of their dropped rows, so that a shard that is
    left always has its record."""
    if name in FINISHED_FILES:
        return 0
    if name in STARTED_FILES:
        return 3
    return 1 if name.startswith("data/") else 2


def remove_unfinished(path: str, *, skipped: Collection[str] = (), uploads_older_than_s: float = 0.0) -> None:
    """Remove what dead processes left half written below a folder.

    On disk these are unfinished files, except in folders named in `skipped`. On S3 these are multipart uploads that
    began more than `uploads_older_than_s` ago; make sure that no process still sends them.
    """
    if path.startswith(S3):
        abort_uploads(path, uploads_older_than_s)
        return
    for folder, folders, names in os.walk(absolute(path)):
        folders[:] = [name for name in folders if name not in skipped]
        for name in names:
            if is_abandoned(Path(folder, name)):
                _remove_if_possible(Path(folder, name))


def fetch_folder(path: str) -> Path:
    """A local folder with the content of `path`: the folder itself, or a cached copy of an s3:// folder and version."""
    if not path.startswith(S3):
        return Path(absolute(path))
    objects = _s3_objects(path)
    if not objects:
        raise FileNotFoundError(f"{path} has no objects: give the address of a folder that exists")
    return _fetch(path, objects)


def fetch_file(path: str) -> Path:
    """A local file with the content of `path`: the file itself, or a cached copy of an S3 object and version."""
    if not path.startswith(S3):
        return Path(absolute(path))
    folder, _, name = path.rpartition("/")
    objects = {key: version for key, version in _s3_objects(folder, name).items() if key == name}
    if not objects:
        raise FileNotFoundError(f"{path} is not there: give the address of a file that exists")
    return _fetch(folder, objects) / name


def _fetch(path: str, objects: dict[str, tuple[str, int]]) -> Path:
    """A cached local copy of these objects of an s3:// folder, fetched on first use."""
    for name in objects:
        if any(part in ("", ".", "..") for part in name.split("/")):
            raise ValueError(f"{path} holds {name!r}, which is not a valid file name: rename the object, or remove it")
    version = hashlib.blake2b(repr((path, sorted(objects.items()))).encode(), digest_size=8).hexdigest()
    target = scratch.cache_path() / "folders" / version
    if target.is_dir():
        return target
    cache = cache_folder() / "folders"
    cache.mkdir(exist_ok=True)
    with scratch.temporary_folder("fetch") as folder:
        size = sum(size for _, size in objects.values())
        no_room = f"{cache} has no room for a copy of {path} ({size} bytes): make room, or set HIVE_RAY_CACHE"
        if shutil.disk_usage(cache).free < size:
            raise OSError(no_room)
        whole = folder / "whole"
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


def fetch_model(model: str | Path) -> str | Path:
    """A model to load: the cached copy of an s3:// folder or file; a local path or a hub name is returned unchanged."""
    if not (isinstance(model, str) and model.startswith(S3)):
        return model
    return fetch_file(model) if is_file(model) else fetch_folder(model)


@retry_s3
def _s3_objects(path: str, start: str = "") -> dict[str, tuple[str, int]]:
    """Name below the folder -> (ETag, bytes), for names that begin with `start`."""
    bucket, prefix = s3.split(f"{path.rstrip('/')}/")
    found = [item for item in s3.list_objects(bucket, prefix + start) if not item["Key"].endswith("/")]
    return {item["Key"].removeprefix(prefix): (item["ETag"], item["Size"]) for item in found}


@retry_s3
def _s3_tree(path: str) -> list[str]:
    """Sorted addresses of all objects below a folder: files, and empty objects that represent folders."""
    bucket, prefix = s3.split(f"{path.rstrip('/')}/")
    return [f"{S3}{bucket}/{item['Key']}" for item in s3.list_objects(bucket, prefix)]


def _remove_s3_files(addresses: list[str]) -> None:
    """Remove objects of one bucket in batches, in any order."""
    keys = [s3.split(address)[1] for address in addresses]
    for start in range(0, len(keys), s3.MAX_DELETE_KEYS):
        _remove_objects(addresses[0], keys[start : start + s3.MAX_DELETE_KEYS])


@retry_s3
def _remove_objects(address: str, keys: list[str]) -> None:
    s3.remove_objects(s3.split(address)[0], keys)


@retry_s3
def abort_uploads(path: str, older_than_s: float) -> int:
    """Abort multipart uploads below a path that began more than `older_than_s` ago, and return how many.

    Killed processes leave such uploads. Their parts take storage but appear in no listing of files. Servers that do not
    support or allow the listing of uploads are ignored.
    """
    if not path.startswith(S3):
        return 0
    bucket, prefix = s3.split(f"{path.rstrip('/')}/")
    try:
        return s3.abort_uploads(bucket, prefix, older_than_s)
    except OSError as error:
        if not s3_errors.is_permanent(str(error)):
            raise
        return 0


def store_folder(local: Path, path: str) -> None:
    """Replace the folder `path` by a copy of a local folder; files that mark it as finished are copied last."""
    remove_tree(path)
    names = list_files(str(local))
    for name in sorted(names, key=lambda name: (name in FINISHED_FILES, name)):
        copy_file(str(local / name), join(path, name))


@retry_s3
def copy_file(source: str, target: str) -> None:
    """Stream a file from any path to any other path, atomically as `write_bytes`."""
    from_files, from_inside = filesystem(source)
    with from_files.open_input_stream(from_inside, compression=None) as reader:
        if not target.startswith(S3):
            _write_atomically(target, lambda writer: shutil.copyfileobj(reader, writer, length=COPY_BUFFER_BYTES))
            return
        _upload(target, lambda writer: shutil.copyfileobj(reader, writer, length=COPY_BUFFER_BYTES))


def _upload(path: str, write: Callable[[BinaryIO], object]) -> None:
    """Write an S3 object, and remove it on failure.

    Arrow's stream creates the object from what it has when it is closed, even after an error.
    """
    files, inside = filesystem(path)
    stream = files.open_output_stream(inside, compression=None)
    try:
        write(stream)
    except BaseException:
        with suppress(OSError):
            stream.close()
        with suppress(OSError):
            _remove_s3_files([path])
        raise
    stream.close()


def folder_digest(path: str) -> str:
    """Digest of the names and bytes of all files of a folder: 16 hexadecimal digits."""
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
    """Digest of the bytes of a file, not of its name: 16 hexadecimal digits."""
    return _content_digest(fetch_file(path), 8).hexdigest()


def _content_digest(file: Path, size: int) -> "hashlib._Hash":
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=size))
