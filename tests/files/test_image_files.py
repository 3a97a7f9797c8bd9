"""Pictures as people hand them in: every format, mode, profile and orientation is seen as a person sees it, and nothing
that can be in a file raises anything but ImageError."""

import io
import os
import random
import struct
import threading
import warnings

import numpy as np
import pytest
from hypothesis import given as given_any
from hypothesis import settings
from hypothesis import strategies as st
from mutate import COUNT, mutated
from pictures import (
    ADOBE_RGB,
    GREY,
    SCENE,
    SRGB_LINEAR,
    cmyk_profile,
    cut_out,
    encoded,
    exif,
    given,
    grey_profile,
    is_hidden,
    on_white,
    with_chunk,
)
from PIL import EpsImagePlugin, Image, ImageCms

from hive_ray.files.image_files import orientation_of
from hive_ray.images import (
    FORMATS,
    TO_UPRIGHT,
    ImageError,
    PictureTooLargeError,
    decode,
    encode,
    image_format,
    is_plain,
    size_of,
    thumbnail,
    to_plain,
    to_stored,
)

SRGB = ImageCms.createProfile("sRGB")
LOSSLESS = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True, "exact": True}}
CLOSE = {"JPEG": {"quality": 100, "subsampling": 0}, "AVIF": {"quality": 100, "subsampling": "4:4:4"}}
GREY_OF_COLOUR = np.repeat(GREY[..., None], 3, axis=2)
MILD = (SCENE // 2 + 60).astype(np.uint8)
"""Colours that every profile has."""


def furthest(pixels: np.ndarray, right: np.ndarray) -> int:
    """The greatest difference of a level."""
    return int(np.abs(pixels.astype(int) - right).max())


def in_space(pixels: np.ndarray, profile: bytes, mode: str = "RGB") -> Image.Image:
    """sRGB pixels in the numbers of a profile."""
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    return ImageCms.profileToProfile(Image.fromarray(pixels), SRGB, opened, outputMode=mode)


# --- Levels -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["grey16.png", "grey16.tiff"])
def test_grey_of_sixteen_bits_is_the_grey_of_eight(name):
    assert furthest(decode(given(name)), GREY_OF_COLOUR) == 0


def big_endian() -> Image.Image:
    return Image.frombytes("I;16B", (64, 64), (GREY.astype(">u2") * 257).tobytes())


@pytest.mark.parametrize(
    "data",
    [
        encoded(big_endian(), "TIFF"),
        encoded(big_endian(), "TIFF", compression="tiff_lzw"),
        encoded(big_endian(), "TIFF", compression="tiff_adobe_deflate"),
        encoded(GREY.astype(np.uint16) * 257, "PNG"),
        encoded(GREY.astype(np.int32) * 257, "TIFF"),
        encoded(GREY.astype(np.int32), "TIFF"),
        encoded((GREY / 255).astype(np.float32), "TIFF"),
    ],
    ids=["MM", "MM lzw", "MM deflate", "png", "32 bits of 16", "32 bits of 8", "float of 0..1"],
)
def test_more_than_eight_bits_are_scaled_to_eight(data):
    assert furthest(decode(data), GREY_OF_COLOUR) == 0


@pytest.mark.parametrize(
    "levels",
    [(GREY / 255 * 1000 - 3).astype(np.float32), GREY.astype(np.int32) * 2**20, GREY.astype(np.int32) - 300],
    ids=["float", "32 bits", "negative"],
)
def test_levels_of_no_known_white_are_scaled_by_their_own_range(levels):
    wide = GREY.astype(float)
    right = np.rint((wide - wide.min()) / (wide.max() - wide.min()) * 255)
    assert furthest(decode(encoded(levels, "TIFF"))[..., 0], right) == 0


def test_white_is_zero_is_turned_over():
    tiff = bytearray(encoded(GREY.astype(np.uint16) * 257, "TIFF"))
    place = tiff.index(struct.pack("<HHL", 262, 3, 1))
    assert tiff[place + 8] == 1
    tiff[place + 8] = 0
    assert furthest(decode(bytes(tiff)), 255 - GREY_OF_COLOUR) == 0


def test_twelve_bits_have_a_white_of_their_own():
    levels = np.rint(GREY / 255 * 4095).astype(int).reshape(-1, 2)
    packed = np.stack([levels[:, 0] >> 4, (levels[:, 0] & 15) << 4 | levels[:, 1] >> 8, levels[:, 1] & 255], axis=1)
    tiff = bytearray(encoded(GREY, "TIFF"))
    bits = tiff.index(struct.pack("<HHL", 258, 3, 1))
    tiff[bits + 8] = 12
    strips = tiff.index(struct.pack("<HHL", 273, 4, 1))
    tiff[strips + 8 : strips + 12] = struct.pack("<L", len(tiff))
    counts = tiff.index(struct.pack("<HHL", 279, 4, 1))
    tiff[counts + 8 : counts + 12] = struct.pack("<L", packed.size)
    assert furthest(decode(bytes(tiff) + packed.astype(np.uint8).tobytes()), GREY_OF_COLOUR) == 0


@pytest.mark.parametrize(
    ("levels", "words"), [(np.nan, "not finite"), (np.inf, "not finite"), (7.0, "are all 7, so none is white")]
)
def test_floating_point_levels_without_a_range_are_refused(levels, words):
    with pytest.raises(ImageError, match=words):
        decode(encoded(np.full((4, 4), levels, np.float32), "TIFF"))


def test_one_bit_and_lab_are_right():
    black_and_white = GREY > 150
    for data in (encoded(black_and_white, "PNG"), encoded(black_and_white, "TIFF", compression="group4")):
        assert furthest(decode(data), np.where(black_and_white[..., None], 255, 0)) == 0
    lab = ImageCms.profileToProfile(Image.fromarray(MILD), SRGB, ImageCms.createProfile("LAB"), outputMode="LAB")
    assert furthest(decode(encoded(lab, "TIFF")), MILD) <= 6


# --- Transparency -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cutout_black_below.png", "palette_transparent.png", "cutout.webp"])
def test_a_cut_out_lies_on_white(name):
    pixels = decode(given(name))
    assert furthest(pixels, on_white()) == 0
    assert tuple(pixels[20, 20]) == tuple(SCENE[20, 20])


def test_noise_below_transparent_pixels_is_not_seen():
    pixels = decode(given("cutout_noise_below.png"))
    assert pixels.shape == (24, 24, 3)
    alpha = np.asarray(Image.open(io.BytesIO(given("cutout_noise_below.png"))))[..., 3]
    assert (pixels[alpha == 0] == 255).all()
    assert (alpha == 0).any()


def grey_on_white() -> np.ndarray:
    return np.where(is_hidden()[..., None], 255, GREY_OF_COLOUR)


def without_its_ground(levels: np.ndarray) -> np.ndarray:
    ground = (levels == levels[0, 0]).reshape(*levels.shape[:2], -1).all(-1)
    return np.where(ground[..., None], 255, SCENE if levels.ndim == 3 else GREY_OF_COLOUR)


def key(*levels: int) -> bytes:
    return struct.pack(f">{len(levels)}H", *levels)


@pytest.mark.parametrize(
    ("data", "right"),
    [
        *((encoded(cut_out(), kind, **options), on_white()) for kind, options in LOSSLESS.items()),
        (encoded(cut_out().quantize(32), "PNG"), on_white()),
        (encoded(cut_out(), "GIF"), on_white()),
        (encoded(cut_out("LA"), "PNG"), grey_on_white()),
        (encoded(cut_out("LA"), "TIFF"), grey_on_white()),
        (with_chunk(encoded(SCENE, "PNG"), b"tRNS", key(*SCENE[0, 0].tolist())), without_its_ground(SCENE)),
        (with_chunk(encoded(GREY, "PNG"), b"tRNS", key(int(GREY[0, 0]))), without_its_ground(GREY)),
        (
            with_chunk(encoded(GREY.astype(np.uint16) * 257, "PNG"), b"tRNS", key(int(GREY[0, 0]) * 257)),
            without_its_ground(GREY),
        ),
    ],
    ids=["png", "tiff", "webp", "palette", "gif", "LA png", "LA tiff", "key rgb", "key grey", "key grey 16"],
)
def test_transparency_of_every_kind_lies_on_white(data, right):
    assert furthest(decode(data), right) == 0
    assert not is_plain(data)
    assert furthest(decode(to_stored(data)), right) == 0


def test_a_key_of_few_bits_is_met():
    black_and_white = encoded(GREY > 150, "PNG")
    assert (decode(black_and_white) == 0).any()
    assert (decode(with_chunk(black_and_white, b"tRNS", key(0))) == 255).all()


def test_half_transparent_pixels_are_mixed_with_white():
    half = np.zeros((2, 2, 4), np.uint8)
    half[...] = (100, 0, 200, 128)
    assert furthest(decode(encoded(half, "PNG")), np.array([177, 127, 227])) <= 1


# --- Colours ----------------------------------------------------------------------------------------------


def test_red_of_display_p3_is_the_red_of_srgb():
    pixels = decode(given("display_p3.png"))
    assert furthest(pixels, SCENE) <= 1
    assert furthest(pixels[20, 20], np.array([220, 40, 40])) <= 1


@pytest.mark.parametrize("profile", [ADOBE_RGB, SRGB_LINEAR], ids=["Adobe RGB", "linear"])
@pytest.mark.parametrize("kind", [*LOSSLESS, *CLOSE])
def test_every_profile_is_brought_to_srgb(profile, kind):
    stored = in_space(MILD, profile)
    assert furthest(np.asarray(stored), MILD) > 8
    data = encoded(stored, kind, icc_profile=profile, **(LOSSLESS | CLOSE)[kind])
    assert furthest(decode(data), MILD) <= (1 if kind in LOSSLESS else 8)
    assert not is_plain(data)


def test_a_profile_and_transparency_go_together():
    stored = Image.fromarray(np.dstack([in_space(MILD, ADOBE_RGB), np.where(is_hidden(), 0, 255)]).astype(np.uint8))
    right = np.where(is_hidden()[..., None], 255, MILD)
    assert furthest(decode(encoded(stored, "PNG", icc_profile=ADOBE_RGB)), right) <= 1


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_profiles_are_brought_to_srgb(kind):
    linear = np.rint(np.where(GREY > 10, ((GREY / 255 + 0.055) / 1.055) ** 2.4, GREY / 255 / 12.92) * 255)
    data = encoded(linear.astype(np.uint8), kind, icc_profile=grey_profile(1.0))
    assert furthest(decode(data), GREY_OF_COLOUR) <= 3


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_inks_go_by_their_profile_and_by_rule_without_one(kind):
    """Cyan alone is CIE Lab (50, 60, 40) here, which sRGB has as (213, 59, 55)."""
    inks = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    profile = cmyk_profile(lambda c, m, y, k: (50, 60, 40) if (c, m, y, k) == (1, 0, 0, 0) else (100 - 100 * k, 0, 0))
    assert furthest(decode(encoded(inks, kind, icc_profile=profile)), np.array([213, 59, 55])) <= 2
    assert furthest(decode(encoded(inks, kind)), np.array([0, 255, 255])) <= 2


def test_an_srgb_profile_changes_no_bit():
    profile = ImageCms.ImageCmsProfile(SRGB).tobytes()
    data = encoded(SCENE, "PNG", icc_profile=profile)
    assert furthest(decode(data), SCENE) == 0
    assert is_plain(data)


@pytest.mark.parametrize(
    "profile",
    [b"rubbish", ADOBE_RGB[:200], bytes(128) + ADOBE_RGB[128:], grey_profile(1.0), cmyk_profile(lambda *_: (50, 0, 0))],
    ids=["rubbish", "cut off", "no head", "grey", "inks"],
)
def test_a_profile_that_is_broken_or_of_another_mode_is_passed_over(profile):
    for kind, options in LOSSLESS.items():
        assert furthest(decode(encoded(SCENE, kind, icc_profile=profile, **options)), SCENE) == 0


# --- Orientation and metadata -----------------------------------------------------------------------------


def test_a_phones_photograph_with_a_damaged_entry_is_upright():
    pixels = decode(given("exif6_ascii_as_number.jpg"))
    assert np.abs(pixels.astype(int) - SCENE).mean() < 4


@pytest.mark.parametrize("name", ["exif_TypeError.jpg", "exif_struct_error.jpg", "phone.webp"])
def test_damaged_entries_do_not_end_decoding(name):
    stored = np.asarray(Image.open(io.BytesIO(given(name))).convert("RGB"))
    assert furthest(decode(given(name)), np.rot90(stored, -1)) == 0
    assert size_of(given(name)) == stored.shape[:2]
    assert not is_plain(given(name))


BACK = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}


