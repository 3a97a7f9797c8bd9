"""How hive_ray/shapes/weights came to be, again from nothing and with fixed seeds.

    scenes -> autoencoder, draft (a first base) -> base and editor; clip; blip -> reward

All of it learns from drawn scenes and their words. The editor stands for published InstructPix2Pix weights, and the
reward model for BLIP's image-text matching weights, from which HIVE's starts: it has seen pictures beside captions, no
edit and no ranking. The judge only measures the result.
Started again, it keeps the parts that are whole.
"""

from jobs.command import run_job

if __name__ == "__main__":  # before what the work needs is imported, which takes seconds
    run_job("pretrain_shapes")

import json
import shutil
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from hive_ray import console
from hive_ray.editor.model import Editor
from hive_ray.editor.sampling import sample
from hive_ray.images import to_pixels, to_tensor
from hive_ray.pairs.text_to_image import TextToImage
from hive_ray.presets import shapes
from hive_ray.reward.model import RewardModel
from hive_ray.seeds import generator_for
from hive_ray.shapes import judge
from hive_ray.shapes.actors import random_captions, random_fitting_edit
from hive_ray.shapes.pretraining import autoencoder, diffusion, editing, matching
from hive_ray.shapes.pretraining.diffusion import TextToImageModel
from hive_ray.shapes.pretraining.pool import TwinPictures
from hive_ray.shapes.scenes import draw
from jobs.own_settings import Pretraining


def make_autoencoder(settings: Pretraining) -> None:
    autoencoder.train_autoencoder(settings.work / "vae", num_steps=settings.autoencoder_steps, seed=1, say=say)


def make_draft(settings: Pretraining) -> None:
    """A text-to-image model: one cosine after the other, each from what the last one saved."""
    draft = settings.work / "draft"
    for cycle, num_steps in enumerate(settings.draft_steps):
        model = TextToImageModel.load(draft) if cycle else TextToImageModel.from_scratch(settings.work / "vae", seed=2)
        diffusion.train_text_to_image(
            model, draft, num_steps=num_steps, single_things=0.0 if cycle else 0.2, pool=settings.draft_pool,
            seed=2 + 100 * cycle, say=say,
        )  # fmt: skip
    (draft / "whole").touch()


def make_editor(settings: Pretraining) -> None:
    """The editor and the base, from the draft: one U-Net that learns both tasks."""
    editor = Editor.build(settings.work / "draft")
    editor.unet.train()
    editor.text_encoder.train().requires_grad_(True)
    model = TextToImageModel(editor.vae, editor.tokenizer, editor.text_encoder, editor.unet, editor.scheduler)

    def save_base() -> None:
        TextToImageModel(
            model.vae, model.tokenizer, model.text_encoder, editing.without_source(model.unet), model.scheduler
        ).save(settings.out / "base")

    def save_editor() -> None:
        card = editor.card.model_copy(update={"base_model": "hive_ray shapes base"})
        editor.save(settings.out / "editor", card, dtype=torch.float16)

    editing.train_editing(
        model, num_steps=settings.editing_steps, pool=settings.editing_pool, seed=7, say=say, save=save_base
    )
    editing.train_editing(
        model, num_steps=settings.phrase_steps, pool=settings.phrase_pool, seed=8, say=say, save=save_editor,
        rows=editing.WITH_PHRASE, lr=2e-4,
    )  # fmt: skip
    shares = [f"{kind} {share:.2f}" for kind, share in measure_edits(editor).items()]
    say(f"editor: share of unseen edits that are right: {', '.join(shares)}")
    adherence = measure_adherence(settings.out / "base")
    say(f"base: caption adherence {adherence:.3f} on 500 unseen captions")
    (settings.out / "base" / "adherence.json").write_text(json.dumps({"captions": 500, "adherence": adherence}))


