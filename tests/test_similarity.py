import json

import numpy as np
import pytest
import torch
from tiny_models import tiny_clip
from transformers import CLIPModel

from hive_ray.files.model_folders import ModelFolderError
from hive_ray.images import encode
from hive_ray.similarity import (
    CLIP_MEAN,
    CLIP_STD,
    Similarity,
    directional_similarity,
    image_similarity,
    preprocess,
    text_similarity,
)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A random CLIP of 16x16 pictures and 8 tokens, stored in fp16 as the shipped weights are."""
    return tiny_clip(tmp_path_factory.mktemp("clip"))


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_similarities_are_the_cosines_of_a_numpy_reference():
    rng = np.random.default_rng(0)
    units = [row / np.linalg.norm(row) for row in rng.normal(size=(4, 6))]
    i0, i1, t0, t1 = (torch.from_numpy(unit)[None] for unit in units)
    assert image_similarity(i0, i1).item() == pytest.approx(cosine(units[0], units[1]))
    assert text_similarity(i1, t1).item() == pytest.approx(cosine(units[1], units[3]))
    wanted = cosine(units[1] - units[0], units[3] - units[2])
    assert directional_similarity(i0, i1, t0, t1).item() == pytest.approx(wanted)


def test_the_direction_is_one_where_pictures_move_as_texts_do_and_zero_where_nothing_moves():
    before, after = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert directional_similarity(before, after, before, after).item() == pytest.approx(1)
    assert directional_similarity(before, after, after, before).item() == pytest.approx(-1)
    assert directional_similarity(before, before, before, after).item() == 0
    assert directional_similarity(before, after, after, after).item() == 0


def test_preprocessing_at_the_right_size_only_shifts_and_scales():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    wanted = ((pixels / 255 - CLIP_MEAN) / CLIP_STD).transpose(2, 0, 1)
    np.testing.assert_allclose(preprocess(pixels, 16).numpy(), wanted, atol=1e-5)


def test_preprocessing_is_bicubic_without_antialias_and_ignores_the_aspect():
    # Halving with aligned centres samples midway between pixels: Keys' cubic (a = -0.75) weighs the four
    # neighbours -3/32, 19/32, 19/32, -3/32; antialias would look at eight.
    row = np.array([0, 0, 0, 255, 255, 0, 0, 0], dtype=np.uint8)
    pixels = np.repeat(np.tile(row, (4, 1))[:, :, None], 3, axis=2)  # 4 high, 8 wide
    taps = np.array([-3, 19, 19, -3]) / 32
    padded = np.pad(row / 255, 1, mode="edge")
    wanted = [taps @ padded[start : start + 4] for start in (0, 2, 4, 6)]
    red = preprocess(pixels, 4)[0] * CLIP_STD[0] + CLIP_MEAN[0]
    np.testing.assert_allclose(red.numpy(), np.tile(wanted, (4, 1)), atol=1e-5)


def test_features_are_unit_and_bytes_and_pixels_agree(clip):
    similarity = Similarity(clip, "cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    features = similarity.images([pixels, encode(pixels)])
    assert features.shape == (2, 12)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(features[0], features[1])
    torch.testing.assert_close(similarity.texts(["a b", "c"]).norm(dim=1), torch.ones(2))


def test_weights_stored_in_fp16_work_in_fp32(clip):
    assert {parameter.dtype for parameter in Similarity(clip).model.parameters()} == {torch.float32}


def test_image_features_are_those_of_the_model_on_preprocessed_pixels(clip):
    pixels = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    model = CLIPModel.from_pretrained(clip, dtype=torch.float32).eval()
    with torch.no_grad():
        vision = model.vision_model(pixel_values=preprocess(pixels, 16)[None]).pooler_output
        wanted = (vision @ model.visual_projection.weight.T)[0].numpy()
    got = Similarity(clip).images([pixels])[0].numpy()
    np.testing.assert_allclose(got, wanted / np.linalg.norm(wanted), atol=1e-5)


def test_a_text_alone_and_beside_a_longer_one_has_the_same_features(clip):
    similarity = Similarity(clip)
    torch.testing.assert_close(similarity.texts(["a", "a b c d"])[0], similarity.texts(["a"])[0])


def test_texts_are_cut_to_the_models_length(clip):
    long, longer = "a b c d e f", "a b c d e f g h"  # 6 and 8 words between start and end, 8 tokens in all
    similarity = Similarity(clip)
    torch.testing.assert_close(similarity.texts([longer]), similarity.texts([long]))


def test_measure_fills_the_four_columns_of_a_pair(clip):
    rng, similarity = np.random.default_rng(2), Similarity(clip)
    before, after = (list(rng.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)) for _ in range(2))
    captions, edited_captions = ["a", "b"], ["c", "d"]
    measured = similarity.measure(before, after, captions, edited_captions)
    i0, i1 = similarity.images(before).numpy(), similarity.images(after).numpy()
    t0, t1 = similarity.texts(captions).numpy(), similarity.texts(edited_captions).numpy()
    wanted = {
        "clip_image": cosine(i0[1], i1[1]),
        "clip_source_text": cosine(i0[1], t0[1]),
        "clip_edited_text": cosine(i1[1], t1[1]),
        "clip_direction": cosine(i1[1] - i0[1], t1[1] - t0[1]),
    }
    assert {name: values[1].item() for name, values in measured.items()} == pytest.approx(wanted, abs=1e-5)


def test_a_folder_without_weights_or_tokenizer_is_refused_by_name(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(ModelFolderError, match=r"lacks model.safetensors, tokenizer.json"):
        Similarity(tmp_path)
