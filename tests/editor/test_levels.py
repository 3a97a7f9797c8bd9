"""The learned embedding of quality levels: what it is told, where, and that it can decide what an edit becomes."""

import copy

import pytest
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline
from tiny_models import tiny_editor
from tiny_settings import editor_settings, generator

from hive_ray.config import DenoisingError, Dpo
from hive_ray.editor.averaging import average_editors
from hive_ray.editor.denoising_errors import denoising_errors
from hive_ray.editor.latents import PICTURE_COLUMNS
from hive_ray.editor.levels import BEST_LEVEL, FastEmbedding, add_levels, class_labels, has_levels
from hive_ray.editor.model import Editor
from hive_ray.editor.negative_aware import NegativeAwareObjective
from hive_ray.editor.objective import EditorObjective, LevelObjective
from hive_ray.editor.preference import PreferenceObjective
from hive_ray.editor.sampling import _Denoising, sample
from hive_ray.errors import BadRows
from hive_ray.files.model_folders import ModelFolderError
from hive_ray.images import encode
from hive_ray.reward.shaping import LEVEL_WORDS

WORDS = ["make it red", "add a hat", "remove the cat", "add a dog"]


@pytest.fixture(scope="module", params=["epsilon", "v_prediction", "xl"])
def any_folder(request, tmp_path_factory):
    return tiny_editor(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_editor(tmp_path_factory.mktemp("epsilon"), "epsilon")


@pytest.fixture
def leveled(folder):
    """An editor whose levels differ."""
    editor = Editor.load(folder)
    add_levels(editor.unet)
    with torch.no_grad():
        editor.unet.class_embedding.weight.normal_(generator=generator(7))
    return editor


@pytest.fixture(scope="module")
def rows():
    def picture(seed):
        return encode(torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8, generator=generator(seed)).numpy())

    return [
        {"pair_id": str(place), "instruction": words, "weight": 1.0, "quality_level": level}
        | {name: picture(10 * place + number) for number, name in enumerate(PICTURE_COLUMNS)}
        for place, (words, level) in enumerate(zip(WORDS, (1, 5, 3, 2), strict=True))
    ]


def images(count=2):
    return torch.rand(count, 3, 64, 64, generator=generator(1)) * 2 - 1


def edits(editor, **changed):
    scales = {"guidance_scale": 5.0, "image_guidance_scale": 1.5, "num_inference_steps": 2, **changed}
    return sample(editor, images(), WORDS[:2], seeds=[1, 2], **scales)


def labels_of(editor, act):
    """The class labels that the U-Net was given while `act` ran."""
    seen = []
    hook = editor.unet.register_forward_pre_hook(
        lambda _, args, inputs: seen.append(inputs["class_labels"]), with_kwargs=True
    )
    act()
    hook.remove()
    return seen


def test_there_is_a_level_for_each_word_and_one_for_nothing(leveled):
    assert len(LEVEL_WORDS) == BEST_LEVEL
    assert leveled.unet.class_embedding.num_embeddings == 1 + BEST_LEVEL


def test_labels_by_hand(leveled, folder):
    unet = leveled.unet
    assert class_labels(unet, ["a", "", "b"]).tolist() == [5, 0, 5]
    assert class_labels(unet, ["a", "", "b"], [2, 4, 1]).tolist() == [2, 0, 1]
    assert class_labels(Editor.load(folder).unet, ["a", ""], [2, 4]) is None


def test_new_levels_change_no_bit_of_edits_errors_and_loss(any_folder, rows):
    plain, leveled = Editor.load(any_folder), Editor.load(any_folder)
    losses = []
    for editor, objective in ((plain, EditorObjective), (leveled, LevelObjective)):
        training = objective(editor, editor_settings(condition_dropout=0.2))
        losses.append(training.loss(training.model, training.prepare(rows, generator(3)))[0])
    assert has_levels(leveled.unet)
    assert not has_levels(plain.unet)
    assert torch.equal(*losses)
    assert torch.equal(edits(leveled), edits(plain))
    errors = [
        denoising_errors(editor, images(), [0, 1], images(), WORDS[:2], DenoisingError(draws=1))
        for editor in (plain, leveled)
    ]
    assert torch.equal(*errors)


