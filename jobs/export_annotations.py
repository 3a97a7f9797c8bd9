"""Annotations: what people have said so far, as a file for `collect_rankings`. They may go on working meanwhile.

annotation database -> annotations.jsonl, annotations.csv
"""

from hive_ray import storage
from hive_ray.annotation.database import database_of
from hive_ray.annotation.exports import answered, csv_lines, ranking_lines, work
from hive_ray.annotation.models import RANK
from hive_ray.annotation.quality import flagged, standings
from jobs.run import Run, main


def build(run: Run) -> str:
    """The address of the file that `rankings.annotations` takes."""
    settings, path = run.config.annotation, run.path("annotations.jsonl")
    database = database_of(run.root, settings)
    database.migrate()
    without = flagged(standings(database, settings)) if settings.leave_out_flagged else set()
    answers = answered(database)
    storage.write_text(path, "".join(ranking_lines(answers, without)))
    storage.write_text(run.path("annotations.csv"), "".join(csv_lines(answers, without)))
    ranked = [one for one in work(answers, without) if one.kind == RANK]
    left = f", without {', '.join(sorted(without))}" if without else ""
    print(
        f"annotations: {len(ranked)} rankings by {len({one.annotator for one in ranked})} people{left}; {path}",
        flush=True,
    )
    return path


if __name__ == "__main__":
    main(build)
