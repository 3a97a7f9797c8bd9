"""The house: which room imports which, and which outside library lives in which room."""

import ast
import subprocess
import sys
from pathlib import Path

from internals_in_code import UNKNOWN, internals_used, own_private_names

from hive_ray.cluster.one_machine import table
from hive_ray.internals import Internal
from hive_ray.training import deepspeed_fixes
from jobs.pipeline import WORKERS_IMPORT

ROOT = Path(__file__).parents[1] / "hive_ray"
GROUND = "ground"
"""The files outside the rooms, and the package of settings."""
GROUND_PACKAGES = {"config"}
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

INTERNALS = (*table.INTERNALS, *deepspeed_fixes.INTERNALS)
"""Each internal of another package that is used, by the file that may use it."""


def imported_modules(source: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room_of(name: str) -> str:
    """The room of a file or folder of hive_ray/, by its name."""
    return name if name in MAY_IMPORT else GROUND


def offences(home: str, source: str) -> list[str]:
    """What a file of the room `home` imports against the rules."""
    found = []
    for name in sorted(imported_modules(source)):
        top, *rest = name.split(".")
        if top == "hive_ray" and rest:
            target = room_of(rest[0])
            if target not in MAY_IMPORT[home] | {home}:
                found.append(f"({home}) imports {name}; it may import {', '.join(sorted(MAY_IMPORT[home]))}")
        if LIVES_IN.get(top, home) != home:
            found.append(f"({home}) imports {name}; {top} lives in {LIVES_IN[top]}/")
        if top in {"jobs", "serve", "studies"}:
            found.append(f"({home}) imports {name}; nothing in hive_ray/ imports jobs/, serve/ or studies/")
    return found


def test_no_file_crosses_the_border():
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).parts
        home = room_of(parts[0])
        found += [f"{path.relative_to(ROOT)} {offence}" for offence in offences(home, path.read_text())]
    assert not found, "\n".join(found)


def untold(path: str, source: str, own: set[str]) -> list[str]:
    """The internals of other packages that a file uses without a row in a table that says why."""
    rows = [row for row in INTERNALS if row.where == path.removeprefix("hive_ray/")]
    return [f"{path} uses {symbol}" for symbol in sorted(internals_used(source, own)) if not is_told(symbol, rows)]


def is_told(symbol: str, rows: list[Internal]) -> bool:
    if symbol.startswith(UNKNOWN):
        return any(symbol.rpartition(".")[2] in row.attributes for row in rows)
    return any(f"{row.symbol}.".startswith(f"{symbol}.") or symbol.startswith(f"{row.symbol}.") for row in rows)


def code() -> dict[str, str]:
    """All files -> their sources; without the table of names, which uses none of them."""
    top = ROOT.parent
    files = [path for part in ("hive_ray", "jobs", "serve", "studies") for path in sorted((top / part).rglob("*.py"))]
    return {str(path.relative_to(top)): path.read_text() for path in files if path != Path(table.__file__)}


def test_each_use_of_another_packages_internals_is_a_row_of_the_table_of_its_place():
    sources = code()
    own = own_private_names(sources.values())
    found = [offence for path, source in sources.items() for offence in untold(path, source, own)]
    assert not found, "\n".join([*found, "use public API, or add a row to the table of cluster/one_machine/"])


def test_internals_are_used_in_their_places_alone():
    """Ray's behind the switch, DeepSpeed's and PyTorch's in one file; one name of a variable, which is no code."""
    for row in INTERNALS:
        if row.symbol.startswith("ray."):
            assert Path(row.where).parent == Path("cluster/one_machine") or row.value, row
        else:
            assert row.where == "training/deepspeed_fixes.py", row


def test_what_needs_internals_is_imported_where_its_path_is_taken():
    """At the top of a module it would stop the public path, too, where a release has other internals."""
    inside = {f"hive_ray.cluster.one_machine.{Path(row.where).stem}" for row in INTERNALS if "one_machine" in row.where}
    for path, source in code().items():
        if not path.startswith("hive_ray/cluster/one_machine/"):
            top = [node for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)]
            assert not inside & imported_modules("\n".join(map(ast.unparse, top))), path


def test_a_use_of_an_internal_would_be_seen():
    def seen(source: str) -> set[str]:
        return internals_used(source, {"_own"})

    assert seen("from ray._private import services") == {"ray._private.services"}
    assert seen("import ray\nray._raylet.Config") == {
        "ray._raylet.Config",
    }
    assert seen("from ray.core.generated import gcs_pb2") == {"ray.core.generated.gcs_pb2"}
    assert seen("def f():\n    import deepspeed.runtime.engine as e\n    e.x") == {
        "deepspeed.runtime.engine",
        "deepspeed.runtime.engine.x",
    }
    assert seen("import torch\ntorch._foreach_lerp_(a, b, 1)") == {"torch._foreach_lerp_"}
    assert seen("import ray.train as t\nt.report = print") == {"ray.train.report"}
    assert seen("import diffusers\nsetattr(diffusers, 'x', 1)") == {"diffusers.x"}
    assert seen("engine._config, self._own, row._replace(), x.__name__, os._exit(1)") == {f"{UNKNOWN}._config"}
    assert seen("importlib.import_module('ray._private.state')") == {"ray._private.state"}
    base = "from torch import nn\nclass Own(nn.Module):\n    "
    assert seen(base + "def _own(self): return self._own, self._parameters") == {"torch.nn.Module._parameters"}
    assert seen(base + "def _apply(self, fn): return super()._apply(fn)") == {"torch.nn.Module._apply"}
    assert not seen("import torch\nx = torch.zeros(1)\nx.grad = None\ntorch.__version__")


def test_every_room_has_its_rules():
    rooms = {path.relative_to(ROOT).parts[0] for path in ROOT.glob("*/**/*.py")}
    assert rooms - GROUND_PACKAGES == set(MAY_IMPORT) - {GROUND}


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
    keys = {"hive_ray.shapes.judge", "hive_ray.shapes.annotator", "hive_ray.shapes.scene_reader"}
    code = [path for part in ("hive_ray", "jobs", "serve", "studies") for path in (ROOT.parent / part).rglob("*.py")]
    readers = {str(path.relative_to(ROOT.parent)) for path in code if keys & imported_modules(path.read_text())}
    inside = {"hive_ray/shapes/judge.py", "hive_ray/shapes/annotator.py"}
    assert readers - inside == {"jobs/collect_rankings.py", "jobs/actors/evaluating.py", "studies/pretrain_shapes.py"}


def test_jobs_and_servers_import_no_study():
    """Studies are what the authors run once: nothing that users run depends on them."""
    for part in ("jobs", "serve"):
        for path in (ROOT.parent / part).rglob("*.py"):
            assert not any(name.split(".")[0] == "studies" for name in imported_modules(path.read_text())), path


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
