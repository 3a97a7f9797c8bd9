"""Merges editors that were trained from the same start into one editor of the same size.

editors/<a>, editors/<b>, ... -> the mean of their weights, or the start plus all changes -> an editor folder
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hive_ray.editor.model import Editor
from hive_ray.editor.objective import sub_state_dict
from hive_ray.files.model_folders import ModelFolderError
from hive_ray.seeds import id_for

StateDict = dict[str, Tensor]


def mean_state(states: Iterable[StateDict]) -> StateDict:
    """The mean of state dicts with the same names and shapes (model soups, Wortsman et al. 2022).

    It is summed in fp32 and returned in the dtypes of the first state dict. Weights that are not floating point are
    those of the first. Besides the sum, only two state dicts are in memory at a time. ValueError names a weight that
    differs in shape or is missing from one of them.
    """
    first, total, count = _summed(states, lambda value, of_first: value.float())
    return first | {name: (value / count).to(first[name].dtype) for name, value in total.items()}


def add_task_vectors(states: Iterable[StateDict]) -> StateDict:
    """The first state dict plus the task vectors of the others (task arithmetic, Ilharco et al. 2023, scale 1).

    start + sum of (state - start), in fp32, returned in the dtypes of the first state dict. Weights that are not
    floating point are those of the first. ValueError as in `mean_state`.
    """
    first, total, _ = _summed(states, lambda value, of_first: value.float() - of_first.float())
    return first | {name: value.to(first[name].dtype) for name, value in total.items()}


def _summed(states: Iterable[StateDict], term: Callable[[Tensor, Tensor], Tensor]) -> tuple[StateDict, StateDict, int]:
    """The first state, the sum of its floating-point weights and all `term(other, first)` in fp32, and the number of
    states."""
    stream = iter(states)
    first = next(stream)
    total = {name: value.float().clone() for name, value in first.items() if value.is_floating_point()}
    count = 1
    for state in stream:
        _require_same_shapes(first, state)
        for name, value in total.items():
            value += term(state[name], first[name])
        count += 1
    return first, total, count


def average_editors(folders: Sequence[str | Path]) -> Editor:
    """An editor with the mean weights of the U-Nets and text encoders of several editor folders or s3:// addresses.

    All other parts are those of the first. Its card has no metrics, and a digest of all their training tables.
    ModelFolderError names what differs where the folders do not hold the same model, trained in different ways.
    """
    return _merged(folders, mean_state)


def add_changes(start: str | Path, folders: Sequence[str | Path]) -> Editor:
    """The editor `start` plus the changes that the other editors made to its U-Net and text encoders.

    start, folders: folders or s3:// addresses; the editors in `folders` were trained from `start`. Card and errors as
    in `average_editors`.
    """
    return _merged([start, *folders], add_task_vectors)


def _merged(folders: Sequence[str | Path], merge: Callable[[Iterable[StateDict]], StateDict]) -> Editor:
    """The first editor with the weights that `merge` makes of those of all editors."""
    first = Editor.load(folders[0])
    tables = [first.card.training_table]

    def states() -> Iterator[StateDict]:
        yield _weights(first)
        for folder in folders[1:]:
            other = Editor.load(folder)
            _require_same_model(first, other, f"{folders[0]} and {folder}")
            tables.append(other.card.training_table)
            yield _weights(other)

    try:
        merged = merge(states())
    except ModelFolderError:
        raise
    except ValueError as error:
        raise ModelFolderError(f"{', '.join(map(str, folders))} cannot be merged: {error}") from error
    editor = first.with_weights(sub_state_dict("unet.", merged), sub_state_dict("text.", merged))
    editor.card = first.card.model_copy(update={"training_table": id_for(*tables), "metrics": {}})
    return editor


def _weights(editor: Editor) -> StateDict:
    """The trained weights of an editor by name."""
    parts = {"unet": editor.unet, "text": editor.text}
    return {f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()}


def _require_same_shapes(first: StateDict, other: StateDict) -> None:
    unshared = sorted(first.keys() ^ other.keys())
    if unshared:
        raise ValueError(f"{len(unshared)} weights are missing from one of them, the first is {unshared[0]}")
    for name, value in first.items():
        if value.shape != other[name].shape:
            raise ValueError(
                f"the weight {name} is {tuple(value.shape)} in one and {tuple(other[name].shape)} in another"
            )


def _require_same_model(first: Editor, other: Editor, named: str) -> None:
    """ModelFolderError where two editors differ in parts that are not merged."""
    for trait in ("instruction_suffix", "resolution", "prediction_type"):
        values = [getattr(editor.card, trait) for editor in (first, other)]
        if values[0] != values[1]:
            raise ModelFolderError(f"{named} cannot be merged: their {trait} is {values[0]!r} and {values[1]!r}")
    if first.backbone.scaled_condition != other.backbone.scaled_condition:
        raise ModelFolderError(f"{named} cannot be merged: only one of them scales the source's latent")
    if first.tokenizer.get_vocab() != other.tokenizer.get_vocab():
        raise ModelFolderError(f"{named} cannot be merged: their tokenizers differ")
    vaes = [editor.vae.state_dict() for editor in (first, other)]
    if vaes[0].keys() != vaes[1].keys() or not all(torch.equal(vaes[0][name], vaes[1][name]) for name in vaes[0]):
        raise ModelFolderError(f"{named} cannot be merged: their VAEs differ, so their latents do, too")
