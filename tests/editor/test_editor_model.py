import shutil

import pytest
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from tiny_models import tiny_stable_diffusion, tiny_tokenizer

from hive_ray.editor.model import Editor, EditorCard, append_suffix, read_card
from hive_ray.files.model_folders import ModelFolderError


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_stable_diffusion(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def editor(base):
    return Editor.build(base)


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1


def predictions(base, editor, image_latents):
    """What the base U-Net and the editor's say of one noisy latent."""
    generator = torch.Generator().manual_seed(0)
    noisy, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 77, 32, generator=generator)
    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet", dtype=torch.float32)
    unet = unet.to(memory_format=torch.channels_last)
    with torch.no_grad():
        return unet(noisy, 500, text).sample, editor.unet(torch.cat([noisy, image_latents], 1), 500, text).sample


def test_with_zero_image_latents_a_fresh_editor_is_its_base_model(base, editor):
    before, after = predictions(base, editor, torch.zeros(2, 4, 8, 8))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6)


def test_a_fresh_editor_does_not_hear_the_image_at_all(base, editor):
    before, after = predictions(base, editor, torch.ones(2, 4, 8, 8))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6)


def test_the_first_convolution_is_the_pretrained_one_and_zeros(base, editor):
    pretrained = load_file(base / "unet" / "diffusion_pytorch_model.safetensors")
    assert editor.unet.conv_in.weight.shape[1] == editor.unet.config.in_channels == 8
    assert torch.equal(editor.unet.conv_in.weight[:, :4], pretrained["conv_in.weight"].float())
    assert not editor.unet.conv_in.weight[:, 4:].any()
    assert torch.equal(editor.unet.conv_in.bias, pretrained["conv_in.bias"].float())


def test_the_legacy_bias_is_a_new_one_and_changes_the_prediction(base):
    legacy = Editor.build(base, bias="diffusers_legacy")
    before, after = predictions(base, legacy, torch.zeros(2, 4, 8, 8))
    assert (before - after).abs().max() > 1e-3
    assert torch.equal(Editor.build(base, bias="diffusers_legacy").unet.conv_in.bias, legacy.unet.conv_in.bias)


def test_a_condition_is_the_mode_unscaled_and_a_target_a_scaled_sample(editor, images):
    posterior = editor.vae.encode(images).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(editor.encode_condition(images), posterior.mode())
    torch.testing.assert_close(
        editor.encode_target(images, torch.Generator().manual_seed(3)),
        (posterior.mean + posterior.std * noise) * 0.18215,
    )


def test_decode_undoes_the_scaling(editor):
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(editor.decode(latents * 0.18215), editor.vae.decode(latents).sample)


def test_a_size_that_the_vae_cannot_halve_is_refused(editor):
    with pytest.raises(ValueError, match="60 x 64; both must be multiples of 8"):
        editor.latent_shape(torch.zeros(1, 3, 60, 64))


def test_text_is_padded_and_cut_to_the_tokenizers_length(editor):
    assert editor.text.tokenize(["red", "red " * 100]).shape == (2, 1, 77)
    assert editor.text.encode(["red", ""]).sequence.shape == (2, 77, 32)


def test_a_text_has_the_same_tokens_when_it_is_known_and_when_it_was_forgotten(editor, monkeypatch):
    monkeypatch.setattr("hive_ray.diffusion.text.MAX_CACHED_TEXTS", 3)
    given = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    for texts in (["red", "blue", "red"], ["", "blue"], ["red", "a", "b", "c", "blue"], ["a", "red", "a"]):
        assert torch.equal(editor.text.tokenize(texts)[:, 0], editor.tokenizer(texts, **given).input_ids)


