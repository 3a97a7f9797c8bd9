"""Probes of a reward model: edits that no person would prefer, made from edits that people ranked best.

RANKINGS rows, RewardModel -> run_probes -> how often the true edit has the greater reward
"""

import numpy as np

from hive_ray.images import decode, encode, resize
from hive_ray.reward.model import RewardModel
from hive_ray.schemas import Row, Rows
from hive_ray.statistics.intervals import Interval, interval

PROBES = {
    "did_nothing": "an edit that did nothing",
    "destroyed_rest": "an edit that destroyed the rest of the picture",
    "swapped": "source and edited picture swapped",
    "other_instruction": "another instruction",
}
"""Name of a probe -> what a model that fails it does not notice."""
MIN_PIXEL_CHANGE = 32
"""A pixel counts as changed by an edit if one of its colours differs by at least this much, of 0..255."""


def run_probes(model: RewardModel, rows: Rows, *, batch_size: int = 32) -> dict[str, Interval]:
    """How often the edit that people ranked best has a greater reward than each of its PROBES; ties count half.

    The first ranking of each prompt counts, and intervals resample prompts. "destroyed_rest" keeps the pixels that the
    edit changed and takes the other pixels from another prompt's source picture. "other_instruction" is the same edit
    with another prompt's instruction. Empty if there is only one instruction.
    """
    firsts = list({row["prompt_id"]: row for row in reversed(rows)}.values())[::-1]
    triplets: list[tuple[bytes, bytes, str]] = []  # the true edit and then its probes, prompt by prompt
    prompts: list[str] = []
    for place, row in enumerate(firsts):
        others = (firsts[(place + step) % len(firsts)] for step in range(1, len(firsts)))
        other = next((candidate for candidate in others if candidate["instruction"] != row["instruction"]), None)
        if other is not None:
            triplets += _probes(row, other, model.resolution)
            prompts.append(row["prompt_id"])
    if not triplets:
        return {}
    rewards: list[float] = []
    for start in range(0, len(triplets), batch_size):
        sources, edits, instructions = zip(*triplets[start : start + batch_size], strict=True)
        rewards += model.score(list(sources), list(edits), list(instructions))
    table = np.array(rewards).reshape(-1, 1 + len(PROBES))
    true, probes = table[:, :1], table[:, 1:]
    preferred_to = (true > probes) + (true == probes) / 2  # (prompts, PROBES): 1, half or 0
    return {
        name: interval(dict(zip(prompts, column.tolist(), strict=True)))
        for name, column in zip(PROBES, preferred_to.T, strict=True)
    }


def _probes(row: Row, other: Row, resolution: int) -> list[tuple[bytes, bytes, str]]:
    """(source, edited, instruction) of the edit that was ranked best, then of its PROBES in their order."""
    source, instruction = row["source_image"], row["instruction"]
    edited = row["edits"][int(np.argmin(row["ranks"]))]["image"]
    before = resize(decode(source), resolution).astype(int)
    after = resize(decode(edited), resolution).astype(int)
    around = resize(decode(other["source_image"]), resolution).astype(int)
    changed = (abs(after - before) >= MIN_PIXEL_CHANGE).any(-1, keepdims=True)
    return [
        (source, edited, instruction),
        (source, source, instruction),
        (source, encode(np.where(changed, after, around).astype(np.uint8)), instruction),
        (edited, source, instruction),
        (source, edited, other["instruction"]),
    ]
