import subprocess
import sys
from pathlib import Path

import pytest

from hive_ray import storage
from hive_ray.files import scratch


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HIVE_RAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def in_another_process(code: str) -> None:
    """Runs it, and ends by SIGKILL."""
    ends = "; import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code + ends], cwd=root, check=False).returncode == -9


def files(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("*") if path.is_file())


def test_a_folder_lasts_as_long_as_its_block(cache):
    with scratch.temporary_folder("model") as folder:
        (folder / "a").touch()
        assert files(cache) == ["a"]
    assert files(cache) == []


def test_what_a_killed_process_left_goes_with_the_next_folder(cache):
    in_another_process("from hive_ray.files import scratch; (scratch.new_folder('model') / 'left').touch()")
    assert files(cache) == ["left"]
    mine = scratch.new_folder("model")
    (mine / "own").touch()
    scratch.remove_abandoned()
    assert files(cache) == ["own"]


def test_what_is_shared_stays_while_one_that_claims_it_lives(cache):
    file = storage.cache_folder() / "rows" / "key.arrow"
    claims = f"from pathlib import Path; from hive_ray.files import scratch; scratch.claim(Path({str(file)!r}))"
    in_another_process(f"{claims}; Path({str(file)!r}).touch()")
    scratch.claim(file)
    scratch.remove_abandoned()
    assert file.exists()
    scratch.release(file)
    in_another_process(claims)
    scratch.remove_abandoned()
    assert files(cache) == []


def test_what_nobody_claims_is_left_alone(cache):
    model = storage.cache_folder() / "folders" / "0123" / "card.json"
    model.parent.mkdir(parents=True)
    model.touch()
    scratch.remove_abandoned()
    assert model.exists()
