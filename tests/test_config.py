import pytest
from pydantic import ValidationError

from hive_ray.config import Instructions, Pairs, Spending, Training
from hive_ray.presets import PRESETS, hive, instruct_pix2pix, sd15, sd21_v, sdxl, shapes


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_resolves_and_survives_being_written(preset):
    config = PRESETS[preset]()
    assert type(config).model_validate_json(config.model_dump_json()) == config


def test_an_unknown_setting_is_refused_by_name():
    with pytest.raises(ValidationError, match="samples_per_instructoin"):
        Pairs(base="x", samples_per_instructoin=3)


def test_settings_are_frozen():
    with pytest.raises(ValidationError):
        shapes().pairs.seed = 1


def test_a_batch_that_the_workers_cannot_share_is_refused():
    with pytest.raises(ValidationError, match=r"batch_size is 48, which is not a multiple of .* = 64"):
        Training(**shapes().editor.sft.model_dump() | {"batch_size": 48, "micro_batch_size": 32})  # two workers


def test_a_span_has_its_least_first():
    with pytest.raises(ValidationError, match=r"guidance_scale is 4\.0\.\.3\.0"):
        Pairs(base="x", guidance_scale=(4.0, 3.0))


def test_local_blending_that_looks_at_no_words_is_refused():
    with pytest.raises(ValidationError, match=r"local_blend is 0\.3"):
        Pairs(base="x", local_blend=0.3)


def test_the_published_numbers_stand():
    pairs, editor = sd15().pairs, sd15().editor
    assert (pairs.least_clip_image, pairs.least_clip_direction, pairs.keep_per_instruction) == (0.7, 0.2, 4)
    assert (pairs.schedule, pairs.num_inference_steps, pairs.sharing) == ("euler_ancestral", 100, "self")
    assert (editor.sft.learning_rate, editor.sft.batch_size, editor.condition_dropout) == (1e-4, 1024, 0.05)


def test_the_published_runs_are_presets():
    for preset in (instruct_pix2pix, hive):
        sft = preset().editor.sft
        assert (sft.learning_rate, sft.schedule, sft.warmup_images, sft.weight_decay) == (1e-4, "constant", 0, 0.01)
        assert (sft.batch_size, sft.micro_batch_size, sft.workers.num_actors) == (1024, 32, 8)
        assert (sft.precision, sft.max_grad_norm, sft.ema_decay) == ("fp32", 0, 0.9999)
        assert preset().candidates.num_inference_steps == preset().evaluation.num_inference_steps == 100
    assert (instruct_pix2pix().pairs.samples_per_instruction, instruct_pix2pix().pairs.cycle) == (100, False)
    assert (hive().scoring.normalize, hive().scoring.phrase) == ("none", ", image quality is {level} out of five")


def test_people_rank_as_many_prompts_as_hive_did_of_three_times_as_many():
    for preset in (sd15, sd21_v, sdxl):
        config = preset()
        assert (config.candidates.num_prompts, config.choosing.num_ranked) == (10_800, 3_600)
        assert (config.candidates.guidance_scale, config.candidates.image_guidance_scale) == ((7.5, 7.5), (1.5, 1.5))
    assert (hive().candidates.num_prompts, hive().choosing.num_ranked, hive().choosing.by) == (3_600, 0, "random")


def test_presets_of_other_backbones_share_all_but_their_sizes():
    assert sd21_v().pairs.base == sd21_v().editor.start == "stabilityai/stable-diffusion-2-1"
    assert (sdxl().pairs.resolution, sdxl().editor.resolution, sdxl().editor.sft.batch_size) == (1024, 768, 1024)
    assert sdxl().scoring == sd21_v().scoring == sd15().scoring


def test_moderation_and_batches_cannot_both_be_asked_for():
    with pytest.raises(ValueError, match="moderation looks at captions first, and a batch asks for all"):
        Instructions(moderation=True, spending=Spending(batch=True))
