"""WebDataset shards: tar archives of <key>.source.png (or .jpg), <key>.edited.png and <key>.json, packed ones too."""

import lzma
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from typing import Any, BinaryIO, cast

import pyarrow as pa

from hive_ray import storage
from hive_ray.config import Importing
from hive_ray.files.text_files import NOT_AN_OBJECT, NOT_JSON, NOT_UTF8, SAMPLE_CHARS, parse_json
from hive_ray.pairs.formats.files import is_system_file
from hive_ray.pairs.formats.imported import (
    EDITED_CAPTION,
    EDITED_IMAGE,
    INSTRUCTION,
    SOURCE_CAPTION,
    SOURCE_IMAGE,
    ImportedPair,
    UnreadablePart,
    first_value,
    own_values,
)

ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")
"""Endings of the files that this module reads."""
FIELDS: dict[str, str] = {
    **dict.fromkeys(("source", *SOURCE_IMAGE), "source"),
    **dict.fromkeys(("edited", *EDITED_IMAGE), "edited"),
    "json": "json",
}
"""The first part of what follows a key in a member's name -> what the member is; others are not read."""
ZSTANDARD = b"\x28\xb5\x2f\xfd"
READ_ERRORS = (
    tarfile.TarError, pa.ArrowException, OSError, EOFError, ValueError, OverflowError, zlib.error, lzma.LZMAError,
)  # fmt: skip
"""Errors that reading a damaged archive raises."""


EMPTY_HEADER = tarfile.EmptyHeaderError  # pyright: ignore[reportAttributeAccessIssue] - typeshed leaves it out
BROKEN_HEADERS = (
    tarfile.InvalidHeaderError,  # pyright: ignore[reportAttributeAccessIssue] - typeshed leaves it out
    tarfile.TruncatedHeaderError,  # pyright: ignore[reportAttributeAccessIssue] - typeshed leaves it out
    tarfile.SubsequentHeaderError,  # pyright: ignore[reportAttributeAccessIssue] - typeshed leaves it out
)


class DamagedArchiveError(tarfile.TarError):
    """An archive that cannot be read to its end."""


class CheckedTarInfo(tarfile.TarInfo):
    """A member of an archive. A broken header raises `DamagedArchiveError`; `tarfile` would take it for the end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "CheckedTarInfo":
        """The next member; tarfile's own EOFHeaderError at the end."""
        try:
            member = super().fromtarfile(archive)
        except EMPTY_HEADER as error:
            raise DamagedArchiveError("it has no end, so it may have been cut off") from error
        except BROKEN_HEADERS as error:
            raise DamagedArchiveError(f"broken header ({error})") from error
        if member.size < 0:
            raise DamagedArchiveError(f"a member of {member.size} bytes")
        return member


def shard_rows(file: str, root: str, settings: Importing) -> Iterator[ImportedPair | UnreadablePart]:
    """Yield the pairs of a shard, and an `UnreadablePart` for a key without its three files or an unreadable rest."""
    for key, members in groupby(_members(file), key=itemgetter(0)):
        place = f"{file}, key {key}"
        contents = {field: content for _, field, content in members}
        if key is None:
            yield UnreadablePart("file_unreadable", f"{file} cannot be read to its end: {contents['problem']}")
        elif not {"source", "edited", "json"} <= contents.keys():
            yield UnreadablePart(
                "files_missing",
                f"{place} has {', '.join(sorted(contents))}; wanted {key}.source.png, {key}.edited.png (or .jpg) and "
                f"{key}.json; an archive of another layout has to be unpacked",
            )
        else:
            yield _pair(place, contents)


def _pair(place: str, contents: dict[str, bytes]) -> ImportedPair | UnreadablePart:
    try:
        words = parse_json(contents["json"].decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return UnreadablePart(NOT_UTF8, f"{place}: its JSON is not UTF-8 ({error.reason})")
    except ValueError as error:
        return UnreadablePart(NOT_JSON, f"{place}: {contents['json'][:SAMPLE_CHARS]!r} is not JSON ({error})")
    if not isinstance(words, dict):
        return UnreadablePart(NOT_AN_OBJECT, f"{place}: its JSON is a {type(words).__name__} and no object")
    return ImportedPair(
        instruction=first_value(words, INSTRUCTION),
        source_image=contents["source"],
        edited_image=contents["edited"],
        source_caption=first_value(words, SOURCE_CAPTION),
        edited_caption=first_value(words, EDITED_CAPTION),
        place=place,
        **own_values(words),
    )


def _members(file: str) -> Iterator[tuple[str | None, str, Any]]:
    """Yield key, field and content of each file of a shard.

    If the shard cannot be read to its end, the last item has no key and the problem as its content. Links, folders and
    system files are skipped.
    """
    last = ""
    try:
        with _archive(file) as archive:
            for member in archive:
                last = member.name
                name = member.name.removeprefix("./").lstrip("/")
                folder, slash, name = name.rpartition("/")
                if not member.isfile() or any(map(is_system_file, [*folder.split("/"), name])):
                    continue
                key, _, ending = name.partition(".")
                field = ending.split(".")[0]
                content = cast(BinaryIO, archive.extractfile(member)).read() if field in FIELDS else b""
                yield folder + slash + key, FIELDS.get(field, field), content
            _refuse_another(cast(BinaryIO, archive.fileobj))
    except READ_ERRORS as error:
        if "AWS Error" in str(error):
            raise
        yield None, "problem", f"{f'after {last}: ' if last else ''}{error}"


@contextmanager
def _archive(file: str) -> Iterator[tarfile.TarFile]:
    """Open a tar archive as a stream; its first bytes decide the compression."""
    files, inside = storage.filesystem(file)
    with files.open_input_stream(inside, compression=None) as stream:
        packed = stream.read(len(ZSTANDARD)) == ZSTANDARD
    with (
        files.open_input_stream(inside, compression="zstd" if packed else None) as stream,
        tarfile.open(fileobj=stream, mode="r|" if packed else "r|*", tarinfo=CheckedTarInfo) as archive,
    ):
        yield archive


def _refuse_another(stream: BinaryIO) -> None:
    """Raise `DamagedArchiveError` if the end of an archive is followed by anything but zeros."""
    while block := stream.read(1 << 20):
        if block.strip(b"\0"):
            raise DamagedArchiveError(
                "another archive follows its end and is not read; give each archive a file of its own"
            )
