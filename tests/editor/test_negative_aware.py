import pytest
import torch
from tiny_models import tiny_stable_diffusion
from tiny_settings import editor_settings, generator

from hive_ray.config import Nft
from hive_ray.editor.model import Editor
from hive_ray.editor.negative_aware import NegativeAwareObjective, implicit_policies, negative_aware_loss
from hive_ray.editor.objective import EditorObjective, row_errors
from hive_ray.errors import BadRows
from hive_ray.images import encode


def row(index: int, weight: float) -> dict:
    pictures = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8, generator=generator(index)).numpy()
    source, edited = map(encode, pictures)
    return {
        "pair_id": str(index), "instruction": "make it red", "source_image": source, "edited_image": edited,
        "weight": weight,
    }  # fmt: skip


@pytest.fixture
def editor(tmp_path):
    editor = Editor.build(tiny_stable_diffusion(tmp_path))
    with torch.no_grad():
        editor.unet.conv_in.weight[:, 4:].copy_(editor.unet.conv_in.weight[:, :4])
    return editor


def one(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers).view(-1, 1, 1, 1)


def test_the_implicit_policies_by_hand():
    positive, negative = implicit_policies(one(3.0), one(1.0), beta=0.5)
    assert (positive.item(), negative.item()) == (0.5 * 1 + 0.5 * 3, 1.5 * 1 - 0.5 * 3)


def test_the_loss_by_hand():
    # v = 3, v_old = 1, target 4, beta 1/2: v+ = 2 and v- = 0, so the errors are 4 and 16
    losses = negative_aware_loss(one(3, 3, 3), one(1, 1, 1), one(4, 4, 4), torch.tensor([1.0, 0.0, 0.25]), 0.5)
    assert losses.tolist() == [4.0, 16.0, 0.25 * 4 + 0.75 * 16]


def test_of_an_optimal_edit_at_beta_1_it_is_the_plain_loss():
    predicted, reference, target = torch.randn(3, 2, 4, 8, 8, generator=generator())
    losses = negative_aware_loss(predicted, reference, target, torch.ones(2), beta=1.0)
    torch.testing.assert_close(losses, row_errors(predicted, target))


@pytest.mark.parametrize(("optimality", "sign"), [(1.0, 1), (0.75, 1), (0.5, 0), (0.25, -1), (0.0, -1)])
@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_at_the_start_a_step_goes_towards_good_edits_and_away_from_bad_ones(optimality, sign, beta):
    """There the gradient is -2 beta (2 r - 1) (target - v_old), by hand."""
    predicted, reference, target = one(1.0).requires_grad_(), one(1.0), one(4.0)
    negative_aware_loss(predicted, reference, target, torch.tensor([optimality]), beta).sum().backward()
    assert predicted.grad.item() == pytest.approx(-2 * beta * (2 * optimality - 1) * 3, abs=1e-6)
    assert sign == torch.sign(-predicted.grad).item()


def test_its_least_value_is_where_the_paper_says():
    """Of edits at 5 (optimality 0.9) and at 1 (0.3), alike often, with v_old their mean 3: v_old + 2 / beta Delta.

    Eq. 4: Delta = alpha (v+ - v_old), alpha = 0.6 and v+ = (0.9 * 5 + 0.3 * 1) / 1.2 = 4, so Delta = 0.6.
    """
    beta, optimality, target = 0.5, torch.tensor([0.9, 0.3]), one(5.0, 1.0)
    predicted = one(3.0 + 2 / beta * 0.6).requires_grad_()
    losses = negative_aware_loss(predicted.expand(2, 1, 1, 1), one(3.0, 3.0), target, optimality, beta)
    losses.mean().backward()
    assert predicted.grad.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("changed", [{}, {"lora_rank": 2}, {"train_text_encoder": True}])
def test_at_the_start_the_loss_is_the_plain_one_whatever_the_edits_are_worth(editor, changed):
    rows, settings = [row(0, 0.2), row(1, 0.9)], editor_settings(nft=Nft(beta=0.3), **changed)
    plain = EditorObjective(editor, settings.model_copy(update={"lora_rank": 0}))
    batch = plain.prepare([one | {"weight": 1.0} for one in rows], generator(1))
    expected, _ = plain.loss(plain.model, batch)
    objective = NegativeAwareObjective(editor, settings)
    loss, measures = objective.loss(objective.model, objective.prepare(rows, generator(1)))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert measures["train/optimality"].item() == pytest.approx(0.55)
    assert measures["train/error"] == measures["train/reference_error"]


def test_training_makes_the_error_of_good_edits_less_and_of_bad_ones_greater(editor):
    rows = [row(0, 1.0), row(1, 0.0)]
    objective = NegativeAwareObjective(editor, editor_settings(condition_dropout=0.0))
    batch = objective.prepare(rows, generator())

    def errors() -> torch.Tensor:
        with torch.no_grad():
            noised = objective.noise_batch(batch)
            predicted, reference = objective.model(*noised.inputs)
            return row_errors(predicted, noised.target) - row_errors(reference, noised.target)

    assert errors().abs().max() == 0
    trained = [weight for weight in objective.model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    for _ in range(8):
        loss, _ = objective.loss(objective.model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    good, bad = errors().tolist()
    assert good < -0.01
    assert bad > 0.01


def test_a_row_whose_weight_is_no_probability_is_named(editor):
    objective = NegativeAwareObjective(editor, editor_settings())
    with pytest.raises(BadRows, match=r"row 1: its weight is 1\.5, but a probability is at most 1"):
        objective.prepare([row(0, 1.0), row(1, 1.5)], generator())
    with pytest.raises(BadRows, match=r"row 0: its weight is -0\.1"):
        objective.prepare([row(0, -0.1)], generator())
