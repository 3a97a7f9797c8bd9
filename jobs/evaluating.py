"""What the workers of `evaluate_editor` import: its actor, and no more than that needs."""

from math import nan

from hive_ray.config import Evaluation
from hive_ray.editor.model import Editor
from hive_ray.editor.sampling import edit_rows
from hive_ray.precision import sampling_dtype
from hive_ray.schemas import Row, Rows
from hive_ray.seeds import id_for, seed_for
from hive_ray.shapes.judge import judge
from hive_ray.similarity import Similarity
from jobs.judging import load_reward


class EditEvaluator:
    """Prompts -> one edit each by one editor at given scales, measured by CLIP, the reward model and the judge.

    Where `reward` is "", every reward is NaN.
    """

    def __init__(
        self,
        editor: str,
        name: str,
        reward: str,
        scales: tuple[float, ...],
        settings: Evaluation,
        device: str = "cpu",
    ) -> None:
        self.editor = Editor.load(editor).to(device, sampling_dtype(device, settings.precision))
        self.reward = load_reward(reward, device) if reward else None
        self.similarity = Similarity(settings.clip, device)
        self.name, self.scales, self.settings = name, scales, settings

    def __call__(self, rows: Rows) -> Rows:
        return [measured for scale in self.scales for measured in self._at(rows, scale)]

    def _at(self, rows: Rows, image_guidance_scale: float) -> Rows:
        settings = self.settings
        seeds = [seed_for(settings.seed, row["prompt_id"], "evaluation") for row in rows]
        edits = edit_rows(
            self.editor, rows, seeds=seeds, guidance_scale=settings.guidance_scale,
            image_guidance_scale=image_guidance_scale, num_inference_steps=settings.num_inference_steps,
        )  # fmt: skip
        sources = [row["source_image"] for row in rows]
        clip = self.similarity.measure(
            sources, edits, [row["source_caption"] for row in rows], [row["edited_caption"] for row in rows]
        )
        instructions = [row["instruction"] for row in rows]
        rewards = self.reward.score(sources, edits, instructions) if self.reward else [nan] * len(rows)
        return [
            {
                "evaluation_id": id_for(row["prompt_id"], self.name, seed, str(image_guidance_scale)),
                "prompt_id": row["prompt_id"],
                "instruction": row["instruction"],
                "editor": self.name,
                "seed": seed,
                "guidance_scale": settings.guidance_scale,
                "image_guidance_scale": image_guidance_scale,
                "source_image": row["source_image"],
                "edited_image": edit,
                "clip_image": float(clip["clip_image"][index]),
                "clip_direction": float(clip["clip_direction"][index]),
                "reward": rewards[index],
                **_judged(settings, row, edit),
            }
            for index, (row, edit, seed) in enumerate(zip(rows, edits, seeds, strict=True))
        ]


def _judged(settings: Evaluation, row: Row, edit: bytes) -> dict[str, float]:
    if settings.judge == "none":
        return {"followed": nan, "preserved": nan}
    verdict = judge(row["source_image"], edit, row["source_caption"], row["edited_caption"])
    return {"followed": verdict.followed, "preserved": verdict.preserved}
