"""Annotations: what people have said so far, as a file for `collect_rankings`. They may go on working meanwhile.

annotation database -> annotations.jsonl, annotations.csv
"""

from jobs.command import run_job

if __name__ == "__main__":  # before what the work needs is imported, which takes seconds
    run_job("export_annotations")

from hive_ray import storage
from hive_ray.annotation.database import open_database
from hive_ray.annotation.exports import csv_lines, ranking_lines, read_answers, regular_answers
from hive_ray.annotation.models import RANK
from hive_ray.annotation.productivity import measure_productivity
from hive_ray.annotation.quality import annotator_stats, flagged_names
from hive_ray.artifacts.chosen import inclusion_probabilities, read_chosen
from hive_ray.artifacts.manifest import read_manifest
from hive_ray.artifacts.selection import select
from hive_ray.console import say, tell_result
from hive_ray.schemas import CANDIDATES
from jobs.run import Run


def build(run: Run) -> str:
    """The address of the file that `rankings.annotations` takes."""
    settings, path = run.config.annotation, run.path("annotations.jsonl")
    database = open_database(run.root, settings)
    database.migrate()
    without = flagged_names(annotator_stats(database, settings)) if settings.leave_out_flagged else set()
    answers, editors = read_answers(database), _editors(run.path(settings.candidates))
    of_others = [one.kind == RANK and bool(editors) and not editors >= set(one.editors) for one in answers]
    answers = [one for one, other in zip(answers, of_others, strict=True) if not other]
    storage.write_text(path, "".join(ranking_lines(answers, without)))
    storage.write_text(run.path("annotations.csv"), "".join(csv_lines(answers, without)))
    of_rank = [one for one in answers if one.kind == RANK]
    ranked = regular_answers(of_rank, without)
    left = f", without {', '.join(sorted(without))}" if without else ""
    left += f", without {sum(of_others)} of other rounds" if any(of_others) else ""
    probabilities = _probabilities(run)
    tell_result(
        f"{len(ranked)} rankings by {len({one.annotator for one in ranked})} people{left}; {path}", stage="annotations"
    )
    say(str(measure_productivity(of_rank, probabilities, without)), stage="annotations")
    return path


def _probabilities(run: Run) -> dict[str, float]:
    """With which probability each prompt came to be ranked; empty where nothing was chosen from these candidates."""
    candidates = run.path(run.config.annotation.candidates)
    if read_manifest(candidates) is None or candidates != run.path("candidates"):
        return {}
    chosen = run.path("chosen")
    return inclusion_probabilities(chosen, read_chosen(chosen, candidates))


def _editors(candidates: str) -> set[str]:
    """Whose edits are ranked in this round: rounds may share a database, and each has another editor. Empty where there
    are no candidates."""
    if read_manifest(candidates) is None:
        return set()
    table = select(candidates, CANDIDATES)
    return set(table.read(0, len(table), ["editor"])["editor"].to_pylist())
