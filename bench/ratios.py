"""How a bench counts and says: rates after the first quarter, and ratios of two sides that were measured in turns."""

import statistics
from collections.abc import Sequence


def rate_of(marks: Sequence[tuple[int, float]]) -> float:
    """Rows/s after the first quarter of (rows so far, seconds), so that starting and loading are left out."""
    (first, began), (last, ended) = marks[len(marks) // 4], marks[-1]
    return (last - first) / (ended - began)


def say(what: str, ratios: Sequence[float]) -> None:
    """The median of some rounds' ratios, and each of them."""
    print(f"{what}: {statistics.median(ratios):.2f} x ({', '.join(f'{ratio:.2f}' for ratio in ratios)})", flush=True)
