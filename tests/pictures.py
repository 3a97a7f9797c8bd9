"""Encoded pictures of every kind that people hand in, made for tests: formats, modes, profiles, orientations."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

INPUTS = Path(__file__).parent / "inputs" / "pictures"
SCENE = np.asarray(Image.open(io.BytesIO((INPUTS / "scene.png").read_bytes())).convert("RGB"))
"""A red disc and a blue square on beige, (64, 64, 3)."""
GREY = np.asarray(Image.fromarray(SCENE).convert("L"))


def given(name: str) -> bytes:
    """One of the files of tests/inputs/pictures."""
    return (INPUTS / name).read_bytes()


def encoded(pixels: np.ndarray | Image.Image, kind: str, **options) -> bytes:
    """An encoded picture by Pillow."""
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def exif(orientation: int, camera: str = "") -> bytes:
    """EXIF with an orientation, and perhaps a camera."""
    block = Image.Exif()
    if camera:
        block[272] = camera
    block[274] = orientation
    return block.tobytes()


def with_chunk(png: bytes, name: bytes, body: bytes) -> bytes:
    """A PNG with a chunk before its pixels."""
    place = png.index(b"IDAT") - 4
    chunk = struct.pack(">L", len(body)) + name + body + struct.pack(">L", zlib.crc32(name + body))
    return png[:place] + chunk + png[place:]


def cut_out(mode: str = "RGBA") -> Image.Image:
    """The scene, of which all but the disc and the square is transparent, black below."""
    below = np.where(is_hidden()[..., None], 0, SCENE)
    alpha = np.where(is_hidden(), 0, 255)
    return Image.fromarray(np.dstack([below, alpha]).astype(np.uint8)).convert(mode)


def is_hidden() -> np.ndarray:
    """Where the cut-out is transparent."""
    return (np.abs(SCENE.astype(int) - SCENE[0, 0]) <= 2).all(-1)


def on_white() -> np.ndarray:
    """The cut-out as a person sees it on paper."""
    return np.where(is_hidden()[..., None], 255, SCENE).astype(np.uint8)


# --- Profiles ---------------------------------------------------------------------------------------------


def rgb_profile(primaries: tuple[tuple[float, float, float], ...], gamma: float) -> bytes:
    """A colour profile of three primaries (XYZ for D50) and a gamma."""
    tags = {f"{name}XYZ".encode(): _xyz(values) for name, values in zip("rgb", primaries, strict=True)}
    return _profile(b"RGB ", b"XYZ ", tags | {f"{name}TRC".encode(): _curve(gamma) for name in "rgb"})


def grey_profile(gamma: float) -> bytes:
    """A grey profile of a gamma."""
    return _profile(b"GRAY", b"XYZ ", {b"kTRC": _curve(gamma)})


def cmyk_profile(lab: Callable[[int, int, int, int], tuple[float, float, float]]) -> bytes:
    """A profile of four inks, each on or off: what CIE Lab colour each of the 16 combinations has."""
    corners = [
        (round(light * 2.55), round(a) + 128, round(b) + 128)
        for light, a, b in (lab(*(number >> bit & 1 for bit in (3, 2, 1, 0))) for number in range(16))
    ]
    identity = bytes(range(256))
    matrix = struct.pack(">9l", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix
    return _profile(
        b"CMYK", b"Lab ", {b"A2B0": table + identity * 4 + bytes(np.ravel(corners).tolist()) + identity * 3}
    )


def _xyz(values: tuple[float, float, float]) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3l", *(round(value * 65536) for value in values))


def _curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">LH", 1, round(gamma * 256))


def _profile(space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    tags = {b"desc": b"desc\0\0\0\0\0\0\0\5test\0".ljust(92, b"\0"), b"wtpt": _xyz((0.9642, 1.0, 0.8249))} | tags
    table, body, place = struct.pack(">L", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        content = content.ljust(-(-len(content) // 4) * 4, b"\0")
        table += name + struct.pack(">2L", place + len(body), len(content))
        body += content
    kind = b"prtr" if space == b"CMYK" else b"mntr"
    head = struct.pack(
        ">L4sL4s4s4s12s4s", place + len(body), b"test", 0x02400000, kind, space, connection, b"", b"acsp"
    )
    head += bytes(28) + struct.pack(">3l", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + table + body


ADOBE_RGB = rgb_profile(
    ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)), 563 / 256
)
SRGB_LINEAR = rgb_profile(((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.7141)), 1.0)
