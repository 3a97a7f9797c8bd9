"""One printed line every few seconds: how far a stage is, how fast, and how long it still takes."""

import time
from collections.abc import Mapping


class Progress:
    """Counts units of work and prints `pairs: 512/1400 rows, 6.2 rows/s, 2m 20s left`."""

    def __init__(self, name: str, total: int, unit: str, *, done: int = 0, every_seconds: float = 5.0):
        self.name, self.total, self.unit, self.every_seconds = name, total, unit, every_seconds
        self.started_with = self.done = done
        self.started = self.printed = time.monotonic()

    @property
    def per_second(self) -> float:
        """Units a second since the start of this process."""
        return (self.done - self.started_with) / max(time.monotonic() - self.started, 1e-9)

    def advance(self, units: int, note: str = "") -> bool:
        """Count `units` more; True if a line was due and printed."""
        self.done += units
        if time.monotonic() - self.printed < self.every_seconds:
            return False
        self.printed = time.monotonic()
        left = duration((self.total - self.done) / max(self.per_second, 1e-9))
        rate = f"{self.per_second:.1f} {self.unit}/s"
        print(f"{self.name}: {self.done}/{self.total} {self.unit}, {rate}, {left} left{note}", flush=True)
        return True


def listed(counts: Mapping[str, float]) -> str:
    """`; dollars: 1.2; prompt_tokens: 8,000`, to stand behind something else; nothing where nothing was counted."""
    return "".join(f"; {name}: {count:,.10g}" for name, count in counts.items())


def duration(seconds: float) -> str:
    """`2m 20s`, `45s` or `3h 5m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60}s"
    return f"{whole // 3600}h {whole % 3600 // 60}m"
