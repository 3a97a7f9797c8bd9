import numpy as np
import pytest

from hive_ray.shapes.scenes import (
    BACKGROUNDS,
    COLOURS,
    MARGIN,
    ORDER_GAP,
    RADII,
    RESOLUTION,
    SHAPES,
    CaptionError,
    Description,
    Place,
    Scene,
    Thing,
    draw,
    parse_caption,
    place_things,
    random_description,
    thing_mask,
)

RED_CIRCLE = Thing("circle", "red", "small")
BLUE_RING = Thing("ring", "blue", "large")


def test_a_caption_names_things_from_left_to_right_and_the_background():
    orange = Thing("star", "orange", "small")
    assert Description((RED_CIRCLE,), "white").caption == "a small red circle on a white background"
    assert (
        Description((RED_CIRCLE, BLUE_RING, orange), "navy").caption
        == "a small red circle, a large blue ring and a small orange star on a navy background"
    )


def test_parsing_a_caption_gives_its_description_back():
    rng = np.random.default_rng(0)
    for _ in range(100):
        description = random_description(rng)
        assert parse_caption(description.caption) == description


@pytest.mark.parametrize(
    "caption",
    [
        "a photo of a cat",
        "a small red circle",
        "a small red circle on a red background",
        "a small red blob on a white background",
        "a tiny red circle on a white background",
    ],
)
def test_another_caption_is_refused_and_the_message_shows_it_and_an_example(caption):
    with pytest.raises(CaptionError, match="a large blue square") as error:
        parse_caption(caption)
    assert caption in str(error.value) or "names" in str(error.value)


def test_things_of_a_random_description_differ_in_shape_and_in_colour():
    rng = np.random.default_rng(1)
    for _ in range(100):
        things = random_description(rng).things
        assert len({thing.shape for thing in things}) == len({thing.colour for thing in things}) == len(things)


def test_placed_things_are_apart_in_order_inside_and_of_their_size():
    rng = np.random.default_rng(2)
    for _ in range(100):
        scene = place_things(random_description(rng), rng)
        for i, (thing, a) in enumerate(zip(scene.description.things, scene.places, strict=True)):
            low, high = RADII[thing.size]
            assert low <= a.radius <= high
            assert a.radius + MARGIN <= a.x <= RESOLUTION - a.radius - MARGIN
            assert a.radius + MARGIN <= a.y <= RESOLUTION - a.radius - MARGIN
            for b in scene.places[i + 1 :]:
                assert b.x - a.x >= ORDER_GAP
                assert np.hypot(a.x - b.x, a.y - b.y) >= a.radius + b.radius + MARGIN


def test_a_picture_has_the_palette_s_colours_at_the_things_and_beside_them():
    scene = Scene(Description((RED_CIRCLE, BLUE_RING), "mint"), (Place(16, 16, 8), Place(44, 44, 12)))
    pixels = draw(scene)
    assert pixels.shape == (64, 64, 3)
    assert pixels.dtype == np.uint8
    assert tuple(pixels[16, 16]) == COLOURS["red"]
    assert tuple(pixels[44, 44 + 9]) == COLOURS["blue"]
    assert tuple(pixels[44, 44]) == BACKGROUNDS["mint"]  # the hole of the ring
    assert tuple(pixels[60, 4]) == BACKGROUNDS["mint"]


@pytest.mark.parametrize(
    ("shape", "area"),
    [
        ("circle", np.pi),
        ("square", 1.7**2),
        ("ring", np.pi * (1 - 0.25)),
        ("cross", 2 * 2 * 0.66 - 0.66**2),
        ("triangle", 3 * np.sqrt(3) / 4),
        ("star", 5 * np.sin(np.pi / 5) * 0.45),
    ],
)
def test_the_area_of_an_outline_is_its_geometry_s(shape, area):
    assert thing_mask(shape, Place(32, 32, 12)).sum() == pytest.approx(area * 12**2, rel=0.06)


def test_every_shape_has_its_own_outline():
    masks = [thing_mask(shape, Place(32, 32, 8)) for shape in SHAPES]
    for i, mask in enumerate(masks):
        assert all(np.abs(mask - other).sum() > 10 for other in masks[:i])
