"""Images cross three forms; only this file converts between them.

bytes   encoded PNG/JPEG          in tables and over HTTP
pixels  uint8 (H, W, 3) in 0..255 in metrics
tensor  float (3, H, W) in -1..1  in models
"""

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

SIGNATURES = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpg"}
"""How the kinds of pictures that tables hold begin."""


Crop = Literal["none", "center", "random"]
Item, Made = TypeVar("Item"), TypeVar("Made")


class ImageError(ValueError):
    """Bytes that are not a readable picture."""


class Window(NamedTuple):
    """What a model sees of a picture: scaled to height x width, the square that begins at row `top`, column `left`."""

    height: int
    width: int
    top: int
    left: int


def decode(data: bytes) -> np.ndarray:
    """Encoded bytes -> pixels, turned upright by EXIF and made RGB; ImageError if they are not a picture."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageError(
            f"{len(data)} bytes starting {data[:4].hex()} are not a readable image; give a whole PNG, JPEG or WebP"
        ) from error


def encode(pixels: np.ndarray) -> bytes:
    """Pixels -> PNG bytes, the same bytes for the same pixels."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=4)
    return buffer.getvalue()


def encode_jpeg(pixels: np.ndarray) -> bytes:
    """Pixels -> JPEG bytes at quality 100, as InstructPix2Pix's folders hold them; each pixel changes a little."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=100)
    return buffer.getvalue()


def kind_of(data: bytes) -> str:
    """ "png" or "jpg" by the first bytes of an encoded picture, "" if it is neither."""
    return next((kind for first, kind in SIGNATURES.items() if data.startswith(first)), "")


def as_kept(data: bytes) -> bytes:
    """PNG and JPEG as they are, other kinds as PNG; ImageError if they are not a picture."""
    return data if kind_of(data) else encode(decode(data))


def resize(pixels: np.ndarray, resolution: int) -> np.ndarray:
    """Pixels scaled to exactly resolution x resolution with Lanczos, the aspect ratio ignored (as InstructPix2Pix)."""
    return _scale(pixels, resolution, resolution)


def window(
    size: tuple[int, int], resolution: int, crop: Crop = "none", place: tuple[float, float] = (0.0, 0.0)
) -> Window:
    """Where a square of `resolution` lies in pictures of `size` (height, width).

    "none" takes all, the aspect ratio ignored (InstructPix2Pix). Else the short side is fitted, the long one cut: to
    its middle, or with "random" to what begins at `place`, two shares in [0, 1) of the room down and across.
    """
    if crop == "none":
        return Window(resolution, resolution, 0, 0)
    height, width = (side * resolution // min(size) for side in size)
    down, across = height - resolution, width - resolution
    if crop == "center":
        return Window(height, width, down // 2, across // 2)
    return Window(height, width, int(place[0] * (down + 1)), int(place[1] * (across + 1)))


def cut(pixels: np.ndarray, seen: Window, resolution: int) -> np.ndarray:
    """The resolution x resolution pixels of a window; of another size or aspect, they are first scaled to it."""
    scaled = _scale(pixels, seen.height, seen.width)
    return scaled[seen.top : seen.top + resolution, seen.left : seen.left + resolution]


def _scale(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pixels scaled to height x width with Lanczos, the same object if they have that size."""
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))


def thumbnail(data: bytes, longest: int) -> bytes:
    """The picture with no side longer than `longest`, for a page: as it is where it is small, else as a JPEG."""
    image = Image.fromarray(decode(data))
    if max(image.size) <= longest:
        return data
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=85)
    return buffer.getvalue()


def to_tensor(pixels: np.ndarray) -> Tensor:
    """Pixels -> tensor."""
    return scaled(torch.from_numpy(np.array(pixels)).permute(2, 0, 1))


def scaled(pixels: Tensor) -> Tensor:
    """Numbers 0..255 of any shape -> float in -1..1."""
    return pixels.float() / 127.5 - 1


def to_pixels(tensor: Tensor) -> np.ndarray:
    """Tensor (3, H, W) -> pixels; values outside -1..1 are clamped, fractions rounded."""
    wide = (tensor.detach().float().clamp(-1, 1) + 1) * 127.5
    return wide.round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()


def to_batch(images: list[bytes], resolution: int) -> Tensor:
    """Encoded images -> float (B, 3, resolution, resolution) in -1..1."""
    return torch.stack(
        [to_tensor(pixels) for pixels in in_threads(lambda one: resize(decode(one), resolution), images)]
    )


def in_threads(function: Callable[[Item], Made], items: Sequence[Item]) -> list[Made]:
    """What `function` makes of each item, in their order, by as many threads as torch has: decoding takes most of what
    a batch of large pictures takes of a host. (A `function` that calls torch would begin as many threads in each.)"""
    threads = min(len(items), torch.get_num_threads())
    if threads < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(lambda first: [function(item) for item in items[first::threads]], range(threads)))
    return [parts[place % threads][place // threads] for place in range(len(items))]
