"""Latents of pairs for training: encoded during training, or once beforehand for all epochs and arms.

    pairs -> LatentEncoder -> latents
    rankings -> RankingLatentEncoder -> ranking_latents
    rows of pairs, with or without their latents -> PairLatentReader -> the objective

A row's `latents` are V x (1 + 2 N) x C x h x w numbers in the precision of `editor.latents`, unscaled. V are the views
of the row: as it is and, with `editor.flip`, mirrored. Each view has the mode of the source, the means of the N edited
pictures, and their standard deviations, from which training samples the target. A pair has one edited picture. Every
row has the mirrored view; `draw_views` decides whether its instruction allows it.

B rows, K pictures a row, N edited pictures among them, R `editor.resolution`, C latent channels, h w latent height and
width
"""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from hive_ray.config import Editor as Settings
from hive_ray.diffusion.backbone import load_vae, posterior
from hive_ray.editor.model import Editor, move_to
from hive_ray.errors import BadRows
from hive_ray.images import ImageError, crop_to, decode, map_in_threads, normalize_pixels, window
from hive_ray.schemas import Dropped, Result, Row, Rows

PICTURE_COLUMNS = ("source_image", "edited_image")
LATENT_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


class Views(NamedTuple):
    """How the pictures of each row of a batch are mirrored and cropped; the same for all pictures of a row."""

    mirrored: list[bool]
    crop_offsets: list[tuple[float, float]]
    """Where a random crop begins, vertically and horizontally: shares in [0, 1) of the pixels that are cut away."""


class PairPosteriors(NamedTuple):
    """Unscaled latents of pairs, (B, C, h, w) each: the source's mode, the edited picture's mean and standard
    deviation."""

    source: Tensor
    mean: Tensor
    std: Tensor


def mentions_left_or_right(instruction: str) -> bool:
    """Whether the instruction says left or right, which a mirrored pair would contradict."""
    return re.search(r"\b(left|right)(most|wards?)?\b", instruction, re.IGNORECASE) is not None


def draw_views(rows: Rows, settings: Settings, generator: torch.Generator) -> Views:
    """A view of each row: mirrored with probability 1/2 if `editor.flip` is set and the instruction names no side.

    Draws one number a row, and two more a row for random crops.
    """
    heads = (torch.rand(len(rows), generator=generator) < 0.5).tolist()
    mirrored = [
        settings.flip and head and not mentions_left_or_right(row["instruction"])
        for row, head in zip(rows, heads, strict=True)
    ]
    if settings.crop != "random":
        return Views(mirrored, [(0.0, 0.0)] * len(rows))
    return Views(mirrored, [tuple(place) for place in torch.rand(len(rows), 2, generator=generator).tolist()])


def read_pictures(rows: Rows, settings: Settings, views: Views, columns: tuple[str, ...] = PICTURE_COLUMNS) -> Tensor:
    """The pictures in these columns as uint8 (K, B, 3, R, R), 0..255.

    All pictures of a row are scaled to the size of its first one and cropped and mirrored in the same way. BadRows
    names the rows with a picture that cannot be read.
    """
    side = settings.resolution
    batch = np.empty((len(columns), len(rows), 3, side, side), np.uint8)

    def read(index: int) -> str | None:
        try:
            pictures = [_decoded(rows[index], column) for column in columns]
        except ImageError as error:
            return str(error)
        shown = window(pictures[0].shape[:2], side, settings.crop, views.crop_offsets[index])
        for place, picture in enumerate(pictures):
            pixels = crop_to(picture, shown, side).transpose(2, 0, 1)
            batch[place, index] = pixels[:, :, ::-1] if views.mirrored[index] else pixels
        return None

    reasons = {index: why for index, why in enumerate(map_in_threads(read, range(len(rows)))) if why}
    if reasons:
        raise BadRows(reasons)
    return torch.from_numpy(batch)


