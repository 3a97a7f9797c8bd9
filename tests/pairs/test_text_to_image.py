"""The batched sampler against the plain reference, pair by pair, on each kind of Stable Diffusion."""

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from pairs.reference_prompt_to_prompt import Google, InstructPix2Pix, draw_pair
from tiny_models import tiny_stable_diffusion, tiny_stable_diffusion_xl

from hive_ray.diffusion.schedules import SCHEDULES
from hive_ray.pairs import text_to_image
from hive_ray.pairs.controls import instruct_pix2pix_controls, prompt_to_prompt_controls
from hive_ray.pairs.text_to_image import LocalBlend, TextToImage

SOURCES = ["a red cat on the sea", "a blue dog", "photo of a green hat in the sky"]
EDITS = ["a red dog on the sea", "a blue dog and a red hat", "photo of a green zzz in the sky"]  # zzz: three tokens
SEEDS, SCALES = [11, 12, 13], torch.tensor([1.5, 2.0, 3.0])
ROUNDING = {"atol": 1e-5, "rtol": 1e-5}
"""Of two ways in fp64, from noise levels in fp32; so strong an attention makes a thousandfold more of fp32's own."""
SHOWS = 2e-3
"""Pictures that are further apart than this differ by more than rounding."""
STEPS, RESOLUTION, SIDE = 5, 64, 4
BASES = {
    "sd15": lambda folder: tiny_stable_diffusion(folder),
    "sd21": lambda folder: tiny_stable_diffusion(folder, "v_prediction"),
    "sdxl": tiny_stable_diffusion_xl,
}


@pytest.fixture(scope="module", params=BASES)
def base(request, tmp_path_factory) -> tuple[TextToImage, DiffusionPipeline]:
    """Ours and the reference's in fp64, with attention made strong enough that its control shows in the pictures."""
    folder = BASES[request.param](Path(tmp_path_factory.mktemp(request.param)))
    model, pipeline = TextToImage(folder), DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    model.backbone.to("cpu", torch.float64)
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if getattr(pipeline, part, None) is not None:
            getattr(pipeline, part).double()
    for unet in (model.backbone.unet, pipeline.unet):
        for name, weight in unet.named_parameters():
            if ".to_" in name:
                weight.data *= 3
    return model, pipeline


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in SEEDS]


def drawn(model: TextToImage, controls, schedule: str = "ddim", rows: slice = slice(None), blend=None):
    return model.draw_pairs(
        SOURCES[rows], EDITS[rows], model.noise(generators()[rows], RESOLUTION), guidance_scale=SCALES[rows],
        controls=controls, num_inference_steps=STEPS, schedule=schedule, control_side=SIDE / 8, local_blend=blend,
    )  # fmt: skip


def noises(pipeline: DiffusionPipeline, seed: int):
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn((pipeline.unet.config.in_channels, 8, 8), generator=generator).double()


def assert_agrees(base, controls, references, schedule: str = "ddim", blend=None) -> None:
    model, pipeline = base
    sources, edits = drawn(model, controls, schedule, blend=blend)
    for pair, control in enumerate(references):
        source, edited = draw_pair(
            pipeline, SOURCES[pair], EDITS[pair], noises(pipeline, SEEDS[pair]), control=control,
            guidance_scale=float(SCALES[pair]), num_steps=STEPS, schedule=schedule,
        )  # fmt: skip
        torch.testing.assert_close(sources[pair], source, **ROUNDING)
        torch.testing.assert_close(edits[pair], edited, **ROUNDING)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_instruct_pix2pix_pairs_agree_with_the_reference(base, schedule):
    thresholds = torch.tensor([0.1, 0.6, 0.9])
    controls = instruct_pix2pix_controls(thresholds, STEPS)
    assert_agrees(base, controls, [InstructPix2Pix(float(one)) for one in thresholds], schedule)


SELF, CROSS = torch.tensor([0.4, 0.0, 0.8]), torch.tensor([0.8, 1.0, 0.6])


def googles(model: TextToImage, swaps: list[bool], changed: torch.Tensor = CROSS, scale: float = 1.0):
    controls = prompt_to_prompt_controls(
        model.describe(SOURCES), model.describe(EDITS), swaps_words=swaps, self_replace_steps=SELF,
        cross_replace_steps=CROSS, changed_replace_steps=changed, changed_scale=scale, num_steps=STEPS,
    )  # fmt: skip
    references = [
        Google(swap, SIDE, float(own) + 1e-6, float(cross) + 1e-6, float(new) + 1e-6, scale)
        for swap, own, cross, new in zip(swaps, SELF, CROSS, changed, strict=True)
    ]
    return controls, references


