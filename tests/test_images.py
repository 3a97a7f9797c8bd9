import numpy as np
import pytest

from hive_ray.images import ImageError, decode, encode, resize, thumbnail, to_batch, to_pixels, to_tensor

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


def test_a_batch_has_one_size():
    batch = to_batch([encode(PIXELS), encode(PIXELS[:4])], 6)
    assert batch.shape == (2, 3, 6, 6)
    assert resize(PIXELS, 8) is PIXELS


def test_a_thumbnail_keeps_small_pictures_and_shrinks_large_ones_in_proportion():
    small, wide = encode(PIXELS), encode(np.tile(PIXELS, (4, 16, 1)))  # 128 wide, 32 high
    assert thumbnail(small, 8) is small
    assert decode(thumbnail(wide, 64)).shape == (16, 64, 3)
    assert thumbnail(wide, 64)[:2] == b"\xff\xd8"