@torch.no_grad()
def encode_edits(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Pixels 0..255 (1 + N, B, 3, R, R) of sources and N edited pictures of each -> latents (B, 1 + 2 N, C, h, w) of
    one view, in the order of the column `latents`."""
    mean, std = posterior(vae, normalize_pixels(pixels.flatten(0, 1).to(vae.device)))
    means, deviations = (part.unflatten(0, pixels.shape[:2]) for part in (mean, std))
    return torch.cat([means, deviations[1:]]).transpose(0, 1)


def select_edit_latents(stored: bytes, place: int, num_edits: int, num_views: int) -> bytes:
    """The `latents` of a pair with one edited picture, taken from a row with several edited pictures."""
    by_part = np.frombuffer(stored, np.uint8).reshape(num_views, 1 + 2 * num_edits, -1)
    return by_part[:, [0, 1 + place, 1 + num_edits + place]].tobytes()


class LatentEncoder:
    """Pairs -> their latents."""

    def __init__(self, start: str, settings: Settings, device: str = "cuda") -> None:
        self.vae = load_vae(start, settings.single_file)
        self.vae.to(device)  # pyright: ignore[reportArgumentType] - diffusers wraps Module.to without `self`
        self.settings = settings

    def __call__(self, rows: Rows) -> list[Result]:
        return self.encode_columns(rows, "pair_id", PICTURE_COLUMNS)

    def encode_columns(self, rows: Rows, key: str, columns: tuple[str, ...]) -> list[Result]:
        """Rows with `key` and `latents` of the pictures in these columns, of which the source is the first."""
        try:
            pixels = read_pictures(rows, self.settings, identity_views(rows), columns)
        except BadRows as bad:
            good = [row for place, row in enumerate(rows) if place not in bad.reasons]
            broken = [_dropped(rows[place], key, "unreadable_picture") for place in bad.reasons]
            return [*broken, *(self.encode_columns(good, key, columns) if good else [])]
        views = [pixels, pixels.flip(-1)] if self.settings.flip else [pixels]
        latents = torch.stack([encode_edits(self.vae, view) for view in views], dim=1)
        stored = latents.to("cpu", LATENT_DTYPES[self.settings.latents]).numpy()
        encoded: list[Result] = []
        for row, numbers in zip(rows, stored, strict=True):
            if np.isfinite(numbers).all():
                encoded.append({key: row[key], "latents": numbers.tobytes()})
            else:
                encoded.append(_dropped(row, key, "latents_not_finite"))
        return encoded


class RankingLatentEncoder(LatentEncoder):
    """Rankings -> the latents of their sources and all their edits."""

    def __call__(self, rows: Rows) -> list[Result]:
        of_length: dict[int, Rows] = {}
        for row in rows:
            edits = {f"edit {place}": edit["image"] for place, edit in enumerate(row["edits"])}
            pictures = {"ranking_id": row["ranking_id"], "source_image": row["source_image"]} | edits
            of_length.setdefault(len(edits), []).append(pictures)
        encoded: list[Result] = []
        for length, group in of_length.items():
            columns = ("source_image", *(f"edit {place}" for place in range(length)))
            encoded += self.encode_columns(group, "ranking_id", columns)
        return encoded


class PairLatentReader:
    """Rows -> the latents of their pairs: read from the rows that carry them, else encoded from their pictures.

    Nothing is cached between batches, because the last bits of a VAE's output depend on the pictures in its batch. A
    cache would make a resumed run differ from an uninterrupted one.
    """

    def __init__(self, editor: Editor, settings: Settings) -> None:
        self.editor, self.settings = editor, settings
        side = settings.resolution
        self.latent_shape = editor.latent_shape(torch.empty(1, 3, side, side, device="meta"))
        """(C, h, w)"""
        self.stored_shape = (2 if settings.flip else 1, 3, *self.latent_shape)

    def read(self, rows: Rows, views: Views) -> dict[str, Tensor]:
        """What rows carry of their pairs in these views: "latents" (B, 3, C, h, w), or "pixels" (2, B, 3, R, R), uint8.

        BadRows names the rows with latents or pictures that cannot be read.
        """
        if "latents" in rows[0]:
            return {"latents": self._stored(rows, views)}
        return {"pixels": read_pictures(rows, self.settings, views)}

    def wrong_size_reasons(self, rows: Rows, num_edits: Sequence[int]) -> dict[int, str]:
        """The places of rows whose `latents` are not those of so many edits, each with the reason."""
        num_views, _, *shape = self.stored_shape
        each = num_views * math.prod(shape) * LATENT_DTYPES[self.settings.latents].itemsize
        num_bytes = [(1 + 2 * count) * each for count in num_edits]
        return {
            place: f"its latents have {len(row['latents'])} bytes, not {num_bytes[place]}"
            for place, row in enumerate(rows)
            if len(row["latents"]) != num_bytes[place]
        }

    def posteriors(self, batch: dict[str, Tensor]) -> PairPosteriors:
        """The latents of a batch of `read`, on the device of the batch."""
        latents = batch.get("latents")
        if latents is None:
            pixels = batch["pixels"]
            move_to(self.editor.vae, pixels.device)
            latents = encode_edits(self.editor.vae, pixels)
        return PairPosteriors(*latents.unbind(1))

    def _stored(self, rows: Rows, views: Views) -> Tensor:
        """Stored latents (B, 3, C, h, w) in fp32."""
        dtype = LATENT_DTYPES[self.settings.latents]
        reasons = self.wrong_size_reasons(rows, [1] * len(rows))
        latents: list[Tensor] = []
        for index, row in enumerate(rows):
            if index in reasons:
                continue
            numbers = torch.frombuffer(bytearray(row["latents"]), dtype=dtype).view(self.stored_shape)
            latents.append(numbers[int(views.mirrored[index])].float())
            # amax propagates NaN, and is much faster than isfinite of each number.
            if not numbers.abs().amax().isfinite():
                reasons[index] = "its latents are not finite"
        if reasons:
            raise BadRows(reasons)
        return torch.stack(latents)


def identity_views(rows: Rows) -> Views:
    """Views that change no row: not mirrored, and without a random crop."""
    return Views([False] * len(rows), [(0.0, 0.0)] * len(rows))


def _decoded(row: Row, column: str) -> np.ndarray:
    try:
        return decode(row[column])
    except ImageError as error:
        raise ImageError(f"{column}: {error}") from error


def _dropped(row: Row, key: str, reason: str) -> Dropped:
    """A dropped row, with the row that stands for it in the table of the reasons."""
    return Dropped(reason, row={key: row[key], "latents": b""})
