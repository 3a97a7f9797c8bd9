"""Edits whose right answer is known, for a reward model to learn from before anyone ranks anything.

A drawn scene fixes what each edit of it should lead to, so the quality of an edited picture can be measured: by how
much of it differs from the drawn answer. Some of the edits are drawn, right ones and wrong ones; the others are
an editor's own, whose mistakes are those that people will rank.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F

from hive_ray.images import to_tensor
from hive_ray.shapes.language import carry_out, write_edits
from hive_ray.shapes.pretraining.loop import Say, train_steps
from hive_ray.shapes.pretraining.pictures import Twin, scene_and_twin
from hive_ray.shapes.pretraining.pool import Wear
from hive_ray.shapes.scenes import Description, Scene, draw

CLEARLY = 40
"""Levels of 255 by which a blurred pixel must differ in some channel to count."""

HALF_LIFE = 140
"""Differing pixels that halve an edit's quality: about what a small thing covers."""

HARDLY, BADLY = (0.0, 0.15), (0.5, 0.9)
"""How worn a picture is: least and most noise on the latents of its things."""

PROMPTS, EDITS = 16, 5
"""Prompts in a batch, and edits of each."""

MADE = 4
"""Edits that an editor makes of a prompt."""

TOGETHER = 32
"""Prompts that are edited at a time."""

Edit = Callable[[list[np.ndarray], list[str], np.random.Generator], list[np.ndarray]]
"""An editor: pictures and an instruction for each -> the edited pictures."""


@dataclass(frozen=True)
class Answered:
    """Edits of one prompt and how good each is."""

    instruction: str
    source: np.ndarray
    edits: list[np.ndarray]
    """Drawn ones, then the editor's."""
    num_drawn: int
    qualities: list[float]


def quality(picture: np.ndarray, answer: np.ndarray) -> float:
    """2^(-n / HALF_LIFE) of the n pixels, after a slight blur, in which a picture clearly differs from the answer."""
    blurred = [ndimage.gaussian_filter(one.astype(np.float32), (1, 1, 0)) for one in (picture, answer)]
    return float(0.5 ** ((np.abs(blurred[0] - blurred[1]).max(-1) > CLEARLY).sum() / HALF_LIFE))


def answered_prompts(vae: Path, edit: Edit, count: int, seed: int, say: Say) -> list[Answered]:
    """`count` prompts with drawn edits of each, and an editor's own of those whose answer has one place only."""
    wear, prompts = Wear(vae), []
    for start in range(0, count, TOGETHER):
        prompts += edited_together(wear, edit, np.random.default_rng((seed, start)))
        if start % (10 * TOGETHER) == 0:
            say(f"reward: {len(prompts)} of {count} prompts have edits")
    return prompts[:count]


def edited_together(wear: Wear, edit: Edit, rng: np.random.Generator) -> list[Answered]:
    """TOGETHER prompts, edited in one go."""
    twins = [scene_and_twin(rng) for _ in range(TOGETHER)]
    places = [index for index, twin in enumerate(twins) if not gains_a_thing(twin) for _ in range(MADE)]
    sources = [draw(twins[index].scenes[0]) for index in places]
    made: list[list[np.ndarray]] = [[] for _ in twins]
    for index, picture in zip(places, edit(sources, [twins[i].texts[2] for i in places], rng), strict=True):
        made[index].append(picture)
    return [answered(twin, own, wear, rng) for twin, own in zip(twins, made, strict=True)]


def gains_a_thing(twin: Twin) -> bool:
    return len(twin.scenes[1].places) > len(twin.scenes[0].places)


