from pathlib import Path

import pytest
import torch
from tiny_models import tiny_stable_diffusion

from hive_ray.pairs.generation import TextToImage

SOURCES, EDITS = ["a red cat", "a blue dog and a hat"], ["a green cat", "a blue dog"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> TextToImage:
    return TextToImage(tiny_stable_diffusion(Path(tmp_path_factory.mktemp("base"))))


def noise(model: TextToImage) -> torch.Tensor:
    return model.noise([torch.Generator().manual_seed(seed) for seed in (1, 2)], resolution=64)


def pairs(model: TextToImage, sharing: str, shared: float, rows=slice(None)):
    return model.draw_pairs(
        SOURCES[rows], EDITS[rows], noise(model)[rows], guidance_scale=torch.tensor([3.0, 5.0])[rows],
        shared_attention=torch.full((2,), shared)[rows], sharing=sharing, num_inference_steps=3,
    )  # fmt: skip


@pytest.mark.parametrize("sharing", ["self", "cross_and_self"])
@pytest.mark.parametrize("shared", [0.0, 1.1])
def test_the_source_is_what_its_caption_alone_gives_whatever_is_shared(model, sharing, shared):
    alone = model.draw(SOURCES, noise(model), guidance_scale=torch.tensor([3.0, 5.0]), num_inference_steps=3)
    torch.testing.assert_close(pairs(model, sharing, shared)[0], alone, atol=1e-5, rtol=0)


def test_sharing_brings_the_edit_nearer_to_the_source(model):
    def distance(shared: float) -> float:
        source, edited = pairs(model, "cross_and_self", shared)
        return float((source - edited).abs().mean())

    assert 0 < distance(1.1) < distance(0.0)


def test_a_pair_does_not_depend_on_those_beside_it(model):
    together, alone = pairs(model, "cross_and_self", 0.6), pairs(model, "cross_and_self", 0.6, slice(1, 2))
    for both, one in zip(together, alone, strict=True):
        torch.testing.assert_close(both[1:], one, atol=1e-5, rtol=0)
