"""The house: which room imports which, and which outside library lives in which room."""

import ast
import subprocess
import sys
from pathlib import Path

from jobs.pipeline import WORKERS_IMPORT

ROOT = Path(__file__).parents[1] / "hive_ray"
GROUND = "ground"
"""The files beside the rooms."""
SHARED = {GROUND, "files", "statistics", "pages", "language", "diffusion"}
MAY_IMPORT = {
    GROUND: {"files"},
    "files": {GROUND},
    "statistics": {GROUND},
    "pages": {GROUND, "files"},
    "language": {GROUND, "files"},
    "diffusion": {GROUND, "files"},
    "pairs": SHARED,
    "editor": SHARED,
    "reward": SHARED,
    "evaluation": SHARED,
    "annotation": SHARED,
    "shapes": SHARED,
    "artifacts": {GROUND, "files"},
    "training": {GROUND, "files", "artifacts"},
    "cluster": {GROUND, "files", "artifacts", "training"},
}
LIVES_IN = {
    "ray": "cluster",
    "deepspeed": "training",
    "openai": "language",
    "matplotlib": "pages",
    "boto3": "files",
    "botocore": "files",
    "sqlalchemy": "annotation",
    "alembic": "annotation",
    "rich": GROUND,
}


def imported_modules(source: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def offences(home: str, source: str) -> list[str]:
    """What a file of the room `home` imports against the rules."""
    found = []
    for name in sorted(imported_modules(source)):
        top, *rest = name.split(".")
        if top == "hive_ray" and rest:
            target = rest[0] if rest[0] in MAY_IMPORT else GROUND
            if target not in MAY_IMPORT[home] | {home}:
                found.append(f"({home}) imports {name}; it may import {', '.join(sorted(MAY_IMPORT[home]))}")
        if LIVES_IN.get(top, home) != home:
            found.append(f"({home}) imports {name}; {top} lives in {LIVES_IN[top]}/")
        if top in {"jobs", "serve"}:
            found.append(f"({home}) imports {name}; nothing below jobs/ and serve/ knows them")
    return found


def test_no_file_crosses_the_border():
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).parts
        home = parts[0] if len(parts) > 1 else GROUND
        found += [f"{path.relative_to(ROOT)} {offence}" for offence in offences(home, path.read_text())]
    assert not found, "\n".join(found)


def test_every_room_has_its_rules():
    rooms = {path.relative_to(ROOT).parts[0] for path in ROOT.glob("*/**/*.py")}
    assert rooms == set(MAY_IMPORT) - {GROUND}


def test_a_crossing_would_be_seen():
    assert offences("editor", "import ray.data")
    assert offences("training", "import ray.train")
    assert offences("cluster", "import deepspeed")
    assert offences("artifacts", "from hive_ray.training.engine import start_engine")
    assert offences("editor", "from hive_ray.reward.model import RewardModel")
    assert offences(GROUND, "from hive_ray import cluster")
    assert not offences("cluster", "import ray\nfrom hive_ray.schemas import Row")


def test_the_answer_key_ranks_and_evaluates_and_nothing_else_sees_it():
    """No training may see the judge; `pretrain_shapes` measures its base with it."""
    keys = {"hive_ray.shapes.judge", "hive_ray.shapes.annotator", "hive_ray.shapes.reading"}
    code = [path for part in ("hive_ray", "jobs", "serve") for path in (ROOT.parent / part).rglob("*.py")]
    readers = {str(path.relative_to(ROOT.parent)) for path in code if keys & imported_modules(path.read_text())}
    inside = {"hive_ray/shapes/judge.py", "hive_ray/shapes/annotator.py"}
    assert readers - inside == {"jobs/collect_rankings.py", "jobs/actors/evaluating.py", "jobs/pretrain_shapes.py"}


def test_actors_of_jobs_import_no_job():
    """Each worker imports what its actor's module does: with a job come DeepSpeed, Ray Train and the command line."""
    for path in (ROOT.parent / "jobs" / "actors").glob("*.py"):
        jobs = {module for module in imported_modules(path.read_text()) if module.startswith("jobs.")}
        assert all(module.startswith("jobs.actors") for module in jobs), path


def test_what_workers_are_forked_with_imports_no_ray():
    assert not set(WORKERS_IMPORT) & {"hive_ray.shapes.judge", "hive_ray.shapes.annotator"}
    code = f"import sys, {', '.join(WORKERS_IMPORT)}; print([name for name in ('ray', 'jobs') if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()[-1] == "[]"


def test_no_file_is_named_for_nothing():
    names = {path.stem for path in ROOT.rglob("*.py")}
    assert not names & {"utils", "common", "helpers", "misc"}
