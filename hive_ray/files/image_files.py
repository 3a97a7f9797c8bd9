"""Read the header and metadata of picture files: orientation, ICC profile, transparency, and whether viewers agree.

bytes -> PictureFile -> images.decode

Only metadata that decides how a picture looks is read. Damaged metadata causes no error: an entry that lies outside
its block, or has a wrong checksum, is ignored. PNG, JPEG and TIFF are passed to their decoder without metadata, so
that a library cannot fail on it, warn about it, or rotate the picture by itself.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

ORIENTATION = 274
PROFILE = 34675
PHOTOMETRIC = 262
BITS_PER_SAMPLE = 258
"""Tags of TIFF, and of EXIF, which is a small TIFF."""
TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of each of TIFF's types."""
INTEGER_TYPES = {1: "B", 3: "H", 4: "L", 6: "b", 8: "h", 9: "l", 16: "Q"}
"""TIFF types of integers -> format characters of `struct`."""
PIXEL_TAGS = {
    256, 257, BITS_PER_SAMPLE, 259, PHOTOMETRIC, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325,
    332, 338, 339, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 532,
}  # fmt: skip
"""Tags that a TIFF decoder needs."""
SINGLE_TAGS = {256, 257, 259, PHOTOMETRIC, 266, 277, 278, 284, 292, 293, 317, 322, 323, 332, 512, 513, 514, 515}
"""Tags with exactly one value; an entry with more is damaged."""
MAX_PROFILE_BYTES = 4 * 2**20

