import math
from collections import Counter

import numpy as np
import pytest
import torch
from tiny_models import tiny_stable_diffusion
from tiny_settings import editor_settings, generator

from hive_ray.config import Dpo
from hive_ray.editor.latents import RankingLatentEncoder, encode_edits, identity_views, read_pictures
from hive_ray.editor.model import Editor
from hive_ray.editor.objective import row_errors
from hive_ray.editor.preference import (
    PreferenceObjective,
    draw_comparison,
    has_comparison,
    preference_margin,
    safe_scale,
    scale_rejected_gradient,
    shuffle_ranks,
)
from hive_ray.errors import BadRows
from hive_ray.images import encode
from hive_ray.schemas import Dropped
from hive_ray.statistics.preferences import preference_loss


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
        ([1, 1, 1], {"tie_threshold": 2.0}, {(0, 1, True), (0, 2, True), (1, 2, True)}),
        ([1, 2, 3], {"min_rank_gap": 2}, {(0, 2, False)}),
        ([3, 9, 1], {"min_rank_gap": 2}, {(2, 1, False)}),  # ranks are counted, not subtracted
        ([1, 2, 3, 4], {"min_rank_gap": 2, "pairs": "best_worst"}, {(0, 3, False)}),
        (
            [1, 1, 2, 3],
            {"min_rank_gap": 2, "tie_threshold": 2.0},
            {(0, 3, False), (1, 3, False), (0, 1, True)},
        ),
    ],
)
def test_every_comparison_of_a_ranking_is_drawn_as_often(ranks, changed, wanted):
    draws = generator()
    assert has_comparison(ranks, Dpo(**changed))
    drawn = Counter(draw_comparison(ranks, Dpo(**changed), draws) for _ in range(600))
    assert set(drawn) == wanted
    assert min(drawn.values()) > 0.8 * 600 / len(wanted)


@pytest.mark.parametrize(
    ("ranks", "changed"),
    [
        ([1, 1, 1], {}),
        ([1, 1], {"pairs": "best_worst", "tie_threshold": 2.0}),
        ([1, 9, 9], {"min_rank_gap": 2}),
        ([1, 2, 2], {"min_rank_gap": 2, "pairs": "best_worst"}),
    ],
)
def test_a_ranking_without_a_comparison_is_known_and_refused(ranks, changed):
    settings = Dpo(**changed)
    assert not has_comparison(ranks, settings)
    with pytest.raises(ValueError, match="ranks apart: leave such rankings out"):
        draw_comparison(ranks, settings, generator())


