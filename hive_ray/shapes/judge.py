"""How well an edit did what was asked, measured on the picture: the answer key of the embedded domain.

    source picture, both captions -> the scene that is wanted -> Verdict of an edited picture
    candidates -> SimulatedAnnotator -> rankings

It sees pictures and captions, never which editor made them. It evaluates, and ranks in the place of people;
pairs are neither filtered nor weighted by it.
"""

from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import product

import numpy as np
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from hive_ray.images import decode, resize
from hive_ray.schemas import Row, Rows
from hive_ray.seeds import id_for, seed_for
from hive_ray.shapes.scenes import (
    BACKGROUNDS,
    COLOURS,
    MARGIN,
    ORDER_GAP,
    RADII,
    RESOLUTION,
    SHAPES,
    Description,
    Place,
    Scene,
    Thing,
    inside,
    outline,
    parse_caption,
)

LEAST_PIXELS = 25
"""A patch of colour smaller than this is no thing; the smallest thing (a star of radius 7) has 65 pixels."""

RIGHT = 0.5
"""An edit is right when it followed and preserved at least so much."""

_COLOUR_NAMES, _GROUND_NAMES = tuple(COLOURS), tuple(BACKGROUNDS)
_PALETTE = np.array([*COLOURS.values(), *BACKGROUNDS.values()], dtype=np.float32)  # (14, 3)
_NUM_COLOURS = len(COLOURS)
_FAR = 90.0  # a pixel this far from every colour (of 255 a channel) has none
_SQUARE = np.ones((3, 3), dtype=bool)
_SIDE = 34  # width of the patch in which a shape is matched: the largest thing and room for offsets
_TEMPLATE_RADII = np.arange(6.5, 12.51, 0.5)  # of things that are drawn: 7..8.5 and 10.5..12
_BLURS = (0.7, 1.6)  # pixels; an autoencoder softens edges about so much, and points of small stars more
_BETWEEN = (RADII["small"][1] + RADII["large"][0]) / 2  # 9.5 pixels, between small and large
_Y, _X = np.mgrid[:RESOLUTION, :RESOLUTION] + 0.5  # pixel centres


@dataclass(frozen=True)
class Found:
    """A thing as it was measured in a picture: centre and radius in pixels, `confidence` 0..1 the template's
    fit."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    confidence: float
    likeness: tuple[float, ...]
    """Fit of the best template of each of SHAPES, 0..1."""

    @property
    def place(self) -> Place:
        return Place(self.x, self.y, self.radius)


@dataclass(frozen=True)
class Verdict:
    """How far an edit did what was asked (`followed`) and left the rest alone (`preserved`), each 0..1."""

    followed: float
    preserved: float

    @property
    def right(self) -> bool:
        """The definition of a right edit that every table and report of this domain uses."""
        return self.followed >= RIGHT and self.preserved >= RIGHT


@dataclass(frozen=True)
class _Reading:
    """A picture read: its things, and per pixel which thing colour it shows (-1 none) and which thing it is
    part of (-1 none)."""

    background: str
    found: tuple[Found, ...]
    labels: np.ndarray  # int (64, 64)
    owners: np.ndarray  # int (64, 64)
    nearest: np.ndarray  # int (64, 64), index of the nearest palette colour, -1 if all are far


# ------------------------------------------------------------ reading


def read_scene(pixels: np.ndarray) -> tuple[str, list[Found]]:
    """The background's name and the things of a picture, from left to right; pixels uint8 (64, 64, 3)."""
    reading = _read(pixels)
    return reading.background, sorted(reading.found, key=lambda thing: thing.x)


