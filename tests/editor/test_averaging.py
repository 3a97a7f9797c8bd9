import pytest
import torch
from tiny_models import tiny_stable_diffusion

from hive_ray.editor.averaging import add_changes, add_task_vectors, average_editors, mean_state
from hive_ray.editor.model import Editor
from hive_ray.files.model_folders import ModelFolderError


@pytest.fixture(scope="module")
def editor(tmp_path_factory):
    return Editor.build(tiny_stable_diffusion(tmp_path_factory.mktemp("base")))


def saved(editor: Editor, folder, shift: float = 0.0, **card):
    """A folder of the editor with every weight of U-Net and text encoder moved by `shift`."""
    moved = editor.with_weights(
        {name: value + shift for name, value in editor.unet.state_dict().items()},
        {name: value + shift for name, value in editor.text.state_dict().items()},
    )
    moved.save(folder, editor.card.model_copy(update=card))
    return folder


def test_the_mean_by_hand():
    rows, counts = [[1.0, 2.0], [3.0, 8.0], [5.0, -1.0]], [7, 9, 9]
    states = [{"a": torch.tensor(row), "n": torch.tensor(count)} for row, count in zip(rows, counts, strict=True)]
    mean = mean_state(iter(states))
    assert mean["a"].tolist() == [3.0, 3.0]
    assert mean["n"].item() == 7
    assert states[0]["a"].tolist() == [1.0, 2.0]


def test_the_sum_of_changes_by_hand():
    rows, counts = [[1.0, 2.0], [3.0, 8.0], [5.0, -1.0]], [7, 9, 9]
    states = [{"a": torch.tensor(row), "n": torch.tensor(count)} for row, count in zip(rows, counts, strict=True)]
    changed = add_task_vectors(iter(states))
    assert changed["a"].tolist() == [1.0 + 2.0 + 4.0, 2.0 + 6.0 - 3.0]
    assert changed["n"].item() == 7
    assert states[0]["a"].tolist() == [1.0, 2.0]


def test_half_precision_is_summed_in_full():
    """A sum in fp16 would lose each 1 that is added to 2,048."""
    states = [{"a": torch.tensor([number], dtype=torch.float16)} for number in (2048.0, *[1.0] * 7)]
    mean = mean_state(states)["a"]
    assert (mean.dtype, mean.item()) == (torch.float16, torch.tensor(2055 / 8, dtype=torch.float16).item())
    assert mean.item() > 2048 / 8


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"a": torch.zeros(2), "b": torch.zeros(1)}, r"1 weights are missing from one of them, the first is b"),
        ({"a": torch.zeros(3)}, r"the weight a is \(2,\) in one and \(3,\) in another"),
    ],
)
def test_states_of_other_models_are_refused_by_the_weight_that_differs(other, words):
    with pytest.raises(ValueError, match=words):
        mean_state([{"a": torch.zeros(2)}, other])


def test_an_average_lies_between_its_editors_and_has_a_card_of_its_own(editor, tmp_path):
    one = saved(editor, tmp_path / "one", 0.5, training_table="1", metrics={"train/loss": 1.0})
    other = saved(editor, tmp_path / "other", -0.25, training_table="2")
    average = average_editors([one, other])
    for part in ("unet", "text"):
        before = getattr(editor, part).state_dict()
        for name, value in getattr(average, part).state_dict().items():
            torch.testing.assert_close(value, before[name] + 0.125, msg=name)
    assert average.card.metrics == {}
    assert average.card.training_table not in ("", "1", "2")
    average.save(tmp_path / "average", average.card)
    again = Editor.load(tmp_path / "average").unet.conv_out.weight
    assert torch.equal(again, average.unet.conv_out.weight)


def test_what_two_editors_changed_is_added_to_their_start(editor, tmp_path):
    start = saved(editor, tmp_path / "start", training_table="0")
    one = saved(editor, tmp_path / "one", 0.5, training_table="1", metrics={"train/loss": 1.0})
    other = saved(editor, tmp_path / "other", -0.25, training_table="2")
    added = add_changes(start, [one, other])
    for part in ("unet", "text"):
        before = getattr(editor, part).state_dict()
        for name, value in getattr(added, part).state_dict().items():
            torch.testing.assert_close(value, before[name] + 0.25, msg=name)
    assert added.card.metrics == {}
    assert added.card.training_table not in ("", "0", "1", "2")


def test_editors_that_are_asked_otherwise_or_see_other_latents_are_refused(editor, tmp_path):
    one, asked = saved(editor, tmp_path / "one"), saved(editor, tmp_path / "asked", instruction_suffix=", please")
    with pytest.raises(
        ModelFolderError, match=r"one and .*asked cannot.*their instruction_suffix is '' and ', please'"
    ):
        average_editors([one, asked])
    seen = Editor.load(one)
    with torch.no_grad():
        seen.vae.quant_conv.bias.add_(1)
    seen.save(tmp_path / "seen", seen.card)
    with pytest.raises(ModelFolderError, match="their VAEs differ"):
        average_editors([one, tmp_path / "seen"])
