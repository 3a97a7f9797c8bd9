"""Reward models of every kind behind one loader: BLIP, the editor's own denoising errors, or both, and CLIP with them.

    a reward model's folder -> load_reward -> a model that scores edits

A folder of errors holds head.json and, where BLIP's reward is one of the features, the folder blip/. The editor whose
errors they are, and CLIP, lie elsewhere: `Head` says where.
"""

import json
import posixpath
from dataclasses import dataclass
from pathlib import Path

import torch

import hive_ray
from hive_ray import storage
from hive_ray.artifacts.model_store import is_finished_model, model_digest
from hive_ray.config import DenoisingError
from hive_ray.diffusion.precision import sampling_dtype
from hive_ray.editor.denoising_errors import errors_of_edits
from hive_ray.editor.model import Editor
from hive_ray.files.model_folders import ModelFolderError
from hive_ray.reward.head import LinearHead
from hive_ray.reward.model import RewardModel, ScoringModel
from hive_ray.similarity import Similarity

HEAD, BLIP = "head.json", "blip"
CLIP_FEATURE = "CLIP's similarity to the source"
"""The first feature after the errors where CLIP is one."""
PACKAGE, SHIPPED = Path(hive_ray.__file__).parent, "hive_ray:"
"""Where the package lies, and what an address below it begins with."""
BLIP_FEATURE = "BLIP's reward"
"""The last feature where BLIP is one."""


@dataclass(frozen=True)
class Head:
    """What head.json says: a linear head, how its features are measured, and by which editor."""

    linear: LinearHead
    settings: DenoisingError
    editor: str
    """The editor's address; one that does not begin with / or s3:// is seen from the model's folder."""
    editor_digest: str
    clip: str = ""
    """CLIP's address (`portable`); "" where it is no feature."""
    clip_digest: str = ""

    def save(self, folder: Path) -> None:
        """Write head.json."""
        found = self.linear.as_json() | {
            "denoising_error": self.settings.model_dump(),
            "editor": self.editor,
            "editor_digest": self.editor_digest,
            "clip": self.clip,
            "clip_digest": self.clip_digest,
        }
        (folder / HEAD).write_text(json.dumps(found, indent=2))

    @classmethod
    def load(cls, folder: str) -> "Head":
        """The head of a model's folder, or of its s3:// address."""
        found = json.loads(storage.read_text(storage.join(folder, HEAD)))
        settings = DenoisingError.model_validate(found["denoising_error"])
        elsewhere = {name: found.get(name, "") for name in ("editor", "editor_digest", "clip", "clip_digest")}
        return cls(LinearHead.from_json(found), settings, **elsewhere)


class DenoisingErrorModel:
    """(source picture, edited picture, instruction) -> a reward, by an editor's denoising errors of the edit."""

    def __init__(self, head: Head, editor: Editor, clip: Similarity | None, blip: RewardModel | None) -> None:
        """`clip`: where its similarity is the first feature after the errors. `blip`: where its reward is the last."""
        self.head, self.editor, self.clip, self.blip = head, editor, clip, blip

    def score(self, source_images: list[bytes], edited_images: list[bytes], instructions: list[str]) -> list[float]:
        """The reward of each edit."""
        if not edited_images:
            return []
        features = [errors_of_edits(self.editor, source_images, edited_images, instructions, self.head.settings)]
        if self.clip:
            features.append(self.clip.to_source(source_images, edited_images).cpu()[:, None])
        if self.blip:
            features.append(torch.tensor(self.blip.score(source_images, edited_images, instructions))[:, None])
        return self.head.linear(torch.cat(features, dim=1)).tolist()


def load_reward(folder: str | Path, device: str = "cpu") -> ScoringModel:
    """The reward model of a finished folder, or of its s3:// address, ready to score."""
    folder = storage.absolute(str(folder))
    if not storage.exists(storage.join(folder, HEAD)):
        return RewardModel.load(folder).to(device)
    if not is_finished_model(folder):
        raise ModelFolderError(f"{folder} lacks card.json: no finished reward model; train one first")
    head = Head.load(folder)
    editor = Editor.load(editor_of(folder, head)).to(device, sampling_dtype(device, head.settings.precision))
    clip = Similarity(clip_of(folder, head), device) if CLIP_FEATURE in head.linear.names else None
    blip = RewardModel.load(storage.join(folder, BLIP)).to(device) if BLIP_FEATURE in head.linear.names else None
    return DenoisingErrorModel(head, editor, clip, blip)


def editor_of(folder: str, head: Head) -> str:
    """The address of the editor that a reward model needs; ModelFolderError where it is gone, or another one."""
    address = seen_from(folder, head.editor)
    needs = f"the reward model {folder} scores edits by denoising errors of the editor {address}"
    remedy = "Put the editor back, move the whole run folder and not a part of it, or train the reward model again"
    if not is_finished_model(address):
        raise ModelFolderError(f"{needs}, which is no finished editor. {remedy}")
    digest = model_digest(address)
    if digest != head.editor_digest:
        raise ModelFolderError(f"{needs}, which is another one now ({digest}, not {head.editor_digest}). {remedy}")
    return address


def clip_of(folder: str, head: Head) -> str:
    """The CLIP that a reward model needs, a folder or a hub name; ModelFolderError where it is gone, or another one."""
    address = str(PACKAGE / head.clip.removeprefix(SHIPPED)) if head.clip.startswith(SHIPPED) else head.clip
    remedy = "Put that CLIP back, or train the reward model again"
    if Path(address).is_absolute() and not Path(address).is_dir():
        raise ModelFolderError(f"the reward model {folder} needs the CLIP {address}, which is not there. {remedy}")
    digest = model_digest(address)
    if digest != head.clip_digest:
        raise ModelFolderError(
            f"the reward model {folder} needs the CLIP {address}, which is another one now ({digest}, not "
            f"{head.clip_digest}). {remedy}"
        )
    return address


def portable(clip: str) -> str:
    """CLIP's address as a reward model keeps it: what this package ships is found wherever the package lies, another
    local folder by its whole path."""
    folder = Path(storage.absolute(clip))
    if clip.startswith(storage.S3) or not folder.is_dir():
        return clip
    return SHIPPED + str(folder.relative_to(PACKAGE)) if folder.is_relative_to(PACKAGE) else str(folder)


def seen_from(folder: str, address: str) -> str:
    """An address that may be relative to a folder, in full."""
    if address.startswith((storage.S3, "/")):
        return address
    scheme = storage.S3 if folder.startswith(storage.S3) else ""
    return scheme + posixpath.normpath(posixpath.join(folder.removeprefix(scheme), address))


def relative_to(folder: str, address: str, root: str) -> str:
    """An address as it is seen from a folder, where both lie below `root`, so that they can move together; else in
    full."""
    if not all(path.startswith(f"{root}/") for path in (folder, address)):
        return address
    return posixpath.relpath(address.removeprefix(root), folder.removeprefix(root))
