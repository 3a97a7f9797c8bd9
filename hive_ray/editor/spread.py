"""How much the edits of a prompt differ in the editor's latent space.

B prompts, K edits of a prompt, C latent channels, h w latent height and width
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from hive_ray.diffusion.backbone import load_vae, posterior
from hive_ray.editor.model import read_card
from hive_ray.images import to_batch
from hive_ray.storage import fetch_model


def latent_spread(latents: Tensor) -> float:
    """The mean squared difference of two edits' latents, over all pairs of K >= 2 edits; 0 if all are equal.

    latents: (K, C, h, w). The mean squared difference over pairs is twice the unbiased variance.
    """
    return 2 * latents.var(0).mean().item()


class SpreadMeasure:
    """Measures the spread of edits with an editor's VAE, at the resolution of the editor's card."""

    def __init__(self, editor: str, device: str = "cpu") -> None:
        """editor: a finished editor folder or its s3:// address."""
        folder = fetch_model(editor)
        self.resolution = read_card(folder).resolution
        self.vae = load_vae(folder)
        self.vae.to(device)  # pyright: ignore[reportArgumentType] - diffusers wraps Module.to without `self`

    @torch.no_grad()
    def __call__(self, edits: Sequence[Sequence[bytes]]) -> list[float]:
        """The encoded pictures of the edits of B prompts -> B spreads of their scaled posterior means.

        ImageError for a picture that cannot be read.
        """
        images = to_batch([image for of_prompt in edits for image in of_prompt], self.resolution)
        mean, _ = posterior(self.vae, images)
        latents = mean * self.vae.config["scaling_factor"]
        counts = [len(of_prompt) for of_prompt in edits]
        return [latent_spread(part) for part in latents.split(counts)]
