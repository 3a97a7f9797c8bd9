import json
import shutil

import pytest
import torch
from diffusers import StableDiffusionXLInstructPix2PixPipeline
from tiny_models import tiny_stable_diffusion_xl

from hive_ray.diffusion.text import size_ids
from hive_ray.editor.model import Editor
from hive_ray.editor.sampling import row_noise, sample
from hive_ray.files.model_folders import ModelFolderError


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_stable_diffusion_xl(tmp_path_factory.mktemp("xl"))


@pytest.fixture(scope="module")
def folder(base, tmp_path_factory):
    """An XL editor whose U-Net does hear the image."""
    folder, editor = tmp_path_factory.mktemp("editor"), Editor.build(base)
    with torch.no_grad():
        torch.nn.init.normal_(editor.unet.conv_in.weight, std=0.1, generator=torch.Generator().manual_seed(1))
    editor.save(folder, editor.card)
    return folder


def changed(folder, copy, part, **entries):
    """A copy of a folder with other entries in one of its JSON files."""
    shutil.copytree(folder, copy)
    (copy / part).write_text(json.dumps(json.loads((copy / part).read_text()) | entries))
    return copy


def test_sizes_are_told_as_original_crop_and_target():
    assert size_ids(48, 64).tolist() == [[48, 64, 0, 0, 48, 64]]


def test_states_are_the_last_but_one_of_both_encoders_and_the_pooled_text_of_the_second(base):
    text = Editor.build(base).text
    ids = text.tokenize(["make it red", ""])
    assert ids.shape == (2, 2, 77)
    first, second = (encoder(ids[:, 0], output_hidden_states=True) for encoder in text.encoders)
    said = text(ids)
    assert torch.equal(said.sequence[0], torch.cat([first.hidden_states[1], second.hidden_states[1]], -1)[0])
    assert torch.equal(said.pooled[0], second.text_embeds[0])
    assert not said.sequence[1].any()
    assert not said.pooled[1].any()


@pytest.mark.parametrize(
    "entries", [{"is_cosxl_edit": True}, {"force_zeros_for_empty_prompt": False}], ids=["cosxl", "encoded_empty"]
)
def test_the_switches_of_the_pipeline_are_kept_and_edits_are_its(folder, tmp_path, entries):
    Editor.load(changed(folder, tmp_path / "given", "model_index.json", **entries)).save(
        tmp_path / "saved", Editor.load(folder).card
    )
    assert json.loads((tmp_path / "saved" / "model_index.json").read_text()).items() >= entries.items()
    editor = Editor.load(tmp_path / "saved")
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    settings = {"guidance_scale": 4.0, "image_guidance_scale": 1.5, "num_inference_steps": 3}
    words = ["make it red", "add a hat"]
    pipeline = StableDiffusionXLInstructPix2PixPipeline.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    noise = row_noise((4, 8, 8), [torch.Generator().manual_seed(seed) for seed in (1, 2)])
    # It cannot encode its own default of "" for a list; where nothing is zeros, it must not be told.
    empty = None if editor.text.empty_is_zero else ["", ""]
    wanted = pipeline(
        words, image=images / 2 + 0.5, negative_prompt=empty, latents=noise, output_type="pt", **settings
    ).images
    edits = sample(editor, images, words, seeds=[1, 2], **settings)
    torch.testing.assert_close(edits / 2 + 0.5, wanted, rtol=0, atol=1e-4)
    plain = sample(Editor.load(folder), images, words, seeds=[1, 2], **settings)
    assert not torch.allclose(edits, plain, atol=1e-3)


def test_a_model_that_learned_scaled_image_latents_is_trained_on_them(folder, tmp_path):
    editor = Editor.load(changed(folder, tmp_path / "cosxl", "model_index.json", is_cosxl_edit=True))
    mean = torch.ones(1, 4, 2, 2)
    assert torch.equal(editor.scale_condition(mean), 0.18215 * mean)
    assert torch.equal(Editor.load(folder).scale_condition(mean), mean)


@pytest.mark.parametrize(("force_upcast", "dtype"), [(True, torch.float32), (False, torch.float16)])
def test_in_fp16_the_autoencoder_stays_in_fp32_where_its_config_says_so(folder, tmp_path, force_upcast, dtype):
    path = changed(folder, tmp_path / "editor", "vae/config.json", force_upcast=force_upcast)
    editor = Editor.load(path).to("cpu", torch.float16)
    assert (editor.vae.dtype, editor.unet.dtype) == (dtype, torch.float16)
    assert Editor.load(path).to("cpu", torch.bfloat16).vae.dtype == torch.bfloat16


def test_a_folder_without_the_second_text_encoder_is_refused(base, tmp_path):
    shutil.rmtree(shutil.copytree(base, tmp_path / "half") / "text_encoder_2")
    with pytest.raises(ModelFolderError, match="lacks text_encoder_2"):
        Editor.build(tmp_path / "half")


def test_noise_levels_of_edm_are_refused(base, tmp_path):
    path = changed(
        base, tmp_path / "edm", "scheduler/scheduler_config.json", _class_name="EDMEulerScheduler", sigma_data=1.0
    )
    with pytest.raises(ModelFolderError, match="EDMEulerScheduler, with noise levels of EDM"):
        Editor.build(path)
