"""A reward model that ranks edits as people did, in all rounds so far.

rankings, thumbs -> reward
"""

from pathlib import Path

from torch import Tensor

from hive_ray import config
from hive_ray.distributed.models import Metrics, model_digest
from hive_ray.distributed.tables import Selection, read_rows, select, table_digest
from hive_ray.distributed.training import fit
from hive_ray.reward.model import RewardModel
from hive_ray.reward.objective import RewardObjective, is_held_out, measure, rewards_of
from hive_ray.reward.worth import worth
from hive_ray.schemas import RANKINGS, Rows
from jobs.collect_rankings import rankings_so_far
from jobs.run import Run, fingerprint, main

COLUMNS = ["prompt_id", "instruction", "source_image", "edits", "ranks"]
HELD_OUT_COLUMNS = [*COLUMNS, "source_caption", "edited_caption"]

NOTHING_HELD_OUT = {"warning": "no ranking was held out (reward.held_out_rate): nobody knows what it is worth"}


class RewardTraining(RewardObjective):
    """The reward model's objective, with what it is worth on rankings it never saw in its card."""

    def __init__(self, start: str, reward: config.Reward, rankings: list[str], clip: str) -> None:
        super().__init__(RewardModel.build(start, reward.tokenizer, reward), reward)
        self.start, self.rankings, self.clip = start, rankings, clip

    def save(self, folder: Path, state: dict[str, Tensor], card: dict | None = None) -> None:
        self.model.load_state_dict(state)
        start = RewardModel.build(self.start, self.settings.tokenizer, self.settings)
        trained, held_out = self._rows(COLUMNS, held_out=False), self._rows(HELD_OUT_COLUMNS, held_out=True)
        card = {
            "rankings": table_digest(*self.rankings),
            "train": measure(*rewards_of(self.model, trained), self.loss_of_rewards),
            **(worth(self.model, start, self.clip, held_out, self.settings) if held_out else NOTHING_HELD_OUT),
        }
        for words in filter(None, (card["warning"], *card.get("remarks", []))):
            print(f"reward: {words}", flush=True)
        if held_out:
            print(
                f"reward: accuracy {card['held_out']['reward/accuracy']:.3f} on held-out preferences, "
                f"{card['held_out_before_training']['reward/accuracy']:.3f} before training",
                flush=True,
            )
        super().save(folder, state, card)

    def _rows(self, columns: list[str], held_out: bool) -> Rows:
        where = {"prompt_id": lambda name: is_held_out(name, self.settings.held_out_rate) == held_out}
        return list(read_rows(self.rankings, RANKINGS, columns, where=where))


def build(run: Run) -> Metrics:
    settings, rankings = run.config.reward, rankings_so_far(run)
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
        fingerprint=fingerprint(stage, "tokenizer", rankings=table_digest(*rankings)),
        on_mismatch=run.on_mismatch,
        start=settings.start,
        reward=settings,
        rankings=rankings,
        clip=run.config.evaluation.clip,
    )


if __name__ == "__main__":
    main(build)