def test_levels_are_saved_and_loaded_and_kept_by_what_has_them(leveled, any_folder, tmp_path):
    leveled.save(tmp_path / "leveled", leveled.card)
    again = Editor.load(tmp_path / "leveled")
    assert torch.equal(edits(again), edits(leveled))
    add_levels(again.unet)
    assert torch.equal(again.unet.class_embedding.weight, leveled.unet.class_embedding.weight)
    half = Editor.load(any_folder).to("cpu", torch.float16)
    add_levels(half.unet)
    assert half.unet.class_embedding.weight.dtype == torch.float16


def test_the_level_is_asked_for_beside_the_text_alone(leveled):
    seen = labels_of(leveled, lambda: edits(leveled))
    assert [labels.tolist() for labels in seen] == [[5, 5, 0, 0, 0, 0]] * 2
    seen = labels_of(leveled, lambda: edits(leveled, guidance_scale=1.0, image_guidance_scale=1.0))
    assert [labels.tolist() for labels in seen] == [[5, 5]] * 2
    errors = DenoisingError(levels=(500,), draws=1)
    seen = labels_of(leveled, lambda: denoising_errors(leveled, images(), [0, 1], images(), WORDS[:2], errors))
    assert [labels.tolist() for labels in seen] == [[5, 5, 0, 0, 0, 0]]


def test_the_level_moves_an_edit(leveled):
    before = edits(leveled)
    with torch.no_grad():
        leveled.unet.class_embedding.weight[1:5] += 1.0  # levels that nobody asks for
    assert torch.equal(edits(leveled), before)
    with torch.no_grad():
        leveled.unet.class_embedding.weight[5] += 1.0
    assert not torch.allclose(edits(leveled), before, atol=1e-3)


@pytest.mark.parametrize("scales", [(2.0, 1.5), (1.0, 1.0), (1.5, 1.5), (2.0, 1.0)])
def test_each_step_is_pushed_from_the_worst_level_to_the_best_as_the_card_says(leveled, scales):
    latents, timestep = torch.randn(2, 4, 8, 8, generator=generator(3)), torch.tensor(500)
    text_scale, image_scale = (torch.full((2, 1, 1, 1), scale) for scale in scales)

    def guided(level_guidance_scale):
        leveled.card = leveled.card.model_copy(update={"level_guidance_scale": level_guidance_scale})
        return _Denoising(leveled, images(), WORDS[:2], text_scale, image_scale)(latents, timestep)

    sources = leveled.encode_condition(images())
    states = leveled.text.encode(WORDS[:2]).sequence
    with torch.inference_mode():
        best, worst = (
            leveled.unet(torch.cat([latents, sources], 1), 500, states, class_labels=torch.tensor([level] * 2)).sample
            for level in (5, 1)
        )
        assert torch.allclose(guided(2.0), guided(0.0) + 2.0 * (best - worst), atol=1e-5)
    assert not torch.allclose(best, worst, atol=1e-3)


@pytest.mark.parametrize("train_text_encoder", [False, True])
def test_training_tells_each_row_its_level_and_drops_it_with_the_text(leveled, rows, train_text_encoder):
    given = editor_settings(condition_dropout=0.3, train_text_encoder=train_text_encoder)
    objective = LevelObjective(leveled, given)
    batch = objective.prepare(rows, generator(5))
    seen = labels_of(leveled, lambda: objective.loss(objective.model, batch))

    draws = generator(5)
    torch.rand(4, generator=draws)
    torch.randint(0, 1000, (4,), generator=draws)
    torch.randn(2, 4, 4, 8, 8, generator=draws)
    place = torch.rand(4, generator=draws)
    wanted = [0 if place[index] < 0.6 else row["quality_level"] for index, row in enumerate(rows)]
    assert 0 < wanted.count(0) < 4
    assert [labels.tolist() for labels in seen] == [wanted]


