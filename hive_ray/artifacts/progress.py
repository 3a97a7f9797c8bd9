"""Progress of a stage: units done, rate and time left."""

import time
from collections.abc import Mapping

from hive_ray import console


class Progress:
    """Counts units of work and shows `pairs: 512/1400 rows, 6.2 rows/s, 2m 20s left`.

    The line appears every `every_seconds`, and more often on a terminal, where it rewrites itself
    (`console.progress_interval_s`).
    """

    def __init__(self, name: str, total: int, unit: str, *, done: int = 0, every_seconds: float = console.PROGRESS_S):
        self.name, self.total, self.unit, self.every_seconds = name, total, unit, every_seconds
        self.started_with = self.done = done
        self.started = self.printed = self.shown = time.monotonic()
        if console.progress_interval_s() < every_seconds:
            self._show("")

    @property
    def per_second(self) -> float:
        """Units per second, without the units that were done before this object was made."""
        return (self.done - self.started_with) / max(time.monotonic() - self.started, 1e-9)

    def advance(self, units: int, note: str = "") -> bool:
        """Count `units` more. Returns True once every `every_seconds`. `note` is appended to the line."""
        self.done += units
        now = time.monotonic()
        due = now - self.printed >= self.every_seconds
        if due:
            self.printed = now
        if due or now - self.shown >= console.progress_interval_s():
            self.shown = now
            self._show(note)
        return due

    def _show(self, note: str) -> None:
        message = f"{self.done}/{self.total} {self.unit}"
        rate = left = None
        if self.done > self.started_with:
            rate = self.per_second
            left = (self.total - self.done) / rate
            message += f", {rate:.1f} {self.unit}/s, {format_duration(left)} left"
        console.show_progress(
            message + note,
            stage=self.name,
            done=self.done,
            total=self.total,
            unit=self.unit,
            rate=rate and round(rate, 3),
            left=left and round(left, 1),
        )


def format_counts(counts: Mapping[str, float]) -> str:
    """Counts as a suffix: `; dollars: 1.2; prompt_tokens: 8,000`. Empty if nothing was counted."""
    return "".join(f"; {name}: {count:,.10g}" for name, count in counts.items())


def format_duration(seconds: float) -> str:
    """`2m 20s`, `45s` or `3h 5m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60}s"
    return f"{whole // 3600}h {whole % 3600 // 60}m"
