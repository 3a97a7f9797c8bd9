from types import SimpleNamespace

import pytest
import torch
from tiny_models import tiny_editor
from tiny_settings import generator

from hive_ray.editor.denoising_errors import common_noise
from hive_ray.editor.levels import add_levels
from hive_ray.editor.model import Editor
from hive_ray.editor.quality_effect import QualityEffect, quality_effect
from hive_ray.images import encode, to_batch

SUFFIXES = (", image quality is one out of five", ", image quality is five out of five")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_editor(tmp_path_factory.mktemp("editor"), "epsilon")


@pytest.fixture
def editor(folder):
    return Editor.load(folder)


@pytest.fixture(scope="module")
def rows():
    def picture(seed):
        return encode(torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8, generator=generator(seed)).numpy())

    return [
        {"instruction": words, "source_image": picture(place), "edited_image": picture(10 + place)}
        for place, words in enumerate(["make it red", "add a hat", "remove the cat"])
    ]


def test_the_effect_by_hand(editor, rows, monkeypatch):
    """Predictions that are the label everywhere: 1 for the worst, 5 for the best, 0 without an instruction."""
    add_levels(editor.unet)

    def predict(inputs, timestep, class_labels, **_):
        return SimpleNamespace(sample=class_labels.view(-1, 1, 1, 1).expand(-1, 4, 8, 8).float())

    monkeypatch.setattr(editor.unet, "forward", predict)
    effect = quality_effect(editor, rows, micro_batch=2)
    assert (effect.quality, effect.instruction) == (5 - 1, 5 - 0)
    assert effect.share == 0.8
    assert quality_effect(editor, rows, levels=(4, 2)) == QualityEffect(2, 2)


def test_the_effect_is_the_networks_own_difference(editor, rows):
    @torch.no_grad()
    def predicted(row, timestep, words):
        latent = editor.vae.encode(to_batch([row["edited_image"]], 64)).latent_dist.mean * 0.18215
        source = editor.vae.encode(to_batch([row["source_image"]], 64)).latent_dist.mean
        signal = editor.scheduler.alphas_cumprod[timestep]
        noisy = signal.sqrt() * latent + (1 - signal).sqrt() * common_noise((4, 8, 8), timestep, 0)
        inputs = editor.text.encode([words]).unet_inputs(64, 64, torch.float32)
        return editor.unet(torch.cat([noisy, source], 1), timestep, **inputs).sample

    squares = torch.zeros(2)
    for row in rows:
        for timestep in (200, 700):
            texts = [row["instruction"] + SUFFIXES[0], row["instruction"] + SUFFIXES[1], ""]
            worst, best, without = (predicted(row, timestep, text) for text in texts)
            squares += torch.stack([(best - worst).square().mean(), (best - without).square().mean()]) / 6
    effect = quality_effect(editor, rows, suffixes=SUFFIXES, timesteps=(200, 700))
    torch.testing.assert_close(torch.tensor([effect.quality, effect.instruction]), squares.sqrt(), rtol=1e-3, atol=1e-6)
    assert 0 < effect.share < 1


def test_an_editor_that_is_told_nothing_of_quality_does_not_hear_it(editor, rows):
    assert quality_effect(editor, rows).quality == 0
    add_levels(editor.unet)
    assert quality_effect(editor, rows).share == 0
    with torch.no_grad():
        editor.unet.class_embedding.weight[5] += 1.0
    assert quality_effect(editor, rows).share > 0
    with pytest.raises(ValueError, match="no rows"):
        quality_effect(editor, [])


def test_an_instruction_without_any_effect_has_no_share():
    assert QualityEffect(0.0, 0.0).share == 0.0
