"""The whole of HIVE, in order. Rerunning it is the resume command: what is finished is kept.

captions -> instructions -> pairs -> editor -> candidates -> rankings -> reward -> scored pairs -> better editor

`--editor.arm` names the way in which feedback makes the editor better, or several of them: "dpo+rejection".

Imported pairs take the place of the first three: those of --importing.dataset, or what `import_pairs` left in the run.
Imported rankings (--importing.rankings) are learned from beside the run's own.

--rounds 2 goes round again, in <run>/rounds/2: candidates of the better editor -> rankings -> a reward model of all
rankings so far -> the same pairs scored again -> a better editor yet.
"""

from jobs.command import run_job

if __name__ == "__main__":  # before what the work needs is imported, which takes seconds
    run_job("pipeline")

import time
from collections.abc import Callable, Mapping, Sequence

from hive_ray.artifacts.manifest import read_manifest
from hive_ray.config import FEEDBACK_ARMS, split_arm
from hive_ray.console import say, tell_result
from hive_ray.evaluation.summary import EvaluationSummary, read_summary
from jobs import (
    choose_candidates,
    collect_rankings,
    encode_latents,
    evaluate_editor,
    import_pairs,
    import_rankings,
    make_pairs,
    sample_candidates,
    score_candidates,
    score_pairs,
    train_editor,
    train_reward,
    write_instructions,
)
from jobs.run import Run, for_later_rounds, write_settings
from jobs.stage import Stage

TO_PAIRS = (write_instructions.build, make_pairs.build)
TO_EDITOR = (*TO_PAIRS, train_editor.build)
FEEDBACK = (sample_candidates.build, choose_candidates.build, collect_rankings.build, train_reward.build)
TO_REWARD = (*TO_EDITOR, *FEEDBACK)
TO_FEEDBACK_TABLE = {
    "scored": (score_pairs.build,),
    "conditional": (score_pairs.build,),
    "weighted": (score_pairs.weighted,),
    "level": (score_pairs.build,),
    "dpo": (score_candidates.rank,),  # people's rankings are there
    "nft": (score_candidates.build,),
    "rejection": (sample_candidates.unguided, score_candidates.best),
}
"""By arm, what makes what it is trained on."""
STAGES_OF_ARM: Mapping[str, Callable[[Run], Sequence[Stage]]] = {
    "scored": score_pairs.stages,
    "conditional": score_pairs.stages,
    "weighted": lambda run: score_pairs.stages(run, "weighted"),
    "level": score_pairs.stages,
    "dpo": score_candidates.dpo_stages,
    "nft": score_candidates.nft_stages,
    "rejection": lambda run: [sample_candidates.UNGUIDED_STAGE, *score_candidates.rejection_stages(run)],
}
"""By arm, the declarations of these."""
WORKERS_IMPORT = (
    "deepspeed", "matplotlib.figure", "pandas", "pyarrow.dataset",
    "scipy.ndimage", "scipy.optimize", "scipy.sparse.linalg",
    "hive_ray.editor.latents", "hive_ray.editor.negative_aware", "hive_ray.editor.objective",
    "hive_ray.editor.preference", "hive_ray.editor.preview",
    "hive_ray.pairs.generation", "hive_ray.reward.judges", "hive_ray.reward.model_evaluation", "hive_ray.shapes.actors",
)  # fmt: skip
"""Most of what the stages' workers import; nothing that imports Ray, and not the domain's judge."""


def build(run: Run) -> None:
    start = time.monotonic()
    _build(run, stages_of(run), start)
    while run.number < run.num_rounds:
        run = run.after()
        write_settings(run.root, for_later_rounds(run.rounds[0].config))
        _build(run, (*FEEDBACK, *learning(run)), start)
    if run.before:
        tell_result(describe_rounds(run))


def stages_of(run: Run) -> Sequence[Callable[[Run], object]]:
    """The stages of the first round, which are fewer where its pairs are somebody else's. Rankings are imported first,
    so that bad ones are refused before anything is made."""
    first = (import_rankings.build,) if run.config.importing.rankings else ()
    if run.config.importing.dataset:
        to_pairs = (import_pairs.build,)
    else:
        to_pairs = () if read_manifest(run.path("imported")) else TO_PAIRS
    return (*first, *to_pairs, train_editor.build, *FEEDBACK, *learning(run))


def declared(run: Run) -> list[Stage]:
    """All tables and models of a run, or of a later round of one, in the order in which `build` makes them."""
    settings = run.config
    stages: list[Stage] = []
    if run.before is None:
        if settings.importing.rankings:
            stages += import_rankings.stages(run)
        if settings.importing.dataset or read_manifest(run.path("imported")):
            stages += import_pairs.stages(run)
        else:
            stages += [*write_instructions.stages(run), *make_pairs.stages(run)]
        if settings.editor.latents != "none":
            stages.append(encode_latents.LATENTS_STAGE)
        stages += train_editor.stages(run, "sft")
    stages.append(sample_candidates.CANDIDATES_STAGE)
    stages += choose_candidates.stages(run)
    stages += collect_rankings.stages(run)
    stages += train_reward.stages(run)
    for arm in split_arm(settings.editor.arm, FEEDBACK_ARMS):
        stages += STAGES_OF_ARM[arm](run)
    for name in settings.evaluation.editors:
        if name in train_editor.CONTROLS:
            stages += train_editor.stages(run, name)
    stages += train_editor.stages(run, "finetuned")
    stages += evaluate_editor.stages(run)
    return stages


def learning(run: Run) -> Sequence[Callable[[Run], object]]:
    """The stages that make an editor better by feedback: no more than its arm needs."""
    return (
        *(stage for arm in split_arm(run.config.editor.arm, FEEDBACK_ARMS) for stage in TO_FEEDBACK_TABLE[arm]),
        train_editor.controls,
        train_editor.finetune,
        evaluate_editor.build,
    )


def _build(run: Run, stages: Sequence[Callable[[Run], object]], start: float) -> None:
    where = f"round {run.number}, " if run.before else ""
    for number, stage in enumerate(stages, 1):
        verb = f"{stage.__module__.rsplit('.', 1)[-1]}.{stage.__name__}"
        say(f"[{where}{number}/{len(stages)} {verb}, {time.monotonic() - start:.0f} s]")
        stage(run)


def describe_rounds(run: Run) -> str:
    """What each round measured of its editors, and which one to serve, in words."""
    lines, metric = [""], "reward" if run.config.evaluation.judge == "none" else "right"
    for one in run.rounds:
        summary = read_summary(one.root) or EvaluationSummary()
        for editor in summary.editors:
            gap = summary.differences.get(editor.editor, {}).get(metric)
            against = f"  {gap:+.3f} from {summary.baseline}" if gap else ""
            lines.append(f"round {one.number}  {editor.editor:<12} {metric} {editor.metrics[metric]:.3f}{against}")
    if metric == "reward":
        lines.append("(each round's reward is by its own reward model: compare within a round)")
    return "\n".join([*lines, f"serve:  make serve EDITOR_FOLDER={run.path('editors/finetuned')}"])