def make_clip(settings: Pretraining) -> None:
    base = settings.out / "base"
    pool = TwinPictures(base / "vae", settings.matching_pool, seed=3)
    matching.train_clip(settings.out / "clip", base / "tokenizer", pool, num_steps=settings.clip_steps, seed=3, say=say)


def make_blip(settings: Pretraining) -> None:
    base = settings.out / "base"
    pool = TwinPictures(base / "vae", settings.matching_pool, seed=5)
    matching.train_blip(
        settings.work / "blip", base / "tokenizer", pool, num_steps=settings.blip_steps, seed=5, say=say
    )


def make_reward(settings: Pretraining) -> None:
    """The BLIP as a reward model, in half precision: what it knows is which pictures and texts fit each other."""
    blip = settings.work / "blip"
    model = RewardModel.build(blip, blip, shapes().reward)
    share = matching.matching_accuracy(model.score, count=500, seed=105)
    say(f"reward: share of unseen pictures that fit their caption better than their edited twin's: {share:.3f}")
    model.half().save(settings.out / "reward", {"unseen_captions_told_apart": share})


def measure_adherence(base: Path, count: int = 500) -> float:
    """Mean of the judge's caption adherence over captions that no training drew; 0..1."""
    model, captions = TextToImage(base), random_captions(count, seed=99)
    scores: list[float] = []
    for start in range(0, count, 50):
        words = captions[start : start + 50]
        noise = model.noise([generator_for("adherence", caption) for caption in words], resolution=64)
        scale = torch.full((len(words),), 3.5)
        images = model.draw(words, noise, guidance_scale=scale, num_inference_steps=16)
        scores += [judge.adherence(to_pixels(image), caption) for image, caption in zip(images, words, strict=True)]
    return float(np.mean(scores))


def measure_edits(editor: Editor, count: int = 192) -> dict[str, float]:
    """The share of right edits by the judge, of all and of each kind, over edits that no training drew."""
    rng, verdicts = np.random.default_rng(77), defaultdict(list)
    editor.unet.eval()
    asked = [random_fitting_edit(caption, rng) for caption in random_captions(count, seed=77)]
    for start in range(0, count, 64):
        part = asked[start : start + 64]
        edits = sample(
            editor, torch.stack([to_tensor(draw(before)) for _, before, _ in part]),
            [edit.instruction for edit, _, _ in part], guidance_scale=3.0, image_guidance_scale=1.4,
            num_inference_steps=8, seeds=range(start, start + len(part)),
        )  # fmt: skip
        for (edit, before, after), edited in zip(part, edits, strict=True):
            captions = before.description.caption, after.description.caption
            right = judge.judge(draw(before), to_pixels(edited), *captions).right
            verdicts["all"].append(right)
            verdicts[edit.kind].append(right)
    return {kind: float(np.mean(rights)) for kind, rights in verdicts.items()}


PARTS = {
    "autoencoder": (make_autoencoder, "work", "vae/config.json"),
    "draft": (make_draft, "work", "draft/whole"),
    "base and editor": (make_editor, "out", "base/adherence.json"),
    "clip": (make_clip, "out", "clip/tokenizer_config.json"),
    "blip": (make_blip, "work", "blip/tokenizer_config.json"),
    "reward": (make_reward, "out", "reward/card.json"),
}
"""Each part's maker, and the file in `out` or `work` that is written last of it: where that is, the part is whole."""


def main(settings: Pretraining) -> None:
    """Make the parts in order, each needing those before it; what is whole is kept."""
    torch.set_num_threads(settings.threads)
    for part, (make, folder, last) in PARTS.items():
        done = getattr(settings, folder) / last
        if done.exists() and not settings.rebuild:
            say(f"{part}: kept ({done.parent} is whole)")
            continue
        start = time.monotonic()
        shutil.rmtree(done.parent, ignore_errors=True)
        make(settings)
        say(f"{part}: made in {(time.monotonic() - start) / 60:.0f} minutes")


def say(line: str) -> None:
    console.say(line)
