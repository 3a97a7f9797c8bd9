"""Rankings: what people, or the simulated annotators of the embedded domain, prefer.

candidates, annotations -> rankings
"""

from pathlib import Path

from hive_ray.config import Rankings, Resources
from hive_ray.distributed.mapping import map_table
from hive_ray.distributed.tables import Manifest, build_table, table_digest
from hive_ray.reward.rankings import parse_annotations, rankings_from_people
from hive_ray.schemas import CANDIDATES, RANKINGS, Rows
from hive_ray.seeds import id_for
from hive_ray.shapes.annotator import SimulatedAnnotator, rank_candidates
from jobs.run import Run, fingerprint, main


class People:
    """Joins what people ranked to the candidates that they saw."""

    def __init__(self, settings: Rankings, device: str = "cpu") -> None:
        self.annotations = parse_annotations(_lines(settings), settings.annotations)

    def __call__(self, rows: Rows) -> Rows:
        return [ranking for row in rows for ranking in rankings_from_people(row, self.annotations)]


class Simulated:
    """Ranks by the judge, with a person's noise and ties."""

    def __init__(self, settings: Rankings, device: str = "cpu") -> None:
        seats = range(settings.annotators_per_prompt)
        self.annotators = [SimulatedAnnotator(seat, seed=settings.seed) for seat in seats]

    def __call__(self, rows: Rows) -> Rows:
        return rank_candidates(rows, self.annotators)


ANNOTATORS = {"people": People, "shapes": Simulated}


def build(run: Run) -> Manifest:
    candidates, settings = run.path("candidates"), run.config.rankings
    content = id_for(*_lines(settings)) if settings.annotator == "people" else ""

    def make():
        return map_table(
            candidates, CANDIDATES, ANNOTATORS[settings.annotator], produces=RANKINGS,
            resources=Resources(num_gpus=0), settings=settings,
        )  # fmt: skip

    made_from = fingerprint(settings, candidates=table_digest(candidates), annotations=content)
    return build_table(run.path("rankings"), RANKINGS, made_from, make, on_mismatch=run.on_mismatch)


def _lines(settings: Rankings) -> list[str]:
    path = Path(settings.annotations)
    if not path.is_file():
        raise FileNotFoundError(
            f"rankings.annotations is {settings.annotations!r}, which is no file: give people's rankings as JSON lines"
        )
    return path.read_text().splitlines()


if __name__ == "__main__":
    main(build)
