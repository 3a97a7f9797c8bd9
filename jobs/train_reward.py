"""A reward model that ranks edits as people did, in all rounds so far.

rankings, thumbs -> reward

On BLIP by default; by the editor's denoising errors where `reward.features` says so (`reward_head`).
"""

from jobs.command import run_job

if __name__ == "__main__":  # before what the work needs is imported, which takes seconds
    run_job("train_reward")

import json
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from torch import Tensor

from hive_ray import config
from hive_ray.artifacts.manifest import Fingerprint, fingerprint_of, table_digest
from hive_ray.artifacts.model_store import Metrics, model_digest, store_model
from hive_ray.artifacts.selection import Selection, Where, read_rows, select
from hive_ray.cluster.fitting import fit
from hive_ray.console import say, tell_result, warn
from hive_ray.reward.accuracies import ACCURACY
from hive_ray.reward.card import RewardCard
from hive_ray.reward.model import RewardModel
from hive_ray.reward.model_evaluation import HELD_OUT_FILE, NOTHING_HELD_OUT, evaluate_reward_model, measure_predictions
from hive_ray.reward.objective import RewardObjective, is_held_out, is_trained_on, usable_rankings
from hive_ray.reward.predictors import predict
from hive_ray.schemas import RANKINGS, Row, Rows
from jobs import reward_head
from jobs.run import Run, fingerprint
from jobs.stage import ModelStage, StagesOfModel

COLUMNS = ["ranking_id", "prompt_id", "instruction", "source_image", "edits", "ranks"]
HELD_OUT_COLUMNS = [*COLUMNS, "source_caption", "edited_caption"]

MOST_MEASURED = 1000
"""Rankings of each side that the card's figures are of, the first: their pictures are in memory at a time."""


class RewardTraining(RewardObjective):
    """The reward model's objective, with what it is worth on rankings it never saw in its card."""

    def __init__(
        self, start: str, reward: config.Reward, rankings: list[str], clip: str, share: float = 1.0, beyond: float = 0.0
    ) -> None:
        super().__init__(RewardModel.build(start, reward.tokenizer, reward), reward)
        self.start, self.rankings, self.clip, self.share, self.beyond = start, rankings, clip, share, beyond
        self.bad: dict[str, str] = {}
        """Rankings that it cannot be measured on, by ranking_id, with the reason."""

    def save(self, folder: Path, state: dict[str, Tensor], card: dict | None = None) -> None:
        self.model.load_state_dict(state)
        start = RewardModel.build(self.start, self.settings.tokenizer, self.settings)
        trained, unseen = self._rows(COLUMNS), self._rows(HELD_OUT_COLUMNS, held_out=True)
        learned = [row["prompt_id"] for row in self._read(["prompt_id"], held_out=False)]
        ours = predict(self.model, unseen)
        content = {
            "rankings": table_digest(*self.rankings),
            "bad_rankings": len(self.bad),
            "train": measure_predictions(predict(self.model, trained), self.settings),
            "train_rankings": len(learned),
            "train_prompts": len(set(learned)),
            **(
                evaluate_reward_model(ours, self.model, start, self.clip, unseen, self.settings)
                if unseen
                else NOTHING_HELD_OUT
            ),
        }
        reward_card = RewardCard.model_validate(content)
        if reward_card.warning:
            warn(reward_card.warning, stage="reward")
        for words in reward_card.remarks:
            say(words, stage="reward")
        if unseen:
            tell_result(
                f"accuracy {reward_card.held_out[ACCURACY]:.3f} on held-out preferences, "
                f"{reward_card.held_out_before_training[ACCURACY]:.3f} before training by {len(learned)} rankings",
                stage="reward",
            )
        super().save(folder, state, reward_card.to_json())
        if unseen:
            (folder / HELD_OUT_FILE).write_text(json.dumps(ours.counts()))

    def _rows(self, columns: list[str], held_out: bool = False) -> Rows:
        """Rankings of one side, MOST_MEASURED at most, to measure a model on; bad ones are said, counted, left out."""
        good, bad = usable_rankings(islice(self._read(columns, held_out), MOST_MEASURED), self.model.resolution)
        for name, why in bad.items():
            warn(f"not measured on {name}: {why}", stage="reward")
        self.bad |= bad
        return good

    def _read(self, columns: list[str], held_out: bool) -> Iterator[Row]:
        where = rankings_where(self.settings.held_out_rate, self.share, held_out, self.beyond)
        return read_rows(self.rankings, RANKINGS, columns, where=where)


