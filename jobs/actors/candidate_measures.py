"""What the workers of `choose_candidates` import: its actor, and no more than that needs."""

import math
from itertools import accumulate

import torch

from hive_ray.editor.spread import SpreadMeasure
from hive_ray.reward.model import ScoringModel
from hive_ray.reward.uncertainty import order_entropy
from hive_ray.schemas import Rows
from jobs.actors.judging import load_reward


class CandidateMeasurer:
    """Candidates -> how far each prompt's edits differ, and how unsure a reward model is of their order."""

    def __init__(self, editor: str, reward: str, temperature: float, device: str = "cpu") -> None:
        """editor: the folder whose VAE encodes; reward: the reward model's folder, or "" for none."""
        self.spread = SpreadMeasure(editor, device)
        self.reward = load_reward(reward, device) if reward else None
        self.temperature = temperature

    def __call__(self, rows: Rows) -> Rows:
        spreads = self.spread([[edit["image"] for edit in row["edits"]] for row in rows])
        disagreements = self._disagreements(self.reward, rows) if self.reward else [math.nan] * len(rows)
        return [
            {"prompt_id": row["prompt_id"], "spread": spread, "disagreement": disagreement}
            for row, spread, disagreement in zip(rows, spreads, disagreements, strict=True)
        ]

    def _disagreements(self, reward: ScoringModel, rows: Rows) -> list[float]:
        """The entropy of the order of each row's edits, in bits."""
        repeated = [row for row in rows for _ in row["edits"]]
        rewards = reward.score(
            source_images=[row["source_image"] for row in repeated],
            edited_images=[edit["image"] for row in rows for edit in row["edits"]],
            instructions=[row["instruction"] for row in repeated],
        )
        ends = accumulate(len(row["edits"]) for row in rows)
        parts = [rewards[end - len(row["edits"]) : end] for row, end in zip(rows, ends, strict=True)]
        return [order_entropy(torch.tensor(part), self.temperature) for part in parts]
