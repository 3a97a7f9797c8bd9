"""What predicts people's rankings: reward models, CLIP's similarities, and other people.

RANKINGS rows -> Predictions

N rankings, K edits of each; a rank of 0 is padding
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from hive_ray.reward.accuracies import Predictions
from hive_ray.reward.judges import CLIP_MEASURES
from hive_ray.reward.model import RewardModel, ScoringModel
from hive_ray.reward.objective import predict_rewards, preference_mask
from hive_ray.schemas import Rows

PEOPLE = ("another_person", "all_others")
"""Names of the predictions that people make of each other."""


def predict(model: RewardModel, rows: Rows) -> Predictions:
    """The predictions of a model for RANKINGS rows."""
    return Predictions(*predict_rewards(model, rows), [row["prompt_id"] for row in rows])


def predict_by_scoring(model: ScoringModel, rows: Rows) -> Predictions:
    """The predictions of any model that scores edits, for RANKINGS rows, one ranking at a time."""
    rewards = measure_edits(lambda pairs: {"reward": _scores(model, pairs)}, rows)["reward"]
    return Predictions(rewards, _padded([row["ranks"] for row in rows]), [row["prompt_id"] for row in rows])


def _scores(model: ScoringModel, pairs: Rows) -> list[float]:
    return model.score(
        [pair["source_image"] for pair in pairs],
        [pair["edited_image"] for pair in pairs],
        [pair["instruction"] for pair in pairs],
    )


def predictions_by_clip(
    similarities: Mapping[str, Tensor], predictions: Predictions, rows: Rows
) -> dict[str, Predictions]:
    """The predictions of CLIP's similarities (N, K), by name, for the rankings that CLIP can measure."""
    clip_predictions = {}
    for name, parts in CLIP_MEASURES.items():
        places = measurable_rows(rows, parts)
        if places:
            rewards = sum((similarities[part] for part in parts), start=torch.zeros(()))
            clip_predictions[name] = Predictions(rewards, predictions.ranks, predictions.prompts).select(places)
    return clip_predictions


def predictions_by_people(rows: Rows) -> dict[str, Predictions]:
    """How people's rankings of a prompt predict those of others: the accuracy that a model can be expected to reach.

    "another_person": minus the ranks of each other person are the rewards. "all_others": minus the mean ranks of all
    others are, which predict better. Both cover the preferences of all people. Empty if no two people ranked a prompt.
    """
    predictions: dict[str, list[tuple[list[float], list[int], str]]] = {"another_person": [], "all_others": []}
    for (prompt_id, *_), places in _rankings_of(rows).items():
        orders = [rows[place]["ranks"] for place in places]
        for place, order in enumerate(orders):
            others = orders[:place] + orders[place + 1 :]
            for other in others:
                predictions["another_person"].append(([-float(rank) for rank in other], order, prompt_id))
            if others:
                means = [-fmean(ranks) for ranks in zip(*others, strict=True)]
                predictions["all_others"].append((means, order, prompt_id))
    found: dict[str, Predictions] = {}
    for name, rankings in predictions.items():
        if rankings:
            rewards, ranks, prompts = zip(*rankings, strict=True)
            found[name] = Predictions(_padded(rewards), _padded(ranks), prompts)
    return found


def clear_preferences(predictions: Predictions, rows: Rows) -> Predictions | None:
    """Predictions of the clear preferences, each as a ranking of its two edits; None if there is no clear preference.

    A preference is clear if at least two people have it and nobody has the reverse. rows: the N rankings.
    """
    rewards: list[list[float]] = []
    prompts: list[str] = []
    for (prompt_id, *_), places in _rankings_of(rows).items():
        people = preference_mask(predictions.ranks[places]).sum(0)  # (K, K)
        for better, worse in ((people >= 2) & (people.T == 0)).nonzero().tolist():
            rewards.append(predictions.rewards[places[0], [better, worse]].tolist())
            prompts.append(prompt_id)
    return Predictions(torch.tensor(rewards), torch.tensor([[1, 2]] * len(rewards)), prompts) if rewards else None


def measure_edits(measure: Callable[[Rows], Mapping[str, Any]], rows: Rows) -> dict[str, Tensor]:
    """Measures of every edit of RANKINGS rows by name: (N, K) each, padded with 0.

    measure: pairs -> the measures of each pair, by name.
    """
    num_edits = max((len(row["edits"]) for row in rows), default=0)
    table_of: dict[str, Tensor] = {}
    for place, row in enumerate(rows):
        pairs = [row | {"edited_image": edit["image"]} for edit in row["edits"]]
        for name, values in measure(pairs).items():
            table = table_of.setdefault(name, torch.zeros(len(rows), num_edits))
            table[place, : len(values)] = torch.as_tensor(values)
    return table_of


def measurable_rows(rows: Rows, measures: tuple[str, ...]) -> list[int]:
    """Places of the rows for which CLIP has these measures: a direction needs captions, which thumbs do not have."""
    captioned = "clip_direction" not in measures
    return [place for place, row in enumerate(rows) if captioned or (row["source_caption"] and row["edited_caption"])]


def _rankings_of(rows: Rows) -> dict[tuple[str, ...], list[int]]:
    """The places of the rankings of each prompt with the same edits."""
    places: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        places[row["prompt_id"], *(edit["edit_id"] for edit in row["edits"])].append(place)
    return places


def _padded(lists: Sequence[list]) -> Tensor:
    """Lists of different lengths -> (N, K), padded with 0."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(values) for values in lists], batch_first=True)