@pytest.mark.parametrize("kind", [*LOSSLESS, *CLOSE, "MPO"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_of_every_format_is_turned_upright(kind, orientation):
    upright = Image.fromarray(SCENE[:40])
    how = BACK.get(orientation, TO_UPRIGHT.get(orientation))
    stored = upright if how is None else upright.transpose(how)
    data = encoded(stored, kind, exif=exif(orientation), **(LOSSLESS | CLOSE).get(kind, CLOSE["JPEG"]))
    assert furthest(decode(data), SCENE[:40]) <= (0 if kind in LOSSLESS else 8)
    assert size_of(data) == (64, 40)
    assert is_plain(data) == (orientation == 1 and kind in ("PNG", "JPEG", "MPO"))


@pytest.mark.parametrize("options", [{"compression": "tiff_lzw"}, {"big_tiff": True}, {"icc_profile": b"rubbish"}])
def test_tiff_of_every_kind_is_turned_too(options):
    stored = Image.fromarray(SCENE[:40]).transpose(Image.Transpose.ROTATE_90)
    assert furthest(decode(encoded(stored, "TIFF", exif=exif(6), **options)), SCENE[:40]) == 0
    turned = encoded(big_endian().transpose(Image.Transpose.ROTATE_180), "TIFF", exif=exif(3))
    assert turned.startswith(b"MM")
    assert furthest(decode(turned), GREY_OF_COLOUR) == 0


def test_of_a_tiff_whose_directory_is_cut_off_nothing_is_read():
    tiff = encoded(SCENE, "TIFF")
    for start in (len(tiff) - 8, len(tiff), 2**31, 0):
        with pytest.raises(ImageError, match="not a readable image"):
            decode(tiff[:4] + struct.pack("<L", start) + tiff[8:])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_mutated_metadata_never_matter(kind):
    """One to three bytes of the EXIF block are changed: pixels stay, at most turned."""
    block = exif(6, "a camera")
    good = encoded(SCENE[:6, :8], kind, exif=block, **(LOSSLESS | CLOSE)[kind])
    start, stop = where_metadata_lie(good, kind)
    pixels = decode(good)
    ways = [pixels, *(np.asarray(Image.fromarray(pixels).transpose(how)) for how in Image.Transpose)]
    drawn = random.Random(0)
    for _ in range(COUNT):
        data = bytearray(good)
        for _ in range(drawn.randint(1, 3)):
            data[drawn.randrange(start, stop)] = drawn.randrange(256)
        seen = decode(bytes(data))
        assert any(np.array_equal(seen, way) for way in ways)


def where_metadata_lie(data: bytes, kind: str) -> tuple[int, int]:
    """The place of the EXIF block; in a TIFF, of the orientation's entry."""
    if kind == "TIFF":
        start = data.index(struct.pack("<HHL", 274, 3, 1))
        return start + 2, start + 12
    start = data.index(b"MM\0*")
    return start, start + 34


def test_the_orientation_of_an_odd_block_is_upright():
    assert orientation_of(b"") == 1
    assert orientation_of(b"Exif\0\0Exif\0\0" + exif(3)[6:]) == 3
    assert orientation_of(exif(9)) == 1
    assert orientation_of(b"II*\0\xff\xff\xff\xff") == 1
    assert orientation_of(b"MM\0*\0\0\0\x08\xff\xff" + struct.pack(">HHLHH", 274, 3, 1, 8, 0)) == 8
    assert orientation_of(b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHLL", 274, 4, 1, 5)) == 5


def test_a_png_with_a_damaged_chunk_of_metadata_is_read():
    for name in (b"eXIf", b"iCCP", b"tEXt", b"zTXt", b"gAMA", b"tRNS", b"cHRM", b"pHYs", b"acTL", b"fcTL"):
        good = with_chunk(encoded(SCENE, "PNG"), name, b"\xff\x00\x01rubbish")
        wrong_sum = bytearray(good)
        wrong_sum[good.index(name) + 6] ^= 1
        assert furthest(decode(bytes(wrong_sum)), SCENE) == 0
        if name != b"tRNS":
            assert furthest(decode(good), SCENE) == 0


# --- Formats ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF", "MPO"])
def test_of_an_animation_the_first_picture_is_taken(kind):
    others = {"save_all": True, "append_images": [Image.fromarray(255 - SCENE)]}
    data = encoded(SCENE, kind, **others, **(LOSSLESS | CLOSE | {"MPO": CLOSE["JPEG"]}).get(kind, {}))
    assert np.abs(decode(data).astype(int) - SCENE).mean() < 3
    if kind in ("GIF", "PNG"):
        assert not is_plain(data)  # viewers would show all of it


def test_bmp_and_old_bmp_are_read():
    assert furthest(decode(encoded(SCENE, "BMP")), SCENE) == 0
    assert furthest(decode(encoded(GREY, "BMP")), GREY_OF_COLOUR) == 0


OTHERS = {
    "eps": given("drawing.png"),
    "postscript": b"%!PS-Adobe-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
    "eps with preview": b"\xc5\xd0\xd3\xc6" + struct.pack("<2L", 30, 90) + bytes(18) + given("drawing.png"),
    "pdf": b"%PDF-1.7\n",
    "xpm": b'/* XPM */\nstatic char *x[] = {\n"1 1 1 1",\n"a c #ffffff",\n"a"\n};',
    "xbm": b"#define x_width 8\n#define x_height 1\nstatic char x_bits[] = {0x01};",
    "pcd": bytes(2048) + b"PCD_IPI" + bytes(1000),
    "fits": b"SIMPLE  =                    T".ljust(2880),
    "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(64),
    "grib": b"GRIB\0\0\0\1" + bytes(64),
    "bufr": b"BUFR\0\0\0\4" + bytes(64),
    "wmf": b"\xd7\xcd\xc6\x9a" + bytes(64),
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "ppm": encoded(SCENE, "PPM"),
    "ico": encoded(SCENE, "ICO"),
    "tga": encoded(SCENE, "TGA"),
    "jpeg 2000": encoded(SCENE, "JPEG2000"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_formats_that_are_not_meant_are_refused(name):
    for function in (decode, size_of, to_stored, to_plain):
        with pytest.raises(ImageError, match=r"\d+ bytes starting [0-9a-f]{8} are not a readable image.*" + FORMATS):
            function(OTHERS[name])
    assert not is_plain(OTHERS[name])


def test_postscript_starts_no_program(tmp_path, monkeypatch):
    mark = tmp_path / "started"
    stand_in = tmp_path / "gs"
    stand_in.write_text(f"#!/bin/sh\ntouch {mark}\nexit 1\n")
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # it looks for the program once
    for data in (OTHERS["eps"], OTHERS["postscript"], OTHERS["eps with preview"]):
        with pytest.raises(ImageError):
            decode(data)
    assert not mark.exists()
    with pytest.raises(Exception, match="gs"):
        Image.open(io.BytesIO(OTHERS["eps"])).load()
    assert mark.exists()  # what Pillow does by itself


def test_heic_is_named():
    heic = struct.pack(">L", 24) + b"ftypheic\0\0\0\0mif1heic" + bytes(40)
    with pytest.raises(ImageError, match="HEIC, which is not read: save it as JPEG"):
        decode(heic)


def test_an_avif_that_is_named_by_its_container_is_read():
    avif = encoded(SCENE, "AVIF", quality=90)
    assert avif[8:12] == b"avif"
    assert decode(avif[:8] + b"mif1" + avif[12:]).shape == SCENE.shape


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.new("1", (20_000, 10_000)), "PNG"),
        encoded(Image.new("1", (20_000, 10_000)), "TIFF", compression="group4"),
        encoded(Image.new("P", (20_000, 10_000)), "GIF"),
        b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\x1f\x4e\0\x0f\x27\0" + bytes(8),
        b"RIFF\x1e\0\0\0WEBPVP8L\x0a\0\0\0\x2f" + struct.pack("<L", 16_383 << 14 | 16_383) + bytes(8),
    ],
    ids=["png", "tiff", "gif", "webp", "lossless webp"],
)
def test_too_many_pixels_are_refused_before_they_are_decoded(data):
    with pytest.raises(PictureTooLargeError, match=r"(20000 x 10000|16384 x 16384); at most 178,956,970 pixels"):
        decode(data)
    with pytest.raises(PictureTooLargeError, match="at most 100 pixels"):
        decode(encoded(SCENE, "JPEG"), max_pixels=100)


def test_a_large_photograph_is_read_without_a_warning():
    large = encoded(Image.new("1", (10_000, 9_000)), "TIFF", compression="group4")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # as hive_ray.images does
        assert decode(large).shape == (9_000, 10_000, 3)
    assert not caught


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF"])
def test_pictures_that_are_cut_off_are_refused(kind):
    data = encoded(SCENE, kind)
    for kept in (0, 5, 30, len(data) // 2, len(data) - 40):
        for function in (decode, to_stored):
            with pytest.raises(ImageError, match="not a readable image"):
                function(data[:kept])


def test_what_is_plain_stays_as_it_is_and_all_else_becomes_a_png():
    kept = [
        encoded(SCENE, "PNG"),
        encoded(SCENE, "JPEG"),
        encoded(GREY, "PNG"),
        encoded(GREY, "JPEG"),
        encoded(Image.fromarray(SCENE).quantize(16), "PNG"),
        encode(SCENE),
        with_chunk(encode(SCENE), b"gAMA", struct.pack(">L", 45455)),
        with_chunk(with_chunk(encode(SCENE), b"gAMA", struct.pack(">L", 100000)), b"sRGB", b"\0"),
    ]
    for data in kept:
        assert is_plain(data)
        assert to_stored(data) is data
        assert to_plain(data) is data
    changed = [
        encoded(SCENE, "WEBP"),
        encoded(Image.fromarray(SCENE).convert("CMYK"), "JPEG"),
        given("grey16.png"),
        given("display_p3.png"),
        given("palette_transparent.png"),
        given("exif_TypeError.jpg"),
        with_chunk(encode(SCENE), b"gAMA", struct.pack(">L", 100000)),
        with_chunk(encode(SCENE), b"cICP", bytes([12, 13, 0, 1])),
    ]
    for data in changed:
        assert not is_plain(data)
        assert image_format(to_stored(data)) == "png"
        assert is_plain(to_stored(data))
        assert np.array_equal(decode(to_stored(data)), decode(data))
        assert to_plain(data) == to_stored(data)
        assert is_plain(thumbnail(data, 64))


def test_damage_behind_a_good_header_is_found_where_pictures_are_kept():
    for data in (encoded(SCENE, "PNG"), encoded(SCENE, "JPEG")):
        broken = data[: len(data) * 2 // 3]
        assert is_plain(broken)
        with pytest.raises(ImageError, match="not a readable image"):
            to_stored(broken)


def test_many_threads_may_convert_by_one_profile():
    data = encoded(in_space(MILD, ADOBE_RGB), "PNG", icc_profile=ADOBE_RGB)
    right, wrong = decode(data), []

    def often() -> None:
        for _ in range(20):
            if not np.array_equal(decode(data), right):
                wrong.append(1)

    threads = [threading.Thread(target=often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# --- Whatever comes ---------------------------------------------------------------------------------------

HEADS = (
    b"", b"\x89PNG\r\n\x1a\n", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\xff\xd8\xff", b"\xff\xd8\xff\xe1", b"II*\0\x08\0\0",
    b"MM\0*\0\0\0\x08", b"II+\0\x08\0\0\0", b"GIF89a", b"BM", b"RIFF\xff\0\0\0WEBPVP8X", b"RIFF\xff\0\0\0WEBPVP8L",
    b"\0\0\0\x1cftypavif", b"\0\0\0\x1cftypmif1", b"%!PS-Adobe",
)  # fmt: skip


def seen_or_refused(data: bytes) -> None:
    """Pixels of the right form, or an ImageError; the same from everything that looks at pictures."""
    try:
        pixels = decode(data)
    except ImageError:
        with pytest.raises(ImageError):
            to_stored(data)
    else:
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3
        assert pixels.shape[2] == 3
        assert size_of(data) == pixels.shape[1::-1]
        assert image_format(to_stored(data))
    for function in (size_of, to_plain, is_plain):
        try:
            function(data)
        except ImageError:
            assert function is not is_plain


@settings(derandomize=True, deadline=None, max_examples=300)
@given_any(st.sampled_from(HEADS), st.binary(max_size=400))
def test_any_bytes_are_pixels_or_an_image_error(head, rest):
    seen_or_refused(head + rest)


def good_pictures() -> list[bytes]:
    """A small one of each format and mode, with metadata where they may have any."""
    small, grey = SCENE[::4, ::4].copy(), GREY[::4, ::4].copy()
    clear = cut_out().resize((16, 16))
    extras = {"exif": exif(6), "icc_profile": ADOBE_RGB}
    pictures = [encoded(small, kind, **extras) for kind in ("PNG", "JPEG", "WEBP", "AVIF", "TIFF")]
    pictures += [encoded(small, "TIFF", compression=name) for name in ("tiff_lzw", "jpeg", "tiff_adobe_deflate")]
    pictures += [encoded(clear, kind) for kind in ("PNG", "WEBP", "TIFF", "GIF", "AVIF")]
    animations = ("MPO", "GIF", "WEBP", "PNG", "TIFF")
    pictures += [
        encoded(small, kind, save_all=True, append_images=[Image.fromarray(255 - small)]) for kind in animations
    ]
    pictures += [encoded(image, "BMP") for image in (small, grey, Image.fromarray(small).quantize(8))]
    pictures += [encoded(grey.astype(np.uint16) * 257, kind) for kind in ("PNG", "TIFF")]
    pictures += [encoded((grey / 255).astype(np.float32), "TIFF"), encoded(clear.quantize(8), "PNG")]
    pictures += [encoded(Image.fromarray(small).convert("CMYK"), "JPEG"), encoded(small, "GIF")]
    names = ("exif6_ascii_as_number.jpg", "exif_TypeError.jpg", "exif_struct_error.jpg", "phone.webp", "grey16.tiff")
    return pictures + [given(name) for name in names]


def test_mutated_pictures():
    """None raises anything but an ImageError, nor warns, except of its size."""
    pictures = good_pictures()
    for data in pictures:
        decode(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
        for data in mutated(pictures):
            seen_or_refused(data)