def answered(twin: Twin, made: list[np.ndarray], wear: Wear, rng: np.random.Generator) -> Answered:
    """One prompt: the edit that was asked for, hardly and badly worn, then less of it, more of it, or another."""
    before, after = twin.scenes
    answer, source = draw(after), draw(before)
    drawn = [(source, HARDLY), (answer, HARDLY), (answer, BADLY), (source, HARDLY), (half_done(source, answer), HARDLY)]
    for start, unwanted in ((after, before), (before, after)):
        other = another_edit(start, unwanted.description, rng)
        if other is not None:
            drawn.append((draw(other), HARDLY))
    amounts = [float(rng.uniform(*worn)) for _, worn in drawn]
    seen, *edits = wear([picture for picture, _ in drawn], amounts, int(rng.integers(2**31)))
    qualities = [quality(edit, answer) for edit in [*edits, *made]]
    shown = source if rng.random() < 0.5 else seen
    return Answered(twin.texts[2], shown, [*edits, *made], len(edits), qualities)


def half_done(source: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """A picture between the two: what goes is still seen, what comes is not yet."""
    return ((source.astype(np.uint16) + answer) // 2).astype(np.uint8)


def another_edit(scene: Scene, unwanted: Description, rng: np.random.Generator) -> Scene | None:
    """What some other edit makes of a scene, not leading to `unwanted`; None where five of them find no room."""
    for _ in range(5):
        edit = write_edits(scene.description.caption, 1, rng)[0]
        edited = carry_out(scene, edit.edited, rng)
        if edited is not None and edit.edited != unwanted:
            return edited
    return None


def train_to_judge(model: nn.Module, prompts: list[Answered], *, num_steps: int, seed: int, say: Say) -> None:
    """Train a reward model to give edits the logit of their quality.

    A cross entropy with the quality itself, not a comparison: rewards then mean the same for every prompt, which
    comparisons among the edits of one prompt leave open.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)

    def loss_of(step: int) -> Tensor:
        chosen = [prompts[index] for index in rng.integers(0, len(prompts), PROMPTS)]
        inputs, qualities = batch_of(model, chosen, rng)
        return F.binary_cross_entropy_with_logits(model(*inputs), qualities)

    train_steps("reward", list(model.parameters()), loss_of, num_steps=num_steps, lr=5e-4, say=say)


def batch_of(
    model: nn.Module, prompts: list[Answered], rng: np.random.Generator
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The model's inputs (source, edited, tokens, mask) and the qualities (B, EDITS), of random edits of each."""
    places = [np.resize(rng.permutation(len(prompt.edits)), EDITS) for prompt in prompts]
    source = torch.stack([to_tensor(prompt.source) for prompt in prompts])
    edited = torch.stack(
        [
            torch.stack([to_tensor(prompt.edits[place]) for place in own])
            for prompt, own in zip(prompts, places, strict=True)
        ]
    )
    qualities = [[prompt.qualities[place] for place in own] for prompt, own in zip(prompts, places, strict=True)]
    tokens, mask = model.encode_text([prompt.instruction for prompt in prompts])
    return (source, edited, tokens, mask), torch.tensor(qualities)


@torch.inference_mode()
def measure_order(model: nn.Module, prompts: list[Answered], least_gap: float = 0.1) -> dict[str, float]:
    """The share of two edits of a prompt, clearly unlike in quality, that rewards put in order.

    Of all edits, and of the editor's own; a kind without such two is left out.
    """
    in_order: dict[str, list[bool]] = {"all": [], "made": []}
    for prompt in prompts:
        source, edited = to_tensor(prompt.source)[None], torch.stack([to_tensor(edit) for edit in prompt.edits])[None]
        rewards = model(source, edited, *model.encode_text([prompt.instruction]))[0]
        for better, worse in permutations(range(len(prompt.edits)), 2):
            if prompt.qualities[better] - prompt.qualities[worse] >= least_gap:
                right = bool(rewards[better] > rewards[worse])
                in_order["all"].append(right)
                if min(better, worse) >= prompt.num_drawn:
                    in_order["made"].append(right)
    return {kind: float(np.mean(rights)) for kind, rights in in_order.items() if rights}
