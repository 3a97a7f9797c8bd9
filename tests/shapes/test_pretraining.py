import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from transformers import BlipForImageTextRetrieval, CLIPModel, CLIPTokenizer

from hive_ray.editor.model import Editor
from hive_ray.reward.model import RewardModel
from hive_ray.shapes.edits import vocabulary_texts
from hive_ray.shapes.pretraining import autoencoder, diffusion, editing, matching
from hive_ray.shapes.pretraining.diffusion import TextToImageModel, is_thing, loss_weight, with_wrong_words
from hive_ray.shapes.pretraining.pool import NAMES, PatchNaming, TwinPictures, patch_names
from hive_ray.shapes.pretraining.scene_pictures import crowded_scenes, degrade, scene_and_twin, to_batch
from hive_ray.shapes.pretraining.words import MAX_TOKENS, QUALITIES, QUALITY_PHRASE, shapes_tokenizer
from hive_ray.shapes.scenes import COLOURS, SHAPES, Description, Place, Scene, Thing
from studies import pretrain_shapes


def quiet(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Every part after very few steps, saved as the real ones are."""
    folder = tmp_path_factory.mktemp("models")
    autoencoder.train_autoencoder(folder / "vae", num_steps=2, seed=0, say=quiet)
    model = TextToImageModel.from_scratch(folder / "vae", seed=0)
    for _ in range(2):
        diffusion.train_text_to_image(
            model, folder / "base", num_steps=2, single_things=0.5, pool=50, seed=0, say=quiet
        )
        model = TextToImageModel.load(folder / "base")
    pool = TwinPictures(folder / "vae", 4, seed=0)
    matching.train_clip(folder / "clip", folder / "base" / "tokenizer", pool, num_steps=2, seed=0, say=quiet)
    matching.train_blip(folder / "blip", folder / "base" / "tokenizer", pool, num_steps=2, seed=0, say=quiet)
    return folder


def test_an_untrained_autoencoder_already_carries_colours():
    torch.manual_seed(0)
    model = autoencoder.autoencoder()
    pictures = crowded_scenes(0)
    images = to_batch([next(pictures) for _ in range(8)])
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
    tokenizer = CLIPTokenizer.from_pretrained(models / "blip")
    RewardModel.from_blip(models / "blip", tokenizer, resolution=64, max_tokens=MAX_TOKENS)


def test_latents_have_unit_variance(models):
    vae = AutoencoderKL.from_pretrained(models / "vae", torch_dtype=torch.float32)
    pictures = crowded_scenes(5)
    with torch.no_grad():
        latents = vae.encode(to_batch([next(pictures) for _ in range(64)])).latent_dist.mean
    assert float(latents.std() * vae.config.scaling_factor) == pytest.approx(1, abs=0.1)


def test_every_word_of_the_domain_is_one_token_and_the_longest_text_fits():
    tokenizer = shapes_tokenizer()
    texts = [*vocabulary_texts(), *(QUALITY_PHRASE.format(level=level) for level in QUALITIES)]
    words = {word.strip(",") for text in texts for word in text.split()}
    assert [word for word in sorted(words) if len(tokenizer.tokenize(word)) != 1] == []
    assert max(len(tokenizer(text).input_ids) for text in texts) <= MAX_TOKENS


def test_a_better_level_harms_a_picture_less():
    picture = next(crowded_scenes(0))
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
    weight = loss_weight(is_thing(latents))
    assert weight.shape == (1, 1, 8, 8)
    assert weight[0, 0, 3, 3] / weight[0, 0, 0, 0] == pytest.approx(5)


def test_a_wrong_word_takes_the_place_of_each_right_one():
    text = "a small red circle, a large blue square and a small pink ring on a white background"
    assert with_wrong_words(text, tuple(COLOURS)) == (
        "a small orange circle, a large purple square and a small red ring on a white background"
    )
    assert with_wrong_words(text, SHAPES) == (
        "a small red square, a large blue triangle and a small pink circle on a white background"
    )


def as_editor(model: TextToImageModel, folder: Path) -> TextToImageModel:
    """The same parts, the U-Net widened as an editor's."""
    editor = Editor.build(folder)
    editor.text_encoder.requires_grad_(True)
    return TextToImageModel(model.vae, model.tokenizer, editor.text_encoder, editor.unet, model.scheduler)


def test_one_network_learns_to_edit_and_to_draw(models):
    model, saved = as_editor(TextToImageModel.load(models / "base"), models / "base"), []
    before = model.unet.conv_in.weight[:, 4:].clone()
    editing.train_editing(model, num_steps=2, pool=50, phrased=20, seed=0, say=quiet, save=lambda: saved.append(1))
    assert saved == [1]
    assert before.abs().max() == 0
    assert model.unet.conv_in.weight[:, 4:].abs().max() > 0  # the source is heard


def test_an_editor_hears_the_phrase_behind_instructions(models):
    model, said = TextToImageModel.load(models / "base"), []
    edited, sources, tokens = editing.graded_pool(model, 20, np.random.default_rng(0))
    assert edited.shape == sources.shape == (20, 4, 8, 8)
    assert not torch.equal(edited, sources)
    texts = model.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    assert all(re.search(r", image quality is (one|two|three|four|five) out of five$", text) for text in texts), texts
    editing.train_editing(
        as_editor(model, models / "base"), num_steps=2, pool=50, phrased=20, seed=0, say=said.append,
        save=lambda: None, rows=editing.WITH_PHRASE,
    )  # fmt: skip
    assert "loss" in said[-1]
    assert "nan" not in said[-1]


def test_the_base_inside_an_editor_is_the_editor_without_a_source(models):
    model = as_editor(TextToImageModel.load(models / "base"), models / "base")
    torch.nn.init.normal_(model.unet.conv_in.weight)
    torch.nn.init.normal_(model.unet.conv_out.weight)
    base = editing.without_source(model.unet).eval()
    noisy, states = torch.randn(2, 4, 8, 8), torch.randn(2, MAX_TOKENS, 128)
    with torch.no_grad():
        whole = model.unet.eval()(torch.cat([noisy, torch.zeros_like(noisy)], 1), 500, states).sample
        assert torch.allclose(base(noisy, 500, states).sample, whole, atol=1e-4)


def test_things_and_what_an_edit_changes_weigh_five_times_as_much():
    source, edited = torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 8, 8)
    edited[0, 1, 2, 3] = source[0, 1, 2, 3] = -1  # stays
    source[0, 2, 5, 5] = 1  # is removed
    weight = editing.edit_weight(edited, source)[0, 0]
    assert weight[2, 3] / weight[0, 0] == pytest.approx(5)
    assert weight[5, 5] == weight[2, 3]
    assert (weight == weight[0, 0]).sum() == 62


