import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tiny_models import tiny_stable_diffusion

from hive_ray.config import Editor as Settings
from hive_ray.config import Training
from hive_ray.editor.latents import (
    LatentEncoder,
    PairLatentReader,
    Views,
    draw_views,
    mentions_left_or_right,
    read_pictures,
)
from hive_ray.editor.model import Editor
from hive_ray.editor.objective import EditorObjective
from hive_ray.errors import BadRows
from hive_ray.images import decode, encode, normalize_pixels, resize, to_batch, to_tensor
from hive_ray.schemas import LATENTS, to_table

TRAINING = Training(total_images=4, batch_size=2, micro_batch_size=2, learning_rate=1e-3, checkpoint_images=4)
UNTOUCHED = ("pair_id", "instruction", "weight")


def settings(**changed):
    given = {"start": "tiny", "resolution": 64, "latents": "fp32", "sft": TRAINING, "finetune": TRAINING}
    return Settings(**given | changed)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(tiny_stable_diffusion(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def editor(base):
    return Editor.build(base)


def pair(index: int, instruction: str, height: int = 64, width: int = 64) -> dict:
    """A pair of smooth pictures, as pictures are."""
    rng = np.random.default_rng(index)
    source, edited = (rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8) for _ in range(2))
    grown = (np.kron(picture, np.ones((8, 8, 1), dtype=np.uint8)) for picture in (source, edited))
    pictures = dict(zip(("source_image", "edited_image"), map(encode, grown), strict=True))
    return {"pair_id": f"pair-{index}", "instruction": instruction, "weight": 1.0 + index} | pictures


@pytest.fixture(scope="module")
def rows():
    return [pair(0, "make it red"), pair(1, "move it left"), pair(2, "add a hat"), pair(3, "remove the cat")]


def beside(rows, encoded):
    """What training reads of rows that lie beside their latents."""
    return [{name: row[name] for name in UNTOUCHED} | found for row, found in zip(rows, encoded, strict=True)]


@pytest.mark.parametrize("instruction", ["move it LEFT", "the left-hand one", "the rightmost dog", "go leftwards"])
def test_instructions_that_say_a_side_are_known(instruction):
    assert mentions_left_or_right(instruction)


@pytest.mark.parametrize("instruction", ["a bright sky", "the leftovers", "copyright", "make it red"])
def test_words_that_only_hold_a_side_are_not(instruction):
    assert not mentions_left_or_right(instruction)


def test_half_of_the_pairs_are_mirrored_and_none_that_says_a_side(rows):
    mirrored = draw_views([rows[0], rows[1]] * 2000, settings(), generator()).mirrored
    assert sum(mirrored[::2]) / 2000 == pytest.approx(0.5, abs=0.04)
    assert not any(mirrored[1::2])
    assert not any(draw_views(rows * 10, settings(flip=False), generator()).mirrored)


def test_the_pictures_of_a_pair_are_mirrored_both_or_neither(rows):
    pixels = read_pictures(rows[:2], settings(), Views([True, False], [(0.0, 0.0)] * 2))
    for column, seen in zip(("source_image", "edited_image"), pixels, strict=True):
        whole = to_batch([row[column] for row in rows[:2]], 64)
        assert torch.equal(normalize_pixels(seen), torch.stack([whole[0].flip(-1), whole[1]]))


def test_the_pictures_of_a_pair_are_cropped_alike():
    wide = pair(4, "make it red", height=64, width=128)  # no scaling: the crop is 64 of the 128 columns
    views = draw_views([wide] * 50, settings(crop="random", latents="none"), generator())
    pixels = normalize_pixels(read_pictures([wide] * 50, settings(crop="random", latents="none"), views))
    whole = torch.stack([to_tensor(decode(wide[column])) for column in ("source_image", "edited_image")])
    crops = whole.unfold(-1, 64, 1).permute(3, 0, 1, 2, 4)  # (65, 2, 3, 64, 64): one from each column on
    found = []
    for mirrored, seen in zip(views.mirrored, pixels.unbind(1), strict=True):
        same = (crops == (seen.flip(-1) if mirrored else seen)).flatten(1).all(1)
        found += same.nonzero().flatten().tolist()
    assert len(found) == 50
    assert len(set(found)) > 20


def test_an_edited_picture_of_another_size_is_scaled_to_the_source(rows):
    small = rows[0] | {"edited_image": encode(resize(decode(rows[0]["edited_image"]), 32))}
    views = Views([False], [(0.0, 0.0)])
    pixels = read_pictures([small], settings(crop="center"), views)
    assert torch.equal(normalize_pixels(pixels[1, 0]), to_tensor(resize(decode(small["edited_image"]), 64)))


def test_random_crops_change_no_draw_of_those_without(rows):
    generators = generator(), generator()
    plain = draw_views(rows, settings(), generators[0])
    cropped = draw_views(rows, settings(crop="random", latents="none"), generators[1])
    assert plain.mirrored == cropped.mirrored
    torch.rand(4, 2, generator=generators[0])
    assert torch.equal(*(torch.rand(3, generator=one) for one in generators))


def test_what_cannot_be_encoded_once_is_refused():
    with pytest.raises(ValidationError, match=r"set crop to 'center' or 'none', or latents to 'none'"):
        settings(crop="random")


@pytest.mark.parametrize("kind", ["fp32", "fp16"])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_is_found_wherever_it_is(editor, rows, kind, number):
    latents = PairLatentReader(editor, settings(latents=kind))
    numbers = np.full(latents.stored_shape, -2.0, np.dtype(f"float{kind[2:]}"))
    numbers[0, 1, 2, 3, 4] = number
    with pytest.raises(BadRows) as found:
        latents.read([rows[0] | {"latents": numbers.tobytes()}], Views([True], [(0.0, 0.0)]))
    assert found.value.reasons == {0: "its latents are not finite"}


def test_pictures_are_the_same_by_one_thread_or_by_many(rows):
    views, threads = Views([True, False] * 2, [(0.0, 0.0)] * 4), torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        with torch.inference_mode():
            many = read_pictures(rows[:4], settings(), views)
        torch.set_num_threads(1)
        assert torch.equal(read_pictures(rows[:4], settings(), views), many)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("crop", ["none", "center"])
def test_encoded_once_or_in_every_step_the_loss_is_the_same(base, rows, crop):
    given = settings(crop=crop, condition_dropout=0.1)
    pairs = [*rows[:3], pair(5, "remove the cat", height=64, width=96)]
    objective = EditorObjective(Editor.build(base), given)
    encoded = LatentEncoder(base, given, device="cpu")(pairs)
    to_table(encoded, LATENTS)
    for seed in range(4):  # mirrored and not
        loss, measures = objective.loss(objective.model, objective.prepare(pairs, generator(seed)))
        again, same = objective.loss(objective.model, objective.prepare(beside(pairs, encoded), generator(seed)))
        torch.testing.assert_close(again, loss, rtol=1e-5, atol=0)
        assert same == measures


def test_stored_views_are_those_of_the_pictures(base, editor, rows):
    given = settings(crop="center")
    pairs = [*rows, pair(6, "make it red", height=72, width=136)]
    encoded, latents = LatentEncoder(base, given, device="cpu")(pairs), PairLatentReader(editor, given)
    for mirrored in ([True, False, True, False, True], [False] * 5):
        views = Views(mirrored, [(0.0, 0.0)] * 5)
        fresh, stored = (latents.posteriors(latents.read(each, views)) for each in (pairs, beside(pairs, encoded)))
        for ours, theirs in zip(stored, fresh, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    wanted, _ = editor.posterior(to_batch([rows[0]["source_image"]], 64).flip(-1))
    mirrored = latents.posteriors(latents.read(beside(pairs, encoded)[:1], Views([True], [(0.0, 0.0)])))
    torch.testing.assert_close(mirrored.source, wanted, rtol=1e-4, atol=1e-5)


def test_fp16_takes_half_the_room_and_costs_a_thousandth(base, editor, rows):
    encoded = {kind: LatentEncoder(base, settings(latents=kind), device="cpu")(rows) for kind in ("fp32", "fp16")}
    sizes = {kind: len(found[0]["latents"]) for kind, found in encoded.items()}
    assert sizes == {"fp32": 2 * 3 * 4 * 8 * 8 * 4, "fp16": 2 * 3 * 4 * 8 * 8 * 2}
    each = {kind: PairLatentReader(editor, settings(latents=kind)) for kind in encoded}
    seen = Views([True] * 4, [(0.0, 0.0)] * 4)
    whole, half = (
        latents.posteriors(latents.read(beside(rows, encoded[kind]), seen)) for kind, latents in each.items()
    )
    assert not torch.equal(half.mean, whole.mean)
    torch.testing.assert_close(half.mean, whole.mean, rtol=1e-3, atol=1e-4)


def test_without_flips_one_view_is_encoded(base, rows):
    encoded = LatentEncoder(base, settings(flip=False), device="cpu")(rows)
    assert len(encoded[0]["latents"]) == 3 * 4 * 8 * 8 * 4


def test_a_picture_that_cannot_be_read_drops_its_pair_alone(base, rows):
    broken = [rows[0], rows[1] | {"edited_image": rows[1]["edited_image"][:60]}, rows[2]]
    dropped, *kept = LatentEncoder(base, settings(), device="cpu")(broken)
    assert (dropped.reason, dropped.row["pair_id"]) == ("unreadable_picture", "pair-1")
    assert [row["pair_id"] for row in kept] == ["pair-0", "pair-2"]


def test_latents_that_overflow_are_dropped(base, rows):
    encoder = LatentEncoder(base, settings(latents="fp16"), device="cpu")
    encoder.vae.quant_conv.bias.data.fill_(1e6)
    assert {row.reason for row in encoder(rows)} == {"latents_not_finite"}


def test_rows_that_nothing_can_be_learned_from_are_named(editor, base, rows):
    objective = EditorObjective(editor, settings())
    cut_off = rows[1] | {"source_image": rows[1]["source_image"][:60]}
    with pytest.raises(BadRows, match="source_image: 60 bytes starting 89504e47 are not a readable image") as found:
        objective.prepare([rows[0], cut_off, rows[2]], generator())
    assert list(found.value.reasons) == [1]

    weights = [float("nan"), float("inf"), -0.5, 0.0]
    with pytest.raises(BadRows, match="its weight is nan, not a finite number") as found:
        objective.prepare([row | {"weight": w} for row, w in zip(rows, weights, strict=True)], generator())
    assert list(found.value.reasons) == [0, 1, 2]

    encoded = beside(rows, LatentEncoder(base, settings(), device="cpu")(rows))
    nan = np.frombuffer(encoded[2]["latents"], np.float32).copy()
    nan[-1] = np.nan  # of the mirrored view: a row is good or bad, however it is seen
    spoilt = [encoded[0], encoded[1] | {"latents": b"short"}, encoded[2] | {"latents": nan.tobytes()}, encoded[3]]
    with pytest.raises(BadRows) as found:
        objective.prepare(spoilt, generator())
    assert found.value.reasons == {
        1: "its latents have 5 bytes, not 6144",
        2: "its latents are not finite",
    }