def test_the_safe_scale_by_hand():
    # chosen (1, 0); rejected (2, 1), (0.5, 3), (-1, 2): <g_w, g_l> = 2, 0.5, -1 and |g_w|^2 = 1
    chosen, rejected = torch.tensor([[1.0, 0.0]] * 3), torch.tensor([[2.0, 1.0], [0.5, 3.0], [-1.0, 2.0]])
    target = torch.randn(6, 1, 1, 2, generator=generator())
    predicted = target + torch.cat([chosen, rejected]).view(6, 1, 1, 2)
    torch.testing.assert_close(safe_scale(predicted, target), torch.tensor([0.5, 1.0, 1.0]), rtol=1e-5, atol=1e-5)
    kept = safe_scale(predicted, target, margin=0.9)
    torch.testing.assert_close(kept, torch.tensor([0.05, 0.2, 1.0]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("margin", [0.0, 0.9])
def test_a_safeguarded_step_does_not_raise_the_chosen_edits_error_and_an_unguarded_one_does(margin):
    """A bias that both predictions share is a model whose gradients are those of its output."""
    offsets = torch.tensor([[1.0, 0.0], [3.0, 1.0]]).view(2, 1, 1, 2)
    reference = torch.tensor([0.5, 5.0])

    def fall(guarded: bool) -> float:
        """How fast a small step against the loss lowers the chosen edit's error."""
        bias = torch.zeros(1, 1, 1, 2, requires_grad=True)
        predicted, target = offsets + bias, torch.zeros(2, 1, 1, 2)
        errors = row_errors(predicted, target)
        (own,) = torch.autograd.grad(errors[0], bias, retain_graph=True)
        used = scale_rejected_gradient(errors, safe_scale(predicted, target, margin)) if guarded else errors
        loss = preference_loss(preference_margin(used, reference, 2.0), torch.tensor([False]), 1.0)
        (step,) = torch.autograd.grad(loss.sum(), bias)
        # The margin is 0, so that a gradient is half of that of the errors' difference.
        assert loss.item() == pytest.approx(math.log(2))
        return (own * step).sum().item() / (0.5 * own.square().sum().item())

    assert fall(guarded=False) == pytest.approx(1 - 3)  # it rises: <g_w, g_l> = 3 |g_w|^2
    assert fall(guarded=True) == pytest.approx(margin, abs=1e-6)


def test_the_safeguard_changes_the_rejected_edits_gradient_and_no_loss(editor):
    gradients, losses = {}, {}
    for name, dpo in {
        "off": {},
        "kept": {"safeguard": 1.0, "safeguard_margin": 0.5},
        "chosen": {"safeguard": 1.0, "safeguard_margin": 1.0},
        "half": {"safeguard": 0.5, "safeguard_margin": 1.0},
    }.items():
        objective = PreferenceObjective(editor, settings({"beta": 30.0} | dpo))
        loss, measures = objective.loss(objective.model, objective.prepare(ROWS, generator(3)))
        objective.model.zero_grad()
        loss.backward()
        losses[name] = loss.item()
        gradients[name] = objective.model.denoiser.unet.conv_out.bias.grad.clone()
        if name == "kept":  # both edits share their noise, so that an untrained network errs alike on them
            assert 0.25 < measures["train/rejected_scale"] < 0.9
        assert ("train/rejected_scale" in measures) == (name != "off")
    assert len(set(losses.values())) == 1
    assert not torch.equal(gradients["off"], gradients["kept"])
    # All of it off and the chosen edit alone: what is between them is linear in the scale.
    torch.testing.assert_close(gradients["half"], (gradients["off"] + gradients["chosen"]) / 2)


def test_timesteps_are_drawn_from_a_part_of_the_schedule_and_shared_by_both_edits(editor):
    def drawn(*span: float) -> torch.Tensor:
        objective = PreferenceObjective(editor, settings({"timesteps": span}))
        timesteps = objective.prepare([ROWS[0]] * 64, generator())["timesteps"]
        assert torch.equal(*timesteps.chunk(2))
        return timesteps

    part = drawn(0.3, 0.5)
    assert 300 <= part.min() < 320
    assert 480 < part.max() < 500
    assert set(drawn(0.9999, 1.0).tolist()) == {999}
    assert drawn(0.0, 1.0).min() < 100


@pytest.mark.parametrize("span", [(0.5, 0.5), (0.6, 0.3), (-0.1, 1.0), (0.0, 1.1)])
def test_a_span_of_timesteps_that_is_none_is_refused(span):
    with pytest.raises(ValueError, match=r"editor\.dpo\.timesteps is .*the smaller one first"):
        Dpo(timesteps=span)


@pytest.mark.parametrize(("instruction", "mirrored"), [("make it red", {True, False}), ("add a cat left", {False})])
def test_both_edits_and_the_source_are_mirrored_together_and_never_where_a_side_is_named(editor, instruction, mirrored):
    objective = PreferenceObjective(editor, settings().model_copy(update={"flip": True}))
    row, seen = ROWS[0] | {"instruction": instruction}, set()
    straight_pictures = _pictures(row, editor_settings())
    for seed in range(12):
        pixels = objective.prepare([row], generator(seed))["pixels"]
        (is_mirrored,) = {
            flipped for flipped in (True, False)
            if torch.equal(pixels, straight_pictures.flip(-1) if flipped else straight_pictures)
        }  # fmt: skip
        seen.add(is_mirrored)
    assert seen == mirrored


def _pictures(row, settings):
    """Sources and edits (2, 2, 3, R, R) of a ranking's second edit and its first, the chosen one first."""
    pairs = [{"source_image": row["source_image"], "edited_image": row["edits"][place]["image"]} for place in (1, 0)]
    return read_pictures(pairs, settings, identity_views(pairs))


def test_shuffled_ranks_are_the_same_ones_at_places_that_the_name_of_the_ranking_decides(editor):
    rows = [{"ranking_id": f"ranking-{number}", "ranks": [1, 2, 3, 4]} for number in range(200)]
    shuffled = [shuffle_ranks(row)["ranks"] for row in rows]
    assert shuffled == [shuffle_ranks(row)["ranks"] for row in rows]
    assert all(sorted(ranks) == [1, 2, 3, 4] for ranks in shuffled)
    first = Counter(ranks.index(1) for ranks in shuffled)
    assert set(first) == {0, 1, 2, 3}
    assert min(first.values()) > 30

    named = [row | {"ranking_id": f"{index}"} for index, row in enumerate([ranking(0, [1, 2, 3, 4])] * 8)]
    as_said, at_random = (
        PreferenceObjective(editor, settings({"pairs": "best_worst", "shuffled": shuffled})).prepare(named, generator())
        for shuffled in (False, True)
    )
    chosen = [batch["pixels"][1, :8] for batch in (as_said, at_random)]
    assert all(torch.equal(chosen[0][0], one) for one in chosen[0])
    assert not all(torch.equal(chosen[1][0], one) for one in chosen[1])


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
        latents = encode_edits(editor.vae, read_pictures(pairs, editor_settings(), identity_views(pairs)))
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


def test_rankings_with_latents_teach_what_their_pictures_do(start, editor, tmp_path):
    given = settings({}, train_text_encoder=True, latents="fp32")
    start.save(tmp_path / "encoder", start.card)
    rows = [row | {"ranking_id": f"ranking-{place}"} for place, row in enumerate(ROWS)]
    encoder = RankingLatentEncoder(str(tmp_path / "encoder"), given, device="cpu")
    encoded = {row["ranking_id"]: row["latents"] for row in encoder(rows)}
    assert sorted(encoded) == [row["ranking_id"] for row in rows]
    beside = [
        {"instruction": row["instruction"], "ranks": row["ranks"], "latents": encoded[row["ranking_id"]]}
        for row in rows
    ]
    objective = PreferenceObjective(editor, given)
    with torch.no_grad():
        for weight in objective.model.denoiser.parameters():
            weight.mul_(1.1)
    for seed in range(4):  # mirrored and not
        of_pictures, _ = objective.loss(objective.model, objective.prepare(rows, generator(seed)))
        of_latents, _ = objective.loss(objective.model, objective.prepare(beside, generator(seed)))
        torch.testing.assert_close(of_latents, of_pictures, rtol=1e-4, atol=0)


def test_latents_of_another_number_of_edits_are_refused_by_the_row(editor):
    objective = PreferenceObjective(editor, settings(latents="fp32"))
    row = {"instruction": "make it red", "ranks": [1, 2]}
    each = 4 * 8 * 8 * 4  # channels, height, width, bytes
    with pytest.raises(BadRows) as found:
        objective.prepare([row | {"latents": bytes(5 * each)}, row | {"latents": bytes(7 * each)}], generator())
    assert found.value.reasons == {1: f"its latents have {7 * each} bytes, not {5 * each}"}


def test_a_ranking_with_an_edit_that_cannot_be_read_has_no_latents(start, tmp_path):
    start.save(tmp_path / "encoder", start.card)
    rows = [row | {"ranking_id": f"ranking-{place}"} for place, row in enumerate(ROWS)]
    broken = rows[1]["edits"][2] | {"image": b"no picture"}
    rows[1] = rows[1] | {"edits": [*rows[1]["edits"][:2], broken]}
    encoded = RankingLatentEncoder(str(tmp_path / "encoder"), settings(latents="fp32"), device="cpu")(rows)
    dropped = [row for row in encoded if isinstance(row, Dropped)]
    assert [row.row["ranking_id"] for row in dropped] == ["ranking-1"]
    assert dropped[0].reason == "unreadable_picture"
    assert len(encoded) == len(rows)


def test_rankings_that_tie_everything_move_nothing_from_the_start(editor):
    objective = PreferenceObjective(editor, settings({"tie_threshold": 2.0}))
    tied = [ranking(0, [1, 1]), ranking(1, [1, 1, 1])]
    loss, measures = objective.loss(objective.model, objective.prepare(tied, generator()))
    loss.backward()
    assert loss.item() > 0
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
