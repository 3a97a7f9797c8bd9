"""The two halves of the house meet in jobs/ and serve/ alone."""

import ast
import subprocess
import sys
from pathlib import Path

from jobs.pipeline import WORKERS_IMPORT

ROOT = Path(__file__).parents[1] / "hive_ray"
ALGORITHM = ("pairs", "editor", "reward", "annotation", "evaluation", "shapes")
CLUSTER_LIBRARIES = {"ray", "deepspeed"}


def imported_modules(source: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def offences(home: str, source: str) -> list[str]:
    """What a file of the part `home` ("leaf" for the files beside the parts) imports against the rules."""
    found = []
    for name in sorted(imported_modules(source)):
        top, *rest = name.split(".")
        target = rest[0] if top == "hive_ray" and rest else None
        if home != "distributed" and top in CLUSTER_LIBRARIES:
            found.append(f"imports {name}; only distributed/ speaks to the cluster")
        if target in {*ALGORITHM, "distributed"} and target != home:
            found.append(f"({home}) imports {name}; the halves meet in jobs/")
        if top in {"jobs", "serve"}:
            found.append(f"imports {name}; nothing below jobs/ and serve/ knows them")
    return found


def test_no_file_crosses_the_border():
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).parts
        home = parts[0] if len(parts) > 1 else "leaf"
        found += [f"{path.relative_to(ROOT)} {offence}" for offence in offences(home, path.read_text())]
    assert not found, "\n".join(found)


def test_a_crossing_would_be_seen():
    assert offences("editor", "import ray.data")
    assert offences("editor", "from hive_ray.reward.model import RewardModel")
    assert offences("leaf", "from hive_ray import distributed")
    assert not offences("distributed", "import ray\nfrom hive_ray.schemas import Row")


def test_the_answer_key_ranks_and_evaluates_and_nothing_else_sees_it():
    """No training may see the judge; `pretrain_shapes` measures its base with it."""
    keys = {"hive_ray.shapes.judge", "hive_ray.shapes.annotator", "hive_ray.shapes.reading"}
    code = [path for part in ("hive_ray", "jobs", "serve") for path in (ROOT.parent / part).rglob("*.py")]
    readers = {str(path.relative_to(ROOT.parent)) for path in code if keys & imported_modules(path.read_text())}
    inside = {"hive_ray/shapes/judge.py", "hive_ray/shapes/annotator.py"}
    assert readers - inside == {"jobs/collect_rankings.py", "jobs/evaluating.py", "jobs/pretrain_shapes.py"}


def test_actors_of_jobs_import_no_job():
    """Each worker imports what its actor's module does: with a job come DeepSpeed, Ray Train and the command line."""
    without_jobs = ("candidate_measures", "evaluating", "judging", "scoring")
    for name in without_jobs:
        modules = imported_modules((ROOT.parent / "jobs" / f"{name}.py").read_text())
        assert {module.split(".")[1] for module in modules if module.startswith("jobs.")} <= set(without_jobs)


def test_what_workers_are_forked_with_imports_no_ray():
    assert not set(WORKERS_IMPORT) & {"hive_ray.shapes.judge", "hive_ray.shapes.annotator"}
    code = f"import sys, {', '.join(WORKERS_IMPORT)}; print([name for name in ('ray', 'jobs') if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()[-1] == "[]"


def test_no_file_is_named_for_nothing():
    names = {path.stem for path in ROOT.rglob("*.py")}
    assert not names & {"utils", "common", "helpers", "misc"}
