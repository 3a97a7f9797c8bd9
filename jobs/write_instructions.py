"""Edits in words for each caption.

captions -> instructions
"""

from pathlib import Path

from hive_ray.config import Instructions
from hive_ray.distributed.mapping import map_table
from hive_ray.distributed.tables import Manifest, build_table, table_digest, write_rows
from hive_ray.pairs.instructions import InstructionWriter
from hive_ray.schemas import CAPTIONS, INSTRUCTIONS, Rows
from hive_ray.seeds import id_for
from hive_ray.shapes.actors import ShapesWriter, random_captions
from jobs.run import Run, fingerprint, main

WRITERS = {"shapes": ShapesWriter, "openai": InstructionWriter}


def build(run: Run) -> Manifest:
    settings, captions = run.config.instructions, run.path("captions")
    rows = caption_rows(settings)
    content = id_for(*(row["caption_id"] for row in rows))
    write_rows(captions, CAPTIONS, rows, fingerprint(settings_of_captions(settings), content=content),
               on_mismatch=run.on_mismatch)  # fmt: skip

    def make():
        return map_table(
            captions, CAPTIONS, WRITERS[settings.writer], produces=INSTRUCTIONS,
            resources=settings.resources, settings=settings,
        )  # fmt: skip

    made_from = fingerprint(settings, captions=table_digest(captions))
    return build_table(run.path("instructions"), INSTRUCTIONS, made_from, make, on_mismatch=run.on_mismatch)


def caption_rows(settings: Instructions) -> Rows:
    """The first different captions, at most `num_captions`; ValueError if there are none."""
    if settings.captions == "shapes":
        texts = random_captions(settings.num_captions, settings.seed)
    else:
        path = Path(settings.captions)
        if not path.is_file():
            raise FileNotFoundError(f"captions file {path} does not exist; give a text file, one caption a line")
        lines = dict.fromkeys(line.strip() for line in path.read_text().splitlines())
        texts = [line for line in lines if line][: settings.num_captions]
        if not texts:
            raise ValueError(f"captions file {path} has no captions; it wants one a line")
    return [{"caption_id": id_for(text), "caption": text} for text in texts]


def settings_of_captions(settings: Instructions) -> Instructions:
    """Only what decides the captions, so that another writer does not draw them again."""
    return Instructions(captions=settings.captions, num_captions=settings.num_captions, seed=settings.seed)


if __name__ == "__main__":
    main(build)
