import numpy as np
import pytest
import torch

from hive_ray.diffusion.precision import sampling_dtype
from hive_ray.editor.sampling import EditSampler
from hive_ray.images import decode
from hive_ray.pairs.generation import PairGenerator
from hive_ray.presets import SHAPES_WEIGHTS, shapes
from hive_ray.schemas import Dropped
from hive_ray.shapes.actors import ScenePainter, ShapesWriter, random_captions


@pytest.mark.parametrize(
    ("device", "has_a_unit", "precision", "dtype"),
    [
        ("cuda", False, "auto", torch.float16),
        ("cuda:1", True, "auto", torch.float16),
        ("cpu", True, "auto", torch.bfloat16),
        ("cpu", False, "auto", torch.float32),
        ("cpu", True, "fp32", torch.float32),
        ("cuda", True, "bf16", torch.bfloat16),
        ("cpu", False, "fp16", torch.float16),
    ],
)
def test_what_is_sampled_in_follows_the_device_unless_it_is_said(monkeypatch, device, has_a_unit, precision, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True} if has_a_unit else {})
    assert sampling_dtype(device, precision) == dtype


@pytest.fixture(scope="module")
def instructions():
    captions = random_captions(2, seed=0)
    preset = shapes().instructions.model_copy(update={"rank_rate": 0.0, "test_rate": 0.0})
    rows = ShapesWriter(preset)([{"caption_id": text, "caption": text} for text in captions])
    assert not [row for row in rows if isinstance(row, Dropped)]
    return rows


def levels_apart(one: bytes, other: bytes) -> float:
    """Mean over a picture, of 0..255."""
    return float(np.abs(decode(one).astype(float) - decode(other)).mean())


def test_pairs_in_bf16_are_those_in_fp32_but_for_rounding(instructions):
    anything = {f"least_clip_{name}": -2.0 for name in ("image", "direction", "source_text", "edited_text")}
    settings = shapes().pairs.model_copy(update=anything)
    precise, coarse = (
        PairGenerator(settings.model_copy(update={"precision": precision}))(instructions)
        for precision in ("fp32", "bf16")
    )
    apart = []
    for one, other in zip(*(sorted(rows, key=lambda row: row["pair_id"]) for rows in (precise, coarse)), strict=True):
        assert one["pair_id"] == other["pair_id"]
        apart += [levels_apart(one[name], other[name]) for name in ("source_image", "edited_image")]
    assert 0 < np.median(apart) < 1  # 0.3 measured


def test_edits_in_bf16_are_those_in_fp32_but_for_rounding(instructions):
    prompts = ScenePainter(shapes().pairs)(instructions)
    settings = shapes().candidates
    precise, coarse = (
        EditSampler(str(SHAPES_WEIGHTS / "editor"), settings.model_copy(update={"precision": precision}), name="e")(
            prompts
        )
        for precision in ("fp32", "bf16")
    )
    apart = [
        levels_apart(one["image"], other["image"])
        for row, same in zip(precise, coarse, strict=True)
        for one, other in zip(row["edits"], same["edits"], strict=True)
    ]
    assert 0 < np.median(apart) < 1  # 0.3 measured
