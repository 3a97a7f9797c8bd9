import numpy as np
import pytest
import torch

from hive_ray.images import (
    ImageError,
    Window,
    crop_to,
    decode,
    encode,
    resize,
    thumbnail,
    to_batch,
    to_pixels,
    to_tensor,
    window,
)

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def test_pixels_survive_both_ways():
    assert np.array_equal(decode(encode(PIXELS)), PIXELS)
    assert np.array_equal(to_pixels(to_tensor(PIXELS)), PIXELS)


def test_tensors_run_from_minus_one_to_one():
    tensor = to_tensor(np.array([[[0, 127, 255]]], dtype=np.uint8))
    assert tensor.flatten().tolist() == pytest.approx([-1, -1 / 255, 1])


def test_values_out_of_range_are_clamped():
    assert to_pixels(to_tensor(PIXELS) * 9).max() == 255


def test_what_is_no_picture_is_refused_in_words():
    with pytest.raises(ImageError, match=r"5 bytes starting 68656c6c are not a readable image"):
        decode(b"hello")
    with pytest.raises(ImageError):
        decode(encode(PIXELS)[:40])
    noise = encode(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8))
    second = noise.index(b"IDAT", noise.index(b"IDAT") + 4)
    with pytest.raises(ImageError):  # a chunk in the middle has lost its name
        decode(noise[:second] + b"\xd6\x00\x07\xff" + noise[second + 4 :])


def test_a_batch_has_one_size():
    batch = to_batch([encode(PIXELS), encode(PIXELS[:4])], 6)
    assert batch.shape == (2, 3, 6, 6)
    assert resize(PIXELS, 8) is PIXELS


def test_a_thumbnail_keeps_small_pictures_and_shrinks_large_ones_in_proportion():
    small, wide = encode(PIXELS), encode(np.tile(PIXELS, (4, 16, 1)))  # 128 wide, 32 high
    assert thumbnail(small, 8) is small
    assert decode(thumbnail(wide, 64)).shape == (16, 64, 3)
    assert thumbnail(wide, 64)[:2] == b"\xff\xd8"


def test_a_window_is_all_of_a_picture_or_a_square_of_its_short_side():
    assert window((100, 300), 64) == Window(64, 64, 0, 0)
    assert window((100, 300), 64, "center") == Window(64, 192, 0, 64)
    assert window((300, 100), 64, "center") == Window(192, 64, 64, 0)
    assert window((128, 96), 64, "random", (0.0, 0.0)) == Window(85, 64, 0, 0)  # 85.3 rows
    assert window((128, 96), 64, "random", (0.999, 0.999)) == Window(85, 64, 21, 0)


def test_a_square_is_cut_out_of_the_scaled_picture():
    wide = np.tile(PIXELS, (1, 3, 1))  # 8 high, 24 wide
    assert np.array_equal(crop_to(wide, window((8, 24), 8, "center"), 8), PIXELS)
    assert np.array_equal(crop_to(wide, window((8, 24), 8, "random", (0.0, 0.5)), 8), wide[:, 8:16])
    assert np.array_equal(crop_to(wide, window((8, 24), 8), 8), resize(wide, 8))


def test_a_batch_keeps_its_order_whatever_the_number_of_threads():
    images = [encode(np.full((9, 7, 3), 10 * number, dtype=np.uint8)) for number in range(7)]
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            batch = to_batch(images, 8)
            assert batch.shape == (7, 3, 8, 8)
            assert [round((level + 1) * 127.5) for level in batch[:, 0, 0, 0].tolist()] == [*range(0, 70, 10)]
            with pytest.raises(ImageError):
                to_batch([*images, b"broken"], 8)
    finally:
        torch.set_num_threads(before)
