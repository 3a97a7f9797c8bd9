import itertools
import pickle
import sys
import types

import numpy as np
import pytest
import torch
from compvis import SD15, SD21, SDXL, checkpoint, names, tiny
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
from tiny_models import MAX_TOKENS, QUALITY, WORDS, tiny_stable_diffusion
from torch.nn import functional as F

from hive_ray.config import EditorFile, SingleFile
from hive_ray.diffusion import conversion
from hive_ray.diffusion.backbone import StableDiffusionXL, load_tokenizer
from hive_ray.editor.model import Editor, read_card
from hive_ray.editor.sampling import row_noise, sample
from hive_ray.files.model_folders import ModelFolderError
from hive_ray.shapes.pretraining.words import train_tokenizer

SIZES = {"sd15": SD15, "sd21": SD21, "sdxl": SDXL}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    tokenizer, folder = train_tokenizer([WORDS, QUALITY], MAX_TOKENS), tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return folder, len(tokenizer)


@pytest.fixture
def told(vocabulary):
    return EditorFile(tokenizer=str(vocabulary[0]))


@pytest.fixture(scope="module", params=SIZES)
def toy(request, vocabulary):
    """Sizes of one kind at toy widths, and the weights of an editor of it."""
    sizes = tiny(SIZES[request.param], vocabulary[1])
    return sizes, checkpoint(sizes, in_channels=8)


def models_of(unet, vae, text, **_):
    """The parts that hold weights, by their names in a diffusers folder."""
    return {"unet": unet, "vae": vae} | {
        part: model for part, model in text.parts().items() if part.startswith("text_encoder")
    }


def test_every_weight_arrives_under_its_name(toy, told, tmp_path):
    sizes, weights = toy
    save_file(weights, tmp_path / "editor.safetensors")
    editor = Editor.build(tmp_path / "editor.safetensors", single_file=told)
    found, seen = {part: dict(model.state_dict()) for part, model in models_of(**vars(editor.backbone)).items()}, 0
    for there, part, here, _ in names(sizes, in_channels=8):
        left_out = sizes.open_clip and not sizes.labels  # by Stable Diffusion 2: its last layer, and what is pooled
        if here == "" or (left_out and ("resblocks.2." in there or here == "text_projection")):
            continue
        if part == "text_encoder_2" and here != "text_projection":
            here = f"text_model.{here}"
        if here == "text_projection":
            pairs = {"text_projection.weight": weights[there].T}
        elif "{}" in here:
            pairs = dict(zip([here.format(name) for name in "qkv"], weights[there].chunk(3), strict=True))
        else:
            pairs = {here: weights[there]}
        for name, wanted in pairs.items():
            assert torch.equal(found[part][name].flatten(), wanted.flatten()), (there, name)
            seen += 1
    assert seen == sum(len(model) for model in found.values())


