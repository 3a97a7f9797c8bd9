"""Shows a training's curves and pictures in TensorBoard, Weights & Biases or MLflow.

measures at `images` rows seen -> a Tracker -> event files or a server

<run>/metrics/<name>.jsonl is the authoritative log. After a resume no point appears twice: TensorBoard discards points
after the resume step. W&B and MLflow keep theirs, and repeated steps, which are identical, are not sent again.
"""

import importlib
import json
import os
import re
import shutil
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import (
    Event,  # pyright: ignore[reportAttributeAccessIssue] - protobuf makes it as it is imported
    SessionLog,  # pyright: ignore[reportAttributeAccessIssue] - likewise
)

from hive_ray import storage
from hive_ray.artifacts.model_store import Metrics
from hive_ray.files import scratch

OPTIONAL_TRACKERS = ("wandb", "mlflow")
"""Trackers that need a package of the same name, which hive_ray does not install."""
MAX_POINTS_PER_REQUEST = 1000
"""Points that MLflow accepts in one request."""
SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)
"""Names of environment variables that hold secrets."""
MIN_SECRET_LENGTH = 8
"""Shortest value that is treated as a secret. Shorter ones may be ordinary words."""


@dataclass(frozen=True)
class TrackedTraining:
    """The training that a tracker shows."""

    run: str
    """The run folder."""
    name: str
    project: str
    settings: dict[str, Any]
    resumed_at: int
    """Rows seen when this process began; 0 for a new training."""


class Tracker(Protocol):
    """Shows measures and pictures of one training by the number of rows seen."""

    location: str
    """Where to find the curves, as a sentence or a command."""

    def log_scalars(self, images: int, measures: Metrics) -> None:
        """Add measures at `images` rows seen."""
        ...

    def log_picture(self, images: int, name: str, pixels: np.ndarray) -> None:
        """Add a picture (height, width, 3), uint8, at `images` rows seen."""
        ...

    def flush(self, *, durable: bool) -> None:
        """Show everything so far. `durable`: also store it so that it survives the loss of this machine."""
        ...

    def close(self) -> None:
        """Show the rest and finish."""
        ...


def require_tracker(name: str, run: str) -> None:
    """Raise ValueError if the tracker cannot work here: its package, key or server is missing."""
    if name not in OPTIONAL_TRACKERS:
        return
    try:
        package = importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f'watching.tracker is "{name}", which is not installed: pip install {name} on every machine '
            'that trains, or set it to "tensorboard"'
        ) from error
    online = os.environ.get("WANDB_MODE", "online") == "online"
    if name == "wandb" and online and not package.login(prompt=False):
        raise ValueError(
            'watching.tracker is "wandb", but there is no key: run `wandb login` or set WANDB_API_KEY on every machine '
            "that trains, or set WANDB_MODE=offline"
        )
    if name == "mlflow" and run.startswith(storage.S3) and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise ValueError(
            'watching.tracker is "mlflow", and the run is on S3: set MLFLOW_TRACKING_URI to the server that keeps it'
        )


def start_tracker(name: str, tracked: TrackedTraining) -> "Tracker | None":
    """The tracker of this name, which continues at `tracked.resumed_at`. None for "none"."""
    return None if name == "none" else TRACKERS[name](tracked)


class TensorBoard:
    """Event files in <run>/tensorboard/<name>/. For a run on S3 they are local and uploaded at checkpoints."""

    def __init__(self, tracked: TrackedTraining) -> None:
        self.folder = storage.join(tracked.run, "tensorboard", tracked.name)
        self.location = f"tensorboard --logdir {storage.join(tracked.run, 'tensorboard')} (pip install tensorboard)"
        if not tracked.resumed_at:
            storage.remove_tree(self.folder)  # of an older training of this name
        self.is_remote = self.folder.startswith(storage.S3)
        if self.is_remote:
            self.location = f"{self.folder}: copy it to disk, then tensorboard --logdir (pip install tensorboard)"
        self.local = str(scratch.new_folder("tensorboard")) if self.is_remote else self.folder
        # Readers sort the files by name: time of the start in seconds, host, this suffix. SummaryWriter is not used,
        # since its flush ignores events that its thread has not yet taken from its queue.
        suffix = f".{tracked.resumed_at:012d}.{uuid.uuid4().hex[:8]}"
        Path(self.local).mkdir(parents=True, exist_ok=True)
        self.events = EventsWriter(storage.join(self.local, "events"), suffix)
        if tracked.resumed_at:  # readers discard the points of older files from this step on
            self._write(tracked.resumed_at + 1, session_log=SessionLog(status=SessionLog.START))

    def log_scalars(self, images: int, measures: Metrics) -> None:
        for name, value in measures.items():
            self._write(images, summary=summary.scalar(name, value))

    def log_picture(self, images: int, name: str, pixels: np.ndarray) -> None:
        self._write(images, summary=summary.image(name, pixels, dataformats="HWC"))

    def flush(self, *, durable: bool) -> None:
        self.events.flush()
        if durable:
            self._send()

    def close(self) -> None:
        self.events.close()
        self._send()
        if self.is_remote:
            shutil.rmtree(self.local, ignore_errors=True)

    def _write(self, images: int, **what: Any) -> None:
        self.events.write_event(Event(wall_time=time.time(), step=images, **what))

    def _send(self) -> None:
        if self.is_remote:
            for file in storage.list_files(self.local):
                storage.copy_file(storage.join(self.local, file), storage.join(self.folder, file))