def _read(pixels: np.ndarray) -> _Reading:
    """Colours are those with a solid core, so that mixed colours of soft edges make no things of their
    own."""
    if pixels.shape != (RESOLUTION, RESOLUTION, 3):
        raise ValueError(f"a picture of {pixels.shape}; the judge reads ({RESOLUTION}, {RESOLUTION}, 3)")
    values = pixels.astype(np.float32)
    squares = (values**2).sum(-1, keepdims=True) - 2 * values @ _PALETTE.T + (_PALETTE**2).sum(1)  # (64, 64, 14)
    best = squares.argmin(-1)
    nearest = np.where(np.take_along_axis(squares, best[..., None], -1)[..., 0] < _FAR**2, best, -1)
    counts = np.bincount(nearest[nearest >= _NUM_COLOURS], minlength=len(_PALETTE))
    background = int(counts[_NUM_COLOURS:].argmax()) + _NUM_COLOURS
    own = values[nearest == background]
    ground = np.median(own, axis=0) if len(own) else _PALETTE[background]
    labels, coverage = _unmix(values, nearest, ground)
    found, owners = _things(labels, coverage)
    return _Reading(_GROUND_NAMES[background - _NUM_COLOURS], found, labels, owners, nearest)


def _unmix(values: np.ndarray, nearest: np.ndarray, ground: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each pixel as `ground + coverage * (colour - ground)` of the colour that explains it best.

    -> the index of that colour where it covers half of the pixel or more, else -1, and the coverage of each
    pixel, 0..1 as (8, 64, 64); a pixel counts for one colour only.
    """
    tints = _tints(values, nearest)
    labels = np.full(nearest.shape, -1)
    coverage = np.zeros((_NUM_COLOURS, *nearest.shape), dtype=np.float32)
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
    """The thing colours that have a solid core somewhere, and how each looks in this picture."""
    tints = {}
    for colour in range(_NUM_COLOURS):
        mask = nearest == colour
        if mask.sum() >= LEAST_PIXELS // 2:
            core = ndimage.binary_erosion(mask)
            if core.sum() >= 3:
                tints[colour] = np.median(values[core], axis=0)
    return tints


def _things(labels: np.ndarray, coverage: np.ndarray) -> tuple[tuple[Found, ...], np.ndarray]:
    """The connected patches of one colour that are large and solid enough, each measured."""
    found: list[Found] = []
    owners = np.full(labels.shape, -1)
    for colour in np.unique(labels[labels >= 0]):
        patches, count = ndimage.label(labels == colour, _SQUARE)
        for index in range(1, count + 1):
            patch = patches == index
            if patch.sum() < LEAST_PIXELS or not ndimage.binary_erosion(patch).any():
                continue
            around = ndimage.binary_dilation(patch, _SQUARE, iterations=2) & ((labels < 0) | patch)
            owners[patch] = len(found)
            found.append(_measure(np.where(around, coverage[colour], 0), _COLOUR_NAMES[colour]))
    return tuple(found), owners


def _measure(mask: np.ndarray, colour: str) -> Found:
    """Shape, centre and radius of a soft mask (64, 64) by the template that fits it best.

    The fit is the soft Dice overlap 2 <a, b> / (<a, a> + <b, b>), 1 for equal masks. Only radii of this domain
    are tried: a small blob is a star whose points were lost, because no circle is so small.
    """
    total = mask.sum()
    x, y = float((mask * _X).sum() / total), float((mask * _Y).sum() / total)
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
    return Found(
        SHAPES[shape], colour, "small" if r < _BETWEEN else "large",
        x - dx - float(cx), y - dy - float(cy), r,
        float(likeness.max()), tuple(float(value) for value in likeness),
    )  # fmt: skip


def _patch(mask: np.ndarray, x: float, y: float) -> np.ndarray:
    """The mask around its centroid (x, y), moved by part of a pixel so that the centroid is the patch's
    middle."""
    padded = np.pad(mask, _SIDE // 2 + 1)
    left, top = x + 1, y + 1  # _SIDE / 2 to the left of the centroid, in the padded picture
    column, row = int(left), int(top)
    a, b = left - column, top - row
    part = padded[row : row + _SIDE + 1, column : column + _SIDE + 1]
    part = (1 - b) * part[:-1] + b * part[1:]
    return (1 - a) * part[:, :-1] + a * part[:, 1:]


@cache
def _templates() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every shape at every radius and blur, centroid in the middle.

    -> rows (n, side^2), their energy (n,), and how far the centroid lies from the centre, x and y, as
    (shapes, radii x blurs, 2).
    """
    middle = RESOLUTION / 2
    rows, centres = [], []
    for shape, radius, blur in product(SHAPES, _TEMPLATE_RADII, _BLURS):
        mask = ndimage.gaussian_filter(outline(shape, Place(middle, middle, float(radius))), blur)
        x, y = (mask * _X).sum() / mask.sum(), (mask * _Y).sum() / mask.sum()
        rows.append(_patch(mask, x, y).ravel())
        centres.append((x - middle, y - middle))
    stacked = np.array(rows, dtype=np.float32)
    return stacked, (stacked**2).sum(1), np.array(centres).reshape(len(SHAPES), -1, 2)


# ------------------------------------------------------------ intended scene


@dataclass(frozen=True)
class _Change:
    """The difference of two descriptions.

    `origins`: for each thing of the edited description the index of the thing of the source that it stands
    in the place of, or None for a new one. `removed`: indices of the source that nothing stands for.
    """

    origins: tuple[int | None, ...]
    removed: tuple[int, ...]


def _change(source: Description, edited: Description) -> _Change:
    """With as many things as before, each stands where the one of its rank stood (recolour, reshape, resize,
    swap).

    Otherwise the things that both have keep their order, and the rest were added or removed.
    """
    if len(source.things) == len(edited.things):
        return _Change(tuple(range(len(edited.things))), ())
    left = list(range(len(source.things)))
    origins: list[int | None] = []
    for thing in edited.things:
        same = next((index for index in left if source.things[index] == thing), None)
        origins.append(same)
        if same is not None:
            left.remove(same)
    return _Change(tuple(origins), tuple(left))


def intended_scene(source: np.ndarray, source_caption: str, edited_caption: str) -> Scene:
    """What the edited picture should show: the source's things where they are, with the change of captions
    applied.

    A thing that is new, or that the source fails to show, gets the freest place of its order. A swapped thing
    takes the other's centre.
    """
    return _intended(_read(source), parse_caption(source_caption), parse_caption(edited_caption))


def _intended(reading: _Reading, before: Description, after: Description) -> Scene:
    located = _located(reading, before)
    origins = _change(before, after).origins
    places: list[Place | None] = []
    for thing, origin in zip(after.things, origins, strict=True):
        place = None if origin is None else located[origin]
        if place is not None and before.things[origin].size != thing.size:
            place = inside(replace(place, radius=_usual_radius(thing.size)))
        places.append(place)
    for index, thing in enumerate(after.things):
        if places[index] is None:
            places[index] = _free_place(places, index, _usual_radius(thing.size))
    return Scene(after, tuple(place for place in places if place is not None))


def _usual_radius(size: str) -> float:
    return sum(RADII[size]) / 2


def _located(reading: _Reading, description: Description) -> list[Place | None]:
    """Where each described thing is in a picture, None for what it does not show."""
    matches = _match(reading.found, description.things, [None] * len(description.things))
    return [None if found is None else reading.found[found].place for found in matches]


def _free_place(places: list[Place | None], index: int, radius: float) -> Place:
    """The centre with most room around it, between the neighbours of rank `index` from left to right."""
    least = radius + MARGIN
    x, y = np.meshgrid(
        np.arange(least, RESOLUTION - least + 0.01, 0.5), np.arange(least, RESOLUTION - least + 0.01, 0.5)
    )
    room = np.full(x.shape, 0.0) + 0.01 * np.minimum(np.minimum(x, RESOLUTION - x), np.minimum(y, RESOLUTION - y))
    clear = np.full(x.shape, np.inf)
    for rank, other in enumerate(places):
        if other is None:
            continue
        clear = np.minimum(clear, np.hypot(x - other.x, y - other.y) - other.radius - radius)
        ahead = x - other.x if rank < index else other.x - x
        clear = np.where(ahead >= ORDER_GAP, clear, np.minimum(clear, 0) + (ahead - ORDER_GAP))
    best = np.unravel_index((np.minimum(clear, 6) + room).argmax(), x.shape)
    return Place(float(x[best]), float(y[best]), radius)


# ------------------------------------------------------------ scores, each 0..1


def _shape_score(found: Found, shape: str) -> float:
    """1 where the shape's template fits clearly better than any other's, 0.5 where two fit alike."""
    own = found.likeness[SHAPES.index(shape)]
    rival = max(value for name, value in zip(SHAPES, found.likeness, strict=True) if name != shape)
    return _ramp(own - rival, -0.02, 0.02) * _ramp(own, 0.6, 0.8)


def _size_score(found: Found, size: str) -> float:
    large = _ramp(found.radius, _BETWEEN - 0.75, _BETWEEN + 0.75)
    return large if size == "large" else 1 - large


def _closeness(found: Found, place: Place, full: float = 3.0, none: float = 8.0) -> float:
    """1 within `full` pixels of the place, 0 from `none` on."""
    return 1 - _ramp(float(np.hypot(found.x - place.x, found.y - place.y)), full, none)


def _ramp(value: float, low: float, high: float) -> float:
    return min(1.0, max(0.0, (value - low) / (high - low)))


def _identity(found: Found, thing: Thing) -> float:
    """How far a found thing is the described one, wherever it is; a wrong size alone makes it 0.4."""
    return (
        (found.colour == thing.colour) * _shape_score(found, thing.shape) * (0.4 + 0.6 * _size_score(found, thing.size))
    )


def _match(found: tuple[Found, ...], things: tuple[Thing, ...], places: list[Place | None]) -> list[int | None]:
    """For each wanted thing the index of the found one that stands for it, None where no found one is
    alike."""
    gains = np.zeros((len(things), len(found)))
    for row, (thing, place) in enumerate(zip(things, places, strict=True)):
        for column, seen in enumerate(found):
            alike = 1.0 * (seen.colour == thing.colour) + _shape_score(seen, thing.shape)
            near = 0.5 if place is None else _closeness(seen, place, 2, 20)
            gains[row, column] = alike + near + 0.2 * _size_score(seen, thing.size)
    matches: list[int | None] = [None] * len(things)
    for row, column in zip(*linear_sum_assignment(gains, maximize=True), strict=True):
        place = places[row]
        near = place is not None and _closeness(found[column], place, 6, 12) > 0
        if near or found[column].colour == things[row].colour or found[column].shape == things[row].shape:
            matches[row] = int(column)
    return matches


def _ground_share(reading: _Reading, background: str) -> float:
    """Share of the pixels away from things that have the background's colour."""
    free = ~ndimage.binary_dilation(reading.owners >= 0, _SQUARE, iterations=3)
    return (
        float((reading.nearest[free] == _NUM_COLOURS + _GROUND_NAMES.index(background)).mean()) if free.any() else 0.0
    )


def _cover(reading: _Reading, thing: Thing, place: Place, spared: set[int]) -> float:
    """Share of a thing's outline that shows some thing other than the `spared` ones."""
    core = outline(thing.shape, place) > 0.9
    shown = (reading.labels >= 0) & ~np.isin(reading.owners, list(spared))
    return float(shown[core].mean()) if core.any() else 0.0


def _colour_share(reading: _Reading, found: int, colour: str, spared: set[int]) -> float:
    """Share of the pixels in a found thing's circle, but for those of `spared` things, that have the
    colour."""
    place = reading.found[found].place
    near = np.hypot(_X - place.x, _Y - place.y) <= place.radius
    shown = near & (reading.labels >= 0) & ~np.isin(reading.owners, list(spared))
    return float((reading.labels[shown] == _COLOUR_NAMES.index(colour)).mean()) if shown.any() else 0.0


# ------------------------------------------------------------ verdict


def judge(source: bytes | np.ndarray, edited: bytes | np.ndarray, source_caption: str, edited_caption: str) -> Verdict:
    """The verdict on an edited picture, given the source and what each should show.

    followed: the product of what was asked, each measured where it should be seen (see `_followed`).
    preserved: (mean + least) / 2 over the other things and over the attributes of changed things that nobody
    asked to change, times the background's share (unless it was asked to change), times 0.4 for each thing
    that should not be there.
    """
    before, after = parse_caption(source_caption), parse_caption(edited_caption)
    seen, reading = _read_any(source), _read_any(edited)
    wanted = _intended(seen, before, after)
    change = _change(before, after)
    places = [None if origin is None else place for origin, place in zip(change.origins, wanted.places, strict=True)]
    matches = _match(reading.found, after.things, places)
    gone = [(before.things[index], place) for index in change.removed if (place := _located(seen, before)[index])]
    followed = _followed(reading, before, wanted, change, matches, gone)
    return Verdict(followed, _preserved(reading, before, wanted, change, matches))


def _read_any(picture: bytes | np.ndarray) -> _Reading:
    return _read_encoded(picture) if isinstance(picture, bytes) else _read(resize(picture, RESOLUTION))


@lru_cache(maxsize=64)
def _read_encoded(picture: bytes) -> _Reading:
    """Kept, because all edits of a prompt are judged against the same source."""
    return _read(resize(decode(picture), RESOLUTION))


def _followed(
    reading: _Reading,
    before: Description,
    wanted: Scene,
    change: _Change,
    matches: list[int | None],
    gone: list[tuple[Thing, Place]],
) -> float:
    """The product over what was asked: the new attributes of each changed thing, seen at its place; the
    presence and order of a new thing; the absence of a removed one; the share of the new background. 1 if
    nothing was asked."""
    after, score = wanted.description, 1.0
    if after.background != before.background:
        score *= _ramp(_ground_share(reading, after.background), 0.2, 0.8)
    for index, origin in enumerate(change.origins):
        was = None if origin is None else before.things[origin]
        if was != after.things[index]:
            score *= _asked(reading, was, wanted, index, matches)
    spared = {match for match in matches if match is not None}
    for thing, place in gone:
        score *= 1 - _ramp(_cover(reading, thing, place, spared), 0.1, 0.5)
        score *= 1 - max([_identity(f, thing) for i, f in enumerate(reading.found) if i not in spared], default=0.0)
    return score


def _asked(reading: _Reading, was: Thing | None, wanted: Scene, index: int, matches: list[int | None]) -> float:
    """How far one changed thing has what was asked of it; `was` is what stood in its place."""
    match, thing = matches[index], wanted.description.things[index]
    if match is None:
        return 0.0
    found, others = reading.found[match], {m for m in matches if m not in (None, match)}
    if was is None:
        return _identity(found, thing) * _order(reading, index, matches)
    differ = [name for name in ("shape", "colour", "size") if getattr(was, name) != getattr(thing, name)]
    score = _closeness(found, wanted.places[index], 5, 11)
    if len(differ) > 1 or thing in wanted.description.things[:index]:  # another thing stands here now
        return score * _identity(found, thing)
    if "colour" in differ:
        score *= _colour_share(reading, match, thing.colour, others)
    if "shape" in differ:
        score *= _shape_score(found, thing.shape)
    return score * _size_score(found, thing.size) if "size" in differ else score


def _order(reading: _Reading, index: int, matches: list[int | None]) -> float:
    """1 where the thing of rank `index` lies between its neighbours from left to right, 0 where it does
    not."""
    here, score = matches[index], 1.0
    for rank, match in enumerate(matches):
        if here is not None and match is not None and rank != index:
            gap = reading.found[here].x - reading.found[match].x
            score *= _ramp(gap if rank < index else -gap, -2, 2)
    return score


def _preserved(
    reading: _Reading, before: Description, wanted: Scene, change: _Change, matches: list[int | None]
) -> float:
    after = wanted.description
    kept = []
    for index, (origin, match) in enumerate(zip(change.origins, matches, strict=True)):
        was = None if origin is None else before.things[origin]
        differ = set() if was is None else _differences(was, after.things[index])
        if was is not None and len(differ) < 2:
            found = None if match is None else reading.found[match]
            kept.append(_kept(found, was, wanted.places[index], differ))
    score = 1.0 if not kept else (sum(kept) / len(kept) + min(kept)) / 2
    if after.background == before.background:
        score *= _ramp(_ground_share(reading, after.background), 0.5, 0.9)
    strangers = len(reading.found) - sum(match is not None for match in matches)
    return score * 0.4 ** _new_strangers(reading, strangers, change)


def _differences(was: Thing, thing: Thing) -> set[str]:
    return {name for name in ("shape", "colour", "size") if getattr(was, name) != getattr(thing, name)}


def _kept(found: Found | None, was: Thing, place: Place, differ: set[str]) -> float:
    """How far a thing kept its place and those attributes that were not asked to change."""
    if found is None:
        return 0.0
    score = _closeness(found, place)
    if "colour" not in differ:
        score *= float(found.colour == was.colour)
    if "shape" not in differ:
        score *= _shape_score(found, was.shape)
    return score if "size" in differ else score * _size_score(found, was.size)


def _new_strangers(reading: _Reading, strangers: int, change: _Change) -> int:
    """Things that should not be there; one left over for each that should have been removed is `followed`'s
    matter."""
    return max(0, strangers - len(change.removed))


def adherence(pixels: np.ndarray, caption: str) -> float:
    """How far a picture shows what its caption says, 0..1: the mean over its things, in order from left to
    right, times the background's share, times 0.4 for each thing too many."""
    description, reading = parse_caption(caption), _read(pixels)
    matches = _match(reading.found, description.things, [None] * len(description.things))
    scores = [
        0.0 if match is None else _identity(reading.found[match], thing) * _order(reading, index, matches)
        for index, (thing, match) in enumerate(zip(description.things, matches, strict=True))
    ]
    strangers = len(reading.found) - sum(match is not None for match in matches)
    ground = _ramp(_ground_share(reading, description.background), 0.2, 0.8)
    return float(np.mean(scores)) * ground * 0.4**strangers


# ------------------------------------------------------------ ranking


class SimulatedAnnotator:
    """Ranks the edits of a prompt as a person might: by the verdict, with noise of their own, and with ties.

    The utility of an edit is 0.5 sqrt(followed * preserved) + 0.25 followed + 0.25 preserved, 0..1, plus
    Gaussian noise of the standard deviation `noise`, drawn from (seed, annotator, prompt, edit) alone.
    """

    def __init__(self, index: int = 0, *, seed: int = 0, noise: float = 0.08, tie_within: float = 0.03):
        self.name, self.seed, self.noise, self.tie_within = f"simulated-{index}", seed, noise, tie_within

    def __call__(self, row: Row) -> list[int]:
        """The ranks of a row of `candidates`, aligned with its edits: 1 is best, equal numbers are ties."""
        return ranks_of([self.utility(row, edit) for edit in row["edits"]], self.tie_within)

    def utility(self, row: Row, edit: Row) -> float:
        """What this annotator thinks of one edit."""
        verdict = judge(row["source_image"], edit["image"], row["source_caption"], row["edited_caption"])
        seed = seed_for("annotator", self.seed, self.name, row["prompt_id"], edit["edit_id"])
        return preference(verdict) + self.noise * float(np.random.default_rng(seed).standard_normal())


def preference(verdict: Verdict) -> float:
    """0.5 sqrt(followed * preserved) + 0.25 followed + 0.25 preserved: both matter, and one without the
    other little."""
    both = (verdict.followed * verdict.preserved) ** 0.5
    return 0.5 * both + 0.25 * (verdict.followed + verdict.preserved)


def ranks_of(utilities: list[float], tie_within: float) -> list[int]:
    """Ranks, 1 for the greatest utility; one within `tie_within` of the best of its group shares that rank,
    and the next group's rank is one more."""
    ranks, rank, best = [0] * len(utilities), 0, float("inf")
    for index in sorted(range(len(utilities)), key=lambda index: -utilities[index]):
        if best - utilities[index] > tie_within:
            rank, best = rank + 1, utilities[index]
        ranks[index] = rank
    return ranks


def rank_candidates(rows: Rows, annotators: list[SimulatedAnnotator]) -> Rows:
    """Rows of `candidates` -> rows of `rankings`, one for each annotator."""
    return [
        row
        | {
            "ranking_id": id_for("ranking", row["prompt_id"], row["editor"], annotator.name),
            "annotator": annotator.name,
            "ranks": annotator(row),
        }
        for row in rows
        for annotator in annotators
    ]
