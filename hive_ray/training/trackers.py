"""Where a training's curves and pictures are drawn: TensorBoard, or Weights & Biases or MLflow by a setting.

measures at `images` rows seen -> a Tracker -> event files or a server

<run>/metrics/<name>.jsonl is the truth; a tracker shows it. After a resume no point stands twice: TensorBoard is told
from where on the old ones count no more; a server keeps them, and is not sent again what it has, since the steps that
are trained again are the same ones.
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
"""Trackers that are named as the package that they need, which hive_ray does not bring."""
MAX_POINTS_PER_REQUEST = 1000
"""Points that MLflow takes in one request."""
SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)
MIN_SECRET_LENGTH = 8
"""Characters of a secret: shorter values are words."""


@dataclass(frozen=True)
class TrackedTraining:
    """What is tracked: a training, where its run lies, and where it stands."""

    run: str
    name: str
    project: str
    settings: dict[str, Any]
    resumed_at: int
    """Rows seen when this process began; 0 is the start."""


class Tracker(Protocol):
    """One training's curves and pictures, each at a number of rows seen."""

    location: str
    """Where to look, in words."""

    def log_scalars(self, images: int, measures: Metrics) -> None: ...

    def log_picture(self, images: int, name: str, pixels: np.ndarray) -> None: ...

    def flush(self, *, durable: bool) -> None:
        """Show what was given so far; `durable`, as at a checkpoint: so that it outlives this machine."""
        ...

    def close(self) -> None: ...


def require_tracker(name: str, run: str) -> None:
    """Raise, before anything has started, if a tracker cannot work here."""
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
            'watching.tracker is "wandb", which finds no key: run `wandb login` or set WANDB_API_KEY on every machine '
            "that trains, or set WANDB_MODE=offline"
        )
    if name == "mlflow" and run.startswith(storage.S3) and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise ValueError(
            'watching.tracker is "mlflow", and the run is on S3: set MLFLOW_TRACKING_URI to the server that keeps it'
        )


def start_tracker(name: str, tracked: TrackedTraining) -> "Tracker | None":
    """The tracker of this name, or None for "none"; it begins at `tracked.resumed_at`."""
    return None if name == "none" else TRACKERS[name](tracked)


class TensorBoard:
    """Event files in <run>/tensorboard/<name>/; of a run on S3 they are written here and sent at checkpoints."""

    def __init__(self, tracked: TrackedTraining) -> None:
        self.folder = storage.join(tracked.run, "tensorboard", tracked.name)
        self.location = f"tensorboard --logdir {storage.join(tracked.run, 'tensorboard')} (pip install tensorboard)"
        if not tracked.resumed_at:
            storage.remove_tree(self.folder)  # of an older training by this name
        self.is_remote = self.folder.startswith(storage.S3)
        if self.is_remote:
            self.location = f"{self.folder}: copy it to disk, then tensorboard --logdir (pip install tensorboard)"
        self.local = str(scratch.new_folder("tensorboard")) if self.is_remote else self.folder
        # Files are read in the order of their names: the second of the start, the host, and this. Written here and now,
        # unlike by SummaryWriter, whose flush leaves behind what its thread has not yet taken from a queue.
        suffix = f".{tracked.resumed_at:012d}.{uuid.uuid4().hex[:8]}"
        Path(self.local).mkdir(parents=True, exist_ok=True)
        self.events = EventsWriter(storage.join(self.local, "events"), suffix)
        if tracked.resumed_at:  # readers forget all points of the older files from this step on
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
    """A run of W&B, which goes on under its id after a resume; its own files are in <run>/wandb, or in this machine's
    cache where the run is on S3."""

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
            # Measures and settings only: a command line or a git remote's address may hold a key.
            settings=wandb.Settings(
                console="off", disable_code=True, disable_git=True, silent=True, x_disable_meta=True
            ),
        )
        self.image, self.sent = wandb.Image, self.run.step - 1 if self.run.resumed else -1
        self.location = f"wandb sync {Path(self.run.dir).parent}" if self.run.offline else self.run.url

    def log_scalars(self, images: int, measures: Metrics) -> None:
        if images > self.sent:
            self.run.log(measures, step=images)

    def log_picture(self, images: int, name: str, pixels: np.ndarray) -> None:
        if images > self.sent:
            self.run.log({name: self.image(pixels)}, step=images)

    def flush(self, *, durable: bool) -> None:
        """W&B sends by itself."""

    def close(self) -> None:
        self.run.finish()


class MLflow:
    """A run of MLflow at MLFLOW_TRACKING_URI, or else in <run>/mlflow.db, with its pictures in <run>/mlflow."""

    def __init__(self, tracked: TrackedTraining) -> None:
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports] - installed apart
        from mlflow.entities import Metric  # pyright: ignore[reportMissingImports] - installed apart

        server = os.environ.get("MLFLOW_TRACKING_URI")
        address = server or f"sqlite:///{tracked.run}/mlflow.db"
        if not server:
            Path(tracked.run).mkdir(parents=True, exist_ok=True)
        self.client, self.metric = MlflowClient(address), Metric
        self.waiting: list[Any] = []
        self.sent, kept = -1, _kept_id("mlflow", tracked)
        if kept:
            self.id = kept
            history = self.client.get_metric_history(self.id, "train/loss")
            self.sent = max((point.step for point in history), default=-1)
        else:
            found = self.client.get_experiment_by_name(tracked.project)
            place = None if server else f"file://{tracked.run}/mlflow"
            number = found.experiment_id if found else self.client.create_experiment(tracked.project, place)
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


def _id_file(tracked: TrackedTraining) -> str:
    return storage.join(tracked.run, "metrics", f"{tracked.name}.tracker")


def _kept_id(tracker: str, tracked: TrackedTraining) -> str | None:
    """The server's id of the training that goes on; None for one that begins, or that another tracker has followed."""
    if not tracked.resumed_at or not storage.exists(_id_file(tracked)):
        return None
    known = json.loads(storage.read_text(_id_file(tracked)))
    return known["id"] if known["tracker"] == tracker else None


def _keep_id(tracker: str, tracked: TrackedTraining, number: str) -> str:
    storage.write_text(_id_file(tracked), json.dumps({"tracker": tracker, "id": number}))
    return number


def redact_secrets(words: str) -> str:
    """Words (an address, an error) without what says who one is: user:password@ and the values of environment
    variables that are named a key, a token, a secret or a password."""
    for name, value in os.environ.items():
        if SECRET_NAME.search(name) and len(value) >= MIN_SECRET_LENGTH:
            words = words.replace(value, "***")
    return re.sub(r"://[^/@\s]+@", "://***@", words)
