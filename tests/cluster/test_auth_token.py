import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hive_ray.cluster import auth_token
from hive_ray.cluster.auth_token import FOLDER_PREFIX, remove_private_folder, use_private_token


@pytest.fixture
def no_token(monkeypatch, tmp_path):
    """A process that was told nothing about authentication and has a folder of its own for temporary files."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(auth_token, "socket_folder", lambda: str(tmp_path))
    monkeypatch.setattr(auth_token, "_folder", None)
    return tmp_path


def test_the_token_is_long_and_nobody_else_can_read_it(no_token):
    use_private_token()
    path = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    assert len(path.read_text()) == 64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    use_private_token()
    assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(path)
    del os.environ["RAY_AUTH_TOKEN_PATH"]
    use_private_token()
    assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(path)
    remove_private_folder()
    assert list(no_token.iterdir()) == []


@pytest.mark.parametrize("name", ["RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"])
def test_what_the_environment_says_of_authentication_stays(no_token, monkeypatch, name):
    monkeypatch.setenv(name, "given")
    use_private_token()
    assert os.environ[name] == "given"
    assert list(no_token.iterdir()) == []


def test_tokens_of_killed_processes_are_removed_and_those_of_others_stay(no_token):
    code = (
        "import sys; from hive_ray.cluster import auth_token; auth_token.socket_folder = lambda: sys.argv[1];"
        "auth_token.use_private_token(); print('kept', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(no_token)]
    others = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [other.stdout.readline() for other in others] == ["kept\n"] * 2
    assert len(list(no_token.glob(f"{FOLDER_PREFIX}*"))) == 2
    others[0].kill()
    others[0].wait()
    use_private_token()
    assert len(list(no_token.glob(f"{FOLDER_PREFIX}*/token"))) == 2  # the living one's and ours
    others[1].communicate()
    assert [path.parent for path in [Path(os.environ["RAY_AUTH_TOKEN_PATH"])]] == list(no_token.iterdir())
    remove_private_folder()


def test_a_token_that_went_with_the_process_that_gave_it_is_made_anew(no_token, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(no_token / f"{FOLDER_PREFIX}gone" / "token"))
    use_private_token()
    assert Path(os.environ["RAY_AUTH_TOKEN_PATH"]).exists()
    remove_private_folder()
