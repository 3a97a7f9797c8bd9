"""Scenes of one to three things on a plain background: description, picture and caption.

A `Description` is the content of a caption; a `Scene` adds the place of each thing. Things are listed from left to
right, in the caption and in the scene, so that a caption fixes the layout up to small shifts.
"""

import re
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

RESOLUTION = 64
"""Width and height of a picture, pixels."""

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 35, 40),
    "orange": (250, 140, 20),
    "yellow": (250, 225, 40),
    "green": (30, 150, 60),
    "cyan": (20, 195, 215),
    "blue": (35, 70, 225),
    "purple": (130, 40, 175),
    "pink": (245, 125, 190),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (250, 250, 250),
    "gray": (140, 140, 140),
    "beige": (235, 215, 180),
    "mint": (180, 232, 200),
    "lavender": (205, 195, 240),
    "navy": (20, 25, 70),
}
RADII: dict[str, tuple[float, float]] = {"small": (7.0, 8.5), "large": (10.5, 12.0)}
"""Minimum and maximum radius of each size, pixels."""

MARGIN = 1.5  # pixels kept free between things and to the edge
ORDER_GAP = 8.0  # pixels by which the centre of the next thing lies further right
SUPERSAMPLING = 4


@dataclass(frozen=True, order=True)
class Thing:
    """A thing as a caption names it."""

    shape: str
    colour: str
    size: str

    @property
    def phrase(self) -> str:
        """Size, colour and shape."""
        return f"{self.size} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Description:
    """The content of a caption: things from left to right, and the background."""

    things: tuple[Thing, ...]
    background: str

    @property
    def caption(self) -> str:
        """The caption of this description."""
        phrases = [f"{_article(thing.phrase)} {thing.phrase}" for thing in self.things]
        listed = phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"
        return f"{listed} on {_article(self.background)} {self.background} background"


@dataclass(frozen=True)
class Place:
    """The centre and radius of a thing, pixels; y points down."""

    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """A description with a place for each thing."""

    description: Description
    places: tuple[Place, ...]


class CaptionError(ValueError):
    """A caption that does not describe a scene of shapes."""


def parse_caption(caption: str) -> Description:
    """Parse a caption; raises CaptionError, which shows an example, if it does not describe a scene of shapes."""
    listed, _, ground = caption.strip().lower().rstrip(".").partition(" on ")
    background = re.fullmatch(r"an? (\w+) background", ground)
    things = [re.fullmatch(r"an? (\w+) (\w+) (\w+)", part) for part in re.split(r", | and ", listed)]
    example = "'a small red circle and a large blue square on a white background'"
    if not background or background[1] not in BACKGROUNDS or not all(things) or not 1 <= len(things) <= 3:
        raise CaptionError(f"caption {caption!r} is not a scene of shapes; captions of this domain read like {example}")
    parsed = tuple(Thing(size=part[1], colour=part[2], shape=part[3]) for part in things if part)
    for thing in parsed:
        if thing.shape not in SHAPES or thing.colour not in COLOURS or thing.size not in RADII:
            raise CaptionError(f"caption {caption!r} names {thing.phrase!r}; shapes knows things like {example}")
    return Description(parsed, background[1])


def random_description(rng: np.random.Generator, num_things: int | None = None) -> Description:
    """A random description; its things differ in shape and in colour, so that each can be named."""
    count = num_things or int(rng.choice([1, 2, 3], p=[0.35, 0.45, 0.2]))
    shapes = rng.permutation(SHAPES)[:count]
    colours = rng.permutation(list(COLOURS))[:count]
    sizes = rng.choice(list(RADII), size=count)
    if count == 3 and (sizes == "large").sum() > 1:  # three large things do not fit side by side
        sizes[rng.permutation(3)[:2]] = "small"
    things = tuple(Thing(str(a), str(b), str(c)) for a, b, c in zip(shapes, colours, sizes, strict=True))
    return Description(things, str(rng.choice(list(BACKGROUNDS))))