def test_rare_kinds_of_edit_are_kept_more_often():
    def added_or_removed(rates):
        rng = np.random.default_rng(0)
        twins = [scene_and_twin(rng, rates) for _ in range(300)]
        return np.mean([len({len(scene.places) for scene in twin.scenes}) == 2 for twin in twins])

    assert added_or_removed(editing.KIND_RATES) > 1.2 * added_or_removed(None)


def test_a_patch_is_named_by_the_thing_on_it_or_by_its_background():
    scene = Scene(Description((Thing("star", "red", "small"),), "navy"), (Place(20.0, 12.0, 8.0),))
    shapes, colours, sizes = NAMES
    names = [(shapes[a], colours[b], sizes[c]) for a, b, c in patch_names(scene)]
    assert names[1 * 8 + 2] == ("star", "red", "small")  # the patch of y 8..16, x 16..24
    assert names[7 * 8 + 7] == ("nothing", "navy", "nothing")
    assert sum(name[0] == "star" for name in names) == 5  # centres of patches at most 9 pixels from (20, 12)


def test_patch_naming_learns_from_tokens_that_tell():
    torch.manual_seed(0)
    naming, names = PatchNaming(16), torch.zeros(8, 4, 3, dtype=torch.long)
    names[..., 0] = torch.arange(4)
    tokens = torch.cat([torch.zeros(8, 1, 16), torch.eye(16)[names[..., 0]]], 1)
    before = naming.loss(tokens, names).item()
    optimizer = torch.optim.Adam(naming.parameters(), lr=0.1)
    for _ in range(30):
        optimizer.zero_grad()
        naming.loss(tokens, names).backward()
        optimizer.step()
    assert naming.loss(tokens, names).item() < 0.05 < 1.5 < before


class Length:
    """Likes long captions, whatever the picture shows."""

    def score(self, source_images, edited_images, instructions):
        assert source_images == edited_images
        return [len(instruction) for instruction in instructions]


def test_captions_are_told_apart_from_their_twins_by_the_score_of_pictures_that_stay():
    rng = np.random.default_rng(0)
    twins = [scene_and_twin(rng) for _ in range(60)]
    expected = np.mean([len(twin.texts[0]) > len(twin.texts[1]) for twin in twins])
    assert 0.2 < expected < 0.8
    assert matching.matching_accuracy(Length().score, count=60, seed=0) == expected


def test_the_reward_model_starts_as_the_blip_that_matches(models):
    out = models / "shipped"
    pretrain_shapes.make_reward(pretrain_shapes.Pretraining(out=out, work=models))
    blip, reward = BlipForImageTextRetrieval.from_pretrained(models / "blip"), RewardModel.load(out / "reward")
    assert torch.equal(
        reward.vision.embeddings.patch_embedding.weight, blip.vision_model.embeddings.patch_embedding.weight
    )
    assert 0 <= json.loads((out / "reward" / "card.json").read_text())["unseen_captions_told_apart"] <= 1
