"""The ground truth of the shapes domain: how well an edited picture follows the instruction and preserves the rest.

    source picture, both captions -> intended scene -> Judgement of an edited picture

The judge sees pictures and captions, never the name of an editor. It is used for evaluation and by the simulated
annotator; pairs are neither filtered nor weighted by it.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from hive_ray.images import decode, resize
from hive_ray.shapes.scene_reader import (
    BETWEEN_SIZES,
    COLOUR_NAMES,
    GROUND_NAMES,
    NUM_COLOURS,
    SQUARE,
    DetectedThing,
    SceneReading,
    X,
    Y,
    read_picture,
)
from hive_ray.shapes.scenes import (
    MARGIN,
    ORDER_GAP,
    RADII,
    RESOLUTION,
    SHAPES,
    Description,
    Place,
    Scene,
    Thing,
    move_inside,
    parse_caption,
    thing_mask,
)

RIGHT_THRESHOLD = 0.5
"""An edit is right if `followed` and `preserved` are at least this."""


@dataclass(frozen=True)
class Judgement:
    """How well an edit follows the instruction (`followed`) and preserves the rest (`preserved`), each 0..1."""

    followed: float
    preserved: float

    @property
    def right(self) -> bool:
        """Whether the edit is right, as in all tables and reports of this domain."""
        return self.followed >= RIGHT_THRESHOLD and self.preserved >= RIGHT_THRESHOLD


# ------------------------------------------------------------ intended scene


@dataclass(frozen=True)
class _Change:
    """The difference of two descriptions.

    `origins`: for each thing of the edited description, the index of the source thing that it replaces or keeps, or
    None for a new thing. `removed`: indices of source things without a successor.
    """

    origins: tuple[int | None, ...]
    removed: tuple[int, ...]


def _change(source: Description, edited: Description) -> _Change:
    """The change between two descriptions.

    If the number of things is equal, things correspond by rank (recolour, reshape, resize, swap). Otherwise things that
    both descriptions have keep their order, and the others were added or removed.
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
    """The scene that the edited picture should show: the things of the source picture with the change of captions.

    A thing that is new, or missing in the source picture, gets the place with the most room within the order. Swapped
    things exchange their centres.
    """
    return _intended(read_picture(source), parse_caption(source_caption), parse_caption(edited_caption))


def _intended(reading: SceneReading, before: Description, after: Description) -> Scene:
    located = _located(reading, before)
    origins = _change(before, after).origins
    places: list[Place | None] = []
    for thing, origin in zip(after.things, origins, strict=True):
        if origin is None:
            places.append(None)
            continue
        place = located[origin]
        if place is not None and before.things[origin].size != thing.size:
            place = move_inside(replace(place, radius=_usual_radius(thing.size)))
        places.append(place)
    for index, thing in enumerate(after.things):
        if places[index] is None:
            places[index] = _free_place(places, index, _usual_radius(thing.size))
    return Scene(after, tuple(place for place in places if place is not None))


def _usual_radius(size: str) -> float:
    return sum(RADII[size]) / 2


def _located(reading: SceneReading, description: Description) -> list[Place | None]:
    """The place of each described thing in a picture; None if the picture does not show it."""
    matches = _match(reading.things, description.things, [None] * len(description.things))
    return [None if match is None else reading.things[match].place for match in matches]


def _free_place(places: list[Place | None], index: int, radius: float) -> Place:
    """The place with the most room between the left and right neighbours of rank `index`."""
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


def _shape_score(shown: DetectedThing, shape: str) -> float:
    """1 if the template of the shape fits clearly better than all others, 0.5 if two fit equally."""
    own = shown.likeness[SHAPES.index(shape)]
    rival = max(value for name, value in zip(SHAPES, shown.likeness, strict=True) if name != shape)
    return _ramp(own - rival, -0.02, 0.02) * _ramp(own, 0.6, 0.8)


def _size_score(shown: DetectedThing, size: str) -> float:
    large = _ramp(shown.radius, BETWEEN_SIZES - 0.75, BETWEEN_SIZES + 0.75)
    return large if size == "large" else 1 - large


def _closeness(shown: DetectedThing, place: Place, full: float = 3.0, none: float = 8.0) -> float:
    """1 within `full` pixels of the place, 0 from `none` on."""
    return 1 - _ramp(float(np.hypot(shown.x - place.x, shown.y - place.y)), full, none)


def _ramp(value: float, low: float, high: float) -> float:
    return min(1.0, max(0.0, (value - low) / (high - low)))


