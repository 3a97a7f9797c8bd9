"""Model folders that are finished or absent, whatever a kill or a full disk left of them."""

import json
import os
from pathlib import Path

import pytest

from hive_ray.artifacts.model_store import build_model, is_finished_model, model_digest, store_model

MADE = {"seed": 0}


def build(path: Path, made=MADE, **options):
    def save(folder: Path) -> None:
        (folder / "weights").write_bytes(b"w" * 100)
        (folder / "card.json").write_text('{"resolution": 64}')

    return build_model(
        "editor", str(path), made, lambda: store_model(str(path), save, made, {"loss": 1.0}, 1.0), **options
    )


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HIVE_RAY_CACHE", str(tmp_path / "cache"))


def test_a_whole_model_is_kept(tmp_path, capsys):
    assert build(tmp_path / "editor") == {"loss": 1.0}
    assert build(tmp_path / "editor") == {"loss": 1.0}
    assert "editor: kept (nothing changed)" in capsys.readouterr().out


@pytest.mark.parametrize("left", [b"", b"{", b"\0\0\0\0"])
def test_a_card_that_holds_nothing_is_none(tmp_path, capsys, left):
    build(tmp_path / "editor")
    (tmp_path / "editor" / "card.json").write_bytes(left)
    assert not is_finished_model(str(tmp_path / "editor"))
    capsys.readouterr()
    build(tmp_path / "editor")
    assert "kept" not in capsys.readouterr().out
    assert json.loads((tmp_path / "editor" / "card.json").read_text()) == {"resolution": 64}


def test_a_model_whose_origin_is_lost_is_another(tmp_path):
    build(tmp_path / "editor")
    digest = model_digest(str(tmp_path / "editor"))
    (tmp_path / "editor" / "made.json").write_bytes(b"")
    assert model_digest(str(tmp_path / "editor")) != digest
    with pytest.raises(FileExistsError, match=r"seed was absent, is 0.*--rebuild"):
        build(tmp_path / "editor")
    build(tmp_path / "editor", on_mismatch="rebuild")
    assert model_digest(str(tmp_path / "editor")) == digest


def test_half_written_files_of_processes_that_are_gone_are_removed(tmp_path):
    build(tmp_path / "editor")
    left = tmp_path / "editor" / ".weights.00000000-1-1-ab.unfinished"
    left.touch()
    os.utime(left, (0, 0))
    build(tmp_path / "editor")
    assert not left.exists()
