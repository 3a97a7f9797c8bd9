import numpy as np
import pytest
from PIL import Image

from hive_ray.images import decode, encode
from hive_ray.pairs.cycle import make_twin, source_names
from hive_ray.pairs.filtering import (
    contrast,
    difference,
    drop_reason,
    keep_best,
    mean_colours,
    measure_pair,
    min_similarities,
)
from hive_ray.pairs.safety import flag_nothing
from hive_ray.presets import sd15, shapes

SETTINGS = sd15().pairs.model_copy(update={"least_clip_image": 0.7, "least_clip_direction": 0.2})


def picture(seed: int, *, size: int = 64, box: tuple | None = None) -> bytes:
    """Smooth random colours; `box` (left, top, side, colour) is painted over them."""
    coarse = np.random.default_rng(seed).integers(40, 216, (8, 8, 3), dtype=np.uint8)
    pixels = np.array(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))
    if box:
        left, top, side, colour = box
        pixels[top : top + side, left : left + side] = colour
    return encode(pixels)


def plain(colour) -> bytes:
    return encode(np.full((64, 64, 3), colour, dtype=np.uint8))


def pair(name, direction, image=0.9, source=None, edited=None):
    seed = sum(map(ord, name))
    return {
        "pair_id": name, "clip_image": image, "clip_direction": direction, "clip_source_text": 0.5,
        "clip_edited_text": 0.6, "source_image": source or picture(seed), "edited_image": edited or picture(seed + 500),
    }  # fmt: skip


def best(pairs, keep, flagged=flag_nothing):
    settings = SETTINGS.model_copy(update={"keep_per_instruction": keep})
    kept, dropped = keep_best(pairs, settings, flagged)
    return [one["pair_id"] for one in kept], sorted((one["pair_id"], reason) for reason, one in dropped)


def reason_of(one: dict) -> str | None:
    return drop_reason(one, measure_pair(one), SETTINGS)


def test_a_pair_below_a_limit_is_dropped_with_column_and_limit():
    assert reason_of(pair("a", 0.1)) == "clip_direction_below_0.2"
    assert reason_of(pair("a", 0.5, image=0.69)) == "clip_image_below_0.7"
    assert reason_of(pair("a", 0.2, image=0.7)) is None


def test_a_similarity_that_is_no_number_passes_no_limit():
    assert reason_of(pair("a", float("nan"))) == "clip_direction_below_0.2"


@pytest.mark.parametrize("colour", [0, 255, (200, 30, 30)])
def test_a_picture_of_one_colour_is_flat_whatever_clip_says(colour):
    assert reason_of(pair("a", 0.5, source=plain(colour))) == "source_image_is_flat"
    assert reason_of(pair("a", -1.0, edited=plain(colour))) == "edited_image_is_flat"


def test_contrast_is_that_of_the_channel_that_varies_most():
    pixels = np.zeros((4, 4, 3), dtype=np.uint8)
    pixels[:2, :, 0], pixels[2:, :, 1] = 100, 51  # red over green: of much the same brightness
    assert contrast(pixels) == pytest.approx(50)
    assert contrast(decode(plain(90))) == 0


def test_noise_and_compression_are_no_edit_but_a_small_thing_or_another_colour_is():
    source = picture(1, size=512)
    rng = np.random.default_rng(0)
    noisy = decode(source) + rng.normal(0, 20, (512, 512, 3))
    noisy = encode(noisy.clip(0, 255).astype(np.uint8))
    small = picture(1, size=512, box=(100, 200, 20, (255, 0, 0)))  # 0.15 % of the picture
    assert reason_of(pair("a", 0.5, source=source, edited=source)) == "edit_changed_nothing"
    assert reason_of(pair("a", 0.5, source=source, edited=noisy)) == "edit_changed_nothing"
    assert reason_of(pair("a", 0.5, source=source, edited=small)) is None
    grey, red = (picture(1, box=(16, 16, 24, colour)) for colour in ((76, 76, 76), (255, 0, 0)))  # as bright
    assert reason_of(pair("a", 0.5, source=grey, edited=red)) is None


