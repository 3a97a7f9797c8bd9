"""A reward model that ranks edits as people did.

rankings -> reward
"""

from pathlib import Path

import torch
from torch import Tensor

from hive_ray import config
from hive_ray.distributed.models import Metrics, model_digest
from hive_ray.distributed.tables import Selection, read_rows, select, table_digest
from hive_ray.distributed.training import fit
from hive_ray.reward.model import RewardModel
from hive_ray.reward.objective import RewardObjective, doubt, is_held_out, measure, rewards_of
from hive_ray.schemas import RANKINGS
from jobs.run import Run, fingerprint, main

COLUMNS = ["prompt_id", "instruction", "source_image", "edits", "ranks"]


class RewardTraining(RewardObjective):
    """The reward model's objective, with what it is worth on rankings it never saw in its card."""

    def __init__(self, start: str, reward: config.Reward, rankings: str) -> None:
        super().__init__(RewardModel.build(start, reward.tokenizer, reward), reward)
        self.start, self.rankings = start, rankings

    def save(self, folder: Path, state: dict[str, Tensor], card: dict | None = None) -> None:
        self.model.load_state_dict(state)
        settings, rate = self.settings, self.settings.held_out_rate
        with torch.inference_mode():
            trained, held_out = (
                list(read_rows(self.rankings, RANKINGS, COLUMNS, where={"prompt_id": where}))
                for where in (lambda name: not is_held_out(name, rate), lambda name: is_held_out(name, rate))
            )
            start = RewardModel.build(self.start, settings.tokenizer, settings)
            seen, unseen, before = (
                measure(*rewards_of(model, rows), self.loss_of_rewards)
                for model, rows in ((self.model, trained), (self.model, held_out), (start, held_out))
            )
        warning = doubt(unseen)
        if warning:
            print(f"reward: {warning}", flush=True)
        print(
            f"reward: accuracy {unseen['reward/accuracy']:.3f} on held-out preferences, "
            f"{before['reward/accuracy']:.3f} before training",
            flush=True,
        )
        card = {
            "rankings": table_digest(self.rankings),
            "train": seen,
            "held_out": unseen,
            "held_out_before_training": before,
            "warning": warning or "",
        }
        super().save(folder, state, card)


def build(run: Run) -> Metrics:
    settings, rankings = run.config.reward, run.path("rankings")
    rate = settings.held_out_rate
    start = settings.start if settings.start == "shapes" else model_digest(settings.start)
    stage = settings.model_copy(update={"start": start})

    def those(held_out: bool, limit: int | None = None) -> Selection:
        where = {"prompt_id": lambda name: is_held_out(name, rate) == held_out}
        return select(rankings, RANKINGS, where=where, limit=limit)

    return fit(
        RewardTraining,
        name="reward",
        run=run.root,
        rows=lambda: those(held_out=False),
        held_out=lambda: those(held_out=True, limit=settings.training.validation_rows),
        columns=COLUMNS,
        settings=settings.training,
        fingerprint=fingerprint(stage, "tokenizer", rankings=table_digest(rankings)),
        on_mismatch=run.on_mismatch,
        start=settings.start,
        reward=settings,
        rankings=rankings,
    )


if __name__ == "__main__":
    main(build)
