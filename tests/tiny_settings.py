"""Settings for tiny editors, and generators."""

import torch

from hive_ray.config import Editor, Training

TRAINING = Training(total_images=4, batch_size=2, micro_batch_size=2, learning_rate=1e-3, checkpoint_images=4)


def editor_settings(**changed) -> Editor:
    """An editor of 64 x 64 images whose pairs are never mirrored."""
    given = {"start": "tiny", "resolution": 64, "flip": False, "sft": TRAINING, "finetune": TRAINING}
    return Editor(**given | changed)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
