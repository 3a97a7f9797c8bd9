import pytest
import torch
from tiny_models import tiny_editor

from hive_ray.config import DenoisingError
from hive_ray.diffusion.backbone import StableDiffusionXL
from hive_ray.editor.denoising_errors import (
    ErrorMeasurer,
    denoising_errors,
    errors_of_edits,
    evaluations_per_edit,
    feature_names,
)
from hive_ray.editor.model import Editor
from hive_ray.images import encode, to_batch, to_pixels
from hive_ray.schemas import DENOISING_ERRORS, Dropped, to_table
from hive_ray.seeds import generator_for

SETTINGS = DenoisingError(levels=(100, 700), draws=2, precision="fp32")
WORDS = ["make it red", "add a hat to the dog", "make it red"]


@pytest.fixture(scope="module", params=["epsilon", "v_prediction", "xl"])
def folder(request, tmp_path_factory):
    return tiny_editor(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def editor(folder):
    return Editor.load(folder)


@pytest.fixture(scope="module")
def pictures():
    """A source and three pictures made of it."""
    noise = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return [encode(to_pixels(picture)) for picture in noise]


@torch.no_grad()
def by_hand(editor, source, edited, words, level, draw, told):
    """One squared error, from the parts of the editor alone."""
    latent = editor.vae.encode(edited).latent_dist.mean * editor.vae.config.scaling_factor
    noise = torch.randn(latent.shape[1:], generator=generator_for("denoising_error", level, draw))[None]
    signal = editor.scheduler.alphas_cumprod[level]
    noisy = signal.sqrt() * latent + (1 - signal).sqrt() * noise
    target = noise
    if editor.card.prediction_type == "v_prediction":
        target = signal.sqrt() * noise - (1 - signal).sqrt() * latent
    seen = editor.vae.encode(source).latent_dist.mean
    if told == "nothing":
        seen = torch.zeros_like(seen)
    states = editor.text.encode([words if told == "instruction" else ""])
    inputs = {"encoder_hidden_states": states.sequence}
    if isinstance(editor.backbone, StableDiffusionXL):
        sizes = torch.tensor([[64.0, 64, 0, 0, 64, 64]])
        inputs["added_cond_kwargs"] = {"text_embeds": states.pooled, "time_ids": sizes}
    predicted = editor.unet(torch.cat([noisy, seen], 1), level, **inputs).sample
    return (predicted - target).square().mean().item()


def test_errors_are_those_of_the_editors_own_network(editor, pictures):
    [features] = errors_of_edits(editor, pictures[:1], pictures[1:2], WORDS[:1], SETTINGS)
    source, edited = to_batch(pictures[:2], 64).split(1)
    expected = [
        sum(by_hand(editor, source, edited, WORDS[0], level, draw, told) for draw in range(2)) / 2
        for level in (100, 700)
        for told in ("instruction", "source", "nothing")
    ]
    assert features.tolist() == pytest.approx(expected, rel=1e-4)
    assert len({f"{error:.6f}" for error in expected}) == 6  # each condition and level is heard


def test_conditions_that_are_left_out_change_no_other_feature(editor, pictures):
    told = ("source", "instruction")
    some = SETTINGS.model_copy(update={"conditions": told})
    [features] = errors_of_edits(editor, pictures[:1], pictures[1:2], WORDS[:1], some)
    [everything] = errors_of_edits(editor, pictures[:1], pictures[1:2], WORDS[:1], SETTINGS)
    expected = dict(zip(feature_names(SETTINGS), everything.tolist(), strict=True))
    assert feature_names(some) == tuple(f"error@{level}, {one}" for level in (100, 700) for one in told)
    assert features.tolist() == pytest.approx([expected[name] for name in feature_names(some)], rel=1e-5)
    assert evaluations_per_edit(some) == 8


def test_a_feature_is_the_logarithm_of_the_mean_error_where_that_is_asked_for(editor, pictures):
    [errors] = errors_of_edits(editor, pictures[:1], pictures[1:2], WORDS[:1], SETTINGS)
    logarithms = SETTINGS.model_copy(update={"log": True})
    [features] = errors_of_edits(editor, pictures[:1], pictures[1:2], WORDS[:1], logarithms)
    assert features.exp().tolist() == pytest.approx(errors.tolist(), rel=1e-5)
    assert feature_names(logarithms)[0] == "log error@100, instruction"


@pytest.mark.parametrize("conditions", [(), ("source",), ("instruction", "instruction")])
def test_the_instruction_is_always_among_the_conditions(conditions):
    with pytest.raises(ValueError, match="give different ones, 'instruction' among them"):
        DenoisingError(conditions=conditions)


def test_features_are_named_in_their_order_and_their_cost_is_counted():
    assert feature_names(DenoisingError(levels=(450, 650))) == (
        "error@450, instruction", "error@450, source", "error@450, nothing",
        "error@650, instruction", "error@650, source", "error@650, nothing",
    )  # fmt: skip
    assert evaluations_per_edit(DenoisingError()) == 27


def test_neither_the_batch_nor_its_order_nor_the_clock_of_torch_changes_an_error(editor, pictures):
    torch.manual_seed(0)
    together = errors_of_edits(editor, [pictures[0]] * 3, pictures[1:], WORDS, SETTINGS)
    torch.manual_seed(1)
    in_parts = errors_of_edits(editor, [pictures[0]] * 3, pictures[1:], WORDS, SETTINGS, micro_batch=2)
    torch.testing.assert_close(in_parts, together, rtol=1e-4, atol=1e-5)
    turned = errors_of_edits(editor, [pictures[0]] * 3, pictures[:0:-1], WORDS[::-1], SETTINGS)
    torch.testing.assert_close(turned.flip(0), together, rtol=1e-4, atol=1e-5)
    assert errors_of_edits(editor, [], [], [], SETTINGS).shape == (0, 6)


def test_edits_meet_the_same_noise(editor, pictures, monkeypatch):
    met = []
    monkeypatch.setattr(
        editor.scheduler, "add_noise", lambda latents, noise, timesteps: (met.append(noise.clone()), latents)[1]
    )
    errors_of_edits(editor, [pictures[0]] * 3, pictures[1:], WORDS, SETTINGS)
    assert len(met) == 4  # two levels, two draws
    assert all(torch.equal(noise, noise[:1].expand_as(noise)) for noise in met)
    assert len({noise[0].sum().item() for noise in met}) == 4


def test_a_source_is_encoded_once_however_many_of_its_edits_there_are(editor, pictures, monkeypatch):
    encoded, encode_condition = [], editor.encode_condition
    monkeypatch.setattr(
        editor, "encode_condition", lambda images: (encoded.append(len(images)), encode_condition(images))[1]
    )
    mixed = [pictures[0], pictures[1], pictures[0]]
    features = errors_of_edits(editor, mixed, pictures[1:], WORDS, SETTINGS)
    assert encoded == [2]
    alone = errors_of_edits(editor, mixed[1:2], pictures[2:3], WORDS[1:2], SETTINGS)
    torch.testing.assert_close(features[1:2], alone, rtol=1e-4, atol=1e-5)


def test_an_instruction_gets_the_suffix_of_the_card(editor, pictures, monkeypatch):
    given = [pictures[:1], pictures[1:2]]
    wanted = errors_of_edits(editor, *given, ["make it red, image quality is five"], SETTINGS)
    suffixed = editor.card.model_copy(update={"instruction_suffix": ", image quality is five"})
    monkeypatch.setattr(editor, "card", suffixed)
    assert torch.equal(errors_of_edits(editor, *given, ["make it red"], SETTINGS), wanted)


def test_half_precision_gives_nearly_the_same_errors(folder, editor, pictures):
    half = Editor.load(folder).to("cpu", torch.bfloat16)
    given = ([pictures[0]] * 3, pictures[1:], WORDS, SETTINGS)
    torch.testing.assert_close(errors_of_edits(half, *given), errors_of_edits(editor, *given), rtol=0.05, atol=0.02)


def test_a_level_that_the_editor_has_not_is_refused(editor, pictures):
    images = to_batch(pictures[:1], 64)
    with pytest.raises(ValueError, match=r"levels has \[1000\], the editor's timesteps end at 999"):
        denoising_errors(editor, images, [0], images, ["a"], DenoisingError(levels=(999, 1000)))
    with pytest.raises(ValueError, match="give different timesteps, 0 or above"):
        DenoisingError(levels=(450, 450))


def ranking(name, pictures, edits):
    texts = {"instruction": "make it red", "source_caption": "", "edited_caption": ""}
    edits = [{"edit_id": edit, "image": picture} for edit, picture in zip(edits, pictures[1:], strict=False)]
    return {"ranking_id": name, "prompt_id": "p", "source_image": pictures[0], "edits": edits} | texts


def test_the_measurer_makes_a_row_of_each_edit_that_it_is_asked_for(folder, editor, pictures):
    rows = [ranking("one", pictures, ["a", "b", "c"]), ranking("two", pictures, ["a", "b", "d"])]
    measured = ErrorMeasurer(str(folder), SETTINGS, {"one": ["a", "b", "c"], "two": ["d"]})(rows)
    assert [(row["edit_id"], row["prompt_id"]) for row in measured] == [(name, "p") for name in "abcd"]
    expected = errors_of_edits(editor, [pictures[0]] * 3, pictures[1:], ["make it red"] * 3, SETTINGS)
    features = torch.tensor([row["features"] for row in measured])
    torch.testing.assert_close(features, expected[[0, 1, 2, 2]], rtol=1e-4, atol=1e-5)
    assert to_table(measured, DENOISING_ERRORS).num_rows == 4


def test_an_error_that_is_not_finite_is_dropped(folder, pictures):
    measurer = ErrorMeasurer(str(folder), SETTINGS, {"one": ["a"]})
    with torch.no_grad():
        measurer.editor.unet.conv_out.bias.fill_(float("inf"))
    assert measurer([ranking("one", pictures, ["a"])]) == [Dropped("error_not_finite")]
