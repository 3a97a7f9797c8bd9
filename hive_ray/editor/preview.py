"""Previews of an editor in training: its edits of some rows, always from the same noise.

rows with a source picture and an instruction, Editor -> a PNG: source | edit | edited picture of the pair, if any
"""

import textwrap

from hive_ray.config import Editor as Settings
from hive_ray.editor.latents import PICTURE_COLUMNS, identity_views, read_pictures
from hive_ray.editor.model import Editor
from hive_ray.editor.sampling import sample
from hive_ray.errors import BadRows
from hive_ray.images import normalize_pixels, to_pixels
from hive_ray.pages.charts import picture_grid
from hive_ray.schemas import Rows
from hive_ray.seeds import seed_for

MAX_TITLE_LENGTH = 60
"""Characters of an instruction that are shown above its pictures."""
PIXELS_PER_INCH = 110
PICTURE_WIDTHS = (1.15, 2.35)
"""Least and greatest width of a picture on the grid, in inches."""


def draw_preview(editor: Editor, rows: Rows, settings: Settings) -> bytes | None:
    """A PNG of one edit of each row. A row has `instruction` and `source_image`, and may have `edited_image`.

    Rows whose pictures cannot be read are left out; None if no row is left. The number of forward passes depends only
    on settings and rows, as stage 3 of ZeRO requires.
    """
    columns = tuple(column for column in PICTURE_COLUMNS if column in rows[0])
    try:
        source, *edited = normalize_pixels(read_pictures(rows, settings, identity_views(rows), columns))
    except BadRows as bad:
        rows = [row for place, row in enumerate(rows) if place not in bad.reasons]
        return draw_preview(editor, rows, settings) if rows else None
    edits = sample(
        editor,
        source,
        [row["instruction"] for row in rows],
        guidance_scale=settings.preview.guidance_scale,
        image_guidance_scale=settings.preview.image_guidance_scale,
        num_inference_steps=settings.preview.num_inference_steps,
        seeds=[seed_for("preview", row["instruction"], row["source_image"]) for row in rows],
    )
    names = ("source", "edit", "as in the pair")[: 1 + len(columns)]
    examples = []
    for row, *pictures in zip(rows, source, edits, *edited, strict=True):
        named = [(to_pixels(picture), name) for picture, name in zip(pictures, names, strict=True)]
        examples.append((textwrap.shorten(row["instruction"], MAX_TITLE_LENGTH), named))
    least, most = PICTURE_WIDTHS
    return picture_grid(examples, columns=1, picture_width=min(most, max(least, settings.resolution / PIXELS_PER_INCH)))
