"""What browsers and language models get of a picture is what models see."""

import base64
import re

import numpy as np
import pytest
from pictures import SCENE, cut_out, encoded, exif, given, on_white

from hive_ray import config
from hive_ray.images import ImageError, decode, encode
from hive_ray.pages.html import CaptionedPicture, Example, contact_sheet
from hive_ray.reward.vision import FOLLOWING, VerdictError, make_request
from serve.gallery import for_browser

KEPT_AS_IT_WAS = [
    encoded(cut_out(), "PNG"),
    encoded(cut_out(), "WEBP", lossless=True),
    encoded(SCENE, "JPEG", exif=exif(6)),
    given("display_p3.png"),
    given("grey16.png"),
]
"""Pictures of tables that were made before all of them were brought to one form."""


@pytest.mark.parametrize("stored", KEPT_AS_IT_WAS)
def test_an_annotator_a_page_and_a_language_model_see_what_an_editor_sees(stored):
    content, media_type = for_browser(stored)
    assert media_type == "image/png"
    assert np.array_equal(decode(content), decode(stored))
    sheet = contact_sheet([Example("make it red", (CaptionedPicture(stored, "source"),))])
    [shown] = re.findall(r'src="data:image/png;base64,([^"]*)"', sheet)
    assert base64.b64decode(shown) == content
    row = {"source_image": stored, "edited_image": encode(on_white()), "instruction": "make it red"}
    [_, first, _] = make_request(FOLLOWING, row, config.VisionJudge())["messages"][1]["content"]
    assert first["image_url"]["url"] == f"data:image/png;base64,{base64.b64encode(content).decode()}"


def test_what_every_viewer_shows_alike_is_sent_as_it_is():
    for stored, media_type in ((encode(SCENE), "image/png"), (encoded(SCENE, "JPEG"), "image/jpeg")):
        assert for_browser(stored) == (stored, media_type)


def test_a_broken_picture_is_named_and_ends_no_page():
    broken = encoded(cut_out(), "PNG")[:100]
    with pytest.raises(ImageError, match="not a readable image"):
        for_browser(broken)
    assert 'src="data:,"' in contact_sheet([Example("make it red", (CaptionedPicture(broken, "source"),))])
    row = {"source_image": broken, "edited_image": encode(SCENE), "instruction": "make it red"}
    with pytest.raises(VerdictError, match="picture_unreadable"):
        make_request(FOLLOWING, row, config.VisionJudge())