def _identity(shown: DetectedThing, thing: Thing) -> float:
    """How far a found thing is the described one, wherever it is; a wrong size alone makes it 0.4."""
    return (
        (shown.colour == thing.colour) * _shape_score(shown, thing.shape) * (0.4 + 0.6 * _size_score(shown, thing.size))
    )


def _match(
    shown_things: tuple[DetectedThing, ...], things: tuple[Thing, ...], places: list[Place | None]
) -> list[int | None]:
    """For each wanted thing the index of the found one that stands for it, None where no found one is
    alike."""
    gains = np.zeros((len(things), len(shown_things)))
    for row, (thing, place) in enumerate(zip(things, places, strict=True)):
        for column, shown in enumerate(shown_things):
            alike = 1.0 * (shown.colour == thing.colour) + _shape_score(shown, thing.shape)
            near = 0.5 if place is None else _closeness(shown, place, 2, 20)
            gains[row, column] = alike + near + 0.2 * _size_score(shown, thing.size)
    matches: list[int | None] = [None] * len(things)
    for row, column in zip(*linear_sum_assignment(gains, maximize=True), strict=True):
        place = places[row]
        near = place is not None and _closeness(shown_things[column], place, 6, 12) > 0
        if near or shown_things[column].colour == things[row].colour or shown_things[column].shape == things[row].shape:
            matches[row] = int(column)
    return matches


def _ground_share(reading: SceneReading, background: str) -> float:
    """Share of the pixels away from things that have the background's colour."""
    free = ~np.asarray(ndimage.binary_dilation(reading.owners >= 0, SQUARE, iterations=3), dtype=bool)
    return float((reading.nearest[free] == NUM_COLOURS + GROUND_NAMES.index(background)).mean()) if free.any() else 0.0


def _cover(reading: SceneReading, thing: Thing, place: Place, spared: set[int]) -> float:
    """Share of a thing's outline that shows some thing other than the `spared` ones."""
    core = thing_mask(thing.shape, place) > 0.9
    shown = (reading.labels >= 0) & ~np.isin(reading.owners, list(spared))
    return float(shown[core].mean()) if core.any() else 0.0


def _colour_share(reading: SceneReading, index: int, colour: str, spared: set[int]) -> float:
    """Share of the pixels in a found thing's circle, but for those of `spared` things, that have the
    colour."""
    place = reading.things[index].place
    near = np.hypot(X - place.x, Y - place.y) <= place.radius
    shown = near & (reading.labels >= 0) & ~np.isin(reading.owners, list(spared))
    return float((reading.labels[shown] == COLOUR_NAMES.index(colour)).mean()) if shown.any() else 0.0


# ------------------------------------------------------------ verdict


def judge(
    source: bytes | np.ndarray, edited: bytes | np.ndarray, source_caption: str, edited_caption: str
) -> Judgement:
    """The verdict on an edited picture, given the source and what each should show.

    followed: the product of what was asked, each measured where it should be seen (see `_followed`).
    preserved: (mean + least) / 2 over the other things and over the attributes of changed things that
    should not change, times the background's share (unless it was asked to change), times 0.4 for each thing
    that should not be there.
    """
    before, after = parse_caption(source_caption), parse_caption(edited_caption)
    source_reading, reading = _read_any(source), _read_any(edited)
    intended = _intended(source_reading, before, after)
    change = _change(before, after)
    origins_and_places = zip(change.origins, intended.places, strict=True)
    places = [None if origin is None else place for origin, place in origins_and_places]
    matches = _match(reading.things, after.things, places)
    gone = [
        (before.things[index], place) for index in change.removed if (place := _located(source_reading, before)[index])
    ]
    followed = _followed(reading, before, intended, change, matches, gone)
    return Judgement(followed, _preserved(reading, before, intended, change, matches))


def _read_any(picture: bytes | np.ndarray) -> SceneReading:
    return _read_encoded(picture) if isinstance(picture, bytes) else read_picture(resize(picture, RESOLUTION))


@lru_cache(maxsize=64)
def _read_encoded(picture: bytes) -> SceneReading:
    """Cached, since all edits of a prompt are judged against the same source."""
    return read_picture(resize(decode(picture), RESOLUTION))


