"""The table `chosen` for those who hand out prompts, rank them, or count what was ranked."""

from hive_ray.artifacts.manifest import finished_manifest, read_manifest, table_digest
from hive_ray.artifacts.selection import read_rows
from hive_ray.schemas import CHOSEN, Rows


def read_chosen(chosen: str, candidates: str) -> Rows | None:
    """The rows of a finished table `chosen`, first place first; None if there is none.

    ValueError if it was not made from these candidates.
    """
    manifest = read_manifest(chosen)
    if manifest is None:
        return None
    if manifest.fingerprint.get("input.candidates") != table_digest(candidates):
        raise ValueError(
            f"{chosen} was chosen from other candidates than {candidates}: make it again (python -m "
            "jobs.choose_candidates with --rebuild)"
        )
    return sorted(read_rows(chosen, CHOSEN), key=lambda row: row["place"])


def inclusion_probabilities(chosen: str, rows: Rows | None) -> dict[str, float]:
    """Prompt id -> the probability with which it came to be chosen; `rows` are what `read_chosen` found. Empty if there
    is no such table, or if some prompts could not be chosen at all, so that nothing can be estimated of all."""
    if rows is None:
        return {}
    prompts = finished_manifest(chosen).rows_in
    estimated = sum(1 / row["probability"] for row in rows)
    stands_for_all = abs(estimated - prompts) < 0.5
    return {row["prompt_id"]: row["probability"] for row in rows} if stands_for_all else {}
