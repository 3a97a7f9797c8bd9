"""Read the table `chosen`: the prompts that people rank, and the probability with which each was chosen."""

from hive_ray.artifacts.manifest import finished_manifest, read_manifest, table_digest
from hive_ray.artifacts.selection import read_rows
from hive_ray.schemas import CHOSEN, Rows


def read_chosen(chosen: str, candidates: str) -> Rows | None:
    """The rows of the table `chosen` by their place; None if it is not finished.

    Raises ValueError if it was made from other candidates.
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
    """Prompt id -> its inclusion probability, 0..1.

    rows: the result of `read_chosen`. The result is empty if there is no such table. It is also empty if some prompts
    had no chance to be chosen, since the chosen ones then do not represent all prompts (Horvitz-Thompson).
    """
    if rows is None:
        return {}
    prompts = finished_manifest(chosen).rows_in
    estimated = sum(1 / row["probability"] for row in rows)
    if abs(estimated - prompts) >= 0.5:
        return {}
    return {row["prompt_id"]: row["probability"] for row in rows}