# Weights and their numbers as published for the whole models: Stable Diffusion 1.5, 2.1 and XL.
PUBLISHED = {
    "sd15": {"unet": (686, 859_520_964), "vae": (248, 83_653_863), "text_encoder": (196, 123_060_480)},
    "sd21": {"unet": (686, 865_910_724), "vae": (248, 83_653_863), "text_encoder": (372, 340_387_840)},
    "sdxl": {
        "unet": (1680, 2_567_463_684), "vae": (248, 83_653_863), "text_encoder": (196, 123_060_480),
        "text_encoder_2": (517, 694_659_840),
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", SIZES)
def test_the_whole_models_have_the_published_numbers_of_weights(kind, monkeypatch):
    monkeypatch.setattr(conversion, "_tokenizer", lambda *_, **special: WholeVocabulary())
    parts = conversion.convert_checkpoint(
        checkpoint(SIZES[kind], device="meta"), SingleFile(prediction_type="epsilon"), f"{kind}.ckpt"
    )
    found = {
        part: (len(model.state_dict()), sum(weight.numel() for weight in model.parameters()))
        for part, model in models_of(**parts).items()
    }
    assert found == PUBLISHED[kind]
    config = parts["unet"].config
    heads = {"sd15": 8, "sd21": [5, 10, 20, 20], "sdxl": [5, 10, 20]}[kind]
    assert (config.attention_head_dim, config.sample_size) == (heads, 128 if kind == "sdxl" else 64)
    assert parts["vae"].config.scaling_factor == (0.13025 if kind == "sdxl" else 0.18215)
    assert config.addition_time_embed_dim == (256 if kind == "sdxl" else None)
    read = [(one.config.hidden_act, one.config.num_attention_heads) for one in parts["text"].encoders]
    assert (
        read
        == {
            "sd15": [("quick_gelu", 12)],
            "sd21": [("gelu", 16)],
            "sdxl": [("quick_gelu", 12), ("gelu", 20)],
        }[kind]
    )


class WholeVocabulary:
    """What of CLIP's tokenizer stands in a config."""

    bos_token_id, eos_token_id, pad_token_id = 49406, 49407, 49407

    def __len__(self):
        return 49408


def read_by_open_clip(weights, prefix, ids):
    """OpenCLIP's text transformer (one head) on ids (B, T): states before its last block, these normed, pooled text."""
    own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    width = own["ln_final.weight"].numel()

    def norm(x, name):
        return F.layer_norm(x, (width,), own[f"{name}.weight"], own[f"{name}.bias"])

    x = own["token_embedding.weight"][ids] + own["positional_embedding"]
    unseen, states = torch.full((ids.shape[1],) * 2, -torch.inf).triu(1), []
    for block in (f"transformer.resblocks.{layer}" for layer in itertools.count()):
        states.append(x)
        if f"{block}.ln_1.weight" not in own:
            break
        q, k, v = F.linear(
            norm(x, f"{block}.ln_1"), own[f"{block}.attn.in_proj_weight"], own[f"{block}.attn.in_proj_bias"]
        ).chunk(3, -1)
        seen = (q @ k.transpose(1, 2) / width**0.5 + unseen).softmax(-1) @ v
        x = x + F.linear(seen, own[f"{block}.attn.out_proj.weight"], own[f"{block}.attn.out_proj.bias"])
        wide = F.gelu(
            F.linear(norm(x, f"{block}.ln_2"), own[f"{block}.mlp.c_fc.weight"], own[f"{block}.mlp.c_fc.bias"])
        )
        x = x + F.linear(wide, own[f"{block}.mlp.c_proj.weight"], own[f"{block}.mlp.c_proj.bias"])
    end = ids.argmax(1)  # the end token has the highest number
    pooled = norm(x, "ln_final")[torch.arange(len(ids)), end] @ own["text_projection"]
    return states[-2], norm(states[-2], "ln_final"), pooled


def test_texts_become_what_open_clip_makes_of_them(vocabulary, told):
    words = ["make it red", "add a hat to the dog"]
    for kind, prefix in ((SD21, "cond_stage_model.model."), (SDXL, "conditioner.embedders.1.model.")):
        weights = checkpoint(tiny(kind, vocabulary[1]), in_channels=8)
        text = conversion.convert_checkpoint(weights, told, "given.ckpt")["text"]
        ids = text.tokenize(words)[:, -1]
        assert set(ids[:, -1].tolist()) == {text.tokenizers[-1].convert_tokens_to_ids("!")}
        before_last, normed, pooled = read_by_open_clip(weights, prefix, ids)
        said = text.encode(words)
        if kind is SD21:
            torch.testing.assert_close(said.sequence, normed, rtol=1e-4, atol=1e-4)
        else:
            torch.testing.assert_close(said.sequence[..., -64:], before_last, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(said.pooled, pooled, rtol=1e-4, atol=1e-4)


def test_an_editor_of_one_file_edits_saves_and_opens_in_diffusers(toy, told, tmp_path):
    _, weights = toy
    torch.save({"state_dict": weights, "global_step": 1, "epoch": 0}, tmp_path / "hive.ckpt")
    told = told.model_copy(update={"instruction_suffix": ", five"})
    editor = Editor.build(tmp_path / "hive.ckpt", single_file=told)
    assert editor.card.base_model == "hive.ckpt, its only weights"
    editor.save(tmp_path / "folder", editor.card)
    assert Editor.load(tmp_path / "folder").card.instruction_suffix == ", five"
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    scales = {"guidance_scale": 3.0, "image_guidance_scale": 1.5, "num_inference_steps": 2}
    edits = sample(editor, images, ["make it red"], seeds=[1], **scales)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "folder", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    sides = {"height": 64, "width": 64} if isinstance(editor.backbone, StableDiffusionXL) else {}
    noise = row_noise((4, 8, 8), [torch.Generator().manual_seed(1)])
    wanted = pipeline(["make it red"], image=images / 2 + 0.5, latents=noise, output_type="pt", **scales, **sides)
    torch.testing.assert_close(edits / 2 + 0.5, wanted.images, rtol=0, atol=1e-4)
    assert edits.std() > 0.01


@pytest.fixture(scope="module")
def sizes(vocabulary):
    return tiny(SD15, vocabulary[1])


def test_averaged_weights_are_taken_where_they_are(sizes, told, tmp_path):
    weights = checkpoint(sizes, in_channels=8, averaged=True)
    torch.save({"state_dict": weights}, tmp_path / "instruct.ckpt")
    editor = Editor.build(tmp_path / "instruct.ckpt", single_file=told)
    last = weights["model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"]
    assert torch.equal(editor.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k.weight, 0.9 * last)
    assert editor.card.base_model == "instruct.ckpt, averaged weights"
    del weights["model_ema.diffusion_modelout2weight"]
    torch.save({"state_dict": weights}, tmp_path / "broken.ckpt")
    with pytest.raises(ModelFolderError, match=r"lacks model_ema\.diffusion_modelout2weight: it is incomplete"):
        Editor.build(tmp_path / "broken.ckpt", single_file=told)


def test_a_text_to_image_file_is_widened(sizes, told, tmp_path):
    weights = checkpoint(sizes)
    save_file(weights, tmp_path / "base.safetensors")
    editor = Editor.build(tmp_path / "base.safetensors", single_file=told)
    first = weights["model.diffusion_model.input_blocks.0.0.weight"]
    assert torch.equal(editor.unet.conv_in.weight, torch.cat([first, torch.zeros_like(first)], 1))


def test_a_stable_diffusion_2_must_be_told_what_it_predicts(vocabulary, told, tmp_path):
    small = tiny(SD21, vocabulary[1])
    save_file(checkpoint(small), tmp_path / "sd21.safetensors")
    with pytest.raises(ModelFolderError, match="weights do not show what it predicts; set prediction_type"):
        Editor.build(tmp_path / "sd21.safetensors", single_file=told)
    told = told.model_copy(update={"prediction_type": "v_prediction"})
    editor = Editor.build(tmp_path / "sd21.safetensors", single_file=told)
    assert (editor.card.prediction_type, editor.card.resolution) == ("v_prediction", 768)
    assert editor.unet.config.upcast_attention
    save_file(checkpoint(small, in_channels=8), tmp_path / "hive.safetensors")
    hive = Editor.build(tmp_path / "hive.safetensors", single_file=told.model_copy(update={"prediction_type": ""}))
    assert (hive.card.prediction_type, hive.card.resolution) == ("epsilon", 512)


NAME = "model.diffusion_model.input_blocks.4.0.in_layers.2.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop(NAME), r"no complete UNet2DConditionModel: .* lacks down_blocks\.1\.resnets\.0\.conv1"),
        (
            lambda w: w.update({NAME: torch.zeros(32, 32, 1, 1)}),
            r"other shapes: down_blocks\.1\.resnets\.0\.conv1\.weight \[32, 32, 1, 1\], not \[32, 32, 3, 3\]",
        ),
        (lambda w: w.update({NAME.replace("in_", "odd_"): w[NAME]}), r"unknown weights: .*odd_layers"),
        (lambda w: w.update({f"{conversion.UNET_PREFIX}more.weight": w[NAME]}), r"\d+ of \d+ weights of the U-Net"),
        (lambda w: w.pop(f"{conversion.UNET_PREFIX}out.2.weight"), r"lacks model\.diffusion_model\.out\.2\.weight"),
        (lambda w: w.pop(f"{conversion.VAE_PREFIX}decoder.norm_out.bias"), "no complete AutoencoderKL"),
        (
            lambda w: w.pop("cond_stage_model.transformer.text_model.final_layer_norm.bias"),
            "no complete CLIPTextModel: .* lacks final_layer_norm.bias",
        ),
        (lambda w: w.update({"edm_vpred.sigma_max": w[NAME]}), r"edm_vpred\.sigma_max: noise levels of EDM"),
        (lambda w: [w.pop(name) for name in list(w) if name.startswith("first_")], "no complete checkpoint of Stable"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_whole_is_refused_by_name(sizes, told, change, words):
    weights = checkpoint(sizes, in_channels=8)
    change(weights)
    with pytest.raises(ModelFolderError, match=words):
        conversion.convert_checkpoint(weights, told, "given.ckpt")


class Code:
    def __reduce__(self):
        return print, ("this must never be said",)


def test_a_pickle_that_holds_code_is_refused_and_not_run(tmp_path, capsys):
    torch.save({"state_dict": {"a": torch.zeros(1)}, "callbacks": Code()}, tmp_path / "zipped.ckpt")
    with pytest.raises(ModelFolderError, match=r"loading it would run .*print\. It is refused; give a \.safetensors"):
        Editor.build(tmp_path / "zipped.ckpt")
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps({"state_dict": Code()}, protocol=2))
    with pytest.raises(ModelFolderError, match="a pickle with code, which is never run"):
        Editor.build(tmp_path / "plain.ckpt")
    assert "never be said" not in capsys.readouterr().out


def test_lightnings_bookkeeping_is_stood_in_for(sizes, told, tmp_path, monkeypatch):
    # Lightning 1.4, which InstructPix2Pix and HIVE were trained with, keys the callbacks' state by their class.
    callback = type("ModelCheckpoint", (), {"__module__": "pytorch_lightning.callbacks.model_checkpoint"})
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    module.ModelCheckpoint = callback
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    state = {"best_model_score": np.float64(0.5), "self": callback()}
    torch.save(
        {"state_dict": checkpoint(sizes, in_channels=8), "callbacks": {callback: state}}, tmp_path / "lightning.ckpt"
    )
    assert torch.serialization.get_unsafe_globals_in_checkpoint(tmp_path / "lightning.ckpt")
    before = set(torch.serialization.get_safe_globals())
    assert Editor.build(tmp_path / "lightning.ckpt", single_file=told).card.resolution == 512
    assert set(torch.serialization.get_safe_globals()) == before


def test_what_is_no_checkpoint_is_refused(tmp_path):
    for name in ("a.ckpt", "a.safetensors"):
        (tmp_path / name).write_text("<html>404</html>")
        with pytest.raises(ModelFolderError, match="fetch it again"):
            Editor.build(tmp_path / name)
    with pytest.raises(ModelFolderError, match="does not exist; give a"):
        Editor.build(tmp_path / "none.ckpt")
    torch.save({"state_dict": {"down_blocks.0.weight": torch.zeros(1)}}, tmp_path / "b.ckpt")
    with pytest.raises(ModelFolderError, match=r"begins with down_blocks\.0\.weight; a single file holds"):
        Editor.build(tmp_path / "b.ckpt")


def test_a_missing_or_wrong_tokenizer_is_said(sizes, tmp_path):
    weights = checkpoint(sizes, in_channels=8)
    with pytest.raises(ModelFolderError, match=r"without a tokenizer, and .* is not one"):
        conversion.convert_checkpoint(weights, SingleFile(tokenizer=str(tmp_path / "none")), "given.ckpt")
    train_tokenizer(["one two"], MAX_TOKENS).save_pretrained(tmp_path)
    with pytest.raises(ModelFolderError, match=rf"tokens, the text encoder of given\.ckpt {sizes.words}; set"):
        conversion.convert_checkpoint(weights, SingleFile(tokenizer=str(tmp_path)), "given.ckpt")


def test_the_tokenizer_of_a_start_is_its_own_or_the_told_one(vocabulary, told, tmp_path):
    base = tiny_stable_diffusion(tmp_path / "base")
    assert len(load_tokenizer(base, SingleFile())) == len(load_tokenizer("s3://bucket/hive.ckpt", told))
    with pytest.raises(ModelFolderError, match=r"hive\.ckpt is a single file without a tokenizer"):
        load_tokenizer("s3://bucket/hive.ckpt", SingleFile(tokenizer=str(tmp_path / "none")))


def test_a_single_file_is_no_finished_editor(tmp_path):
    with pytest.raises(ModelFolderError, match=r"make an editor folder of it with jobs\.convert_editor"):
        read_card(tmp_path / "hive.ckpt")
