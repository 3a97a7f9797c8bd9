"""Conversions between the three forms of an image.

bytes   encoded PNG/JPEG          in tables and over HTTP (image_files.py reads their headers)
pixels  uint8 (H, W, 3) in 0..255 in metrics
tensor  float (3, H, W) in -1..1  in models
"""

import io
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, Literal, NamedTuple, TypeVar, cast

import numpy as np
import torch
from PIL import Image, ImageCms
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile
from torch import Tensor

from hive_ray.files.image_files import (
    BITS_PER_SAMPLE,
    PHOTOMETRIC,
    PictureFile,
    is_heic,
    orientation_of,
    read_picture_file,
)

SIGNATURES = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpg"}
"""First bytes of the formats that tables hold -> file ending."""
MEDIA_TYPES = {"png": "image/png", "jpg": "image/jpeg"}
DECODERS = {
    "PNG": PngImageFile,
    "JPEG": JpegImageFile,
    "WEBP": WebPImageFile,
    "TIFF": TiffImageFile,
    "BMP": BmpImageFile,
    "GIF": GifImageFile,
    "AVIF": AvifImageFile,
}
"""The formats that are read. Other formats of Pillow may start programs or read other files."""
FORMATS = "PNG, JPEG, WebP, TIFF, BMP, GIF or AVIF"
MAX_PIXELS = 178_956_970
"""Larger pictures are refused before they are decoded; Pillow's own limit."""
TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> the transposition that makes the picture upright."""
DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
"""Pillow's modes of one channel with more than 8 bits."""
ALPHA_MODES = ("RGBA", "RGBa", "LA", "La", "PA")
COLOUR_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
"""Mode -> the colour space that its ICC profile must have."""
WHITE = (255, 255, 255)

# This module checks MAX_PIXELS and raises an error; Pillow would warn at half of it.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

Crop = Literal["none", "center", "random"]
Item = TypeVar("Item")
Result = TypeVar("Result")


class ImageError(ValueError):
    """Bytes that are not a readable picture."""


class PictureTooLargeError(ImageError):
    """A picture with more pixels than allowed."""


