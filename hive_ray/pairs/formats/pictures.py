"""Read the pictures that rows of a dataset contain or name by path.

A relative path is resolved against importing.pictures, if it is set, and the folder of the file that names it.
Otherwise it is resolved against that folder, the dataset folder, and its `images` folder. An absolute path that does
not exist here, since it is from another machine, is searched by its last parts in these folders. A relative path that
leaves the dataset and importing.pictures by ".." is refused. Symbolic links are followed. Nothing is downloaded.
"""

import posixpath
import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from hive_ray import storage
from hive_ray.pairs.formats.imported import MissingPicture

MISSING = "picture_missing"
OUTSIDE = "picture_outside"
UNREADABLE = "picture_unreadable"
IS_ADDRESS, IS_NO_FILE = "picture_is_address", "picture_is_no_file"
PICTURE_ADVICE = "write it as {bytes, path}, as the encoded bytes, or as the path of a file"
ENCODED = re.compile(r"(iVBORw0KGgo|/9j/|UklGR|R0lGOD|Qk0|SUkq|TU0AK)[A-Za-z0-9+/\s_-]{40,}=*\s*")
"""Base64 text of a PNG, JPEG, WebP, GIF, BMP or TIFF."""
MAX_PATH_LENGTH = 4096
PATH_SAMPLE_CHARS = 100
"""How many characters of a path a message shows."""


class PictureReader:
    """Reads the pictures of rows of `file`, which belongs to the dataset folder `root`."""

    def __init__(self, file: str, root: str, pictures: str) -> None:
        """`pictures`: the base folder of relative paths, relative to the file's folder, as `importing.pictures`."""
        file_folder, root = normalized_path(folder_of(file)), normalized_path(root)
        chosen = normalized_path(pictures if is_absolute(pictures) else storage.join(file_folder, pictures))
        self.folders = list(dict.fromkeys([chosen, file_folder]))
        if pictures in ("", "."):
            self.folders = list(dict.fromkeys([file_folder, root, storage.join(root, "images")]))
        self.file_folder = file_folder
        self.allowed = (root, file_folder, chosen)
        self.setting = pictures
        self.moved: tuple[str, int] | None = (
            None  # folder and number of removed parts of the last absolute path that was found
        )

    def read(self, value: Any) -> bytes | MissingPicture:
        """The bytes of a picture, or why it is missing."""
        if isinstance(value, dict) and value.keys() & {"bytes", "path"}:
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes | bytearray | memoryview):
            return bytes(value)
        if value is None or value == "":
            return MissingPicture(MISSING, "there is none")
        if not isinstance(value, str):
            return MissingPicture(IS_NO_FILE, f"a {type(value).__name__} and no picture; {PICTURE_ADVICE}")
        if refusal := _refusal(value):
            return refusal
        return self._by_path(value)

    def _by_path(self, path: str) -> bytes | MissingPicture:
        for place in self.candidate_paths(path):
            content = read_content(place)
            if content is not None:
                self._remember(path, place)
                return content
        sample = repr(path[:PATH_SAMPLE_CHARS])
        if not is_absolute(path) and not is_within(normalized_path(storage.join(self.file_folder, path)), self.allowed):
            return MissingPicture(
                OUTSIDE,
                f"{sample} leaves the folder of the dataset; set importing.pictures to a folder above both",
            )
        return MissingPicture(
            MISSING,
            f"{sample} is not there; set importing.pictures ({self.setting!r}) to the folder where such paths begin; "
            f"it was looked for from {', '.join(self.folders)} on",
        )

    def candidate_paths(self, path: str) -> Iterator[str]:
        """Yield the places where a path may be, the most likely one first; none if it leaves the dataset."""
        path = path.removeprefix("file://")
        if "\\" in path and "/" not in path:  # a Windows path
            path = re.sub(r"^[A-Za-z]:", "", path).replace("\\", "/")
        if not is_absolute(path):
            places = [normalized_path(storage.join(folder, path)) for folder in self.folders]
            yield from (place for place in places if is_within(place, self.allowed))
            return
        yield normalized_path(path)
        parts = [part for part in path.removeprefix(storage.S3).split("/") if part not in ("", ".", "..")]
        if self.moved and self.moved[1] < len(parts):
            yield storage.join(self.moved[0], *parts[self.moved[1] :])
        for gone in range(1, len(parts)):
            for folder in self.folders:
                yield storage.join(folder, *parts[gone:])

    def _remember(self, path: str, place: str) -> None:
        """Remember where an absolute path of another machine was found, so that the next one is found at once."""
        parts = [part for part in path.removeprefix(storage.S3).split("/") if part not in ("", ".", "..")]
        for folder in self.folders if is_absolute(path) and place != normalized_path(path) else ():
            if is_within(place, (folder,)):
                self.moved = (folder, len(parts) - len(place.removeprefix(f"{folder}/").split("/")))
                return