def test_what_is_saved_is_loaded_in_fp32_with_its_card_and_opens_in_diffusers(editor, tmp_path, images):
    card = EditorCard(
        base_model="sd", resolution=64, instruction_suffix=", five", training_table="abc", metrics={"a": 1}
    )
    editor.save(tmp_path / "sft", card, dtype=torch.float16)
    loaded = Editor.load(tmp_path / "sft")
    assert loaded.card == card
    assert loaded.unet.dtype == editor.unet.dtype == torch.float32
    assert torch.equal(loaded.unet.conv_in.weight, editor.unet.conv_in.weight)
    pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(tmp_path / "sft", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    assert len(pipeline("red", images[0] / 2 + 0.5, num_inference_steps=1).images) == 1


def test_a_saved_folder_does_not_say_where_its_start_lay(editor, tmp_path):
    editor.save(tmp_path / "one", editor.card)
    Editor.load(tmp_path / "one").save(tmp_path / "two", editor.card)
    assert not [path for path in (tmp_path / "two").rglob("*.json") if str(tmp_path) in path.read_text()]


def test_a_saved_folder_holds_safetensors_and_no_pickle(editor, tmp_path):
    editor.save(tmp_path / "sft", editor.card)
    names = {path.suffix for path in (tmp_path / "sft").rglob("*") if path.is_file()}
    assert ".safetensors" in names
    assert not names & {".bin", ".pt", ".pkl", ".ckpt"}
    state = load_file(tmp_path / "sft" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


def test_building_from_an_editor_keeps_its_weights_and_card(editor, tmp_path):
    card = EditorCard(base_model="sd", resolution=32, instruction_suffix=", five")
    editor.save(tmp_path / "sft", card)
    again = Editor.build(tmp_path / "sft")
    assert torch.equal(again.unet.conv_in.weight, editor.unet.conv_in.weight)
    assert again.card == card


def test_the_first_card_names_the_base_its_size_and_what_it_predicts(base, editor, tmp_path):
    assert (editor.card.base_model, editor.card.resolution, editor.card.prediction_type) == (
        str(base),
        64,
        "epsilon",
    )
    assert Editor.build(tiny_stable_diffusion(tmp_path, "v_prediction")).card.prediction_type == "v_prediction"


def test_a_folder_without_a_card_is_unfinished(base):
    with pytest.raises(ModelFolderError, match=r"no card\.json: the job that makes it has not finished"):
        Editor.load(base)


def test_a_card_of_another_format_is_refused(tmp_path):
    (tmp_path / "card.json").write_text('{"format_version": 99}')
    with pytest.raises(ModelFolderError, match="format_version 99, this version reads 1"):
        read_card(tmp_path)


def test_missing_parts_are_named_before_anything_is_loaded(base, tmp_path):
    broken = shutil.copytree(base, tmp_path / "broken")
    shutil.rmtree(broken / "vae")
    shutil.rmtree(broken / "tokenizer")
    (broken / "unet" / "config.json").write_text("not json, and never read")
    with pytest.raises(ModelFolderError, match="lacks vae, tokenizer"):
        Editor.build(broken)


def test_an_inpainting_model_is_refused(tmp_path):
    with pytest.raises(ModelFolderError, match=r"9 input channels and its VAE 4 latent channels"):
        Editor.build(tiny_stable_diffusion(tmp_path, in_channels=9))


def test_other_weights_leave_the_live_modules_alone(editor):
    before = editor.unet.conv_in.bias.clone()
    state = {name: tensor + 1 for name, tensor in editor.unet.state_dict().items()}
    other = editor.with_weights(state, editor.text.state_dict())
    assert torch.equal(other.unet.conv_in.bias, before + 1)
    assert torch.equal(editor.unet.conv_in.bias, before)
    assert torch.equal(other.text.encode(["red"]).sequence, editor.text.encode(["red"]).sequence)


def test_a_suffix_is_appended_as_it_is_where_there_is_room():
    tokenizer = tiny_tokenizer()
    assert append_suffix(tokenizer, "make it red", ", image quality is five") == "make it red, image quality is five"
    assert append_suffix(tokenizer, "make it red", "") == "make it red"


def test_a_long_instruction_is_cut_at_a_word_and_never_its_suffix():
    # 77 tokens less start, end and the five of the suffix leave room for 70 words.
    tokenizer = tiny_tokenizer()
    text = append_suffix(tokenizer, "red " * 100, ", image quality is five")
    assert text == " ".join(["red"] * 70) + ", image quality is five"
    ids = tokenizer(text, truncation=True).input_ids
    assert len(ids) == 77
    assert tokenizer.decode(ids[-6:-1]).split() == [",", "image", "quality", "is", "five"]


def test_a_suffix_that_cannot_fit_is_refused():
    with pytest.raises(ValueError, match="102 tokens, the text encoder takes 77; shorten it"):
        append_suffix(tiny_tokenizer(), "make it red", "red " * 100)


def test_a_training_in_bf16_encodes_pictures_as_one_in_fp32(base):
    editor, images = Editor.build(base), torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        mean, _ = editor.posterior(images)
        states = editor.text.encode(["make it red"]).sequence
    with torch.no_grad():
        assert torch.equal(mean, editor.posterior(images)[0])
        assert not torch.equal(states, editor.text.encode(["make it red"]).sequence)
