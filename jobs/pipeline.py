"""The whole of HIVE, in order. Rerunning it is the resume command: what is finished is kept.

captions -> instructions -> pairs -> editor -> candidates -> rankings -> reward -> scored pairs -> better editor
"""

import time

from jobs import (
    collect_rankings,
    evaluate_editor,
    make_pairs,
    sample_candidates,
    score_pairs,
    train_editor,
    train_reward,
    write_instructions,
)
from jobs.run import Run, main

TO_REWARD = (
    write_instructions.build,
    make_pairs.build,
    train_editor.build,
    sample_candidates.build,
    collect_rankings.build,
    train_reward.build,
)
STAGES = (*TO_REWARD, score_pairs.build, train_editor.finetune, evaluate_editor.build)


def build(run: Run) -> None:
    start = time.monotonic()
    for number, stage in enumerate(STAGES, 1):
        verb = f"{stage.__module__.rsplit('.', 1)[-1]}.{stage.__name__}"
        print(f"[{number}/{len(STAGES)} {verb}, {time.monotonic() - start:.0f} s]", flush=True)
        stage(run)


if __name__ == "__main__":
    main(build)
