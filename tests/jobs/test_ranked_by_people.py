"""People rank in place of the simulated annotators."""

import json
from pathlib import Path

import pytest
import ray
from annotation_site import make_candidates

from hive_ray.distributed.cluster import start_ray
from hive_ray.distributed.tables import read_rows
from hive_ray.presets import sd15
from hive_ray.schemas import RANKINGS
from jobs import collect_rankings
from jobs.run import Run

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def cluster():
    start_ray(num_cpus=4)
    yield
    ray.shutdown()


@pytest.fixture
def ranked(tmp_path, monkeypatch) -> Run:
    """A run with candidates, and beside it, in this process's folder alone, a file of what somebody said of them."""
    monkeypatch.chdir(tmp_path)
    candidates = make_candidates("run", 3)
    said = [{"prompt_id": row["prompt_id"], "annotator": "Ada", "ranks": [4, 3, 2, 1]} for row in candidates]
    Path("said.jsonl").write_text("".join(json.dumps(line) + "\n" for line in said))
    rankings = sd15().rankings.model_copy(update={"annotations": "said.jsonl"})
    return Run(str(tmp_path / "run"), sd15().model_copy(update={"rankings": rankings}))


def test_a_file_of_rankings_is_read_where_the_job_runs_and_not_where_its_workers_do(ranked):
    collect_rankings.build(ranked)
    rows = list(read_rows(ranked.path("rankings"), RANKINGS))
    assert [(row["prompt_id"], row["annotator"], row["ranks"]) for row in rows] == [
        (f"p{number}", "Ada", [4, 3, 2, 1]) for number in range(3)
    ]
