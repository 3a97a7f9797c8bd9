"""What a person sees of a training: a progress line, a log, curves, pictures, early warnings, and where things are.

a step's measures -> Watch.step -> <run>/metrics/<name>.jsonl (the truth), a tracker, printed lines
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
from hive_ray.training.trackers import Tracked, Tracker, start_tracker, without_secrets

REST = 50.0
"""How much longer than the last writing of the log, which is written whole, training goes on before the next."""


class Watch:
    """Rank 0's eyes; on other ranks it does nothing."""

    def __init__(self, run: str, name: str, settings: Training, *, rank: int, resumed_at: int) -> None:
        self.run, self.name, self.here = run, name, rank == 0
        self.log_file = storage.join(run, "metrics", f"{name}.jsonl")
        self.pictures = storage.join(run, "metrics", name)
        self.progress = Progress(name, settings.total_images, "images", done=resumed_at)
        self.warnings, self.said = EarlyWarnings(settings.total_images), []
        self.lines: list[str] = []
        self.furthest = resumed_at
        self.rests_until = 0.0
        self.tracker: Tracker | None = None
        if not self.here:
            return
        if resumed_at:
            self._read_log(resumed_at)
        else:
            storage.remove_tree(self.pictures)  # of an older training by this name
        told = settings.model_dump(mode="json", exclude={"watching", "workers"})
        tracked = Tracked(run, name, settings.watching.project, told, resumed_at)
        try:
            self.tracker = start_tracker(settings.watching.tracker, tracked)
        except Exception as error:
            self._give_up(error)

    def step(self, images: int, measures: Metrics, *, at_once: bool = False) -> None:
        """Take in what a step measured, or a look at held-out rows before the first; write the log now and then, or
        `at_once`."""
        if not self.here:
            return
        loss = measures.get("train/loss")
        due = False
        if loss is not None:
            due = self.progress.advance(images - self.progress.done, f", loss {loss:.4f}")
            measures = measures | {"train/images_per_second": round(self.progress.per_second, 3)}
        self.lines.append(json.dumps({"images": images} | measures))
        self._track(lambda tracker: tracker.scalars(images, measures))
        for words in self.warnings.see(images, measures):
            self.said.append(words)
            warn(f"warning: {words}", stage=self.name)
        if at_once or (due and time.monotonic() >= self.rests_until):
            self.flush(lasting=False)

    def picture(self, images: int, png: bytes | None) -> None:
        """Keep a picture of held-out edits, where there is one."""
        if self.here and png is not None:
            storage.write_bytes(storage.join(self.pictures, f"{images:09d}.png"), png)
            self._track(lambda tracker: tracker.picture(images, "validation/edits", decode(png)))

    def flush(self, *, lasting: bool = True) -> None:
        """Write the log and the tracker's part; `lasting`: so that both outlive this machine, as at a checkpoint."""
        if self.here:
            began = time.monotonic()
            storage.write_text(self.log_file, "".join(f"{line}\n" for line in self.lines))
            ended = time.monotonic()
            self.rests_until = ended + REST * (ended - began)
            self._track(lambda tracker: tracker.flush(lasting=lasting))

    def close(self) -> None:
        """Write the rest."""
        self.flush()
        self._track(lambda tracker: tracker.close())

    def tell(self) -> None:
        """Say where everything is."""
        if not self.here:
            return
        say(f"each step's measures are in {self.log_file}", stage=self.name)
        if storage.exists(self.pictures):
            say(f"edits of held-out rows are in {self.pictures}/", stage=self.name)
        if self.tracker:
            say(f"curves: {self.tracker.place}", stage=self.name)
        for words in self.said:
            say(f"there was a warning: {words}", stage=self.name)

    def _read_log(self, images: int) -> None:
        """The lines up to a checkpoint; the warnings learn from them in silence. Those of steps that are made again are
        forgotten, and those of a damaged log that cannot be read are left out and named."""
        if not storage.exists(self.log_file):
            return
        try:
            for line in read_objects(self.log_file, "images"):
                measures = {name: value for name, value in line.value.items() if isinstance(value, int | float)}
                self.furthest = max(self.furthest, measures["images"])
                if measures["images"] <= images:
                    self.lines.append(line.text)
                    self.warnings.see(int(measures["images"]), measures)
        except TextError as error:
            warn(f"the log is damaged and begins anew after {len(self.lines)} lines: {error}", stage=self.name)

    def _track(self, act: Callable[[Tracker], None]) -> None:
        """Nobody's server may end a training: one that fails is given up."""
        try:
            if self.tracker:
                act(self.tracker)
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self.tracker = None
        reason = without_secrets(f"{type(error).__name__}: {error}")
        warn(f"the tracker failed and is given up, {self.log_file} has all: {reason}", stage=self.name)
