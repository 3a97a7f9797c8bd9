from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig

from hive_ray.images import decode, encode
from hive_ray.pairs.safety import SafetyChecker

COLOURS = [(0, 0, 0), (255, 30, 30), (255, 255, 255)]
SEEN = [encode(np.full((40, 40, 3), colour, dtype=np.uint8)) for colour in COLOURS]


def tiny_checker(folder: Path, threshold: float) -> Path:
    """A random checker of 32x32 pictures: cosines to its concepts lie in -1..1, so 2 flags nothing and -2 all."""
    width = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    config = CLIPConfig(
        text_config=dict(vocab_size=8, max_position_embeddings=4, **width),
        vision_config=dict(image_size=32, patch_size=16, **width),
        projection_dim=8,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = StableDiffusionSafetyChecker(config)
        torch.nn.init.normal_(model.concept_embeds)
        torch.nn.init.constant_(model.concept_embeds_weights, threshold)
        torch.nn.init.constant_(model.special_care_embeds_weights, 2.0)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("threshold", "flagged"), [(2.0, False), (-2.0, True)])
def test_pictures_are_flagged_by_the_thresholds_of_the_concepts(tmp_path, threshold, flagged):
    checker = SafetyChecker(tiny_checker(tmp_path, threshold))
    assert checker(SEEN) == [flagged] * 3
    assert checker([]) == []


def test_each_picture_is_judged_by_itself(tmp_path):
    folder = tiny_checker(tmp_path, 2.0)
    checker = SafetyChecker(folder)
    inputs = checker.prepare([decode(one) for one in SEEN], return_tensors="pt")
    with torch.no_grad():
        seen = checker.model.visual_projection(checker.model.vision_model(inputs.pixel_values)[1])
        checker.model.concept_embeds[0] = seen[1]  # the second picture itself is a concept
        others = torch.nn.functional.cosine_similarity(seen[[0, 2]], seen[1])
        checker.model.concept_embeds_weights[0] = (1 + others.max()) / 2
    assert checker(SEEN) == [False, True, False]
