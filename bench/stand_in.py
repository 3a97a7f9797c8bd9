"""What stands in for the sampler where only the plumbing around it is measured."""

import os
import time

from hive_ray.schemas import Rows


class Sleeper:
    """Stands in for the sampler: sleeps, and gives one small pair a row."""

    def __init__(self, device: str, seconds: float) -> None:
        self.seconds = seconds
        self.picture = os.urandom(2000)

    def __call__(self, rows: Rows) -> Rows:
        time.sleep(self.seconds * len(rows))
        zeros = dict.fromkeys(("clip_image", "clip_source_text", "clip_edited_text", "clip_direction"), 0.0)
        kept = ("instruction_id", "instruction", "source_caption", "edited_caption", "split")
        return [
            {
                **{name: row[name] for name in kept},
                **zeros,
                "pair_id": row["instruction_id"],
                "source_image": self.picture,
                "edited_image": self.picture,
                "weight": 1.0,
                "seed": 0,
                "shared_attention": 0.0,
                "origin": "generated",
            }
            for row in rows
        ]
