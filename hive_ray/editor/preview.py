"""Pictures of what an editor that is being trained makes of some pairs: always from the same noise.

rows of pairs, Editor -> a PNG: source | edit | edited image of the pair, under each instruction
"""

import textwrap

from hive_ray.charts import picture_grid
from hive_ray.config import Preview
from hive_ray.editor.model import Editor
from hive_ray.editor.sampling import sample
from hive_ray.images import to_batch, to_pixels
from hive_ray.schemas import Rows
from hive_ray.seeds import seed_for

LONGEST_WORDS = 60
"""Characters of an instruction that stand over its pictures."""
PIXELS_PER_INCH = 110
SIDES = (1.15, 2.35)
"""Inches of a picture on the grid, least and most."""


def draw_preview(editor: Editor, rows: Rows, settings: Preview, resolution: int) -> bytes:
    """A PNG of one edit of each row, which needs pair_id, instruction, source_image and edited_image.

    A number of forward passes that depends on nothing but the settings, as ZeRO stage 3 needs.
    """
    source = to_batch([row["source_image"] for row in rows], resolution)
    edited = to_batch([row["edited_image"] for row in rows], resolution)
    edits = sample(
        editor,
        source,
        [row["instruction"] for row in rows],
        guidance_scale=settings.guidance_scale,
        image_guidance_scale=settings.image_guidance_scale,
        num_inference_steps=settings.num_inference_steps,
        seeds=[seed_for("preview", row["pair_id"]) for row in rows],
    )
    names = ("source", "edit", "as in the pair")
    examples = [
        (
            textwrap.shorten(row["instruction"], LONGEST_WORDS),
            [(to_pixels(picture), name) for picture, name in zip(pictures, names, strict=True)],
        )
        for row, *pictures in zip(rows, source, edits, edited, strict=True)
    ]
    least, most = SIDES
    return picture_grid(examples, across=1, side=min(most, max(least, resolution / PIXELS_PER_INCH)))
