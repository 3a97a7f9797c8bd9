from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from transformers import CLIPModel

from hive_ray.shapes import pretraining
from hive_ray.shapes.language import all_words
from hive_ray.shapes.pretraining import MAX_TOKENS, QUALITIES, QUALITY_PHRASE, degrade, thing_weight
from hive_ray.shapes.scenes import COLOURS, SHAPES


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Every part after very few steps, saved as the real ones are."""
    folder, quiet = tmp_path_factory.mktemp("models"), lambda line: None
    pretraining.train_autoencoder(folder / "vae", num_steps=2, seed=0, say=quiet)
    model = pretraining.TextToImageModel.from_nothing(folder / "vae", seed=0)
    for _ in range(2):
        pretraining.train_text_to_image(
            model, folder / "base", num_steps=2, single_things=0.5, pool=50, seed=0, say=quiet
        )
        model = pretraining.TextToImageModel.load(folder / "base")
    pretraining.train_clip(folder / "clip", folder / "base" / "tokenizer", num_steps=2, seed=0, say=quiet)
    return folder


def test_an_untrained_autoencoder_already_carries_colours():
    torch.manual_seed(0)
    model = pretraining.autoencoder()
    pictures = pretraining.crowded_scenes(0)
    images = pretraining.to_batch([next(pictures) for _ in range(8)])
    with torch.no_grad():
        error = (model.decode(model.encode(images).latent_dist.mean).sample - images).square().mean()
    # An average over blocks of 8x8 pixels is the best that colours alone can do; random weights have about 0.6.
    blocks = torch.nn.functional.interpolate(torch.nn.functional.avg_pool2d(images, 8), scale_factor=8)
    assert error < 1.5 * (blocks - images).square().mean()


def test_the_parts_open_in_diffusers_and_transformers(models):
    pipeline = StableDiffusionPipeline.from_pretrained(models / "base", torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("a small red circle on a white background", height=64, width=64, num_inference_steps=2)
    assert picture.images[0].size == (64, 64)
    assert CLIPModel.from_pretrained(models / "clip").config.vision_config.image_size == 64


def test_latents_have_unit_variance(models):
    vae = AutoencoderKL.from_pretrained(models / "vae", torch_dtype=torch.float32)
    pictures = pretraining.crowded_scenes(5)
    with torch.no_grad():
        latents = vae.encode(pretraining.to_batch([next(pictures) for _ in range(64)])).latent_dist.mean
    assert float(latents.std() * vae.config.scaling_factor) == pytest.approx(1, abs=0.1)


def test_every_word_of_the_domain_is_one_token_and_the_longest_text_fits():
    tokenizer = pretraining.shapes_tokenizer()
    texts = [*all_words(), *(QUALITY_PHRASE.format(level=level) for level in QUALITIES)]
    words = {word.strip(",") for text in texts for word in text.split()}
    assert [word for word in sorted(words) if len(tokenizer.tokenize(word)) != 1] == []
    assert max(len(tokenizer(text).input_ids) for text in texts) <= MAX_TOKENS


def test_a_better_level_harms_a_picture_less():
    picture = next(pretraining.crowded_scenes(0))
    rng = np.random.default_rng(0)
    harm = [
        np.mean([np.abs(degrade(picture, level, rng).astype(float) - picture).mean() for _ in range(20)])
        for level in (1, 2, 3, 4, 5)
    ]
    assert harm == sorted(harm, reverse=True)
    assert harm[-1] == 0


def test_things_weigh_five_times_as_much_as_plain_background():
    latents = torch.zeros(1, 4, 8, 8)
    latents[0, 2, 3:5, 3:5] = 1
    weight = thing_weight(latents)
    assert weight.shape == (1, 1, 8, 8)
    assert weight[0, 0, 3, 3] / weight[0, 0, 0, 0] == pytest.approx(5)


def test_a_wrong_word_takes_the_place_of_each_right_one():
    text = "a small red circle, a large blue square and a small pink ring on a white background"
    assert pretraining.with_next_words(text, tuple(COLOURS)) == (
        "a small orange circle, a large purple square and a small red ring on a white background"
    )
    assert pretraining.with_next_words(text, SHAPES) == (
        "a small red square, a large blue triangle and a small pink circle on a white background"
    )
