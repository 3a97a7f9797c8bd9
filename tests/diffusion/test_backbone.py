import json
import shutil

import pytest
import torch
from tiny_models import tiny_base, tiny_stable_diffusion

from hive_ray.diffusion import backbone as backbones
from hive_ray.diffusion.backbone import StableDiffusion, StableDiffusionXL, check_backbone, load_backbone, posterior
from hive_ray.files.model_folders import ModelFolderError

SIDE = 64
KINDS = {"epsilon": StableDiffusion, "v_prediction": StableDiffusion, "xl": StableDiffusionXL}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: tiny_base(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_is_of_its_family(folders, kind):
    backbone = load_backbone(folders[kind])
    assert type(backbone) is KINDS[kind]
    assert backbone.origin == str(folders[kind])
    assert backbone.latent_shape(SIDE, 2 * SIDE) == (4, 8, 16)
    assert len(backbone.text.encoders) == (2 if kind == "xl" else 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["epsilon", "xl"])
def test_an_xl_is_loaded_with_its_vae_in_fp32(folders, kind, dtype):
    backbone = load_backbone(folders[kind], dtype=dtype)
    assert {backbone.unet.dtype, *(encoder.dtype for encoder in backbone.text.encoders)} == {dtype}
    assert backbone.vae.dtype == (torch.float32 if kind == "xl" else dtype)


def test_a_vae_gets_a_few_images_at_a_time_and_makes_the_same_of_them(folders, monkeypatch):
    backbone = load_backbone(folders["epsilon"])
    latents = torch.randn(5, *backbone.latent_shape(SIDE, SIDE), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        images = backbone.decode(latents)
        means, deviations = posterior(backbone.vae, images)
        monkeypatch.setattr(backbones, "VAE_PIXELS", 2 * SIDE**2)
        batches = []
        for method in ("encode", "decode"):
            monkeypatch.setattr(backbone.vae, method, counted(getattr(backbone.vae, method), batches))
        torch.testing.assert_close(backbone.decode(latents), images, rtol=0, atol=1e-5)
        chunked = posterior(backbone.vae, images)
    torch.testing.assert_close(chunked, (means, deviations), rtol=0, atol=1e-5)
    assert batches == [2, 2, 1] * 2


def counted(act, batches):
    """`act`, which notes the number of rows that it gets."""

    def acting(rows):
        batches.append(len(rows))
        return act(rows)

    return acting


def test_a_u_net_of_no_known_family_is_refused(folders, tmp_path):
    folder = shutil.copytree(folders["epsilon"], tmp_path / "other")
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps(config | {"addition_embed_type": "image"}))
    with pytest.raises(ModelFolderError, match="has the addition_embed_type 'image'; give a Stable Diffusion"):
        load_backbone(folder)


def test_a_model_that_cannot_be_whole_is_refused_before_it_is_loaded(tmp_path):
    with pytest.raises(ModelFolderError, match=r"base\.safetensors does not exist"):
        check_backbone(tmp_path / "base.safetensors")
    folder = tiny_stable_diffusion(tmp_path / "base")
    check_backbone(folder)
    shutil.rmtree(folder / "vae")
    with pytest.raises(ModelFolderError, match="lacks vae"):
        check_backbone(folder)
    (tmp_path / "base.safetensors").touch()
    check_backbone(tmp_path / "base.safetensors")
