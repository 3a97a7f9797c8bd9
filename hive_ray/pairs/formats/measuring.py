"""Imported pairs -> pairs: CLIP similarities that are measured, and cycle-consistency twins."""

from collections.abc import Sequence

from hive_ray.config import Importing
from hive_ray.pairs.cycle import make_twin
from hive_ray.schemas import PAIRS, Dropped, Result, Row, Rows
from hive_ray.similarity import Similarity


class PairMeasurer:
    """Rows of `imported` -> rows of `pairs`, and `Dropped("pictures_look_swapped")` as `drop_swapped` says.

    Without a caption nothing that compares with it can be measured: those similarities are 0.
    """

    def __init__(self, settings: Importing, device: str = "cpu") -> None:
        self.settings = settings
        self.similarity = Similarity(settings.clip, device)

    def __call__(self, rows: Rows) -> list[Result]:
        measured = self.similarity.measure(
            [row["source_image"] for row in rows],
            [row["edited_image"] for row in rows],
            [row["source_caption"] for row in rows],
            [row["edited_caption"] for row in rows],
        )
        pairs: list[Result] = []
        for index, row in enumerate(rows):
            clip = {name: float(values[index]) for name, values in measured.items()}
            pairs += self._pairs(row, clip)
        return pairs

    def _pairs(self, row: Row, clip: dict[str, float]) -> Sequence[Result]:
        source, edited = bool(row["source_caption"]), bool(row["edited_caption"])
        is_captioned = {"clip_source_text": source, "clip_edited_text": edited, "clip_direction": source and edited}
        clip = clip | {name: clip[name] if captioned else 0.0 for name, captioned in is_captioned.items()}
        if self.settings.drop_swapped and clip["clip_direction"] < 0:
            return [Dropped("pictures_look_swapped")]
        known = row | clip | {"weight": 1.0}
        pair = {name: known[name] for name in PAIRS.names}
        inverse = row["inverse_instruction"]
        return [pair, make_twin(pair, inverse)] if inverse and self.settings.cycle else [pair]