def _followed(
    reading: SceneReading,
    before: Description,
    intended: Scene,
    change: _Change,
    matches: list[int | None],
    gone: list[tuple[Thing, Place]],
) -> float:
    """The product over all requested changes; 1 if there are none.

    These are the new attributes of each changed thing at its place, the presence and order of a new thing, the absence
    of a removed one, and the share of the new background.
    """
    after, score = intended.description, 1.0
    if after.background != before.background:
        score *= _ramp(_ground_share(reading, after.background), 0.2, 0.8)
    for index, origin in enumerate(change.origins):
        was = None if origin is None else before.things[origin]
        if was != after.things[index]:
            score *= _asked(reading, was, intended, index, matches)
    spared = {match for match in matches if match is not None}
    for thing, place in gone:
        score *= 1 - _ramp(_cover(reading, thing, place, spared), 0.1, 0.5)
        score *= 1 - max([_identity(f, thing) for i, f in enumerate(reading.things) if i not in spared], default=0.0)
    return score


def _asked(reading: SceneReading, was: Thing | None, intended: Scene, index: int, matches: list[int | None]) -> float:
    """How well a changed thing shows the requested attributes; `was` is the thing before the edit."""
    match, thing = matches[index], intended.description.things[index]
    if match is None:
        return 0.0
    shown, others = reading.things[match], {m for m in matches if m not in (None, match)}
    if was is None:
        return _identity(shown, thing) * _order(reading, index, matches)
    differ = [name for name in ("shape", "colour", "size") if getattr(was, name) != getattr(thing, name)]
    score = _closeness(shown, intended.places[index], 5, 11)
    if len(differ) > 1 or thing in intended.description.things[:index]:  # another thing took this place
        return score * _identity(shown, thing)
    if "colour" in differ:
        score *= _colour_share(reading, match, thing.colour, others)
    if "shape" in differ:
        score *= _shape_score(shown, thing.shape)
    return score * _size_score(shown, thing.size) if "size" in differ else score


def _order(reading: SceneReading, index: int, matches: list[int | None]) -> float:
    """1 if the thing of rank `index` is between its left and right neighbours, 0 if not."""
    here, score = matches[index], 1.0
    for rank, match in enumerate(matches):
        if here is not None and match is not None and rank != index:
            gap = reading.things[here].x - reading.things[match].x
            score *= _ramp(gap if rank < index else -gap, -2, 2)
    return score


def _preserved(
    reading: SceneReading, before: Description, intended: Scene, change: _Change, matches: list[int | None]
) -> float:
    after = intended.description
    kept = []
    for index, (origin, match) in enumerate(zip(change.origins, matches, strict=True)):
        was = None if origin is None else before.things[origin]
        differ = set() if was is None else _differences(was, after.things[index])
        if was is not None and len(differ) < 2:
            shown = None if match is None else reading.things[match]
            kept.append(_kept(shown, was, intended.places[index], differ))
    score = 1.0 if not kept else (sum(kept) / len(kept) + min(kept)) / 2
    if after.background == before.background:
        score *= _ramp(_ground_share(reading, after.background), 0.5, 0.9)
    strangers = len(reading.things) - sum(match is not None for match in matches)
    return score * 0.4 ** _new_strangers(reading, strangers, change)


def _differences(was: Thing, thing: Thing) -> set[str]:
    return {name for name in ("shape", "colour", "size") if getattr(was, name) != getattr(thing, name)}


def _kept(shown: DetectedThing | None, was: Thing, place: Place, differ: set[str]) -> float:
    """How well a thing kept its place and the attributes that should not change."""
    if shown is None:
        return 0.0
    score = _closeness(shown, place)
    if "colour" not in differ:
        score *= float(shown.colour == was.colour)
    if "shape" not in differ:
        score *= _shape_score(shown, was.shape)
    return score if "size" in differ else score * _size_score(shown, was.size)


def _new_strangers(reading: SceneReading, strangers: int, change: _Change) -> int:
    """Number of unexpected things, without things that should have been removed, which `followed` counts."""
    return max(0, strangers - len(change.removed))


def adherence(pixels: np.ndarray, caption: str) -> float:
    """How well a picture shows its caption, 0..1.

    The mean over the things of the caption, in order from left to right, times the background's share, times 0.4 for
    each surplus thing.
    """
    description, reading = parse_caption(caption), read_picture(pixels)
    matches = _match(reading.things, description.things, [None] * len(description.things))
    scores = [
        0.0 if match is None else _identity(reading.things[match], thing) * _order(reading, index, matches)
        for index, (thing, match) in enumerate(zip(description.things, matches, strict=True))
    ]
    strangers = len(reading.things) - sum(match is not None for match in matches)
    ground = _ramp(_ground_share(reading, description.background), 0.2, 0.8)
    return float(np.mean(scores)) * ground * 0.4**strangers
