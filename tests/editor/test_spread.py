from itertools import combinations

import numpy as np
import pytest
import torch
from tiny_models import tiny_stable_diffusion

from hive_ray.editor.model import Editor
from hive_ray.editor.spread import SpreadMeasure, latent_spread
from hive_ray.images import ImageError, encode, to_batch


def test_the_spread_is_the_mean_over_pairs_of_the_mean_squared_difference():
    # Differences 1, 3 and 2 in one of two numbers: (1 + 9 + 4) / 3 pairs / 2 numbers.
    latents = torch.tensor([[0.0, 5.0], [1.0, 5.0], [3.0, 5.0]]).view(3, 2, 1, 1)
    assert latent_spread(latents) == pytest.approx(14 / 6)


def test_edits_that_are_alike_have_no_spread():
    assert latent_spread(torch.randn(1, 4, 8, 8).expand(3, -1, -1, -1)) == pytest.approx(0, abs=1e-12)


def pictures(count: int, seed: int) -> list[bytes]:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)
    return [encode(one) for one in pixels]


def test_edits_are_measured_by_the_editors_scaled_posterior_means(tmp_path):
    editor = Editor.build(tiny_stable_diffusion(tmp_path / "base"))
    editor.save(tmp_path / "editor", editor.card)
    edits = [pictures(3, 0), [pictures(1, 1)[0]] * 2]
    spread, none = SpreadMeasure(str(tmp_path / "editor"))(edits)
    latents = editor.posterior(to_batch(edits[0], editor.card.resolution))[0] * editor.vae.config.scaling_factor
    wanted = np.mean([((one - other) ** 2).mean().item() for one, other in combinations(latents, 2)])
    assert spread == pytest.approx(wanted, rel=1e-4)
    assert spread > 0
    assert none == pytest.approx(0, abs=1e-10)
    with pytest.raises(ImageError):
        SpreadMeasure(str(tmp_path / "editor"))([[b"no picture", *edits[0]]])