APPEARANCE_CHUNKS = {b"tRNS", b"iCCP", b"eXIf", b"gAMA", b"cHRM", b"sRGB", b"cICP", b"acTL"}
"""Chunks of PNG that change how a picture looks: transparency, colours, orientation, animation."""
SRGB_GAMMA = 45455
SRGB_CHROMATICITIES = struct.pack(">8L", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
"""What PNG's chunks gAMA and cHRM hold for sRGB."""
SRGB_CODE = (1, 13)
"""Primaries and transfer function of sRGB in PNG's chunk cICP."""


class PictureFile(NamedTuple):
    """An encoded picture and what its header says."""

    kind: str
    """One of FORMATS."""
    data: bytes
    """The bytes for the decoder."""
    orientation: int = 1
    """EXIF orientation, 1..8; 1 is upright."""
    profile: bytes | None = None
    """The ICC profile."""
    colour_key: tuple[int, ...] | None = None
    """The transparent grey level or RGB levels, in the levels of the decoder."""
    size: tuple[int, int] | None = None
    """Width and height, for formats where they must be checked before the decoder is created."""
    is_common: bool = False
    """Whether all viewers show the same pixels, apart from orientation and profile."""


def read_picture_file(data: bytes) -> PictureFile | None:
    """Read the header of a picture; None if the format is not supported."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(data)
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp(data)
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return _tiff(data)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return PictureFile("GIF", data)
    if data.startswith(b"BM"):
        return PictureFile("BMP", data)
    if data[4:8] == b"ftyp" and data[8:12] in (b"avif", b"avis", b"mif1", b"msf1"):
        return PictureFile("AVIF", _without_exif(data))
    return None


def is_heic(data: bytes) -> bool:
    """Whether this is HEIC, a phone camera format that few programs read."""
    return data[4:8] == b"ftyp" and any(brand in data[8:64] for brand in (b"heic", b"heix", b"hevc", b"heim"))


def orientation_of(exif: bytes) -> int:
    """The orientation, 1..8, of an EXIF block; 1 if it has none."""
    while exif.startswith(b"Exif\0"):
        exif = exif[6:]
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < 8:
        return 1
    start = struct.unpack_from(order + "L", exif, 4)[0]
    for entry in _entries(exif, start, order, big=False):
        if entry.tag == ORIENTATION:
            return _orientation(exif, entry, order)
    return 1


# --- JPEG -------------------------------------------------------------------------------------------------


def _jpeg(data: bytes) -> PictureFile:
    """A JPEG without its metadata; of an MPO file, which some phones write, the first picture is kept."""
    kept: list[bytes] = []
    kept_to, place = 0, 2
    exif, is_common = b"", False
    parts: dict[int, bytes] = {}
    count = 0
    while True:
        place = data.find(b"\xff", place)
        if place < 0 or place + 4 > len(data):
            break
        marker = data[place + 1]
        if marker == 0xFF:  # padding
            place += 1
            continue
        if marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:  # these have no length
            place += 2
            continue
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        stop = place + 2 + length
        if marker in (0xD9, 0xDA) or length < 2 or stop > len(data):
            break
        if 0xE0 <= marker <= 0xEF or marker == 0xFE:
            body = data[place + 4 : stop]
            if marker == 0xE1 and body.startswith(b"Exif\0"):
                exif = exif or body
            elif marker == 0xE2 and body.startswith(b"ICC_PROFILE\0") and len(body) > 14:
                parts.setdefault(body[12], body[14:])
                count = body[13]
            if not _says_colours(marker, body):
                kept.append(data[kept_to:place])
                kept_to = stop
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and length >= 8:
            precision, components = data[place + 4], data[place + 9]
            is_common = precision == 8 and components in (1, 3)
        place = stop
    profile = b"".join(parts[number] for number in sorted(parts)) if parts and len(parts) == count else None
    bare = b"".join([*kept, data[kept_to:]]) if kept else data
    return PictureFile("JPEG", bare, orientation_of(exif), profile, is_common=is_common)


def _says_colours(marker: int, body: bytes) -> bool:
    """Whether a decoder needs this application segment: JFIF and Adobe segments say how colours are stored."""
    if marker == 0xE0:
        return body.startswith(b"JFIF\0") and len(body) >= 14
    return marker == 0xEE and body.startswith(b"Adobe") and len(body) >= 12


# --- PNG --------------------------------------------------------------------------------------------------


def _png(data: bytes) -> PictureFile:
    """A PNG with only its critical chunks and palette transparency; of an animation, the still picture is kept."""
    kept: list[bytes] = []
    kept_to, place = 0, 8
    chunks: dict[bytes, bytes] = {}
    depth, colour = 0, -1
    while place + 12 <= len(data):
        length, name = struct.unpack_from(">L4s", data, place)
        stop = place + 12 + length
        if stop > len(data) or not name.isalpha():
            break
        if name == b"IHDR" and length >= 13:
            depth, colour = data[place + 16], data[place + 17]
        elif name[0] & 0x20:  # an ancillary chunk
            if name in APPEARANCE_CHUNKS:
                body = data[place + 8 : stop - 4]
                if zlib.crc32(body, zlib.crc32(name)) == int.from_bytes(data[stop - 4 : stop], "big"):
                    chunks[name] = body
            if not (name == b"tRNS" and name in chunks and colour == 3):
                kept.append(data[kept_to:place])
                kept_to = stop
        place = stop
    profile = _inflated(chunks[b"iCCP"]) if b"iCCP" in chunks else None
    return PictureFile(
        "PNG",
        b"".join([*kept, data[kept_to:]]) if kept else data,
        orientation_of(chunks.get(b"eXIf", b"")),
        profile,
        _colour_key(chunks.get(b"tRNS", b""), depth, colour),
        is_common=depth <= 8 and colour in (0, 2, 3) and not chunks.keys() & {b"tRNS", b"acTL"} and _is_srgb(chunks),
    )


def _is_srgb(chunks: dict[bytes, bytes]) -> bool:
    """Whether the colours of a PNG are sRGB according to its chunks, apart from a profile."""
    if b"cICP" in chunks:
        return tuple(chunks[b"cICP"][:2]) == SRGB_CODE
    if b"sRGB" in chunks or b"iCCP" in chunks:  # these take precedence over gAMA and cHRM
        return True
    gamma = int.from_bytes(chunks.get(b"gAMA", b"")[:4], "big") or SRGB_GAMMA
    return abs(gamma - SRGB_GAMMA) <= 500 and chunks.get(b"cHRM", SRGB_CHROMATICITIES) == SRGB_CHROMATICITIES


def _colour_key(body: bytes, depth: int, colour: int) -> tuple[int, ...] | None:
    """The transparent grey or colour of a tRNS chunk in levels of the decoder: 8 bits, or 16 bits for 16-bit grey."""
    count = {0: 1, 2: 3}.get(colour, 0)
    if not count or len(body) < 2 * count or depth not in (1, 2, 4, 8, 16):
        return None
    levels = struct.unpack(f">{count}H", body[: 2 * count])
    if depth == 16:
        return levels if count == 1 else tuple(level >> 8 for level in levels)
    return tuple(level * (255 // (2**depth - 1)) for level in levels)


def _inflated(body: bytes) -> bytes | None:
    """The profile of an iCCP chunk; None if it is damaged."""
    packed = body.partition(b"\0")[2]
    try:
        return zlib.decompressobj().decompress(packed[1:], MAX_PROFILE_BYTES) or None
    except zlib.error:
        return None


# --- WebP and AVIF ----------------------------------------------------------------------------------------


def _webp(data: bytes) -> PictureFile:
    """A WebP with the size of its canvas, since creating the decoder allocates the canvas."""
    exif = b""
    profile = None
    size = None
    place = 12
    while place + 8 <= len(data):
        name, length = struct.unpack_from("<4sL", data, place)
        body = data[place + 8 : place + 8 + min(length, 10)]
        if name == b"VP8X" and len(body) == 10:
            size = int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
        elif name == b"VP8L" and len(body) >= 5 and size is None:
            bits = int.from_bytes(body[1:5], "little")
            size = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        elif name == b"VP8 " and len(body) == 10 and size is None:
            size = int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
        elif name == b"EXIF":
            exif = exif or data[place + 8 : place + 8 + length]
        elif name == b"ICCP":
            profile = profile or data[place + 8 : place + 8 + length]
        place += 8 + length + length % 2
    return PictureFile("WEBP", data, orientation_of(exif), profile, size=size)


def _without_exif(data: bytes) -> bytes:
    """An AVIF whose EXIF item is renamed, so that decoders ignore it; the orientation is a property outside EXIF."""
    place = 0
    while place + 8 <= len(data):
        length, name = struct.unpack_from(">L4s", data, place)
        if name == b"meta":
            meta = data[place : place + length]
            return data[:place] + meta.replace(b"Exif", b"none") + data[place + length :]
        if length < 8:
            break
        place += length
    return data


# --- TIFF -------------------------------------------------------------------------------------------------


class _Entry(NamedTuple):
    tag: int
    kind: int
    count: int
    start: int
    """Offset of its value."""
    size: int
    """Size of its value in bytes."""
    place: int
    """Offset of the entry."""


def _entries(data: bytes, start: int, order: str, big: bool) -> Iterator[_Entry]:
    """Yield the entries of a TIFF or EXIF directory whose values lie within the data."""
    head, form, inline = ("Q", "HHQ", 8) if big else ("H", "HHL", 4)
    if start + struct.calcsize("=" + head) > len(data):
        return
    [number] = struct.unpack_from(order + head, data, start)
    first, length = start + struct.calcsize("=" + head), 20 if big else 12
    for place in range(first, min(first + number * length, len(data) - length + 1), length):
        tag, kind, count = struct.unpack_from(order + form, data, place)
        size = count * TYPE_SIZES.get(kind, 0)
        value = place + length - inline
        if size > inline:
            [value] = struct.unpack_from(order + ("Q" if big else "L"), data, value)
        if size and value + size <= len(data):
            yield _Entry(tag, kind, count, value, size, place)


def _orientation(data: bytes, entry: _Entry, order: str) -> int:
    """The orientation of an entry, 1..8; 1 for other values."""
    if entry.kind not in INTEGER_TYPES:
        return 1
    [value] = struct.unpack_from(order + INTEGER_TYPES[entry.kind], data, entry.start)
    return value if 1 <= value <= 8 else 1


def _tiff(data: bytes) -> PictureFile:
    """The first picture of a TIFF; its directory is reduced in place to the tags that a decoder needs."""
    order, big = "<" if data.startswith(b"II") else ">", b"+" in data[2:4]
    [start] = struct.unpack_from(order + ("Q" if big else "L"), data.ljust(16, b"\0"), 8 if big else 4)
    orientation = 1
    profile = None
    total = 0
    kept: list[bytes] = []
    tags: set[int] = set()
    length = 20 if big else 12
    for entry in _entries(data, start, order, big):
        if entry.tag in tags:
            continue
        tags.add(entry.tag)
        if entry.tag == ORIENTATION:
            orientation = _orientation(data, entry, order)
        elif entry.tag == PROFILE:
            profile = data[entry.start : entry.start + entry.size]
        elif entry.tag in PIXEL_TAGS and total + entry.size <= len(data):
            total += entry.size
            if entry.count == 1 or entry.tag not in SINGLE_TAGS:
                kept.append(data[entry.place : entry.place + length])
    directory = struct.pack(order + ("Q" if big else "H"), len(kept)) + b"".join(kept) + bytes(8 if big else 4)
    if not kept or start + len(directory) > len(data):
        return PictureFile("TIFF", b"")  # no decoder accepts it
    bare = data[:start] + directory + data[start + len(directory) :]
    return PictureFile("TIFF", bare, orientation, profile)
