"""A reward model that ranks edits as people did, in all rounds so far.

rankings, thumbs -> reward
"""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from torch import Tensor

from hive_ray import config
from hive_ray.distributed.models import Metrics, model_digest
from hive_ray.distributed.tables import Selection, Where, read_rows, select, table_digest
from hive_ray.distributed.training import fit
from hive_ray.reward.accuracies import ACCURACY
from hive_ray.reward.model import RewardModel
from hive_ray.reward.objective import RewardObjective, good_rankings, is_held_out, is_learned
from hive_ray.reward.worth import foretold, measured, worth
from hive_ray.schemas import RANKINGS, Row, Rows
from jobs.run import Run, fingerprint, main

COLUMNS = ["ranking_id", "prompt_id", "instruction", "source_image", "edits", "ranks"]
HELD_OUT_COLUMNS = [*COLUMNS, "source_caption", "edited_caption"]

HELD_OUT = "held_out.json"
"""In the model's folder: how much is right of how much by accuracy and held-out prompt, so that models can be compared
by what they do on the same prompts."""
MOST_MEASURED = 1000
"""Rankings of each side that the card's figures are of, the first: their pictures are in memory at a time."""
NOTHING_HELD_OUT = {"warning": "no ranking was held out (reward.held_out_rate): nobody knows what it is worth"}


class RewardTraining(RewardObjective):
    """The reward model's objective, with what it is worth on rankings it never saw in its card."""

    def __init__(self, start: str, reward: config.Reward, rankings: list[str], clip: str, share: float = 1.0) -> None:
        super().__init__(RewardModel.build(start, reward.tokenizer, reward), reward)
        self.start, self.rankings, self.clip, self.share = start, rankings, clip, share
        self.bad: dict[str, str] = {}
        """Rankings that it cannot be measured on, by ranking_id, with the reason."""

    def save(self, folder: Path, state: dict[str, Tensor], card: dict | None = None) -> None:
        self.model.load_state_dict(state)
        start = RewardModel.build(self.start, self.settings.tokenizer, self.settings)
        trained, unseen = self._rows(COLUMNS), self._rows(HELD_OUT_COLUMNS, held_out=True)
        learned = [row["prompt_id"] for row in self._read(["prompt_id"], held_out=False)]
        ours = foretold(self.model, unseen)
        card = {
            "rankings": table_digest(*self.rankings),
            "bad_rankings": len(self.bad),
            "train": measured(foretold(self.model, trained), self.settings),
            "train_rankings": len(learned),
            "train_prompts": len(set(learned)),
            **(worth(ours, self.model, start, self.clip, unseen, self.settings) if unseen else NOTHING_HELD_OUT),
        }
        for words in filter(None, (card["warning"], *card.get("remarks", []))):
            print(f"reward: {words}", flush=True)
        if unseen:
            print(
                f"reward: accuracy {card['held_out'][ACCURACY]:.3f} on held-out preferences, "
                f"{card['held_out_before_training'][ACCURACY]:.3f} before training by {len(learned)} rankings",
                flush=True,
            )
        super().save(folder, state, card)
        if unseen:
            (folder / HELD_OUT).write_text(json.dumps(ours.counts()))

    def _rows(self, columns: list[str], held_out: bool = False) -> Rows:
        """Rankings of one side, MOST_MEASURED at most, to measure a model on; bad ones are said, counted, left out."""
        good, bad = good_rankings(islice(self._read(columns, held_out), MOST_MEASURED), self.model.resolution)
        for name, why in bad.items():
            print(f"reward: not measured on {name}: {why}", flush=True)
        self.bad |= bad
        return good

    def _read(self, columns: list[str], held_out: bool) -> Iterator[Row]:
        where = side(self.settings.held_out_rate, self.share, held_out)
        return read_rows(self.rankings, RANKINGS, columns, where=where)


def side(rate: float, share: float = 1.0, held_out: bool = False) -> Where:
    """The rankings that are held out, or those of a share of the other prompts, which are learned from."""
    return {"prompt_id": lambda name: is_held_out(name, rate) if held_out else is_learned(name, rate, share)}


def build(run: Run, name: str = "reward", share: float = 1.0) -> Metrics:
    """The model <run>/<name>, trained on the rankings of this share of the prompts that are not held out."""
    settings, rankings = run.config.reward, run.rankings_so_far()
    start = settings.start if settings.start == "shapes" else model_digest(settings.start)
    stage, of_share = settings.model_copy(update={"start": start}), {} if share == 1 else {"share": f"{share:g}"}

    def those(held_out: bool, limit: int | None = None) -> Selection:
        return select(rankings, RANKINGS, where=side(settings.held_out_rate, share, held_out), limit=limit)

    return fit(
        RewardTraining,
        name=name,
        run=run.root,
        rows=lambda: those(held_out=False),
        held_out=lambda: those(held_out=True, limit=settings.training.validation_rows),
        columns=COLUMNS,
        settings=settings.training,
        fingerprint=fingerprint(stage, "tokenizer", rankings=table_digest(*rankings), **of_share),
        on_mismatch=run.on_mismatch,
        start=settings.start,
        reward=settings,
        rankings=rankings,
        clip=run.config.evaluation.clip,
        share=share,
    )


if __name__ == "__main__":
    main(build)
