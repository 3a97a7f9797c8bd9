"""What a person sees of a training: a progress line, a log, curves, pictures, warnings, and where to find them.

a step's measures -> TrainingMonitor.log_step -> <run>/metrics/<name>.jsonl (authoritative), a tracker, printed lines
pictures of held-out edits -> <run>/metrics/<name>/<images>.png, the tracker
"""

import json
import time
from collections.abc import Callable

from hive_ray import storage
from hive_ray.artifacts.model_store import Metrics
from hive_ray.artifacts.progress import Progress
from hive_ray.config import Training
from hive_ray.console import say, warn
from hive_ray.files.text_files import TextError, read_objects
from hive_ray.images import decode
from hive_ray.training.early_warnings import EarlyWarnings
from hive_ray.training.trackers import TrackedTraining, Tracker, redact_secrets, start_tracker

LOG_INTERVAL_RATIO = 50.0
"""The log is rewritten completely each time, at least this many times the duration of the last write apart."""


class TrainingMonitor:
    """Logs and reports a training on rank 0. On other ranks it does nothing."""

    def __init__(self, run: str, name: str, settings: Training, *, rank: int, resumed_at: int) -> None:
        self.run = run
        self.name = name
        self.is_rank_0 = rank == 0
        self.log_file = storage.join(run, "metrics", f"{name}.jsonl")
        self.pictures = storage.join(run, "metrics", name)
        self.progress = Progress(name, settings.total_images, "images", done=resumed_at)
        self.warnings = EarlyWarnings(settings.total_images)
        self.given_warnings: list[str] = []
        self.lines: list[str] = []
        self.last_logged = resumed_at
        """Greatest number of rows seen in the log."""
        self.next_flush = 0.0
        self.tracker: Tracker | None = None
        if not self.is_rank_0:
            return
        if resumed_at:
            self._read_log(resumed_at)
        else:
            storage.remove_tree(self.pictures)  # of an older training of this name
        logged_settings = settings.model_dump(mode="json", exclude={"watching", "workers"})
        tracked = TrackedTraining(run, name, settings.watching.project, logged_settings, resumed_at)
        try:
            self.tracker = start_tracker(settings.watching.tracker, tracked)
        except Exception as error:
            self._give_up(error)

    def log_step(self, images: int, measures: Metrics, *, flush_now: bool = False) -> None:
        """Log the measures of a step, or of a validation before the first step.

        The log file is written now and then, or immediately with `flush_now`.
        """
        if not self.is_rank_0:
            return
        loss = measures.get("train/loss")
        due = False
        if loss is not None:
            due = self.progress.advance(images - self.progress.done, f", loss {loss:.4f}")
            measures = measures | {"train/images_per_second": round(self.progress.per_second, 3)}
        self.lines.append(json.dumps({"images": images} | measures))
        self._track(lambda tracker: tracker.log_scalars(images, measures))
        for words in self.warnings.update(images, measures):
            self.given_warnings.append(words)
            warn(f"warning: {words}", stage=self.name)
        if flush_now or (due and time.monotonic() >= self.next_flush):
            self.flush(durable=False)

    def log_picture(self, images: int, png: bytes | None) -> None:
        """Store a picture of held-out edits, if there is one."""
        if self.is_rank_0 and png is not None:
            storage.write_bytes(storage.join(self.pictures, f"{images:09d}.png"), png)
            self._track(lambda tracker: tracker.log_picture(images, "validation/edits", decode(png)))

    def flush(self, *, durable: bool = True) -> None:
        """Write the log and flush the tracker. `durable`: so that both survive the loss of this machine."""
        if self.is_rank_0:
            started = time.monotonic()
            storage.write_text(self.log_file, "".join(f"{line}\n" for line in self.lines))
            ended = time.monotonic()
            self.next_flush = ended + LOG_INTERVAL_RATIO * (ended - started)
            self._track(lambda tracker: tracker.flush(durable=durable))

    def close(self) -> None:
        """Write the rest of the log and close the tracker."""
        self.flush()
        self._track(lambda tracker: tracker.close())

    def report(self) -> None:
        """Say where the log, the pictures and the curves are, and repeat the warnings."""
        if not self.is_rank_0:
            return
        say(f"each step's measures are in {self.log_file}", stage=self.name)
        if storage.exists(self.pictures):
            say(f"edits of held-out rows are in {self.pictures}/", stage=self.name)
        if self.tracker:
            say(f"curves: {self.tracker.location}", stage=self.name)
        for words in self.given_warnings:
            say(f"there was a warning: {words}", stage=self.name)

    def _read_log(self, images: int) -> None:
        """Read the log up to a checkpoint and pass it to the warnings, whose results are ignored.

        Later lines are dropped, since their steps are repeated. Unreadable lines are dropped and named.
        """
        if not storage.exists(self.log_file):
            return
        try:
            for line in read_objects(self.log_file, "images"):
                measures = {name: value for name, value in line.value.items() if isinstance(value, int | float)}
                self.last_logged = max(self.last_logged, measures["images"])
                if measures["images"] <= images:
                    self.lines.append(line.text)
                    self.warnings.update(int(measures["images"]), measures)
        except TextError as error:
            warn(f"the log is damaged and starts again after {len(self.lines)} lines: {error}", stage=self.name)

    def _track(self, act: Callable[[Tracker], None]) -> None:
        """Call the tracker. If it fails, stop using it: a tracker must not end a training."""
        try:
            if self.tracker:
                act(self.tracker)
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self.tracker = None
        reason = redact_secrets(f"{type(error).__name__}: {error}")
        warn(f"the tracker failed and is no longer used; {self.log_file} has all measures: {reason}", stage=self.name)
