"""What is shipped does what docs/shapes.md says of it; the thresholds lie well below what was measured there."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline

from hive_ray.editor.model import Editor
from hive_ray.editor.sampling import sample
from hive_ray.images import to_pixels, to_tensor
from hive_ray.pairs.text_to_image import TextToImage
from hive_ray.presets import SHAPES_WEIGHTS
from hive_ray.reward.model import RewardModel
from hive_ray.seeds import generator_for
from hive_ray.shapes.actors import random_captions, random_fitting_edit
from hive_ray.shapes.judge import adherence, judge
from hive_ray.shapes.pretraining.matching import matching_accuracy
from hive_ray.shapes.pretraining.scene_pictures import crowded_scenes, to_batch
from hive_ray.shapes.scenes import draw
from hive_ray.similarity import Similarity


def test_the_base_and_the_clip_take_at_most_30_megabytes():
    files = [path for part in ("base", "clip") for path in (SHAPES_WEIGHTS / part).rglob("*") if path.is_file()]
    assert 0 < sum(path.stat().st_size for path in files) <= 30_000_000


def test_diffusers_opens_the_base():
    assert StableDiffusionPipeline.from_pretrained(SHAPES_WEIGHTS / "base").unet.config.in_channels == 4


def test_the_autoencoder_reconstructs():
    vae = AutoencoderKL.from_pretrained(SHAPES_WEIGHTS / "base", subfolder="vae", torch_dtype=torch.float32)
    pictures = crowded_scenes(99)
    images = to_batch([next(pictures) for _ in range(16)])
    with torch.no_grad():
        error = (vae.decode(vae.encode(images).latent_dist.mean).sample - images).square().mean()
    assert error < 0.004


def test_the_base_draws_what_captions_say():
    model, captions = TextToImage(SHAPES_WEIGHTS / "base"), random_captions(48, seed=7)
    noise = model.noise([generator_for("weights", caption) for caption in captions], resolution=64)
    images = model.draw(captions, noise, guidance_scale=torch.full((48,), 3.5), num_inference_steps=12)
    scores = [adherence(to_pixels(image), caption) for image, caption in zip(images, captions, strict=True)]
    assert np.mean(scores) > 0.4


def test_the_clip_tells_a_scene_from_its_edited_twin():
    similarity, rng = Similarity(str(SHAPES_WEIGHTS / "clip")), np.random.default_rng(8)
    found = [random_fitting_edit(caption, rng) for caption in random_captions(32, seed=8)]
    sources, edits = [[one[side] for one in found] for side in (1, 2)]
    measured = similarity.measure(
        [draw(one) for one in sources], [draw(one) for one in edits],
        [one.description.caption for one in sources], [one.description.caption for one in edits],
    )  # fmt: skip
    assert np.mean([float(value) for value in measured["clip_direction"]]) > 0.5


@pytest.mark.parametrize(("kind", "share"), [("recolour", 0.65), ("reshape", 0.45), ("resize", 0.65), ("remove", 0.5)])
def test_the_editor_edits(kind, share):
    editor, rng = Editor.load(SHAPES_WEIGHTS / "editor"), np.random.default_rng(9)
    drawn = [random_fitting_edit(caption, rng) for caption in random_captions(250, seed=9)]
    found = [one for one in drawn if one[0].kind == kind][:16]
    edits = sample(
        editor, torch.stack([to_tensor(draw(before)) for _, before, _ in found]),
        [edit.instruction for edit, _, _ in found], guidance_scale=3.0, image_guidance_scale=1.4,
        num_inference_steps=8, seeds=range(16),
    )  # fmt: skip
    right = [
        judge(draw(before), to_pixels(edited), before.description.caption, after.description.caption).right
        for (_, before, after), edited in zip(found, edits, strict=True)
    ]
    assert np.mean(right) >= share


def test_the_reward_model_tells_captions_of_a_picture_from_those_of_its_edited_twin():
    assert matching_accuracy(RewardModel.load(SHAPES_WEIGHTS / "reward").score, count=128, seed=10) > 0.8