@pytest.mark.parametrize("schedule", ["euler_ancestral", "dpm_solver++"])
def test_word_swap_and_refinement_in_one_batch_agree_with_the_reference(base, schedule):
    assert_agrees(base, *googles(base[0], [True, False, True]), schedule)


def test_refinement_of_every_pair_agrees_with_the_reference(base):
    assert_agrees(base, *googles(base[0], [False, False, False]))


def test_reweighting_and_a_span_of_the_changed_words_agree_with_the_reference(base):
    assert_agrees(base, *googles(base[0], [True, False, True], torch.tensor([0.2, 0.6, 1.0]), scale=2.5))


def test_local_blending_agrees_with_the_reference(base):
    controls, references = googles(base[0], [True, False, True])
    for reference in references:
        reference.local_blend, reference.local_blend_start = 0.9, 0.4
    blend = LocalBlend(threshold=0.9, start=0.4)
    assert_agrees(base, controls, references, "euler_ancestral", blend)
    blended, plain = drawn(base[0], controls, blend=blend)[1], drawn(base[0], controls)[1]
    assert (blended - plain).abs().max() > SHOWS


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_pair_is_the_same_whatever_pairs_are_beside_it(base, schedule):
    together = drawn(base[0], googles(base[0], [True, False, True])[0], schedule)
    model = base[0]
    controls = prompt_to_prompt_controls(
        model.describe(SOURCES[1:2]), model.describe(EDITS[1:2]), swaps_words=[False], self_replace_steps=SELF[1:2],
        cross_replace_steps=CROSS[1:2], changed_replace_steps=CROSS[1:2], changed_scale=1.0, num_steps=STEPS,
    )  # fmt: skip
    alone = drawn(model, controls, schedule, slice(1, 2))
    for both, one in zip(together, alone, strict=True):
        torch.testing.assert_close(both[1:2], one, **ROUNDING)


def test_every_control_shows_in_the_pictures(base):
    """What the agreements above are worth: no control is within rounding of another."""
    model = base[0]
    swaps = [True, False, True]
    ways = [
        instruct_pix2pix_controls(torch.zeros(3), STEPS),
        instruct_pix2pix_controls(torch.full((3,), 0.6), STEPS),
        googles(model, swaps)[0],
        googles(model, [False] * 3)[0],
        googles(model, swaps, torch.tensor([0.2, 0.2, 0.2]))[0],
        googles(model, swaps, scale=2.5)[0],
    ]
    pictures = [drawn(model, way)[1] for way in ways]
    least = min((a - b).abs().max() for i, a in enumerate(pictures) for b in pictures[:i])
    assert least > SHOWS


def test_the_source_is_what_its_caption_alone_gives(base):
    model = base[0]
    for schedule in SCHEDULES:
        alone = model.draw(
            SOURCES, model.noise(generators(), RESOLUTION), guidance_scale=SCALES, num_inference_steps=STEPS,
            schedule=schedule,
        )  # fmt: skip
        source = drawn(model, googles(model, [True, False, True])[0], schedule)[0]
        torch.testing.assert_close(source, alone, **ROUNDING)


def test_local_blending_without_a_layer_to_look_at_says_what_to_set(base):
    model = base[0]
    with pytest.raises(ValueError, match=r"pairs\.control_side"):
        model.draw_pairs(
            SOURCES, EDITS, model.noise(generators(), RESOLUTION), guidance_scale=SCALES,
            controls=googles(model, [False] * 3)[0], num_inference_steps=2, control_side=0.7,
            local_blend=LocalBlend(0.3, 0.2),
        )  # fmt: skip


def test_a_draw_that_failed_leaves_nothing_to_the_next(base, monkeypatch):
    model, blend = base[0], LocalBlend(threshold=0.9, start=0.4)
    controls = googles(model, [True, False, True])[0]
    undisturbed = drawn(model, controls, blend=blend)[1]
    with monkeypatch.context() as patch:  # as where memory runs out once the first layers have been seen
        patch.setattr(text_to_image, "_sum_of", fail)
        with pytest.raises(MemoryError):
            drawn(model, controls, blend=blend)
    torch.testing.assert_close(drawn(model, controls, blend=blend)[1], undisturbed, rtol=0, atol=0)


def fail(*arguments) -> None:
    raise MemoryError


def test_tokens_of_words_side_by_side_are_the_tokens_of_the_caption(base):
    for caption in base[0].describe([*SOURCES, *EDITS, "a cat, a dog's hat; 7 zebras"]):
        assert [token for span in caption.spans for token in span] == list(range(1, len(caption.tokens) - 1))
