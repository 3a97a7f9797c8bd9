from pathlib import Path

import pytest
import torch
from tiny_models import tiny_clip, tiny_stable_diffusion

from hive_ray.config import Pairs, Resources
from hive_ray.pairs import generation
from hive_ray.pairs.generation import PairGenerator, TextToImage
from hive_ray.schemas import PAIRS, to_table

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


ROW = {
    "instruction_id": "i", "instruction": "make it green", "source_caption": SOURCES[0], "edited_caption": EDITS[0],
    "inverse_instruction": "make it red", "split": "train",
}  # fmt: skip


def generator(tmp_path: Path, **settings) -> PairGenerator:
    lowest = dict.fromkeys(("image", "direction", "source_text", "edited_text"), -1.0)
    pairs = Pairs(
        base=str(tiny_stable_diffusion(tmp_path / "base")), clip=str(tiny_clip(tmp_path / "clip")), resolution=64,
        samples_per_instruction=3, num_inference_steps=1, resources=Resources(num_gpus=0, batch_size=4),
        **{f"least_clip_{name}": value for name, value in lowest.items()},
        **{"least_contrast": 0.0, "least_difference": 0.0, "keep_per_instruction": 1} | settings,
    )  # fmt: skip
    return PairGenerator(pairs)


def test_what_is_dropped_carries_its_reason_and_the_whole_pair(tmp_path):
    made = generator(tmp_path)([ROW])
    kept, dropped = [row for row in made if "dropped" not in row], [row for row in made if "dropped" in row]
    assert to_table(kept, PAIRS)["origin"].to_pylist() == ["generated", "cycle"]
    assert [row["dropped"] for row in dropped] == ["not_among_the_best"] * 2
    others = to_table([row["row"] for row in dropped], PAIRS)
    assert set(others["pair_id"].to_pylist()).isdisjoint(row["pair_id"] for row in kept)


def test_a_safety_checker_is_asked_where_one_is_set(tmp_path, monkeypatch):
    class Flags:
        def __init__(self, checker, device):
            assert checker == "a/checker"

        def __call__(self, pictures):
            return [True] * len(pictures)

    monkeypatch.setattr(generation, "SafetyChecker", Flags)
    unsafe = generator(tmp_path, safety_checker="a/checker")([ROW])
    assert [row["dropped"] for row in unsafe] == ["unsafe"] * 3
