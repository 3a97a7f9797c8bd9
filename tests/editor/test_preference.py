import math
from collections import Counter

import numpy as np
import pytest
import torch
from tiny_models import tiny_stable_diffusion
from tiny_settings import editor_settings, generator

from hive_ray.config import Dpo
from hive_ray.editor.latents import encode_pairs, read_pictures, straight
from hive_ray.editor.model import Editor
from hive_ray.editor.objective import row_errors
from hive_ray.editor.preference import (
    PreferenceObjective,
    draw_comparison,
    preference_margin,
)
from hive_ray.images import encode
from hive_ray.preferences import preference_loss
from hive_ray.schemas import BadRows


def settings(dpo=None, **changed):
    return editor_settings(dpo=Dpo(**dpo or {}), **changed)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """An editor that hears its source image, as supervised fine-tuning leaves it."""
    editor = Editor.build(tiny_stable_diffusion(tmp_path_factory.mktemp("base")))
    with torch.no_grad():
        editor.unet.conv_in.weight[:, 4:].copy_(editor.unet.conv_in.weight[:, :4])
    editor.save(tmp_path_factory.mktemp("sft"), editor.card)
    return editor


@pytest.fixture
def editor(start, tmp_path):
    start.save(tmp_path / "start", start.card)
    return Editor.load(tmp_path / "start")


def ranking(index, ranks):
    rng = np.random.default_rng(index)

    def picture():
        return encode(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))

    edits = [{"edit_id": f"edit-{index}-{place}", "image": picture()} for place in range(len(ranks))]
    return {"instruction": "make it red", "source_image": picture(), "edits": edits, "ranks": ranks}


ROWS = [ranking(0, [2, 1]), ranking(1, [1, 2, 3]), ranking(2, [1, 2, 2]), ranking(3, [3, 1, 2])]


def test_the_margin_and_the_loss_by_hand():
    errors, reference = torch.tensor([0.10, 0.30, 0.20, 0.30]), torch.tensor([0.20, 0.30, 0.20, 0.10])
    # row 1: (0.1 - 0.2) - (0.2 - 0.2) = -0.1; row 2: (0.3 - 0.3) - (0.3 - 0.1) = -0.2
    margin = preference_margin(errors, reference, beta=20.0)
    torch.testing.assert_close(margin, torch.tensor([1.0, 2.0]))
    loss = preference_loss(margin, torch.tensor([False, False]), 1.0)
    torch.testing.assert_close(loss, torch.tensor([math.log(1 + math.exp(-1)), math.log(1 + math.exp(-2))]))


@pytest.mark.parametrize(
    ("ranks", "changed", "wanted"),
    [
        ([2, 1, 2], {}, {(1, 0, False), (1, 2, False)}),
        ([2, 1, 2], {"tie_threshold": 2.0}, {(1, 0, False), (1, 2, False), (0, 2, True)}),
        ([3, 1, 2, 1], {"pairs": "best_worst"}, {(1, 0, False), (3, 0, False)}),
        ([3, 1, 2, 1], {"pairs": "best_worst", "tie_threshold": 2.0}, {(1, 0, False), (3, 0, False)}),
        ([1, 1, 1], {}, {(0, 1, True), (0, 2, True), (1, 2, True)}),
        ([1, 1], {"pairs": "best_worst"}, {(0, 1, True)}),
    ],
)
def test_every_comparison_of_a_ranking_is_drawn_as_often(ranks, changed, wanted):
    draws = generator()
    drawn = Counter(draw_comparison(ranks, Dpo(**changed), draws) for _ in range(600))
    assert set(drawn) == wanted
    assert min(drawn.values()) > 0.8 * 600 / len(wanted)


@pytest.mark.parametrize("changed", [{}, {"train_text_encoder": True}, {"lora_rank": 2}])
def test_before_the_first_step_the_loss_is_ln_2(editor, changed):
    objective = PreferenceObjective(editor, settings(condition_dropout=0.3, **changed))
    loss, measures = objective.loss(objective.model, objective.prepare(ROWS, generator()))
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)
    assert measures["train/error"] == measures["train/reference_error"]
    assert objective.summarise(measures, 4)["train/implicit_accuracy"] == 0.5


