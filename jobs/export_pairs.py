"""Pairs for other programs: diffusers' training script, InstructPix2Pix, WebDataset readers.

pairs or scored_pairs -> exports/<format>

The folder is whole once it has card.json, which is written last. exporting.json is there from before the first file is
written or removed until after the last one is, so that a run that was killed anywhere is known and gone on with.
"""

from jobs.command import run_job

if __name__ == "__main__":  # before what the work needs is imported, which takes seconds
    run_job("export_pairs")

import json

from hive_ray import storage
from hive_ray.artifacts.manifest import Fingerprint, OnMismatch, mismatch_error, table_digest
from hive_ray.artifacts.selection import read_rows
from hive_ray.console import tell_result
from hive_ray.pairs.formats.writing import WRITERS
from hive_ray.schemas import PAIRS, SCORED_PAIRS
from jobs.run import Run, fingerprint

CARD, BEGUN = "card.json", "exporting.json"
TABLES = {"pairs": PAIRS, "scored_pairs": SCORED_PAIRS}


def build(run: Run) -> dict:
    """The card of the exported folder; a folder of the same pairs is kept."""
    settings, table = run.config.exporting, run.path(run.config.exporting.table)
    folder = storage.absolute(settings.folder or run.path(f"exports/{settings.format}"))
    made_from = fingerprint(settings.model_copy(update={"folder": ""}), table=table_digest(table))
    card, begun = storage.join(folder, CARD), storage.join(folder, BEGUN)
    if kept(folder, card, begun, made_from, run.on_mismatch):
        for name in unfinished_writes(folder):
            storage.remove_file(storage.join(folder, name))
        storage.remove_unfinished(folder)
        tell_result(f"{folder}: kept (nothing changed)")
        return json.loads(storage.read_text(card))
    description, schema = {"format": settings.format, "fingerprint": made_from}, TABLES[settings.table]
    storage.write_text(begun, json.dumps(description, indent=2))  # says whose the remains are; it goes last
    storage.remove_tree(folder)
    storage.write_text(begun, json.dumps(description, indent=2))
    rows = WRITERS[settings.format](folder, read_rows(table, schema), schema, settings.shard_megabytes * 2**20)
    done = description | {"rows": rows}
    storage.write_text(card, json.dumps(done, indent=2))
    storage.remove_file(begun)
    storage.remove_unfinished(folder)
    tell_result(f"{folder}: {rows} pairs of {table} as {settings.format}")
    return done


def kept(folder: str, card: str, begun: str, made_from: Fingerprint, on_mismatch: OnMismatch) -> bool:
    """Whether the folder is whole and what would be written; another one is refused, unless it may be removed."""
    found = [json.loads(storage.read_text(path)) for path in (card, begun) if storage.exists(path)]
    exports = [one for one in found if "format" in one]  # else the card of a model
    if not exports:
        if len(storage.list_files(folder)) > len(unfinished_writes(folder)):
            raise FileExistsError(f"{folder} holds files that no export wrote; set exporting.folder to another folder")
        return False
    old = exports[0]["fingerprint"]
    if old != made_from and on_mismatch == "refuse":
        raise mismatch_error(folder, old, made_from)
    return old == made_from and "rows" in exports[0]


def unfinished_writes(folder: str) -> list[str]:
    """exporting.json, and what is left of writes of it that were killed."""
    return [name for name in storage.list_files(folder) if name == BEGUN or name.startswith(f".{BEGUN}.")]