class Window(NamedTuple):
    """A square crop of a scaled picture: scale to height x width, then crop from row `top` and column `left`."""

    height: int
    width: int
    top: int
    left: int


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode a picture to pixels as a viewer shows them: upright, sRGB, transparent parts on white.

    16-bit levels are scaled to 8 bits, and so are floating-point levels within 0..1. Other floating-point levels are
    scaled by their minimum and maximum. The first frame of an animation is taken. Raises ImageError, and no other
    exception, if the format is not in FORMATS, the data are damaged, or there are more than `max_pixels`.
    """
    try:
        image, file = _opened(data, max_pixels)
        image.load()
        if image.mode != "RGB" or file.profile or file.colour_key:
            image = _as_rgb(image, file)
        if file.orientation != 1:
            image = image.transpose(TO_UPRIGHT[file.orientation])
        return np.asarray(image)
    except ImageError:
        raise
    except Exception as error:  # whatever a library raises
        raise _unreadable(data, f"{type(error).__name__}: {error}") from error


def size_of(data: bytes) -> tuple[int, int]:
    """Width and height of the upright picture, from its header only; ImageError if there is none."""
    try:
        image, file = _opened(data, MAX_PIXELS)
    except ImageError:
        raise
    except Exception as error:
        raise _unreadable(data, f"{type(error).__name__}: {error}") from error
    width, height = image.size
    return (height, width) if file.orientation > 4 else (width, height)


def _opened(data: bytes, max_pixels: int) -> tuple[Image.Image, PictureFile]:
    """Open a picture without decoding its pixels; raises any error of Pillow."""
    file = read_picture_file(data)
    if file is None:
        raise _unreadable(data, "HEIC, which is not read: save it as JPEG" if is_heic(data) else "no known format")
    if file.size:
        _check_size(file.size, max_pixels)
    image = DECODERS[file.kind](io.BytesIO(file.data))
    _check_size(image.size, max_pixels)
    if file.kind == "AVIF":
        orientation = orientation_of(image.info.get("exif", b""))
        file = file._replace(orientation=orientation, profile=image.info.get("icc_profile"))
    return image, file


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise PictureTooLargeError(
            f"the picture is {width} x {height}; at most {max_pixels:,} pixels are taken: shrink it"
        )


def _unreadable(data: bytes, why: str) -> ImageError:
    begins = f" starting {data[:4].hex()}" if data else ""
    return ImageError(f"{len(data)} bytes{begins} are not a readable image ({why[:120]}); give a whole {FORMATS}")


# --- Colours ----------------------------------------------------------------------------------------------


def _as_rgb(image: Image.Image, file: PictureFile) -> Image.Image:
    """Convert a decoded picture of any mode to RGB: 8 bits, profile applied, transparency on white."""
    if image.mode == "1":
        image = image.convert("L")
    alpha = None
    if file.colour_key:
        differs = np.asarray(image) != np.array(file.colour_key)
        shown = differs.any(-1) if differs.ndim == 3 else differs
        alpha = Image.fromarray(np.where(shown, 255, 0).astype(np.uint8))
    if image.mode in DEEP_MODES:
        image = Image.fromarray(_eight_bits(image))
    if image.mode in ALPHA_MODES or "transparency" in image.info:
        with_alpha = "LA" if image.mode in ("LA", "La") else "RGBA"
        if image.mode != with_alpha:
            image = image.convert(with_alpha)
        alpha = image.getchannel("A")
        image = image.convert("L" if with_alpha == "LA" else "RGB")
    elif image.mode not in COLOUR_SPACES:
        image = image.convert("RGB")
    to_srgb = _to_srgb(file.profile, image.mode) if file.profile else None
    if to_srgb:
        image = cast(Image.Image, ImageCms.applyTransform(image, to_srgb))
    elif image.mode != "RGB":
        image = image.convert("RGB")
    if alpha is None or alpha.getextrema() == (255, 255):
        return image
    ground = Image.new("RGB", image.size, WHITE)
    ground.paste(image, mask=alpha)
    return ground


def _eight_bits(image: Image.Image) -> np.ndarray:
    """Convert the levels of a single-channel picture to uint8 (H, W).

    For 16 bits, white is 65535. 32-bit integers up to 255 or 65535 are read as 8 or 16 bits, and floating-point levels
    within 0..1 as shares of white. Other levels are scaled by the minimum and maximum of the picture. Raises ImageError
    if these are equal, or a level is not finite.
    """
    levels = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    least, greatest = levels.min(), levels.max()
    if image.mode == "F" and not (np.isfinite(least) and np.isfinite(greatest)):
        raise ImageError("the picture has floating-point levels that are not finite; give one of 8 or 16 bits")
    black = 0.0
    white = 65535.0
    if image.mode == "F" and least >= 0 and greatest <= 1:
        white = 1.0
    elif image.mode == "I" and least >= 0 and greatest <= 255:
        white = 255.0
    elif image.mode == "F" or (image.mode == "I" and (least < 0 or greatest > white)):
        black, white = float(least), float(greatest)
    elif image.mode != "I" and tags.get(BITS_PER_SAMPLE) == (12,):
        white = 4095.0
    if black == white:
        raise ImageError(f"the levels of the picture are all {black:g}, so none is white; give one of 8 or 16 bits")
    shares = (levels.astype(np.float64) - black) / (white - black)
    if tags.get(PHOTOMETRIC) == 0:  # 0 is white
        shares = 1 - shares
    return np.rint(shares * 255).astype(np.uint8)


@lru_cache(maxsize=32)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """What brings colours of a profile to sRGB; None where nothing changes by more than one level, the profile is
    broken, or it is of another mode."""
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        described: Any = opened.profile
        if described.xcolor_space.strip() != COLOUR_SPACES[mode]:
            return None
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        transform = ImageCms.buildTransform(opened, srgb, mode, "RGB", flags=ImageCms.Flags.NOCACHE)  # used by threads
        sample = _all_over(mode)
        changed = np.asarray(ImageCms.applyTransform(sample, transform)).astype(int) - np.asarray(sample.convert("RGB"))
    except Exception:  # a picture with a broken profile is still usable
        return None
    return transform if np.abs(changed).max() > 1 else None


def _all_over(mode: str) -> Image.Image:
    """A picture with colours from the whole space of a mode."""
    steps = np.linspace(0, 255, 256 if mode == "L" else 9).astype(np.uint8)
    channels = len(Image.new(mode, (1, 1)).getbands())
    colours = np.stack(np.meshgrid(*[steps] * channels), axis=-1).reshape(-1, 1, channels)
    return Image.fromarray(colours[..., 0] if channels == 1 else colours, mode)


# --- Encoded pictures -------------------------------------------------------------------------------------


def encode(pixels: np.ndarray) -> bytes:
    """Encode pixels as PNG, deterministically."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=4)
    return buffer.getvalue()


def encode_jpeg(pixels: np.ndarray) -> bytes:
    """Encode pixels as JPEG at quality 100, as in InstructPix2Pix's folders; this is lossy."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=100)
    return buffer.getvalue()


def encode_small_jpeg(pixels: np.ndarray, quality: int) -> bytes:
    """Encode pixels as a small JPEG of a quality in 1..95, without chroma subsampling."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=quality, subsampling=0, optimize=True)
    return buffer.getvalue()


