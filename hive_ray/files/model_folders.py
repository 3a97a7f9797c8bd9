"""Check that a model folder in the diffusers layout has its parts, before anything is loaded."""

import json
from pathlib import Path
from typing import Any, cast

from transformers.utils import cached_file

STABLE_DIFFUSION_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
XL_PARTS = (*STABLE_DIFFUSION_PARTS, "text_encoder_2", "tokenizer_2")


class ModelFolderError(ValueError):
    """A model folder with missing parts."""


def check_parts(model: str | Path, parts: tuple[str, ...] = STABLE_DIFFUSION_PARTS) -> None:
    """Raise a ModelFolderError that names missing parts of a local folder; hub names ("owner/name") are not checked."""
    folder = Path(model)
    if not folder.exists():
        if _is_hub_name(str(model)):
            return
        raise ModelFolderError(f"{model} is neither a folder nor a hub name like 'owner/name'; give one of them")
    index = folder / "model_index.json"
    listed = json.loads(index.read_text()) if index.is_file() else {}
    missing = [part for part in parts if not (folder / part).is_dir() or not any((folder / part).iterdir())]
    if not listed:
        missing.insert(0, "model_index.json")
    if missing:
        raise ModelFolderError(
            f"{folder} lacks {', '.join(missing)}; a diffusers folder holds model_index.json and {', '.join(parts)}"
        )


def read_model_index(model: str | Path) -> dict[str, Any]:
    """The model_index.json of a diffusers folder, local or on the hub: pipeline class, part classes, options."""
    return json.loads(Path(cast(str, cached_file(str(model), "model_index.json"))).read_text())


def _is_hub_name(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def forget_origin(folder: str | Path) -> None:
    """Remove the paths from which the parts of a diffusers folder were loaded, which are private to this machine."""
    for path in Path(folder).glob("*/config.json"):
        config = json.loads(path.read_text())
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
