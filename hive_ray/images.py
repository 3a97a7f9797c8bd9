"""Images cross three forms; only this file converts between them.

bytes   encoded PNG/JPEG          in tables and over HTTP
pixels  uint8 (H, W, 3) in 0..255 in metrics
tensor  float (3, H, W) in -1..1  in models
"""

import io

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

SIGNATURES = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpg"}
"""How the kinds of pictures that tables hold begin."""


class ImageError(ValueError):
    """Bytes that are not a readable picture."""


def decode(data: bytes) -> np.ndarray:
    """Encoded bytes -> pixels, turned upright by EXIF and made RGB; ImageError if they are not a picture."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
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


def resize(pixels: np.ndarray, resolution: int) -> np.ndarray:
    """Pixels scaled to exactly resolution x resolution with Lanczos, the aspect ratio ignored (as InstructPix2Pix)."""
    if pixels.shape[:2] == (resolution, resolution):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((resolution, resolution), Image.Resampling.LANCZOS))


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
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float() / 127.5 - 1


def to_pixels(tensor: Tensor) -> np.ndarray:
    """Tensor (3, H, W) -> pixels; values outside -1..1 are clamped, fractions rounded."""
    scaled = (tensor.detach().float().clamp(-1, 1) + 1) * 127.5
    return scaled.round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()


def to_batch(images: list[bytes], resolution: int) -> Tensor:
    """Encoded images -> float (B, 3, resolution, resolution) in -1..1."""
    return torch.stack([to_tensor(resize(decode(image), resolution)) for image in images])
