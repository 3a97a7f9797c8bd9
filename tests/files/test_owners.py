import os
import subprocess
import sys
from pathlib import Path

from hive_ray.files import owners


def name_of_one_that_ended(name: str) -> str:
    code = f"from hive_ray.files.owners import unfinished_name; print(unfinished_name({name!r}))"
    return subprocess.check_output([sys.executable, "-c", code], text=True, cwd=Path(__file__).parents[2]).strip()


def test_an_unfinished_file_is_left_behind_once_its_process_is_gone(tmp_path):
    own, other = tmp_path / owners.unfinished_name("a.json"), tmp_path / name_of_one_that_ended("a.json")
    assert not owners.is_abandoned(own)
    assert owners.is_abandoned(other)
    assert own.name.startswith(".a.json.")
    assert owners.is_unfinished(own.name)
    assert own.name != owners.unfinished_name("a.json")


def test_a_process_that_took_the_number_of_one_that_ended_is_another(tmp_path):
    host, process, started = owners.current_owner().split("-")
    assert not owners.owner_is_gone(f"{host}-{process}-{started}", tmp_path)
    assert owners.owner_is_gone(f"{host}-{process}-{int(started) - 100}", tmp_path)


def test_of_another_host_only_what_is_old_is_left_behind(tmp_path):
    _, process, started = owners.current_owner().split("-")
    file = tmp_path / f".a.json.00000000-{process}-{started}-ab.unfinished"
    file.touch()
    assert not owners.is_abandoned(file)
    os.utime(file, (0, 0))
    assert owners.is_abandoned(file)


def test_what_earlier_versions_left_is_known_and_removed_when_it_is_old(tmp_path):
    file = tmp_path / ".manifest.json.0a1b2c3d"
    file.touch()
    assert owners.is_unfinished(file.name)
    assert not owners.is_abandoned(file)
    os.utime(file, (0, 0))
    assert owners.is_abandoned(file)


def test_names_of_people_are_no_unfinished_files(tmp_path):
    for name in ("manifest.json", ".bashrc", ".env.local", "part-00000.parquet", ".a.unfinished", ".gitignore"):
        assert not owners.is_unfinished(name)
        assert not owners.is_abandoned(tmp_path / name)