def type_problem(name: str, kind: pa.DataType) -> str:
    """The message for a column type that cannot hold pictures; "" if it can."""
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_struct(value) and {"bytes", "path"} & {field.name for field in value}:
        return ""
    readable = (
        pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_binary,
        pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary, pa.types.is_null,
    )  # fmt: skip
    if any(is_one(value) for is_one in readable):
        return ""
    return f"the column {name} holds {str(kind)[:PATH_SAMPLE_CHARS]}, and no pictures; {PICTURE_ADVICE}"


def path_in(value: Any) -> str:
    """The path in the value of a picture; "" if there is none."""
    if isinstance(value, dict):
        value = None if value.get("bytes") else value.get("path")
    return value if isinstance(value, str) and not _refusal(value) else ""


def _refusal(text: str) -> MissingPicture | None:
    """Why a text is not a path; None if it may be one."""
    if re.match(r"data:[^/]*/", text[:PATH_SAMPLE_CHARS]):
        return MissingPicture(IS_NO_FILE, f"a data address ({text[:40]!r}) and no picture; decode it: {PICTURE_ADVICE}")
    if ENCODED.fullmatch(text):
        return MissingPicture(IS_NO_FILE, f"base64 text ({text[:20]!r}...) and no picture; decode it: {PICTURE_ADVICE}")
    if re.match(r"[a-z][a-z0-9+.-]*://", text, re.IGNORECASE) and not text.startswith((storage.S3, "file://")):
        return MissingPicture(
            IS_ADDRESS,
            f"{text[:PATH_SAMPLE_CHARS]!r} is an address, and nothing is fetched; download it: {PICTURE_ADVICE}",
        )
    if len(text) > MAX_PATH_LENGTH or "\0" in text:
        return MissingPicture(
            IS_NO_FILE, f"a text of {len(text)} characters ({text[:40]!r}...) and no path; {PICTURE_ADVICE}"
        )
    return None


def read_content(path: str) -> bytes | MissingPicture | None:
    """The bytes of a file, None if it does not exist, or why it cannot be read."""
    try:
        if not path.startswith(storage.S3) and storage.file_size(path) is None:
            return None  # a folder, or a device, which may be endless
        return storage.read_bytes(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except pa.ArrowInvalid as error:
        return MissingPicture(UNREADABLE, f"{path[:PATH_SAMPLE_CHARS]}: {error}")
    except OSError as error:
        if path.startswith(storage.S3):
            raise
        return MissingPicture(UNREADABLE, f"{path[:PATH_SAMPLE_CHARS]} cannot be read: {error}")


def folder_of(file: str) -> str:
    """The folder that a file lies in."""
    return file.rpartition("/")[0] or ("/" if file.startswith("/") else ".")


def is_absolute(path: str) -> bool:
    """Whether a path begins at the root of a disk or at a bucket."""
    return path.startswith(("/", storage.S3))


def is_within(path: str, folders: tuple[str, ...]) -> bool:
    """Whether a normal path lies in one of these normal folders."""
    return any(folder == "/" or path.startswith(f"{folder}/") for folder in folders)


def normalized_path(path: str) -> str:
    """The absolute path without "." and ".."; those that would leave a bucket stay at it."""
    if not path.startswith(storage.S3):
        return storage.absolute(path)
    bucket, _, inside = path.removeprefix(storage.S3).partition("/")
    inside = posixpath.normpath(f"/{inside}").strip("/")
    return storage.join(f"{storage.S3}{bucket}", inside) if inside else f"{storage.S3}{bucket}"
