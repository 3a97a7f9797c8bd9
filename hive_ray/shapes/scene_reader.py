"""Detect the background and the things of a picture of this domain.

picture -> colours with a solid core -> connected patches of one colour -> the best template for each patch
"""

from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import cast

import numpy as np
from scipy import ndimage

from hive_ray.shapes.scenes import BACKGROUNDS, COLOURS, RADII, RESOLUTION, SHAPES, Place, thing_mask

MIN_PIXELS = 25
"""Smaller patches are ignored; the smallest thing, a star of radius 7, has 65 pixels."""

COLOUR_NAMES, GROUND_NAMES = tuple(COLOURS), tuple(BACKGROUNDS)
_PALETTE = np.array([*COLOURS.values(), *BACKGROUNDS.values()], dtype=np.float32)  # (14, 3)
NUM_COLOURS = len(COLOURS)
_FAR = 90.0  # a pixel this far from every colour (of 255 a channel) has none
SQUARE = np.ones((3, 3), dtype=bool)
_SIDE = 34  # width of the patch in which a shape is matched: the largest thing and room for offsets
_TEMPLATE_RADII = np.arange(6.5, 12.51, 0.5)  # of things that are drawn: 7..8.5 and 10.5..12
_BLURS = (0.7, 1.6)  # pixels; an autoencoder softens edges about so much, and points of small stars more
BETWEEN_SIZES = (RADII["small"][1] + RADII["large"][0]) / 2  # 9.5 pixels, between small and large
Y, X = np.mgrid[:RESOLUTION, :RESOLUTION] + 0.5  # pixel centres


@dataclass(frozen=True)
class DetectedThing:
    """A thing measured in a picture: centre and radius in pixels; `confidence` is the fit of the template, 0..1."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    confidence: float
    likeness: tuple[float, ...]
    """Best fit for each of SHAPES, 0..1."""

    @property
    def place(self) -> Place:
        """Its centre and radius."""
        return Place(self.x, self.y, self.radius)


@dataclass(frozen=True)
class SceneReading:
    """The things of a picture, and for each pixel the index of its thing colour and of its thing (-1 is none)."""

    background: str
    things: tuple[DetectedThing, ...]
    labels: np.ndarray  # int (64, 64)
    owners: np.ndarray  # int (64, 64)
    nearest: np.ndarray  # int (64, 64), index of the nearest palette colour, -1 if all are far


def read_scene(pixels: np.ndarray) -> tuple[str, list[DetectedThing]]:
    """The background's name and the things of a picture, from left to right; pixels uint8 (64, 64, 3)."""
    reading = read_picture(pixels)
    return reading.background, sorted(reading.things, key=lambda thing: thing.x)


def read_picture(pixels: np.ndarray) -> SceneReading:
    """Detect the things of a picture, uint8 (64, 64, 3).

    Only colours with a solid core count, so that mixed colours of soft edges do not become things.
    """
    if pixels.shape != (RESOLUTION, RESOLUTION, 3):
        raise ValueError(f"a picture of {pixels.shape}; the judge reads ({RESOLUTION}, {RESOLUTION}, 3)")
    values = pixels.astype(np.float32)
    squares = (values**2).sum(-1, keepdims=True) - 2 * values @ _PALETTE.T + (_PALETTE**2).sum(1)  # (64, 64, 14)
    best = squares.argmin(-1)
    nearest = np.where(np.take_along_axis(squares, best[..., None], -1)[..., 0] < _FAR**2, best, -1)
    counts = np.bincount(nearest[nearest >= NUM_COLOURS], minlength=len(_PALETTE))
    background = int(counts[NUM_COLOURS:].argmax()) + NUM_COLOURS
    own = values[nearest == background]
    ground = np.median(own, axis=0) if len(own) else _PALETTE[background]
    labels, coverage = _unmix(values, nearest, ground)
    things, owners = _things(labels, coverage)
    return SceneReading(GROUND_NAMES[background - NUM_COLOURS], things, labels, owners, nearest)