def place_things(description: Description, rng: np.random.Generator) -> Scene:
    """Place the things of a description at random: apart, inside the picture, in order from left to right."""
    for _ in range(2000):
        radii = [float(rng.uniform(*RADII[thing.size])) for thing in description.things]
        xs = np.sort(rng.uniform(0, RESOLUTION, len(radii)))
        ys = rng.uniform(0, RESOLUTION, len(radii))
        places = tuple(move_inside(Place(float(x), float(y), r)) for x, y, r in zip(xs, ys, radii, strict=True))
        if is_apart(places):
            return Scene(description, places)
    raise ValueError(f"no room for {description.caption!r} in {RESOLUTION}x{RESOLUTION} pixels")


def move_inside(where: Place) -> Place:
    """The nearest place where the thing is completely inside the picture."""
    low, high = where.radius + MARGIN, RESOLUTION - where.radius - MARGIN
    return Place(float(np.clip(where.x, low, high)), float(np.clip(where.y, low, high)), where.radius)


def is_apart(places: tuple[Place, ...]) -> bool:
    """Whether things keep a distance and are in order from left to right."""
    return all(
        np.hypot(a.x - b.x, a.y - b.y) >= a.radius + b.radius + MARGIN and (i > j or b.x - a.x >= ORDER_GAP)
        for i, a in enumerate(places)
        for j, b in enumerate(places)
        if i < j
    )


def draw(scene: Scene) -> np.ndarray:
    """Draw a scene: uint8 (64, 64, 3) in 0..255, antialiased by supersampling."""
    side = RESOLUTION * SUPERSAMPLING
    canvas = Image.new("RGB", (side, side), BACKGROUNDS[scene.description.background])
    pen = ImageDraw.Draw(canvas)
    ground = BACKGROUNDS[scene.description.background]
    for thing, where in zip(scene.description.things, scene.places, strict=True):
        _draw_thing(pen, thing.shape, COLOURS[thing.colour], ground, where)
    return np.asarray(canvas.resize((RESOLUTION, RESOLUTION), Image.Resampling.BOX))


def thing_mask(shape: str, where: Place) -> np.ndarray:
    """The mask of a thing: its coverage of each pixel, float (64, 64) in 0..1."""
    side = RESOLUTION * SUPERSAMPLING
    canvas = Image.new("L", (side, side), 0)
    _draw_thing(ImageDraw.Draw(canvas), shape, 255, 0, where)
    return np.asarray(canvas.resize((RESOLUTION, RESOLUTION), Image.Resampling.BOX), dtype=np.float32) / 255


def _draw_thing(pen: ImageDraw.ImageDraw, shape: str, colour, ground, where: Place) -> None:
    x, y, r = (value * SUPERSAMPLING for value in (where.x, where.y, where.radius))
    if shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
    elif shape == "ring":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
        pen.ellipse((x - 0.5 * r, y - 0.5 * r, x + 0.5 * r, y + 0.5 * r), fill=ground)
    elif shape == "square":
        pen.rectangle((x - 0.85 * r, y - 0.85 * r, x + 0.85 * r, y + 0.85 * r), fill=colour)
    elif shape == "cross":
        pen.rectangle((x - r, y - 0.33 * r, x + r, y + 0.33 * r), fill=colour)
        pen.rectangle((x - 0.33 * r, y - r, x + 0.33 * r, y + r), fill=colour)
    else:
        points, inner = (3, 1.0) if shape == "triangle" else (5, 0.45)
        turns = np.arange(points * (1 if inner == 1.0 else 2))
        radius = np.where(turns % 2 == 0, r, r * inner) if inner != 1.0 else np.full(points, r)
        angle = 2 * np.pi * turns / len(turns) - np.pi / 2
        lift = 0.12 * r if shape == "triangle" else 0.0  # centres the triangle in its circle by eye
        pen.polygon(list(zip(x + radius * np.cos(angle), y + lift + radius * np.sin(angle), strict=True)), fill=colour)


def _article(phrase: str) -> str:
    return "an" if phrase[0] in "aeiou" else "a"
