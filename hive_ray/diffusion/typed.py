"""Calls of diffusers and torch with correct types, where their own annotations are wrong or incomplete."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from diffusers import ConfigMixin
from torch import nn

Configured = TypeVar("Configured", bound=ConfigMixin)
ModuleT = TypeVar("ModuleT", bound=nn.Module)


def from_config(kind: type[Configured], config: Mapping[str, Any], **changes: Any) -> Configured:
    """A model or scheduler of diffusers with this config and these changes of it.

    diffusers declares a pair, which it returns for `return_unused_kwargs` alone.
    """
    return cast(Configured, kind.from_config(cast(dict[str, Any], config), **changes))


def load_config(kind: type[ConfigMixin], start: str | Path, subfolder: str) -> dict[str, Any]:
    """The config of a part of a diffusers folder or hub name; OSError where it cannot be read.

    diffusers declares a pair, which it returns for `return_unused_kwargs` alone.
    """
    return cast(dict[str, Any], kind.load_config(start, subfolder=subfolder))


def channels_last(module: ModuleT) -> ModuleT:
    """The module itself, with the weights of its convolutions in the channels-last format.

    torch documents `memory_format`, but its type annotation lacks it.
    """
    return module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - see above