def test_difference_is_the_greatest_of_any_cell():
    black, corner = plain(0), np.zeros((64, 64, 3), dtype=np.uint8)
    corner[:4, :4, 2] = 90  # one cell of the 16x16
    assert difference(mean_colours(decode(black)), mean_colours(corner)) == 90
    assert difference(mean_colours(decode(black)), mean_colours(decode(black))) == 0


def test_the_best_by_direction_are_kept_whatever_the_order():
    pairs = [pair("a", 0.3), pair("b", 0.9), pair("c", 0.1), pair("d", 0.3)]
    for order in (pairs, pairs[::-1]):
        kept, dropped = best(order, keep=2)
        assert kept == ["b", "a"]
        assert dropped == [("c", "clip_direction_below_0.2"), ("d", "not_among_the_best")]


def test_of_two_pairs_that_show_the_same_the_one_with_the_greater_direction_stays():
    same = {"source": picture(1), "edited": picture(2)}
    pairs = [pair("a", 0.3, **same), pair("b", 0.9, **same), pair("c", 0.25)]
    for order in (pairs, pairs[::-1]):
        assert best(order, keep=2) == (["b", "c"], [("a", "near_duplicate")])


def test_pairs_with_one_picture_in_common_are_two():
    pairs = [pair("a", 0.3, source=picture(1)), pair("b", 0.9, source=picture(1))]
    assert best(pairs, keep=2) == (["b", "a"], [])


def test_a_pair_is_unsafe_if_either_picture_is_flagged_and_the_next_best_takes_its_place():
    bad = picture(77)
    pairs = [pair("a", 0.9, source=bad), pair("b", 0.8, edited=bad), pair("c", 0.7), pair("d", 0.1, edited=bad)]
    found = best(pairs, 1, lambda pictures: [one == bad for one in pictures])
    assert found == (["c"], [("a", "unsafe"), ("b", "unsafe"), ("d", "clip_direction_below_0.2")])


def test_the_embedded_domain_keeps_what_it_kept_whatever_the_pictures_show():
    settings = shapes().pairs
    passing = {column: 1.0 for column in min_similarities(settings)}
    flat = pair("a", 1.0, source=plain(10), edited=plain(10)) | passing
    kept, dropped = keep_best([flat, flat | {"pair_id": "b"}], settings, flag_nothing)
    assert ([one["pair_id"] for one in kept], dropped) == (["a", "b"], [])


def test_every_limit_of_the_settings_is_a_column():
    assert set(min_similarities(shapes().pairs)) <= set(pair("a", 0.5))


def test_a_twin_goes_back_and_a_twin_of_a_twin_forth_again():
    forth = pair("a", 0.4) | {
        "instruction": "make it blue", "source_caption": "red", "edited_caption": "blue", "source_image": b"r",
        "edited_image": b"b", "origin": "generated",
    }  # fmt: skip
    back = make_twin(forth, "make it red")
    assert (back["source_image"], back["edited_image"], back["instruction"]) == (b"b", b"r", "make it red")
    assert (back["clip_source_text"], back["clip_edited_text"], back["clip_direction"]) == (0.6, 0.5, 0.4)
    assert back["origin"] == "cycle"
    assert back["pair_id"] != forth["pair_id"]
    assert source_names(forth) == source_names(back) == ["red"]
    bare = forth | {"source_caption": "", "edited_caption": ""}
    assert set(source_names(bare)) == set(source_names(make_twin(bare, "make it red")))
    assert set(source_names(bare | {"source_image": b"b", "edited_image": b"c"})) & set(source_names(bare))
    again = make_twin(back, "make it blue")
    assert {name: again[name] for name in forth if name not in ("pair_id", "origin")} == {
        name: forth[name] for name in forth if name not in ("pair_id", "origin")
    }