def test_other_losses_train_the_level_that_edits_are_asked_for(leveled, rows):
    given = editor_settings(condition_dropout=1 / 3, dpo=Dpo())
    rankings = [
        {"instruction": row["instruction"], "source_image": row["source_image"], "ranks": [1, 2]}
        | {"edits": [{"edit_id": name, "image": row["edited_image"]} for name in ("a", "b")]}
        for row in rows
    ]
    for kind, table in (
        (EditorObjective, rows), (NegativeAwareObjective, rows), (PreferenceObjective, rankings),
    ):  # fmt: skip
        objective = kind(copy.deepcopy(leveled), given)
        batch = objective.prepare(table, generator(1))
        empty = objective.editor.text.tokenize([""])
        dropped = (batch["tokens"] == empty).flatten(1).all(1)
        assert 0 < dropped.sum() < len(dropped)
        dropped = dropped.repeat(len(batch["labels"]) // len(dropped))  # both edits of a comparison
        assert batch["labels"].tolist() == [0 if nothing else 5 for nothing in dropped]
        model = getattr(objective.model, "denoiser", objective.model)
        seen = labels_of(objective.editor, lambda objective=objective, batch=batch: _step(objective, batch))
        assert torch.equal(seen[-1], batch["labels"])
        assert model.unet.class_embedding.weight.grad[[0, 5]].any(1).all()
        assert not model.unet.class_embedding.weight.grad[1:5].any()


def _step(objective, batch):
    objective.loss(objective.model, batch)[0].backward()


def test_a_level_that_there_is_not_names_its_row(leveled, rows):
    objective = LevelObjective(leveled, editor_settings())
    broken = [row | {"quality_level": level} for row, level in zip(rows, (1, 0, 5, 6), strict=True)]
    with pytest.raises(BadRows) as caught:
        objective.prepare(broken, generator())
    assert caught.value.reasons == {
        1: "its quality_level is 0, not 1 to 5",
        3: "its quality_level is 6, not 1 to 5",
    }


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_levels_are_trained_beside_adapters_too_and_saved_with_them(folder, rows, lora_rank, tmp_path):
    objective = LevelObjective(Editor.load(folder), editor_settings(lora_rank=lora_rank))
    weights = [weight for weight in objective.model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=0.01)
    for step in range(2):
        optimizer.zero_grad()
        objective.loss(objective.model, objective.prepare(rows, generator(step)))[0].backward()
        optimizer.step()
    live = edits(objective.editor)
    objective.save(tmp_path / "saved", objective.model.state_dict(), objective.editor.card)
    saved = Editor.load(tmp_path / "saved")
    rows_of = objective.editor.unet.class_embedding(torch.arange(6))
    torch.testing.assert_close(saved.unet.class_embedding.weight, rows_of)
    # Two steps of Adam at 0.01, times the factor.
    factor = objective.settings.level_rate_factor
    assert (saved.unet.class_embedding.weight[[1, 2, 3, 5]].abs().amax(1) > 0.009 * factor).all()
    torch.testing.assert_close(edits(saved), live, rtol=0, atol=1e-4)


def test_a_fast_embedding_moves_its_rows_so_many_times_as_far_by_the_same_gradient():
    rows = torch.tensor([[1.0, -2.0], [0.5, 0.0]])
    plain, fast = torch.nn.Embedding.from_pretrained(rows.clone(), freeze=False), FastEmbedding(rows.clone(), 8.0)
    labels, target = torch.tensor([1, 0, 1]), torch.tensor([3.0, 1.0])
    assert torch.equal(fast(labels), rows[labels])
    for embedding, rate in ((plain, 0.08), (fast, 0.01)):
        optimizer = torch.optim.AdamW(embedding.parameters(), lr=rate, weight_decay=0.0)
        for _ in range(3):
            optimizer.zero_grad()
            (embedding(labels) - target).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(fast(torch.arange(2)), plain.weight, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(fast.weight.grad, plain.weight.grad, rtol=1e-6, atol=1e-6)


def test_adapters_of_another_loss_leave_the_levels_as_they_are(leveled):
    """The start of DPO is the network without its adapters: nothing else may move."""
    objective = PreferenceObjective(leveled, editor_settings(lora_rank=2))
    assert not leveled.unet.class_embedding.weight.requires_grad
    assert any(weight.requires_grad for weight in objective.model.parameters())


def test_editors_with_levels_are_averaged_and_not_mixed_with_others(leveled, folder, tmp_path):
    leveled.save(tmp_path / "one", leveled.card)
    with torch.no_grad():
        leveled.unet.class_embedding.weight += 1.0
    leveled.save(tmp_path / "two", leveled.card)
    average = average_editors([tmp_path / "one", tmp_path / "two"])
    torch.testing.assert_close(average.unet.class_embedding.weight, leveled.unet.class_embedding.weight - 0.5)
    with pytest.raises(ModelFolderError, match=r"missing from one of them, the first is unet\.class_embedding\.weight"):
        average_editors([tmp_path / "one", folder])


def test_a_u_net_of_other_classes_is_refused(folder):
    editor = Editor.load(folder)
    editor.unet.register_to_config(num_class_embeds=10)
    with pytest.raises(ModelFolderError, match="has 10 class embeddings, an editor's quality levels are 6"):
        edits(editor)


def test_the_pipeline_of_diffusers_opens_an_editor_with_levels_and_cannot_sample_it(leveled, tmp_path):
    leveled.save(tmp_path / "leveled", leveled.card)
    pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(tmp_path / "leveled", dtype=torch.float32)
    with pytest.raises(ValueError, match="class_labels should be provided"):
        pipeline(WORDS[0], image=images(1) / 2 + 0.5, num_inference_steps=1)


def two_kinds(count: int) -> list[dict]:
    """One instruction and one source; edits of level 5 are +1 everywhere in latents, those of level 1 are -1."""
    source, std = torch.zeros(2, 4, 8, 8)
    rows = []
    for place in range(count):
        level = 5 if place % 2 else 1
        mean = torch.full((4, 8, 8), (1.0 if level == 5 else -1.0) / 0.18215)
        latents = torch.stack([source, mean, std]).numpy().tobytes()
        rows.append({"pair_id": str(place), "instruction": "make it red", "weight": 1.0, "latents": latents})
        rows[-1]["quality_level"] = level
    return rows


@torch.no_grad()
def made(editor) -> torch.Tensor:
    """The mean of the latents of each of 16 edits (16,)."""
    latents = sample(
        editor, torch.zeros(16, 3, 64, 64), ["make it red"] * 16, guidance_scale=1.0, image_guidance_scale=1.0,
        num_inference_steps=2, seeds=list(range(16)),
    )  # fmt: skip
    return latents.mean((1, 2, 3))


@pytest.mark.parametrize(("objective", "learns"), [(LevelObjective, True), (EditorObjective, False)])
def test_trained_on_a_good_and_a_bad_kind_of_edits_an_editor_makes_the_kind_of_the_level(
    objective, learns, tmp_path, monkeypatch
):
    editor = Editor.load(tiny_editor(tmp_path, "v_prediction"))
    add_levels(editor.unet)
    training = objective(editor, editor_settings(latents="fp32", condition_dropout=0.0, level_rate_factor=4.0))
    optimizer = torch.optim.AdamW(training.model.parameters(), lr=5e-3)
    rows = two_kinds(16)
    for step in range(60):
        optimizer.zero_grad()
        training.loss(training.model, training.prepare(rows, generator(step)))[0].backward()
        optimizer.step()
    training.save(tmp_path / "trained", training.model.state_dict(), editor.card)
    editor = Editor.load(tmp_path / "trained")
    monkeypatch.setattr(editor, "decode", lambda latents: latents)
    good = made(editor)
    with torch.no_grad():
        levels = editor.unet.class_embedding.weight
        levels[5] = levels[1]
    bad = made(editor)
    if learns:
        assert (good > 0.5).float().mean() > 0.8
        assert (bad < -0.5).float().mean() > 0.8
    else:
        assert (good - bad).mean() < 0.2
