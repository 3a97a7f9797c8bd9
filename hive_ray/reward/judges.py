"""Judges, which give edits their rewards: the reward model, CLIP, a vision model over HTTP, or any callable.

pairs -> a judge -> pairs with a reward

A judge takes rows of pairs and returns each with its `reward`, as `RewardScorer` does. A row that it cannot score
becomes `Dropped`. `Counted` reports the tokens and dollars that it used.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from hive_ray.config import Scoring
from hive_ray.reward.model import RewardModel, RewardScorer, ScoringModel
from hive_ray.schemas import Result, Rows, edits_as_pairs
from hive_ray.similarity import Similarity
from hive_ray.statistics.measures import standardise

Judge = Callable[[Rows], Sequence[Result]]
CLIP_MEASURES = {
    "clip_direction": ("clip_direction",),
    "clip_image": ("clip_image",),
    "clip": ("clip_direction", "clip_image"),
}
"""Name of a judge -> the similarities whose sum is the reward."""


class ClipScorer:
    """Adds CLIP's reward to each pair: direction (instruction followed), image (rest preserved), or their sum."""

    def __init__(self, clip: str | Path, measure: str = "clip", device: str = "cpu") -> None:
        self.similarity = Similarity(clip, device)
        self.measures = CLIP_MEASURES[measure]

    def __call__(self, rows: Rows) -> Rows:
        measured = self.similarities(rows)
        rewards = sum((measured[name] for name in self.measures), start=torch.zeros(())).tolist()
        return [row | {"reward": reward} for row, reward in zip(rows, rewards, strict=True)]

    def similarities(self, rows: Rows) -> dict[str, Tensor]:
        """CLIP's similarities of B pairs by name, each (B,)."""
        return self.similarity.measure(
            [row["source_image"] for row in rows],
            [row["edited_image"] for row in rows],
            [row["source_caption"] for row in rows],
            [row["edited_caption"] for row in rows],
        )


class EditMeasurer:
    """Rankings -> a row for each edit with BLIP's reward and CLIP's similarities."""

    def __init__(self, clip: str, edits_of: Mapping[str, Sequence[str]], blip: str = "", device: str = "cpu") -> None:
        """edits_of: the ids of the edits to measure, by ranking_id. Without `blip` its reward is NaN."""
        self.clip = ClipScorer(clip, device=device)
        self.edits_of = edits_of
        self.blip = RewardModel.load(blip).to(device) if blip else None

    def __call__(self, rows: Rows) -> Rows:
        edits = edits_as_pairs(rows, self.edits_of)
        measured = {name: values.tolist() for name, values in self.clip.similarities(edits).items()}
        rewards = [row["reward"] for row in RewardScorer(self.blip)(edits)] if self.blip else [math.nan] * len(edits)
        return [
            {
                "edit_id": edit["edit_id"],
                "prompt_id": edit["prompt_id"],
                "blip": rewards[place],
                "clip_direction": measured["clip_direction"][place],
                "clip_image": measured["clip_image"][place],
            }
            for place, edit in enumerate(edits)
        ]


class CallableScorer:
    """Adds to each pair the reward of a callable, "module:function", which takes rows of pairs and returns a number for
    each."""

    def __init__(self, name: str) -> None:
        self.name, self.judge = name, _imported(name)

    def __call__(self, rows: Rows) -> Rows:
        rewards = [float(reward) for reward in self.judge(rows)]
        wrong = sum(not math.isfinite(reward) for reward in rewards)
        if len(rewards) != len(rows) or wrong:
            raise ValueError(
                f"judge {self.name} gave {len(rewards)} rewards, {wrong} of them not finite, for {len(rows)} rows; "
                "it must return one finite number for each row, in order"
            )
        return [row | {"reward": reward} for row, reward in zip(rows, rewards, strict=True)]


def make_judge(
    name: str, settings: Scoring, *, load_model: Callable[[], ScoringModel], answers_folder: str, device: str = "cpu"
) -> Judge:
    """The judge that a name in `scoring.judges` stands for.

    load_model: loads the reward model; answers_folder: where a vision model's answers are kept.
    """
    makers: dict[str, Callable[[], Judge]] = {
        "model": lambda: RewardScorer(load_model()),
        **{measure: partial(ClipScorer, settings.clip, measure, device) for measure in CLIP_MEASURES},
        "openai": partial(_vision, settings, answers_folder),
    }
    return makers.get(name, partial(CallableScorer, name))()


def judge_source_code(name: str) -> bytes:
    """The source file of a callable "module:function", so that a changed judge scores again; b"" without a file."""
    path = getattr(import_module(_imported(name).__module__), "__file__", None)
    return Path(path).read_bytes() if path else b""


def combine_rewards(rewards: np.ndarray, how: Literal["mean", "min"]) -> np.ndarray:
    """Rewards (J, N) of J judges -> the mean or least (N,) of the rewards, standardised for each judge over N pairs.

    A judge that gives all pairs the same reward counts as 0 for each.
    """
    each = np.stack([standardise(of_judge) for of_judge in rewards])
    return {"mean": np.mean, "min": np.min}[how](each, axis=0)


def _vision(settings: Scoring, answers: str) -> Judge:
    from hive_ray.reward.vision import VisionScorer  # here, since importing the openai client takes long

    return VisionScorer(settings.vision, answers, settings.resources.batch_size)


def _imported(name: str) -> Callable[[Rows], list[float]]:
    module, _, function = name.partition(":")
    try:
        return getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"scoring.judges names {name!r}, which cannot be imported ({error}); give module:function "
                         "as Python finds it on every machine") from error  # fmt: skip
