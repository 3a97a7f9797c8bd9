"""Actors of the shapes domain, which replace the language model and the base model: a writer and a painter."""

from collections.abc import Sequence

import numpy as np

from hive_ray.config import Instructions, Pairs
from hive_ray.images import encode
from hive_ray.schemas import Dropped, Result, Row, Rows, prompt_row
from hive_ray.seeds import id_for, seed_for, split_for
from hive_ray.shapes.edits import Edit, apply_edit, write_edits
from hive_ray.shapes.scenes import CaptionError, Scene, draw, parse_caption, place_things, random_description

NO_ROOM = "no_room_for_the_edit"


def random_captions(count: int, seed: int) -> list[str]:
    """`count` distinct captions of random scenes."""
    rng, captions = np.random.default_rng(seed), dict[str, None]()
    while len(captions) < count:
        captions[random_description(rng).caption] = None
    return list(captions)


class ShapesWriter:
    """Captions -> instructions by the grammar of this domain; other captions are dropped with a reason."""

    def __init__(self, settings: Instructions, device: str = "cpu") -> None:
        self.settings = settings

    def __call__(self, rows: Rows) -> list[Result]:
        return [written for row in rows for written in self._written(row["caption_id"], row["caption"])]

    def _written(self, caption_id: str, caption: str) -> Sequence[Result]:
        settings = self.settings
        rng = np.random.default_rng(seed_for(settings.seed, caption_id))
        try:
            edits = write_edits(caption, settings.per_caption, rng)
        except CaptionError:
            return [Dropped("caption_is_no_scene_of_shapes")]
        split = split_for(caption_id, rank_rate=settings.rank_rate, test_rate=settings.test_rate)
        return [
            {
                "instruction_id": id_for(caption_id, edit.instruction, edit.edited.caption),
                "caption_id": caption_id,
                "source_caption": caption,
                "instruction": edit.instruction,
                "edited_caption": edit.edited.caption,
                "inverse_instruction": edit.inverse_instruction,
                "writer": "shapes",
                "split": split,
            }
            for edit in edits
        ]


def place_edit(row: Row, rng: np.random.Generator) -> tuple[Scene, Scene] | None:
    """The scenes before and after an edit, with room for the edit; None if no placement is found."""
    source, edited = parse_caption(row["source_caption"]), parse_caption(row["edited_caption"])
    for _ in range(20):
        before = place_things(source, rng)
        after = apply_edit(before, edited, rng)
        if after is not None:
            return before, after
    return None


def random_fitting_edit(caption: str, rng: np.random.Generator) -> tuple[Edit, Scene, Scene]:
    """A random edit of a caption that has room, and the scenes before and after it."""
    while True:
        edit = write_edits(caption, 1, rng)[0]
        scenes = place_edit({"source_caption": caption, "edited_caption": edit.edited.caption}, rng)
        if scenes:
            return edit, *scenes


class ScenePainter:
    """Held-out instructions -> prompts, with source pictures drawn by this domain instead of a model."""

    def __init__(self, settings: Pairs, device: str = "cpu") -> None:
        self.settings = settings

    def __call__(self, rows: Rows) -> list[Result]:
        return [self._painted(row) for row in rows]

    def _painted(self, row: Row) -> Row | Dropped:
        scenes = place_edit(row, np.random.default_rng(seed_for(self.settings.seed, row["instruction_id"], "prompt")))
        return prompt_row(row, encode(draw(scenes[0]))) if scenes else Dropped(NO_ROOM)
