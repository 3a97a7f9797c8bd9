import pytest
import torch
from tiny_models import tiny_stable_diffusion

from hive_ray.artifacts.model_store import model_digest
from hive_ray.config import Averaging
from hive_ray.editor.model import Editor
from hive_ray.presets import shapes
from jobs import average_editors
from jobs.run import Run


def averaging(root, *editors: str, name: str = "average", on_mismatch="refuse") -> Run:
    section = Averaging(editors=editors, name=name)
    return Run(str(root), shapes().model_copy(update={"averaging": section}), on_mismatch)


def save(editor: Editor, root, name: str, shift: float) -> None:
    moved = {key: value + shift for key, value in editor.unet.state_dict().items()}
    editor.with_weights(moved).save(root / "editors" / name, editor.card)


def weight(root, name: str) -> torch.Tensor:
    return Editor.load(root / "editors" / name).unet.conv_out.weight


def test_the_mean_of_a_runs_editors_is_an_editor_that_is_kept_until_one_of_them_changes(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HIVE_RAY_CACHE", str(tmp_path / "cache"))
    editor = Editor.build(tiny_stable_diffusion(tmp_path / "base"))
    for name, shift in (("dpo", 1.0), ("nft", 3.0)):
        save(editor, tmp_path, name, shift)
    run = averaging(tmp_path, "dpo", "nft")
    average_editors.build(run)
    torch.testing.assert_close(weight(tmp_path, "average"), editor.unet.conv_out.weight + 2)
    digest = model_digest(run.path("editors/average"))
    capsys.readouterr()
    average_editors.build(run)
    assert "editors/average: kept" in capsys.readouterr().out

    save(editor, tmp_path, "nft", 5.0)
    with pytest.raises(FileExistsError, match=r"editors/average was made otherwise: input\.editor\.1"):
        average_editors.build(run)
    average_editors.build(averaging(tmp_path, "dpo", "nft", on_mismatch="rebuild"))
    torch.testing.assert_close(weight(tmp_path, "average"), editor.unet.conv_out.weight + 3)
    assert model_digest(run.path("editors/average")) != digest


@pytest.mark.parametrize(("editors", "name"), [((), "average"), (("dpo",), "average"), (("dpo", "nft"), "nft")])
def test_too_few_editors_or_a_name_that_is_taken_are_refused(tmp_path, editors, name):
    with pytest.raises(ValueError, match="name two editors or more of the run, and another name for their mean"):
        average_editors.build(averaging(tmp_path, *editors, name=name))


def test_an_editor_that_is_not_there_is_named(tmp_path):
    said = r"editors/dpo is not finished; this makes it: .*train_editor .*--arm dpo"
    with pytest.raises(FileNotFoundError, match=said):
        average_editors.build(averaging(tmp_path, "dpo", "nft"))