class WeightsAndBiases:
    """A run of W&B, which keeps its id after a resume.

    Its local files are in <run>/wandb, or in the cache of this machine if the run is on S3.
    """

    def __init__(self, tracked: TrackedTraining) -> None:
        import wandb  # pyright: ignore[reportMissingImports] - installed apart

        folder = storage.cache_folder() if tracked.run.startswith(storage.S3) else Path(tracked.run)
        folder.mkdir(parents=True, exist_ok=True)
        self.run = wandb.init(
            project=tracked.project,
            name=tracked.name,
            id=_kept_id("wandb", tracked) or _keep_id("wandb", tracked, uuid.uuid4().hex),
            resume="allow",
            dir=str(folder),
            config=tracked.settings | {"run": tracked.run},
            # Send only measures and settings: a command line or the URL of a git remote may hold a key.
            settings=wandb.Settings(
                console="off", disable_code=True, disable_git=True, silent=True, x_disable_meta=True
            ),
        )
        self.image = wandb.Image
        self.sent = self.run.step - 1 if self.run.resumed else -1
        self.location = f"wandb sync {Path(self.run.dir).parent}" if self.run.offline else self.run.url

    def log_scalars(self, images: int, measures: Metrics) -> None:
        if images > self.sent:
            self.run.log(measures, step=images)

    def log_picture(self, images: int, name: str, pixels: np.ndarray) -> None:
        if images > self.sent:
            self.run.log({name: self.image(pixels)}, step=images)

    def flush(self, *, durable: bool) -> None:
        """Does nothing: W&B sends by itself."""

    def close(self) -> None:
        self.run.finish()


class MLflow:
    """A run of MLflow at MLFLOW_TRACKING_URI. Without that: in <run>/mlflow.db, with its pictures in <run>/mlflow."""

    def __init__(self, tracked: TrackedTraining) -> None:
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports] - installed apart
        from mlflow.entities import Metric  # pyright: ignore[reportMissingImports] - installed apart

        server = os.environ.get("MLFLOW_TRACKING_URI")
        address = server or f"sqlite:///{tracked.run}/mlflow.db"
        if not server:
            Path(tracked.run).mkdir(parents=True, exist_ok=True)
        self.client = MlflowClient(address)
        self.metric = Metric
        self.waiting: list[Any] = []
        self.sent = -1
        kept = _kept_id("mlflow", tracked)
        if kept:
            self.id = kept
            history = self.client.get_metric_history(self.id, "train/loss")
            self.sent = max((point.step for point in history), default=-1)
        else:
            experiment = self.client.get_experiment_by_name(tracked.project)
            place = None if server else f"file://{tracked.run}/mlflow"
            number = experiment.experiment_id if experiment else self.client.create_experiment(tracked.project, place)
            created = self.client.create_run(number, run_name=tracked.name)
            self.id = _keep_id("mlflow", tracked, created.info.run_id)
            for key, value in (tracked.settings | {"run": tracked.run}).items():
                self.client.log_param(self.id, key, value)
        self.location = f"mlflow ui --backend-store-uri {redact_secrets(address)}, run {self.id}"

    def log_scalars(self, images: int, measures: Metrics) -> None:
        if images > self.sent:
            now = time.time_ns() // 1_000_000
            self.waiting += [self.metric(name, value, now, images) for name, value in measures.items()]

    def log_picture(self, images: int, name: str, pixels: np.ndarray) -> None:
        if images > self.sent:
            self.client.log_image(self.id, pixels, artifact_file=f"{name}/{images:09d}.png")

    def flush(self, *, durable: bool = True) -> None:
        for start in range(0, len(self.waiting), MAX_POINTS_PER_REQUEST):
            self.client.log_batch(self.id, metrics=self.waiting[start : start + MAX_POINTS_PER_REQUEST])
        self.waiting = []

    def close(self) -> None:
        self.flush()
        self.client.set_terminated(self.id)


TRACKERS = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "mlflow": MLflow}
"""Setting `watching.tracker` -> its class."""


def _id_file(tracked: TrackedTraining) -> str:
    return storage.join(tracked.run, "metrics", f"{tracked.name}.tracker")


def _kept_id(tracker: str, tracked: TrackedTraining) -> str | None:
    """The server's id of a training that is resumed; None for a new one, or if another tracker was used."""
    if not tracked.resumed_at or not storage.exists(_id_file(tracked)):
        return None
    known = json.loads(storage.read_text(_id_file(tracked)))
    return known["id"] if known["tracker"] == tracker else None


def _keep_id(tracker: str, tracked: TrackedTraining, number: str) -> str:
    storage.write_text(_id_file(tracked), json.dumps({"tracker": tracker, "id": number}))
    return number


def redact_secrets(text: str) -> str:
    """A text without credentials.

    Removes user:password@ from addresses and the values of environment variables whose names match SECRET_NAME.
    """
    for name, value in os.environ.items():
        if SECRET_NAME.search(name) and len(value) >= MIN_SECRET_LENGTH:
            text = text.replace(value, "***")
    return re.sub(r"://[^/@\s]+@", "://***@", text)
