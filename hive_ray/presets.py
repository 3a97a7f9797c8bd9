"""Presets: functions that fill the settings of config/, each with where its numbers come from.

shapes, the embedded domain; sd15, sd21, sd21_v, sdxl on GPUs; instruct_pix2pix and hive as published
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from hive_ray.config import (
    Candidates,
    CandidateScoring,
    Choosing,
    Config,
    DenoisingError,
    Dpo,
    Editor,
    Evaluation,
    Importing,
    Instructions,
    Nft,
    Pairs,
    Preview,
    Rankings,
    Resources,
    Reward,
    Scoring,
    Section,
    Training,
    Writer,
)

SHAPES_WEIGHTS = Path(__file__).parent / "shapes" / "weights"
S = TypeVar("S", bound=Section)


def shapes() -> Config:
    """Every stage on two CPU cores in a few minutes, on the embedded shapes domain."""
    base = str(SHAPES_WEIGHTS / "base")
    clip = str(SHAPES_WEIGHTS / "clip")
    reward = str(SHAPES_WEIGHTS / "reward")
    workers = Resources(num_gpus=0, num_cpus=1, num_actors=2)
    sft = Training(
        total_images=6_400, batch_size=32, micro_batch_size=16, learning_rate=5e-5, schedule="cosine",
        warmup_images=640, ema_decay=0.98, checkpoint_images=3_200, validation_rows=64, workers=workers,
    )  # fmt: skip
    return Config(
        importing=Importing(rankings="shapes", clip=clip, resources=_two_actors(32)),
        # 450 for training, 720 to edit for people, who rank two thirds, and 260 to tell editors apart.
        instructions=Instructions(num_captions=1_430, rank_rate=0.503, test_rate=0.182, seed=29),
        pairs=Pairs(
            base=base, clip=clip, resolution=64, samples_per_instruction=4, keep_per_instruction=4,
            num_inference_steps=10, guidance_scale=(3.0, 4.0), shared_attention=(0.5, 1.0), sharing="cross_and_self",
            # Nine in ten drawn pairs pass each of these; InstructPix2Pix's numbers belong to CLIP ViT-L/14.
            least_clip_image=0.46, least_clip_direction=0.41, least_clip_source_text=0.919,
            least_clip_edited_text=0.921, prompts="shapes",
            # A small thing on a plain ground is a good picture here, and removing it a good edit.
            least_contrast=0.0, least_difference=0.0,
            resources=_two_actors(32),
        ),
        editor=Editor(
            start=str(SHAPES_WEIGHTS / "editor"), resolution=64, train_text_encoder=True, latents="fp32", sft=sft,
            # At sft's own rate training on alone costs twice as many right edits (docs/shapes.md).
            finetune=sft.model_copy(update={"learning_rate": 2e-5, "total_images": 4_800}),
            resources=_two_actors(16),
            preview=Preview(num_inference_steps=8, guidance_scale=2.0, image_guidance_scale=1.4),
            level_rate_factor=300.0, level_guidance_scale=2.0,
            # Rankings and the best of its own edits teach an editor different things, which add up (docs/choices.md).
            arm="dpo+rejection",
            # Near ranks are mostly noise, and the first steps of sampling decide what an edit shows (docs/shapes.md).
            dpo=Dpo(
                beta=300.0, min_rank_gap=2, timesteps=(0.3, 1.0),
                # Five times as many rankings of the shipped editor's edits add nothing to those of its own.
                imported_rankings=False,
                # One noisy batch of 32 says little: in steps of 64 the same rate drifts less (docs/choices.md).
                training=Training(
                    total_images=4_800, batch_size=64, micro_batch_size=16, learning_rate=5e-5, schedule="cosine",
                    warmup_images=480, ema_decay=0.98, checkpoint_images=4_800, workers=workers,
                ),
            ),
            nft=Nft(
                training=Training(
                    total_images=4_800, batch_size=32, micro_batch_size=16, learning_rate=1e-4, schedule="cosine",
                    warmup_images=480, ema_decay=0.98, checkpoint_images=4_800, workers=workers,
                ),
            ),
        ),
        candidates=Candidates(
            num_edits=4, num_inference_steps=8, guidance_scale=(2.0, 2.0), image_guidance_scale=(1.4, 1.4),
            resources=_two_actors(16),
        ),
        choosing=Choosing(num_ranked=480),
        candidate_scoring=CandidateScoring(ranked_rate=1 / 3, resources=_two_actors(16)),
        rankings=Rankings(annotator="shapes"),
        reward=Reward(
            start=reward, tokenizer=reward, resolution=64, max_tokens=32,
            # BLIP, which begins with captions, learns nothing from so few rankings (docs/shapes.md).
            features="denoising_error",
            denoising_error=DenoisingError(
                levels=(200, 360, 520, 680, 840), draws=1, conditions=("instruction", "source"), log=True,
                clip_image=True, learned_rate=0.25,
            ),
            training=Training(
                total_images=1_600, batch_size=16, micro_batch_size=8, learning_rate=5e-5, schedule="cosine",
                warmup_images=160, ema_decay=0.0, checkpoint_images=1_600, workers=workers,
            ),
            resources=_two_actors(64),
        ),
        scoring=Scoring(baseline="words", clip=clip, resources=_two_actors(64)),
        evaluation=Evaluation(
            editors=("sft", "shuffled", "finetuned"), num_prompts=250, best_of=4, num_inference_steps=8,
            guidance_scale=2.0, image_guidance_scale=1.4, clip=clip,
            judge="shapes", curve_prompts=20, resources=_two_actors(16),
        ),
    )  # fmt: skip


def _two_actors(batch_size: int) -> Resources:
    """Two actors, each on one CPU core."""
    return Resources(num_gpus=0, num_cpus=1, num_actors=2, batch_size=batch_size)


def sd15() -> Config:
    """Stable Diffusion 1.5 on GPUs: the numbers of `instruct_pix2pix` and `hive`, in bf16 with gradients cut at 1."""
    return _stable_diffusion("stable-diffusion-v1-5/stable-diffusion-v1-5")


def sd21() -> Config:
    """Stable Diffusion 2.1-base (epsilon, 512 x 512), else as `sd15`."""
    return _stable_diffusion("stabilityai/stable-diffusion-2-1-base")


def sd21_v() -> Config:
    """Stable Diffusion 2.1 (v-prediction, 768 x 768), else as `sd15`. No editor of it is published: sizes are ours."""
    return _stable_diffusion(
        "stabilityai/stable-diffusion-2-1",
        pairs={"resolution": 768},
        editor={"resolution": 512},
        training={"micro_batch_size": 16},
    )


def sdxl() -> Config:
    """Stable Diffusion XL 1.0 base, pairs of 1024 x 1024, an editor of 768 x 768.

    768 x 768 and the learning rate are those of diffusers' training script for XL [recalled]; the rest as `sd15`.
    """
    return _stable_diffusion(
        "stabilityai/stable-diffusion-xl-base-1.0",
        pairs={"resolution": 1024, "resources": Resources(num_actors=8, batch_size=2)},
        editor={"resolution": 768},
        training={"micro_batch_size": 4, "learning_rate": 5e-5},
    )


INSTRUCT_PIX2PIX_TRAINING = {"precision": "fp32", "max_grad_norm": 0.0, "ema_rule": "micro_batch"}
"""Beside what `sd15` has of it."""


def instruct_pix2pix() -> Config:
    """InstructPix2Pix as published, on Stable Diffusion 1.5.

    Read in its code: 256 x 256, AdamW at 1e-4 without warm-up, batches of 1024 (32 a GPU, 8 GPUs, 4 accumulated),
    fp32, gradients not cut, EMA 0.9999 over micro batches, dropout of conditions 0.05, mirrored pairs; completions
    with its delimiters and moderation; pairs of 512 x 512 by 100 Euler-ancestral steps, 100 samples of an instruction
    of which at most 4 are kept by its four limits; edits of 100 steps, scales 7.5 and 1.5. Recalled: 10,000 steps,
    one instruction a caption. Not so here: pairs are decoded by the base's own VAE (it took vae-ft-mse-840000), pairs
    that say left or right are not mirrored, and candidates are sampled with DDIM.
    """
    config = _stable_diffusion(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        pairs={"samples_per_instruction": 100, "cycle": False},
        training=INSTRUCT_PIX2PIX_TRAINING,
    )
    return Config(
        **_sections(config, "writer", "instructions", "candidates", "evaluation"),
        writer=Writer(form="delimited"),
        instructions=_changed(config.instructions, form="delimited", llm="finetuned", moderation=True, per_caption=1),
        candidates=_changed(config.candidates, num_inference_steps=100),
        evaluation=_changed(config.evaluation, num_inference_steps=100),
    )


def hive() -> Config:
    """HIVE as published, on Stable Diffusion 2.1-base (its other backbone is 1.5).

    Read in its code and abstract: training as InstructPix2Pix's, the phrase behind the instruction, weights that
    nothing scales, 3.6K ranked prompts, edits of 100 steps. Read in its figure: four edits a prompt, five levels.
    Recalled: five instructions a caption, cycle-consistent twins of all pairs, levels by quantile, weights of
    exp(reward / beta). How its reward model was trained is not published: that part is ImageReward's.
    """
    config = _stable_diffusion("stabilityai/stable-diffusion-2-1-base", training=INSTRUCT_PIX2PIX_TRAINING)
    return Config(
        **_sections(config, "candidates", "choosing", "scoring", "evaluation"),
        candidates=_changed(config.candidates, num_inference_steps=100, num_prompts=3_600),
        choosing=Choosing(by="random"),
        scoring=_changed(config.scoring, normalize="none"),
        evaluation=_changed(config.evaluation, num_inference_steps=100),
    )


def _sections(config: Config, *without: str) -> dict[str, Any]:
    """The sections of a config by name, less some."""
    return {name: section for name, section in config if name not in without}


def _changed(section: S, **changes: Any) -> S:
    """The section with some values changed; all are validated again."""
    return type(section)(**dict(section) | changes)


def _stable_diffusion(
    base: str, *, pairs: dict[str, Any] | None = None, editor: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
) -> Config:  # fmt: skip
    workers = Resources(num_actors=8, num_gpus=1, num_cpus=4)
    sft_settings: dict[str, Any] = dict(
        total_images=1024 * 10_000, batch_size=1024, micro_batch_size=32, learning_rate=1e-4,
        precision="bf16", checkpoint_images=1024 * 500, validation_rows=1024, workers=workers,
    )  # fmt: skip
    sft = Training(**sft_settings | (training or {}))
    pairs_settings: dict[str, Any] = dict(
        base=base, num_inference_steps=100, schedule="euler_ancestral",
        resources=Resources(num_actors=8, batch_size=4),
    )  # fmt: skip
    editor_settings: dict[str, Any] = dict(
        start=base, latents="fp32", sft=sft, finetune=sft, resources=Resources(num_actors=8, batch_size=16),
    )  # fmt: skip
    return Config(
        instructions=Instructions(captions="captions.txt", num_captions=1_000_000, writer="openai", per_caption=5),
        importing=Importing(resources=Resources(num_actors=8, batch_size=32)),
        pairs=Pairs(**pairs_settings | (pairs or {})),
        editor=Editor(**editor_settings | (editor or {})),
        # The third of the prompts whose edits differ most holds most of what people can tell; HIVE ranked as many.
        candidates=Candidates(num_prompts=10_800, resources=Resources(num_actors=8, batch_size=8)),
        choosing=Choosing(num_ranked=3_600),
        candidate_scoring=CandidateScoring(resources=Resources(num_actors=8, num_cpus=4, batch_size=16)),
        rankings=Rankings(annotator="people"),
        reward=Reward(
            frozen_rate=0.7,
            training=Training(
                total_images=36_000, batch_size=64, micro_batch_size=8, learning_rate=1e-5, precision="bf16",
                ema_decay=0.0, checkpoint_images=6_400, workers=workers,
            ),
        ),
        scoring=Scoring(resources=Resources(num_actors=8, num_cpus=4, batch_size=64)),
        evaluation=Evaluation(resources=Resources(num_actors=8, batch_size=8)),
    )  # fmt: skip


PRESETS: dict[str, Callable[[], Config]] = {
    preset.__name__: preset for preset in (shapes, sd15, sd21, sd21_v, sdxl, instruct_pix2pix, hive)
}