def test_the_loss_is_the_written_out_one(editor):
    objective = PreferenceObjective(editor, settings({"beta": 30.0}, condition_dropout=0.2))
    with torch.no_grad():
        for weight in objective.model.denoiser.parameters():
            weight.mul_(1.1)
    loss, measures = objective.loss(objective.model, objective.prepare(ROWS, generator(3)))

    draws = generator(3)
    drawn = [draw_comparison(row["ranks"], Dpo(), draws) for row in ROWS]
    torch.rand(4, generator=draws)
    timesteps = torch.randint(0, 1000, (4,), generator=draws)
    jitter, noise = torch.randn(8, 4, 8, 8, generator=draws), torch.randn(4, 4, 8, 8, generator=draws)
    place = torch.rand(4, generator=draws)
    words = ["" if place[index] < 0.4 else row["instruction"] for index, row in enumerate(ROWS)]
    errors = {}
    for side in (0, 1):
        pairs = [
            {"source_image": row["source_image"], "edited_image": row["edits"][one[side]]["image"]}
            for row, one in zip(ROWS, drawn, strict=True)
        ]
        latents = encode_pairs(editor.vae, read_pictures(pairs, editor_settings(), straight(pairs)))
        target = editor.draw_target(latents[:, 1], latents[:, 2], jitter[4 * side : 4 * side + 4])
        source = torch.where(((place >= 0.2) & (place < 0.6)).view(-1, 1, 1, 1), 0.0, latents[:, 0])
        noisy = torch.cat([editor.scheduler.add_noise(target, noise, timesteps), source], 1)
        for name, unet in (("model", editor.unet), ("reference", objective.model.reference.unet)):
            with torch.no_grad():
                errors[name, side] = row_errors(
                    unet(noisy, timesteps, **editor.text.encode(words).unet_inputs(64, 64, torch.float32)).sample, noise
                )
    inside = (errors["model", 0] - errors["model", 1]) - (errors["reference", 0] - errors["reference", 1])
    assert inside.abs().min() > 1e-6
    torch.testing.assert_close(loss, -torch.sigmoid(-15.0 * inside).log().mean(), rtol=1e-4, atol=1e-6)
    accuracy = objective.summarise(measures, 4)["train/implicit_accuracy"]
    assert accuracy == (inside < 0).float().mean().item()


def test_rankings_that_tie_everything_move_nothing(editor):
    objective = PreferenceObjective(editor, settings())
    tied = [ranking(0, [1, 1]), ranking(1, [1, 1, 1])]
    loss, measures = objective.loss(objective.model, objective.prepare(tied, generator()))
    loss.backward()
    assert loss.item() == 0
    assert all(not weight.grad.any() for weight in objective.model.denoiser.parameters())
    assert objective.summarise(measures, 2)["train/implicit_accuracy"] == 0.5


@pytest.mark.parametrize("changed", [{}, {"lora_rank": 4}])
def test_training_makes_chosen_edits_likelier_than_the_reference_does(editor, changed):
    objective = PreferenceObjective(editor, settings({"beta": 500.0}, condition_dropout=0.0, **changed))
    reference = [weight.clone() for weight in objective.model.parameters() if not weight.requires_grad]
    trained = [weight for weight in objective.model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2 if changed else 1e-3)
    losses, accuracies = [], []
    for step in range(12):
        loss, measures = objective.loss(objective.model, objective.prepare(ROWS, generator(step % 3)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        accuracies.append(objective.summarise(measures, 4)["train/implicit_accuracy"])
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    assert sum(accuracies[-3:]) > 2.5
    frozen = [weight for weight in objective.model.parameters() if not weight.requires_grad]
    assert all(torch.equal(before, after) for before, after in zip(reference, frozen, strict=True))


def test_what_is_saved_is_the_trained_editor_without_its_reference(editor, tmp_path):
    objective = PreferenceObjective(editor, settings())
    state = {name: value + ("reference" not in name) for name, value in objective.model.state_dict().items()}
    objective.save(tmp_path / "dpo", state, editor.card)
    saved = Editor.load(tmp_path / "dpo").unet.state_dict()
    assert all(torch.equal(saved[name], value + 1) for name, value in editor.unet.state_dict().items())


def test_a_ranking_with_a_broken_picture_is_named_by_its_own_place(editor):
    broken = ROWS[2] | {"edits": [edit | {"image": b"no picture"} for edit in ROWS[2]["edits"]]}
    objective = PreferenceObjective(editor, settings())
    with pytest.raises(BadRows) as caught:
        objective.prepare([*ROWS[:2], broken, ROWS[3]], generator())
    assert list(caught.value.reasons) == [2]