def image_format(data: bytes) -> str:
    """ "png" or "jpg" by the first bytes of an encoded picture; "" for other formats."""
    return next((kind for first, kind in SIGNATURES.items() if data.startswith(first)), "")


def is_plain(data: bytes) -> bool:
    """Whether the header describes a PNG or JPEG that every viewer shows as `decode` does.

    That is at most 8 bits, RGB, grey or a palette, no transparency, upright, sRGB.
    """
    if not image_format(data):
        return False
    file = read_picture_file(data)
    if file is None or not file.is_common or file.orientation != 1:
        return False
    return not file.profile or not any(_to_srgb(file.profile, mode) for mode in ("L", "RGB"))


def to_plain(data: bytes) -> bytes:
    """The picture for any viewer: unchanged if it `is_plain`, else the decoded picture as PNG."""
    return data if is_plain(data) else encode(decode(data))


def to_stored(data: bytes) -> bytes:
    """The picture for a table: `to_plain` after a full decode; ImageError if any part is damaged."""
    pixels = decode(data)
    return data if is_plain(data) else encode(pixels)


def media_type(data: bytes) -> str:
    """The media type of a plain picture."""
    return MEDIA_TYPES[image_format(data)]


# --- Sizes ------------------------------------------------------------------------------------------------


def resize(pixels: np.ndarray, resolution: int) -> np.ndarray:
    """Scale pixels to resolution x resolution with Lanczos, without keeping the aspect ratio (as InstructPix2Pix)."""
    return _scale(pixels, resolution, resolution)


def window(
    size: tuple[int, int], resolution: int, crop: Crop = "none", place: tuple[float, float] = (0.0, 0.0)
) -> Window:
    """The window that makes a `resolution` square of pictures of `size` (height, width).

    "none" scales the whole picture without keeping the aspect ratio (InstructPix2Pix). Otherwise the short side is
    scaled to `resolution` and the long side cropped: "center" takes the middle, "random" starts at `place`, two shares
    in [0, 1) of the free height and width.
    """
    if crop == "none":
        return Window(resolution, resolution, 0, 0)
    height, width = (side * resolution // min(size) for side in size)
    down, across = height - resolution, width - resolution
    if crop == "center":
        return Window(height, width, down // 2, across // 2)
    return Window(height, width, int(place[0] * (down + 1)), int(place[1] * (across + 1)))


def crop_to(pixels: np.ndarray, seen: Window, resolution: int) -> np.ndarray:
    """Crop pixels to a window of resolution x resolution, after scaling them to the size of the window."""
    scaled = _scale(pixels, seen.height, seen.width)
    return scaled[seen.top : seen.top + resolution, seen.left : seen.left + resolution]


def _scale(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale pixels to height x width with Lanczos; returns the same object if they have this size."""
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))


def thumbnail(data: bytes, longest: int) -> bytes:
    """The picture for a page, no side longer than `longest`: `to_plain` if it is small, else scaled and as JPEG."""
    image = Image.fromarray(decode(data))
    if max(image.size) <= longest:
        return data if is_plain(data) else encode(np.asarray(image))
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=85)
    return buffer.getvalue()


def to_tensor(pixels: np.ndarray) -> Tensor:
    """Pixels -> tensor."""
    return normalize_pixels(torch.from_numpy(np.array(pixels)).permute(2, 0, 1))


def normalize_pixels(pixels: Tensor) -> Tensor:
    """Map numbers in 0..255 of any shape to float in -1..1."""
    return pixels.float() / 127.5 - 1


def to_pixels(tensor: Tensor) -> np.ndarray:
    """Tensor (3, H, W) -> pixels; values outside -1..1 are clamped, fractions rounded."""
    wide = (tensor.detach().float().clamp(-1, 1) + 1) * 127.5
    return wide.round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()


def to_batch(images: list[bytes], resolution: int) -> Tensor:
    """Encoded images -> float (B, 3, resolution, resolution) in -1..1."""
    return torch.stack(
        [to_tensor(pixels) for pixels in map_in_threads(lambda one: resize(decode(one), resolution), images)]
    )


def map_in_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Apply `function` to each item in threads, as many as torch uses; results are in order.

    Meant for decoding, which dominates the CPU time of a batch of large pictures. `function` should not call torch,
    which would start as many threads in each thread.
    """
    threads = min(len(items), torch.get_num_threads())
    if threads < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(lambda first: [function(item) for item in items[first::threads]], range(threads)))
    return [parts[place % threads][place // threads] for place in range(len(items))]
