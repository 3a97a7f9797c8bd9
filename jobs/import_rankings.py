"""Somebody else's rankings, from which the reward model and DPO learn beside the run's own.

a dataset -> imported_rankings
"""

from jobs.command import run_job

if __name__ == "__main__":  # before what the work needs is imported, which takes seconds
    run_job("import_rankings")

from collections.abc import Iterator

from hive_ray import storage
from hive_ray.artifacts.manifest import Fingerprint, Manifest
from hive_ray.config import Importing
from hive_ray.pairs.formats.digests import dataset_digest
from hive_ray.pairs.formats.ranked import ranking_picture_paths, ranking_rows, read_rankings
from hive_ray.presets import SHAPES_WEIGHTS
from hive_ray.schemas import RANKINGS, Result
from jobs.import_pairs import keep_if_unchanged, rebuild_if_unfinished, select_settings, sizes_of
from jobs.run import Run, fingerprint
from jobs.stage import Stage, TableStage

TABLE = "imported_rankings"
SHIPPED = {"shapes": SHAPES_WEIGHTS.parent / "rankings"}
"""Names of rankings that come with the package -> their folders."""
ROWS_PER_FILE = 32
"""Rankings in a file: their pictures are in memory at a time."""


def build(run: Run) -> Manifest:
    return IMPORTED_RANKINGS_STAGE.make(run)


def stages(run: Run) -> list[Stage]:
    """The table that this job makes."""
    return [IMPORTED_RANKINGS_STAGE]


def _rows(run: Run) -> Iterator[Result]:
    settings = run.config.importing
    dataset = dataset_of(settings.rankings)
    return ranking_rows(read_rankings(dataset, settings), dataset, settings.least_kept)


def _compute_fingerprint(run: Run) -> Fingerprint:
    settings = run.config.importing
    dataset = dataset_of(settings.rankings)
    stage = select_settings(settings, "rankings", "split_name", "pictures", "least_kept")
    made_from = fingerprint(stage, content=content_of(settings))
    return keep_if_unchanged(run, TABLE, RANKINGS, made_from, dataset, lambda: _rows(run))


def content_of(settings: Importing) -> str:
    """Names the content of the rankings: by sizes and times of files, and of shipped ones by sizes and what they hold,
    so that two installations make the same tables."""
    dataset = dataset_of(settings.rankings)
    content = dataset_digest(dataset, settings.pictures, ranking_picture_paths)
    if settings.rankings in SHIPPED:
        return f"{sizes_of(content)}-{storage.folder_digest(dataset)}"
    return content


def dataset_of(rankings: str) -> str:
    """The address that `importing.rankings` means. Raises a ValueError if it is empty, and FileNotFoundError if it
    names shipped rankings that are not there."""
    if not rankings:
        raise ValueError(
            "importing.rankings is empty: name the folder or file of rankings to import, or shapes for those of the "
            "embedded domain"
        )
    if rankings not in SHIPPED:
        return rankings.rstrip("/") or rankings
    folder = SHIPPED[rankings]
    if not storage.list_files(str(folder)):
        raise FileNotFoundError(
            f"importing.rankings is {rankings!r}, whose rankings belong in {folder}, and are not there: install the "
            f"whole package, or name a folder or file (./{rankings} for a folder of this name)"
        )
    return str(folder)


IMPORTED_RANKINGS_STAGE = TableStage(
    name=TABLE,
    schema=RANKINGS,
    fingerprint=_compute_fingerprint,
    rows=_rows,
    rows_per_file=ROWS_PER_FILE,
    on_mismatch=rebuild_if_unfinished(TABLE),
)
