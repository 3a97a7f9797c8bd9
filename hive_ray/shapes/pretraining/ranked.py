"""Ranked edits that were drawn, not made by an editor: what the shipped reward model learns from.

instructions -> RankingPainter -> rankings
"""

import numpy as np
import torch
from diffusers import AutoencoderKL

from hive_ray.images import encode, to_pixels
from hive_ray.schemas import Row, Rows, prompt_row
from hive_ray.seeds import id_for, seed_for
from hive_ray.shapes.actors import NO_ROOM, before_and_after
from hive_ray.shapes.language import carry_out, write_edits
from hive_ray.shapes.pretraining.diffusion import is_thing
from hive_ray.shapes.pretraining.pictures import to_batch
from hive_ray.shapes.scenes import Description, Scene, draw

WEAR = ((0.0, 0.15), (0.3, 0.5), (0.55, 0.9))
"""Least and most noise on the latents of things (their standard deviation is 1.15): hardly worn, worn, badly worn."""


class RankingPainter:
    """Instructions -> drawn edits, ranked by how they were drawn.

    Best is the edit that was asked for; then the same edit worn; then badly worn, or with another edit on top; then
    the source as it was, or another edit in its place. Wear is noise on the latents of things before they are decoded,
    which looks as an editor's mistakes do; noise that came with every rank alike taught a model to overlook them.
    """

    def __init__(self, vae: str, seed: int, device: str = "cpu") -> None:
        self.vae = AutoencoderKL.from_pretrained(vae, torch_dtype=torch.float32).to(memory_format=torch.channels_last)
        self.seed = seed

    def __call__(self, rows: Rows) -> Rows:
        return [self._painted(row) for row in rows]

    def _painted(self, row: Row) -> Row:
        seed = seed_for(self.seed, row["instruction_id"], "ranked")
        rng = np.random.default_rng(seed)
        scenes = before_and_after(row, rng)
        if scenes is None:
            return {"dropped": NO_ROOM}
        before, after = scenes
        ranked = [(draw(after), 1, 0), (draw(after), 2, 1), (draw(after), 3, 2), (draw(before), 4, 0)]
        for start, unwanted, rank in ((after, before, 3), (before, after, 4)):
            other = another_edit(start, unwanted.description, rng)
            if other is not None:
                ranked.append((draw(other), rank, 0))
        wear = [rng.uniform(*WEAR[worn]) for worn in (0, *(worn for _, _, worn in ranked))]
        source, *pictures = self._decoded([draw(before), *(picture for picture, _, _ in ranked)], wear, seed)
        if rng.random() < 0.5:
            source = draw(before)
        prompt = prompt_row(row, encode(source))
        edits = [
            {"edit_id": id_for(prompt["prompt_id"], place), "image": encode(picture), "seed": seed,
             "guidance_scale": 1.0, "image_guidance_scale": 1.0}
            for place, picture in enumerate(pictures)
        ]  # fmt: skip
        return prompt | {
            "ranking_id": id_for("ranking", prompt["prompt_id"], "drawn"),
            "edits": edits,
            "editor": "drawn",
            "annotator": "drawn",
            "ranks": [rank for _, rank, _ in ranked],
        }

    @torch.no_grad()
    def _decoded(self, pictures: list[np.ndarray], wear: list[float], seed: int) -> list[np.ndarray]:
        """The pictures as an autoencoder gives them back, each with its noise on the latents of its things."""
        generator = torch.Generator().manual_seed(seed)
        latents = self.vae.encode(to_batch(pictures)).latent_dist.mean
        amount = torch.tensor(wear, dtype=torch.float32).view(-1, 1, 1, 1) * is_thing(latents)
        noisy = latents + amount * torch.randn(latents.shape, generator=generator)
        return [to_pixels(image) for image in self.vae.decode(noisy).sample]


def another_edit(scene: Scene, unwanted: Description, rng: np.random.Generator) -> Scene | None:
    """What some other edit makes of a scene, not leading to `unwanted`; None where five of them find no room."""
    for _ in range(5):
        edit = write_edits(scene.description.caption, 1, rng)[0]
        edited = carry_out(scene, edit.edited, rng)
        if edited is not None and edit.edited != unwanted:
            return edited
    return None
