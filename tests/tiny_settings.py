"""Settings for tiny editors and of a whole tiny run, and generators."""

import torch

from hive_ray.config import Config, Editor, Resources, Training
from hive_ray.presets import sd15

TRAINING = Training(total_images=4, batch_size=2, micro_batch_size=2, learning_rate=1e-3, checkpoint_images=4)
ONE = Resources(num_gpus=0, num_cpus=1, num_actors=1, batch_size=4)
TWO = ONE.model_copy(update={"num_actors": 2})


def editor_settings(**changed) -> Editor:
    """An editor of 64 x 64 images whose pairs are never mirrored."""
    given = {"start": "tiny", "resolution": 64, "flip": False, "sft": TRAINING, "finetune": TRAINING}
    return Editor(**given | changed)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tiny_config(base: str, clip: str, one: Resources = ONE, two: Resources = TWO) -> Config:
    """The sd15 preset with everything small; the embedded domain stands in for LLM and annotators. `one`, `two`: what a
    stage with one actor has, and one with two, if there is room for them; on the CPU."""
    preset = sd15()
    fit = dict(total_images=8, batch_size=4, micro_batch_size=2, learning_rate=1e-4, checkpoint_images=4, workers=two)
    training = preset.editor.sft.model_copy(update=fit | {"precision": "fp32"})
    reward = preset.reward.training.model_copy(update=fit | {"precision": "fp32"})
    sections = {
        "instructions": {
            "captions": "shapes", "num_captions": 24, "writer": "shapes", "per_caption": 1, "rank_rate": 0.3,
            "test_rate": 0.3, "resources": one,
        },
        "pairs": {
            "base": base, "clip": clip, "resolution": 64, "samples_per_instruction": 2, "keep_per_instruction": 1,
            "num_inference_steps": 2, "least_clip_image": -1, "least_clip_direction": -1,
            "least_clip_source_text": -1, "least_clip_edited_text": -1, "least_contrast": 0, "least_difference": 0,
            "resources": two,
        },
        "editor": {
            "start": base, "resolution": 64, "latents": "fp32", "sft": training, "finetune": training, "resources": one,
        },
        "candidates": {"num_edits": 3, "num_inference_steps": 2, "resources": two},
        "rankings": {"annotator": "shapes"},
        "reward": {
            "start": "shapes", "tokenizer": base, "resolution": 64, "frozen_rate": 0.0, "held_out_rate": 0.3,
            "training": reward, "resources": one,
        },
        "scoring": {"resources": one},
        "evaluation": {
            "num_prompts": 4, "num_inference_steps": 2, "curve": (1.0, 1.5), "curve_prompts": 2, "clip": clip,
            "judge": "shapes", "bootstrap": 20, "resources": one,
        },
    }  # fmt: skip
    return Config.model_validate_json(preset.changed(sections).model_dump_json())  # as a settings file gives it back
