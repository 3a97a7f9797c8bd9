import pytest
import torch
from diffusers import (
    DDPMScheduler,
    DiffusionPipeline,
    EulerAncestralDiscreteScheduler,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionXLInstructPix2PixPipeline,
)
from tiny_models import tiny_editor

from hive_ray.cluster.mapping import map_rows
from hive_ray.config import Candidates
from hive_ray.editor.model import Editor, EditorCard
from hive_ray.editor.sampling import (
    EditSampler,
    SamplingStopped,
    ScoredEdits,
    edit_rows,
    guided_noise,
    row_noise,
    sample,
    sample_and_score,
)
from hive_ray.images import decode, encode, to_pixels
from hive_ray.schemas import CANDIDATES, to_table


@pytest.fixture(scope="module", params=["epsilon", "v_prediction", "xl"])
def folder(request, tmp_path_factory):
    return tiny_editor(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def editor(folder):
    return Editor.load(folder)


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1


INSTRUCTIONS = ["make it red", "add a hat to the dog", "remove the cat"]


def edits(editor, images, instructions=INSTRUCTIONS, seeds=(1, 2, 3), **settings):
    settings = {"guidance_scale": 5.0, "image_guidance_scale": 1.5, "num_inference_steps": 4, **settings}
    return sample(editor, images, instructions, seeds=seeds, **settings)


def test_both_scales_at_one_give_the_conditional_prediction():
    u, i, c = torch.randn(3, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(guided_noise(u, i, c, guidance_scale=1.0, image_guidance_scale=1.0), c)


def test_guidance_by_hand():
    u, i, c = torch.tensor([1.0]), torch.tensor([3.0]), torch.tensor([4.0])
    assert guided_noise(u, i, c, guidance_scale=7.5, image_guidance_scale=1.5).item() == 1 + 1.5 * 2 + 7.5 * 1


def test_each_row_may_have_its_own_scales():
    u, i, c = torch.randn(3, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    text, image = torch.tensor([2.0, 7.0]).view(2, 1, 1, 1), torch.tensor([1.0, 2.0]).view(2, 1, 1, 1)
    both = guided_noise(u, i, c, guidance_scale=text, image_guidance_scale=image)
    assert torch.equal(both[:1], guided_noise(u[:1], i[:1], c[:1], guidance_scale=2.0, image_guidance_scale=1.0))
    assert torch.equal(both[1:], guided_noise(u[1:], i[1:], c[1:], guidance_scale=7.0, image_guidance_scale=2.0))


# diffusers drops guidance at guidance_scale <= 1 or image_guidance_scale < 1: stay above.
@pytest.mark.parametrize(("guidance_scale", "image_guidance_scale"), [(7.5, 1.5), (3.0, 1.0), (2.0, 2.0)])
def test_edits_are_those_of_the_diffusers_pipeline(folder, editor, images, guidance_scale, image_guidance_scale):
    scales = {"guidance_scale": guidance_scale, "image_guidance_scale": image_guidance_scale}
    pipeline = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    assert type(pipeline) in (StableDiffusionInstructPix2PixPipeline, StableDiffusionXLInstructPix2PixPipeline)
    pipeline.set_progress_bar_config(disable=True)
    wanted = pipeline(
        INSTRUCTIONS,
        image=images / 2 + 0.5,
        num_inference_steps=5,
        latents=row_noise((4, 8, 8), [torch.Generator().manual_seed(seed) for seed in (1, 2, 3)]),
        output_type="pt",
        **scales,
    ).images
    torch.testing.assert_close(
        edits(editor, images, num_inference_steps=5, **scales) / 2 + 0.5, wanted, rtol=0, atol=1e-4
    )


def test_the_batch_around_a_row_changes_nothing_but_rounding(editor, images):
    together = edits(editor, images, guidance_scale=[2.0, 5.0, 9.0], image_guidance_scale=[1.0, 1.5, 2.0])
    alone = edits(
        editor, images[1:2], INSTRUCTIONS[1:2], seeds=[2], guidance_scale=5.0, image_guidance_scale=1.5
    )  # fmt: skip
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' with numpy 2
@pytest.mark.parametrize("kind", [EulerAncestralDiscreteScheduler, DDPMScheduler])
def test_a_row_of_an_ancestral_scheduler_has_its_own_noise_at_every_step(editor, images, kind):
    scheduler = kind.from_config(editor.scheduler.config)
    timesteps = scheduler.timesteps.clone()
    together = edits(editor, images, scheduler=scheduler)
    alone = edits(editor, images[1:2], INSTRUCTIONS[1:2], seeds=[2], scheduler=scheduler)
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-3)
    assert not torch.allclose(together[1:2], edits(editor, images)[1:2], atol=1e-2)
    assert torch.equal(scheduler.timesteps, timesteps)


@pytest.mark.parametrize(("guidance_scale", "image_guidance_scale"), [(1.0, 1.0), (3.0, 1.0), (3.0, 3.0)])
def test_predictions_that_cancel_are_not_missed(editor, images, guidance_scale, image_guidance_scale):
    # A row with other scales beside it has all three predictions made.
    few = edits(
        editor, images[:1], INSTRUCTIONS[:1], seeds=[1], guidance_scale=guidance_scale,
        image_guidance_scale=image_guidance_scale,
    )  # fmt: skip
    all_three = edits(
        editor, images[:2], INSTRUCTIONS[:2], seeds=[1, 2], guidance_scale=[guidance_scale, 5.0],
        image_guidance_scale=[image_guidance_scale, 1.7],
    )  # fmt: skip
    torch.testing.assert_close(all_three[:1], few, rtol=0, atol=1e-4)


def test_edits_depend_on_seed_instruction_and_image(editor, images):
    one = edits(editor, images[:1], INSTRUCTIONS[:1], seeds=[1])
    assert torch.equal(one, edits(editor, images[:1], INSTRUCTIONS[:1], seeds=[1]))
    assert not torch.allclose(one, edits(editor, images[:1], INSTRUCTIONS[:1], seeds=[2]), atol=1e-3)
    assert not torch.allclose(one, edits(editor, images[1:2], INSTRUCTIONS[:1], seeds=[1]), atol=1e-3)
    assert not torch.equal(one, edits(editor, images[:1], INSTRUCTIONS[1:2], seeds=[1]))


def test_sampling_stops_when_nobody_waits(editor, images):
    polls = []

    def should_stop():
        polls.append(None)
        return len(polls) == 3

    with pytest.raises(SamplingStopped):
        edits(editor, images, should_stop=should_stop)
    assert len(polls) == 3


def test_rows_that_do_not_line_up_are_refused(editor, images):
    with pytest.raises(ValueError, match="3 images, 3 instructions, 2 seeds"):
        edits(editor, images, seeds=[1, 2])
    with pytest.raises(ValueError, match="2 guidance scales for 3 rows"):
        edits(editor, images, guidance_scale=[1.0, 2.0])


def prompts(images):
    return [
        {
            "prompt_id": f"prompt-{index}",
            "instruction": INSTRUCTIONS[index],
            "source_caption": "a dog",
            "edited_caption": "a dog in a hat",
            "source_image": encode(to_pixels(image)),
            "split": "rank",
        }
        for index, image in enumerate(images)
    ]


SETTINGS = Candidates(
    num_edits=2, num_inference_steps=2, guidance_scale=(2.0, 5.0), image_guidance_scale=(1.0, 2.0), seed=7
)


def test_candidates_keep_their_contract(folder, images):
    rows = EditSampler(str(folder), SETTINGS, name="sft-1234")(prompts(images))
    table = to_table(rows, CANDIDATES)
    assert table.to_pylist() == rows  # scales are already what fp32 holds
    assert {row["editor"] for row in rows} == {"sft-1234"}
    all_edits = [edit for row in rows for edit in row["edits"]]
    assert len({edit["edit_id"] for edit in all_edits}) == len({edit["seed"] for edit in all_edits}) == 6
    assert all(2 <= edit["guidance_scale"] <= 5 and 1 <= edit["image_guidance_scale"] <= 2 for edit in all_edits)
    assert decode(all_edits[0]["image"]).shape == (64, 64, 3)


def test_candidates_do_not_depend_on_the_batch_but_for_rounding(folder, images):
    sampler = EditSampler(str(folder), SETTINGS, name="sft")
    together, alone = sampler(prompts(images))[1], sampler(prompts(images)[1:2])[0]
    for one, other in zip(together["edits"], alone["edits"], strict=True):
        assert {**one, "image": b""} == {**other, "image": b""}
        assert abs(decode(one["image"]).astype(int) - decode(other["image"])).max() <= 1


def test_a_prompt_whose_picture_cannot_be_read_is_dropped_alone_and_with_what_was_seen(folder, images):
    sampler, whole = EditSampler(str(folder), SETTINGS, name="sft"), prompts(images)[:1]
    broken = whole[0] | {"prompt_id": "broken", "source_image": whole[0]["source_image"][:40]}
    kept, dropped = map_rows(sampler, [*whole, broken])
    assert kept["prompt_id"] == whole[0]["prompt_id"]
    assert dropped.reason.startswith("error: ImageError: 40 bytes starting 89504e47 are not a readable image")


def test_two_editors_meet_on_the_same_seeds_and_scales_under_other_ids(folder, images):
    one, other = (EditSampler(str(folder), SETTINGS, name=name)(prompts(images)[:1])[0]["edits"] for name in "ab")
    assert [edit["seed"] for edit in one] == [edit["seed"] for edit in other]
    assert [edit["guidance_scale"] for edit in one] == [edit["guidance_scale"] for edit in other]
    assert not {edit["edit_id"] for edit in one} & {edit["edit_id"] for edit in other}


def test_the_suffix_of_the_card_is_appended_when_editing(editor, images, tmp_path):
    editor.save(tmp_path / "plain", EditorCard(base_model="tiny", resolution=64))
    editor.save(tmp_path / "suffix", EditorCard(base_model="tiny", resolution=64, instruction_suffix=", five"))
    settings = {
        "seeds": [1, 2, 3],
        "guidance_scale": 5.0,
        "image_guidance_scale": 1.5,
        "num_inference_steps": 2,
    }
    rows = prompts(images)
    by_hand = [row | {"instruction": row["instruction"] + ", five"} for row in rows]
    from_card = edit_rows(Editor.load(tmp_path / "suffix"), rows, **settings)
    assert from_card == edit_rows(Editor.load(tmp_path / "plain"), by_hand, **settings)


def test_a_micro_batch_bounds_the_batch_and_keeps_the_order(editor, images):
    settings = {"seeds": [1, 2, 3], "guidance_scale": [2.0, 3.0, 4.0], "image_guidance_scale": 1.5}
    whole = edit_rows(editor, prompts(images), num_inference_steps=2, **settings)
    parts = edit_rows(editor, prompts(images), num_inference_steps=2, micro_batch=2, **settings)
    for one, other in zip(whole, parts, strict=True):
        assert abs(decode(one).astype(int) - decode(other)).max() <= 1


def test_the_best_of_several_draws_is_the_first_of_the_greatest_reward():
    def best(*rewards):
        return ScoredEdits((b"",) * len(rewards), tuple(range(len(rewards))), rewards).best

    assert best(0.5, 2.0, 2.0, -1.0) == 1
    assert best(float("nan"), -3.0) == 1
    assert best(float("nan"), float("nan")) == 0


def test_draws_are_scored_beside_their_own_source_and_instruction(editor, images):
    rows, seeds, asked = prompts(images), [[1, 4], [2], [3, 5, 6]], []

    def score(sources, edits, instructions):
        asked.extend(zip(sources, edits, instructions, strict=True))
        return [float(number) for number in range(len(edits))]

    scales = {"guidance_scale": 5.0, "image_guidance_scale": 1.5, "num_inference_steps": 2}
    drawn = sample_and_score(editor, rows, score, seeds=seeds, **scales)
    assert [draws.rewards for draws in drawn] == [(0.0, 1.0), (2.0,), (3.0, 4.0, 5.0)]
    assert [draws.best for draws in drawn] == [1, 0, 2]
    assert [draws.seeds for draws in drawn] == [(1, 4), (2,), (3, 5, 6)]
    places = [0, 0, 1, 2, 2, 2]
    made = [edit for draws in drawn for edit in draws.edits]
    wanted = [rows[place] for place in places]
    assert asked == [(row["source_image"], edit, row["instruction"]) for row, edit in zip(wanted, made, strict=True)]
    single = edit_rows(editor, rows, seeds=[1, 2, 3], **scales)
    for draws, edit in zip(drawn, single, strict=True):
        assert abs(decode(draws.edits[0]).astype(int) - decode(edit)).max() <= 1
