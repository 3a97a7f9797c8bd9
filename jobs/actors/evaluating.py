"""What the workers of `evaluate_editor` import: its actor, and no more than that needs."""

from math import nan

from hive_ray.config import Evaluation
from hive_ray.diffusion.precision import sampling_dtype
from hive_ray.editor.model import Editor
from hive_ray.editor.sampling import ScoredEdits, sample_and_score
from hive_ray.schemas import Row, Rows
from hive_ray.seeds import id_for, seed_for
from hive_ray.shapes.judge import judge
from hive_ray.similarity import Similarity
from jobs.actors.judging import load_reward


class EditEvaluator:
    """Prompts -> edits by one editor at given scales, measured by CLIP, the reward model and the judge.

    A prompt has a row with the picture of its first edit. Where `num_draws` is N > 1, that row's `draws` say what was
    measured of all N edits, the first among them. Where `with_best` is set, too, and there is a reward model, a prompt
    has a second row, of the editor `best_of_name(name, N)`: the edit that the reward model likes best. Where `reward`
    is "", every reward is NaN.
    """

    def __init__(
        self,
        editor: str,
        name: str,
        reward: str,
        scales: tuple[float, ...],
        settings: Evaluation,
        num_draws: int = 1,
        with_best: bool = False,
        device: str = "cpu",
    ) -> None:
        self.editor = Editor.load(editor).to(device, sampling_dtype(device, settings.precision))
        self.reward = load_reward(reward, device) if reward else None
        self.similarity = Similarity(settings.clip, device)
        self.name, self.scales, self.settings = name, scales, settings
        self.num_draws = num_draws
        self.with_best = with_best and num_draws > 1 and self.reward is not None

    def __call__(self, rows: Rows) -> Rows:
        return [measured for scale in self.scales for measured in self._at(rows, scale)]

    def _at(self, rows: Rows, image_guidance_scale: float) -> Rows:
        settings = self.settings
        drawn = sample_and_score(
            self.editor, rows, self._score, seeds=[self._seeds(row["prompt_id"]) for row in rows],
            guidance_scale=settings.guidance_scale, image_guidance_scale=image_guidance_scale,
            num_inference_steps=settings.num_inference_steps,
        )  # fmt: skip
        made: Rows = []
        for row, draws, measures in zip(rows, drawn, self._measured(rows, drawn), strict=True):
            first = self._row(self.name, row, draws.edits[0], measures[0], image_guidance_scale)
            made.append(first | {"draws": measures if self.num_draws > 1 else []})
            if self.with_best:
                name, place = best_of_name(self.name, self.num_draws), draws.best
                best = self._row(name, row, draws.edits[place], measures[place], image_guidance_scale)
                made.append(best | {"draws": []})
        return made

    def _seeds(self, prompt_id: str) -> list[int]:
        """The seeds of a prompt's edits: the first is the same for any number of them."""
        more = [seed_for(self.settings.seed, prompt_id, "evaluation", draw) for draw in range(1, self.num_draws)]
        return [seed_for(self.settings.seed, prompt_id, "evaluation"), *more]

    def _score(self, sources: list[bytes], edits: list[bytes], instructions: list[str]) -> list[float]:
        return self.reward.score(sources, edits, instructions) if self.reward else [nan] * len(edits)

    def _measured(self, rows: Rows, drawn: list[ScoredEdits]) -> list[Rows]:
        """Of each prompt, its `draws` in `evaluation`: what is measured of each of its edits."""
        each = [row for row in rows for _ in range(self.num_draws)]
        edits = [edit for draws in drawn for edit in draws.edits]
        seeds = [seed for draws in drawn for seed in draws.seeds]
        rewards = [reward for draws in drawn for reward in draws.rewards]
        clip = self.similarity.measure(
            [row["source_image"] for row in each], edits,
            [row["source_caption"] for row in each], [row["edited_caption"] for row in each],
        )  # fmt: skip
        measures = [
            {
                "seed": seeds[place],
                "clip_image": float(clip["clip_image"][place]),
                "clip_direction": float(clip["clip_direction"][place]),
                "reward": rewards[place],
                **_judged(self.settings, row, edits[place]),
            }
            for place, row in enumerate(each)
        ]
        return [measures[start : start + self.num_draws] for start in range(0, len(measures), self.num_draws)]

    def _row(self, name: str, row: Row, edit: bytes, measures: Row, image_guidance_scale: float) -> Row:
        """A row of `evaluation` of one edit, but for its `draws`."""
        return {
            "evaluation_id": id_for(row["prompt_id"], name, measures["seed"], str(image_guidance_scale)),
            "prompt_id": row["prompt_id"],
            "instruction": row["instruction"],
            "editor": name,
            "guidance_scale": self.settings.guidance_scale,
            "image_guidance_scale": image_guidance_scale,
            "source_image": row["source_image"],
            "edited_image": edit,
            **measures,
        }


def best_of_name(editor: str, num_draws: int) -> str:
    """What the best of several edits of an editor is called in tables."""
    return f"{editor}, best of {num_draws}"


def _judged(settings: Evaluation, row: Row, edit: bytes) -> dict[str, float]:
    if settings.judge == "none":
        return {"followed": nan, "preserved": nan}
    verdict = judge(row["source_image"], edit, row["source_caption"], row["edited_caption"])
    return {"followed": verdict.followed, "preserved": verdict.preserved}