def _unmix(values: np.ndarray, nearest: np.ndarray, ground: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Explain each pixel as `ground + coverage * (colour - ground)` with the colour that fits best.

    -> the index of that colour if it covers at least half of the pixel, else -1; and the coverage of each pixel, 0..1
    as (8, 64, 64), which is positive for at most one colour.
    """
    tints = _tints(values, nearest)
    labels = np.full(nearest.shape, -1)
    coverage = np.zeros((NUM_COLOURS, *nearest.shape), dtype=np.float32)
    if not tints:
        return labels, coverage
    offsets = values - ground
    axes = np.array(list(tints.values())) - ground  # (c, 3)
    along, lengths = offsets @ axes.T, (axes**2).sum(1)  # (64, 64, c), (c,)
    shares = np.clip(along / lengths, 0, 1)
    residual = (offsets**2).sum(-1, keepdims=True) - 2 * shares * along + shares**2 * lengths  # squared
    best = residual.argmin(-1)[..., None]
    share = np.take_along_axis(shares, best, -1)[..., 0]
    explained = np.take_along_axis(residual, best, -1)[..., 0] < _FAR**2
    names = np.array(list(tints))[best[..., 0]]
    labels[explained & (share >= 0.5)] = names[explained & (share >= 0.5)]
    np.put_along_axis(coverage, names[None], np.where(explained, share, 0)[None], 0)
    return labels, coverage


def _tints(values: np.ndarray, nearest: np.ndarray) -> dict[int, np.ndarray]:
    """Thing colours with a solid core -> their median colour in this picture."""
    tints = {}
    for colour in range(NUM_COLOURS):
        mask = nearest == colour
        if mask.sum() >= MIN_PIXELS // 2:
            core = np.asarray(ndimage.binary_erosion(mask), dtype=bool)
            if core.sum() >= 3:
                tints[colour] = np.median(values[core], axis=0)
    return tints


def _things(labels: np.ndarray, coverage: np.ndarray) -> tuple[tuple[DetectedThing, ...], np.ndarray]:
    """Measure the connected patches of one colour that are large and solid enough."""
    things: list[DetectedThing] = []
    owners = np.full(labels.shape, -1)
    for colour in np.unique(labels[labels >= 0]):
        patches = np.empty(labels.shape, np.int32)
        count = cast(int, ndimage.label(labels == colour, SQUARE, output=patches))
        for index in range(1, count + 1):
            patch = patches == index
            if patch.sum() < MIN_PIXELS or not ndimage.binary_erosion(patch).any():
                continue
            around = ndimage.binary_dilation(patch, SQUARE, iterations=2) & ((labels < 0) | patch)
            owners[patch] = len(things)
            things.append(_measure(np.where(around, coverage[colour], 0), COLOUR_NAMES[colour]))
    return tuple(things), owners


def _measure(mask: np.ndarray, colour: str) -> DetectedThing:
    """Shape, centre and radius of a soft mask (64, 64) by the template that fits it best.

    The fit is the soft Dice overlap 2 <a, b> / (<a, a> + <b, b>), 1 for equal masks. Only radii of this domain are
    tried: a smaller blob is a star that lost its points, since no circle is so small.
    """
    total = mask.sum()
    x, y = float((mask * X).sum() / total), float((mask * Y).sum() / total)
    patch = _patch(mask, x, y)
    rows, energy, centres = _templates()
    shifts = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    moved = np.stack([np.roll(patch, shift, (0, 1)).ravel() for shift in shifts], axis=1)  # (side^2, 9)
    fits = 2 * (rows @ moved) / (energy[:, None] + (patch**2).sum())
    fits = fits.reshape(len(SHAPES), -1, len(shifts))
    likeness = fits.max((1, 2))
    shape, size, shift = np.unravel_index(fits.argmax(), fits.shape)
    (dy, dx), (cx, cy) = shifts[shift], centres[shape, size]
    r = float(_TEMPLATE_RADII[size // len(_BLURS)])
    return DetectedThing(
        SHAPES[shape], colour, "small" if r < BETWEEN_SIZES else "large",
        x - dx - float(cx), y - dy - float(cy), r,
        float(likeness.max()), tuple(float(value) for value in likeness),
    )  # fmt: skip


def _patch(mask: np.ndarray, x: float, y: float) -> np.ndarray:
    """The mask around its centroid (x, y), with a subpixel shift that puts the centroid in the middle of the patch."""
    padded = np.pad(mask, _SIDE // 2 + 1)
    left, top = x + 1, y + 1  # _SIDE / 2 to the left of the centroid, in the padded picture
    column, row = int(left), int(top)
    a, b = left - column, top - row
    part = padded[row : row + _SIDE + 1, column : column + _SIDE + 1]
    part = (1 - b) * part[:-1] + b * part[1:]
    return (1 - a) * part[:, :-1] + a * part[:, 1:]


@cache
def _templates() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Templates of every shape, radius and blur, with the centroid in the middle.

    -> rows (n, side^2), their energy (n,), and the offset (x, y) of the centroid from the centre as
    (shapes, radii x blurs, 2).
    """
    middle = RESOLUTION / 2
    rows, centres = [], []
    for shape, radius, blur in product(SHAPES, _TEMPLATE_RADII, _BLURS):
        mask = ndimage.gaussian_filter(thing_mask(shape, Place(middle, middle, float(radius))), blur)
        x, y = (mask * X).sum() / mask.sum(), (mask * Y).sum() / mask.sum()
        rows.append(_patch(mask, x, y).ravel())
        centres.append((x - middle, y - middle))
    stacked = np.array(rows, dtype=np.float32)
    return stacked, (stacked**2).sum(1), np.array(centres).reshape(len(SHAPES), -1, 2)