def rankings_where(rate: float, share: float = 1.0, held_out: bool = False, beyond: float = 0.0) -> Where:
    """The rankings that are held out, or those of a share of the other prompts, which are learned from."""
    return {"prompt_id": lambda name: is_held_out(name, rate) if held_out else is_trained_on(name, rate, share, beyond)}


def build(run: Run, name: str = "reward", share: float = 1.0) -> Metrics:
    """The model <run>/<name>, trained on the rankings of this share of the prompts that are not held out."""
    *before, model = stages(run, name, share)
    for stage in before:
        stage.make(run)
    return model.make(run)


def stages(run: Run, name: str = "reward", share: float = 1.0) -> StagesOfModel:
    """What is made for the model <run>/<name>, and the model itself."""
    settings = run.config.reward
    if settings.features == "blip":
        return (_blip_stage(name, share),)
    if settings.features == "denoising_error":
        return reward_head.stages(name, share)
    blip = f"{name}_blip"
    if settings.denoising_error.train_blip:
        first = _blip_stage(blip, share, beyond=reward_head.share_of_head(settings, share))
    else:
        first = _untrained_blip_stage(blip)
    return (first, *reward_head.stages(name, share, blip))


def _blip_stage(name: str, share: float, beyond: float = 0.0) -> ModelStage:
    """A BLIP model, trained on the rankings of this share of the prompts, but for those of the share `beyond`."""

    def settings_of(run: Run) -> config.Reward:
        return run.config.reward.model_copy(update={"features": "blip"})

    def fingerprint_without_training(run: Run) -> Fingerprint:
        settings = settings_of(run)
        inputs = {"rankings": table_digest(*run.ranking_tables())}
        if share != 1:
            inputs["share"] = f"{share:g}"
        if beyond:
            inputs["beyond"] = f"{beyond:g}"
        return fingerprint(settings.model_copy(update={"start": start_digest(settings)}), "tokenizer", **inputs)

    def compute_fingerprint(run: Run) -> Fingerprint:
        return fingerprint_without_training(run) | fingerprint_of(run.config.reward.training)

    def train(run: Run) -> Metrics:
        settings, rankings = settings_of(run), run.ranking_tables()

        def those(held_out: bool, limit: int | None = None) -> Selection:
            return select(
                rankings, RANKINGS, where=rankings_where(settings.held_out_rate, share, held_out, beyond), limit=limit
            )

        return fit(
            RewardTraining,
            name=name,
            run=run.root,
            rows=lambda: those(held_out=False),
            held_out=lambda: those(held_out=True, limit=settings.training.validation_rows),
            columns=COLUMNS,
            settings=settings.training,
            fingerprint=fingerprint_without_training(run),
            on_mismatch=run.on_mismatch,
            start=settings.start,
            reward=settings,
            rankings=rankings,
            clip=run.config.evaluation.clip,
            share=share,
            beyond=beyond,
        )

    return ModelStage(name=name, reads=("rankings",), fingerprint=compute_fingerprint, train=train)


def _untrained_blip_stage(name: str) -> ModelStage:
    """The BLIP that training would start from, as it is."""

    def compute_fingerprint(run: Run) -> Fingerprint:
        settings = run.config.reward
        sizes = {"resolution": str(settings.resolution), "max_tokens": str(settings.max_tokens)}
        return fingerprint_of(start=start_digest(settings), tokenizer=model_digest(settings.tokenizer), **sizes)

    def store(run: Run, made_from: Fingerprint) -> None:
        settings = run.config.reward
        started = time.monotonic()
        blip = RewardModel.build(settings.start, settings.tokenizer, settings)
        card = RewardCard(warning="taken as it is (reward.denoising_error.train_blip)").to_json()
        store_model(
            run.path(name), lambda folder: blip.save(folder, card), made_from, {}, time.monotonic() - started
        )  # fmt: skip

    return ModelStage(name=name, fingerprint=compute_fingerprint, store=store)


def start_digest(settings: config.Reward) -> str:
    """Names what training starts from by its content."""
    return settings.start if settings.start == "shapes" else model_digest(settings.start)
