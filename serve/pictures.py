"""Uploaded pictures -> what the editor takes: checked, decoded, and brought to a size that it was trained for."""

import math

import numpy as np
from PIL import Image, ImageOps
from starlette.exceptions import HTTPException

from hive_ray.images import ImageError, PictureTooLargeError, decode, encode, resize

MAX_UPLOAD_BYTES = 20 * 2**20
MAX_PICTURE_PIXELS = 40_000_000
MAX_ASPECT = 4
"""The longer side of a picture over the shorter one."""
SMALL = 256
"""Editors of a lower resolution get square pictures, the aspect ratio ignored, as they were trained."""


def fitted_size(width: int, height: int, resolution: int) -> tuple[int, int]:
    """Width and height at which a picture is edited: sides of whole 64s, the longer near `resolution`.

    InstructPix2Pix's edit_cli.py in whole numbers: the shorter side is rounded up to a multiple of 64, the longer
    follows the aspect ratio and is rounded down. Below SMALL: `resolution`.
    """
    if resolution < SMALL:
        return resolution, resolution
    short, long = sorted((width, height))
    fitted_short = math.ceil(short * resolution / (64 * long)) * 64
    fitted_long = long * fitted_short // short // 64 * 64
    return (fitted_long, fitted_short) if width >= height else (fitted_short, fitted_long)


def fit(image: bytes, resolution: int) -> bytes:
    """An uploaded picture -> PNG of `fitted_size`: cropped evenly, or below SMALL stretched to a square.

    HTTPException 413 if it is too large, which its header says; ImageError if it cannot be read or is too long.
    """
    pixels = _decoded(image)
    height, width = pixels.shape[:2]
    if resolution < SMALL:
        return encode(resize(pixels, resolution))
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(f"the picture is {width} x {height}; its sides may differ {MAX_ASPECT} times at most: crop it")
    size = fitted_size(width, height, resolution)
    return encode(np.asarray(ImageOps.fit(Image.fromarray(pixels), size, method=Image.Resampling.LANCZOS)))


def _decoded(image: bytes) -> np.ndarray:
    """The pixels of a picture of at most MAX_UPLOAD_BYTES and MAX_PICTURE_PIXELS."""
    if len(image) > MAX_UPLOAD_BYTES:
        raise HTTPException(
            413, f"the picture has {len(image):,} bytes; at most {MAX_UPLOAD_BYTES:,} are taken: shrink it"
        )
    try:
        return decode(image, MAX_PICTURE_PIXELS)
    except PictureTooLargeError as error:
        raise HTTPException(413, str(error)) from error
