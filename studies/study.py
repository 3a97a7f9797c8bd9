"""What feedback adds on the embedded domain: every arm, on fresh prompts and several seeds, told in docs/study.md.

feedback     every arm from the preset's start, sums of arms, the best of several edits, and a second round
weak         a start that learned from pairs without CLIP's filters, and the arms that score such pairs (first in HIVE)
curve        dpo on fewer and on more of the shipped rankings
ablations    dpo with one setting changed at a time

The first part is made of every seed, the others of the first one alone.

python -m studies.study                                  # everything
python -m studies.study --parts feedback --seeds 101     # some of it; what is finished is kept, and told together

The feedback part of seed 101 lies in <run>/seed101, the second round in its rounds/2, the other parts in folders by
their names. All parts of a seed are measured on the same prompts.
"""

from jobs.command import run_job

if __name__ == "__main__":  # before what the work needs is imported, which takes seconds
    run_job("study")

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from hive_ray import storage
from hive_ray.artifacts.building import write_rows
from hive_ray.artifacts.manifest import fingerprint_of, read_manifest, table_digest
from hive_ray.artifacts.selection import read_rows
from hive_ray.cluster.starting import start_ray
from hive_ray.config import Config, Instructions
from hive_ray.console import say, tell_result
from hive_ray.evaluation.metrics import draws_by_prompt
from hive_ray.presets import shapes
from hive_ray.reward.accuracies import ACCURACY
from hive_ray.reward.card import read_reward_card
from hive_ray.schemas import CANDIDATES, EVALUATION, RANKINGS, Rows
from hive_ray.seeds import seed_for
from jobs import (
    choose_candidates,
    collect_rankings,
    evaluate_editor,
    import_rankings,
    make_pairs,
    pipeline,
    score_pairs,
    train_editor,
)
from jobs.actors.evaluating import best_of_name
from jobs.own_settings import PARTS, Part, Study
from jobs.run import RANKINGS_BY_REWARD, SHARED, Run, write_settings
from studies import study_document
from studies.study_document import METRICS, SECOND_ROUND_OF, Scores

EVERY_SEED: tuple[Part, ...] = ("feedback",)
"""Parts that every seed has; the others are of the first seed alone."""

CAPTION_MARGIN = 1.1
"""Captions of the test split for each prompt that is wanted: how many fall into a split is a matter of chance."""
SEEDED_SECTIONS = (
    "instructions", "pairs", "editor.sft", "editor.finetune", "editor.dpo.training", "editor.nft.training",
    "candidates", "choosing", "rankings", "reward.training", "evaluation",
)  # fmt: skip
"""Sections whose seed is the study's."""
NO_FILTER = {
    "pairs.least_clip_image": -1.0, "pairs.least_clip_direction": -1.0, "pairs.least_clip_source_text": -1.0,
    "pairs.least_clip_edited_text": -1.0, "pairs.least_contrast": 0.0, "pairs.least_difference": 0.0,
}  # fmt: skip
"""Settings by which every drawn pair passes."""
WEAK_SFT_RATE, WEAK_RATE = 3e-4, 1e-4
"""Learning rates of the weak start, which has to forget what the shipped editor knew, and of its arms."""
SEEN_SEEDS = (101,)
"""Seeds on whose prompts something was seen while it was chosen what the study compares."""
FEEDBACK_TABLES = (
    "candidates", "spreads", "chosen", "rankings", "reward", "candidate_rewards", RANKINGS_BY_REWARD,
    "ranking_latents",
)  # fmt: skip
"""What lies between the editor `sft` and dpo's training."""
ABLATIONS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("any gap of ranks", {"editor.dpo.min_rank_gap": 1}),
    ("all timesteps", {"editor.dpo.timesteps": (0.0, 1.0)}),
    ("beta 1000", {"editor.dpo.beta": 1000.0}),
    ("the shipped rankings, too", {"editor.dpo.imported_rankings": True}),
    ("people's rankings alone", {"candidate_scoring.ranked_rate": 0.0}),
    ("own prompts at random", {"choosing.by": "random"}),
)
"""A name -> the settings that differ from dpo's. A row that changes nothing in the preset is left out. The reward model
stays as it is."""
TABLES_DECIDED_BY: dict[str, tuple[str, ...]] = {
    "editor": (),
    "editor.dpo.imported_rankings": ("ranking_latents",),
    "candidate_scoring": (RANKINGS_BY_REWARD, "ranking_latents"),
    "choosing": ("chosen", "rankings", "ranking_latents"),
    "rankings": ("rankings", "ranking_latents"),
}
"""Sections or settings that ABLATIONS may change -> the tables of FEEDBACK_TABLES that they decide."""
DIFFERENCES: dict[Part, tuple[tuple[str, str], ...]] = {
    "feedback": (
        ("control", "sft"),
        ("dpo", "sft"),
        ("dpo", "shuffled"),
        ("dpo+rejection", "sft"),
        ("dpo+rejection", "rejection"),
        ("dpo+rejection", "dpo"),
        ("dpo+rejection, best of 4", "sft, best of 4"),
        ("second round", SECOND_ROUND_OF),
    ),
    "weak": (
        ("control", "sft"),
        ("conditional", "weighted"),
        ("level", "conditional"),
        ("conditional_sft", "sft"),
    ),
    "curve": (),
    "ablations": (),
}
"""Beside the differences from the part's baseline: (editor, what it is compared with)."""
BASELINES: dict[Part, str] = {"feedback": "control", "weak": "control", "curve": "sft", "ablations": "dpo"}


@dataclass(frozen=True)
class Entry:
    """An editor that is compared: the run that has it, and its arm there."""

    name: str
    run: Run
    arm: str
    scored: bool = False
    """Whether the reward model scores its edits, so that the best of several can be told."""
    tells_best: bool = False
    """Whether that best one is told, too."""
    prepare: Callable[[Run], object] | None = None
    """Makes what the run's arms learn from, where the seed's first run did not."""
    num_rankings: int = 0
    """For the learning curve."""


# --- Settings ---------------------------------------------------------------------------------------------------------


def configured(study: Study, seed: int, preset: Config) -> Config:
    """The preset with the study's sizes, and this seed in every stage that draws. The control and the arms on pairs see
    as many rows as dpo."""
    num_edited = round(preset.instructions.num_captions * preset.instructions.rank_rate)
    instructions = with_captions(
        preset.instructions,
        to_rank=max(num_edited, study.second_round_prompts),
        to_test=math.ceil(study.num_prompts * CAPTION_MARGIN),
    )
    return with_settings(
        preset.changed({"instructions": dict(instructions)}),
        {
            **{f"{section}.seed": seed for section in SEEDED_SECTIONS},
            "candidates.num_prompts": num_edited,
            "editor.arm": "dpo",
            "editor.finetune.total_images": preset.editor.dpo.training.total_images,
            "evaluation.num_prompts": study.num_prompts,
            "evaluation.best_of": study.best_of,
            "evaluation.curve_prompts": 0,
        },
    )


def with_captions(settings: Instructions, *, to_rank: int, to_test: int) -> Instructions:
    """About so many captions in the splits to rank and to test on, and the one to train on as large as it was."""
    to_train = round(settings.num_captions * (1 - settings.rank_rate - settings.test_rate))
    captions = to_train + to_rank + to_test
    rates = {"rank_rate": to_rank / captions, "test_rate": to_test / captions}
    return settings.model_copy(update={"num_captions": captions, **rates})


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """These settings in place of some, by their full names: {"editor.dpo.beta": 1000.0}.

    AttributeError for a name that there is not.
    """
    for name, value in settings.items():
        config = _with_setting(config, name, value)
    return config


def _with_setting(section: Any, name: str, value: Any) -> Any:
    first, _, rest = name.partition(".")
    inner = getattr(section, first)
    return section.model_copy(update={first: _with_setting(inner, rest, value) if rest else value})


# --- Parts ------------------------------------------------------------------------------------------------------------


def first_run(study: Study, seed: int, preset: Config) -> Run:
    """The run of a seed on which all its parts stand."""
    root = storage.join(storage.absolute(study.run), f"seed{seed}")
    return Run(root, configured(study, seed, preset), "rebuild" if study.rebuild else "refuse")


def feedback(study: Study, first: Run) -> list[Entry]:
    """Every arm from the preset's start, and the second round."""
    chosen_from = ("sft", "dpo", SECOND_ROUND_OF)
    besides = study.first_seed_arms if first.config.evaluation.seed == study.seeds[0] else ()
    entries = [
        Entry(arm, first, arm, scored=arm in chosen_from, tells_best=arm in chosen_from)
        for arm in ("sft", *study.arms, *besides)
    ]
    if SECOND_ROUND_OF in study.arms:
        entries.append(Entry("second round", second_round(study, first), "dpo", prepare=collect_feedback))
    return entries


def second_round(study: Study, first: Run) -> Run:
    """The round that starts from the first one's best editor. What is left to learn shows in fewer prompts, so that it
    edits more of them."""
    run = first.after(SECOND_ROUND_OF)
    sizes = {"candidates.num_prompts": study.second_round_prompts, "choosing.num_ranked": study.second_round_ranked}
    return replace(run, config=with_settings(run.config, sizes))


def weak(study: Study, first: Run) -> list[Entry]:
    """The start that learned from raw pairs, and its arms."""
    run = weak_run(study, first)
    return [Entry(arm, run, arm, prepare=start_from_raw_pairs) for arm in ("sft", *study.weak_arms)]


def weak_run(study: Study, first: Run) -> Run:
    """A run on the same instructions, whose pairs nothing filters, scored by the first run's reward model."""
    preset = first.config
    settings = {
        **NO_FILTER,
        "pairs.keep_per_instruction": preset.pairs.samples_per_instruction,
        "editor.sft.total_images": study.weak_sft_images,
        "editor.sft.learning_rate": WEAK_SFT_RATE,
        "editor.finetune.total_images": study.weak_images,
        "editor.finetune.learning_rate": WEAK_RATE,
    }
    elsewhere = {name: first.path(name) for name in ("captions", "instructions", "reward")}
    return replace(
        first,
        root=storage.join(first.root, "weak"),
        config=with_settings(preset, settings),
        elsewhere=elsewhere,
    )


def curve(study: Study, first: Run) -> list[Entry]:
    """dpo on the first of the shipped rankings, on all of them, and on those of one more person who ranks the same
    pictures; none before they are imported."""
    shipped = read_manifest(first.path(import_rankings.TABLE))
    if shipped is None:
        return []
    counts = [*(count for count in study.curve if count < shipped.rows_out), shipped.rows_out]
    entries = [
        Entry(
            f"{count:,} rankings",
            curve_run(first, str(count)),
            "dpo",
            prepare=partial(take_rankings, first=first, count=count),
            num_rankings=count,
        )
        for count in counts
    ]
    prompts = len({row["prompt_id"] for row in read_rows(first.path(import_rankings.TABLE), RANKINGS, ["prompt_id"])})
    more = curve_run(first, "one-more-person", import_rankings.TABLE)
    total = shipped.rows_out + prompts
    again = Entry(f"{total:,} rankings", more, "dpo", prepare=partial(rank_again, first=first), num_rankings=total)
    return [Entry("sft", first, "sft", scored=True), *entries, again]


def curve_run(first: Run, name: str, *shared: str) -> Run:
    """A run of the learning curve, which finds in the first run what all rounds share, but for the shipped rankings,
    the reward model, and what else is `shared`. It learns from no rankings of its own edits."""
    names = [*(name for name in SHARED if name != import_rankings.TABLE), "reward", *shared]
    return replace(
        first,
        root=storage.join(first.root, "curve", name),
        config=with_settings(first.config, {"candidate_scoring.ranked_rate": 0.0}),
        elsewhere={name: first.path(name) for name in names},
    )


def ablations(study: Study, first: Run) -> list[Entry]:
    """dpo with other settings, and dpo trained for twice as long."""
    changed = [
        Entry(name, ablated_run(first, name, settings), "dpo", prepare=choose_again)
        for name, settings in ABLATIONS
        if with_settings(first.config, settings) != first.config
    ]
    again = Entry("trained on, by the same rankings", trained_longer(first), "dpo")
    return [Entry("dpo", first, "dpo", scored=True), *changed, again]


def ablated_run(first: Run, name: str, settings: Mapping[str, Any]) -> Run:
    """A run with other settings, which makes the tables that they decide, and finds the others in the first run."""
    anew = {table for setting in settings for table in tables_decided_by(setting)}
    return replace(
        first,
        root=storage.join(first.root, "ablations", name.replace(" ", "-")),
        config=with_settings(first.config, settings),
        elsewhere={table: first.path(table) for table in (*SHARED, *FEEDBACK_TABLES) if table not in anew},
    )


def tables_decided_by(setting: str) -> tuple[str, ...]:
    """The tables of FEEDBACK_TABLES that a setting of ABLATIONS decides, by its full name."""
    return TABLES_DECIDED_BY[setting] if setting in TABLES_DECIDED_BY else TABLES_DECIDED_BY[setting.partition(".")[0]]


def trained_longer(first: Run) -> Run:
    """A run in which dpo goes on from dpo, by the same rankings."""
    second = first.after("dpo")
    return replace(
        second,
        root=storage.join(first.root, "ablations", "trained-on"),
        before=None,
        elsewhere={table: first.path(table) for table in FEEDBACK_TABLES} | dict(second.elsewhere),
    )


ENTRIES: dict[Part, Callable[[Study, Run], list[Entry]]] = {
    "feedback": feedback,
    "weak": weak,
    "curve": curve,
    "ablations": ablations,
}


# --- Work -------------------------------------------------------------------------------------------------------------


def make(study: Study, part: Part, first: Run) -> None:
    """Make and measure all editors of one part; what is finished is kept."""
    write_settings(first.root, first.config)
    start(first)
    ready = {first.root}
    for entry in ENTRIES[part](study, first):
        if entry.prepare and entry.run.root not in ready:
            entry.prepare(entry.run)
            ready.add(entry.run.root)
        train(entry.run, entry.arm)
        measure(entry)


def start(first: Run) -> None:
    """Everything up to the reward model, on which all parts stand."""
    if first.config.importing.rankings:
        import_rankings.build(first)
    for stage in pipeline.TO_REWARD:
        stage(first)


def train(run: Run, arm: str) -> None:
    """One editor, or the parts of one that is added up, and the tables that they learn from."""
    for part in train_editor.parts_of(run, arm):
        for stage in stages_of(run, part):
            stage(run)
    train_editor.build(run, arm)


def stages_of(run: Run, arm: str) -> Sequence[Callable[[Run], object]]:
    """The stages between the reward model and an arm."""
    shaping = train_editor.arm_of(run, arm).shaping
    if shaping:
        return (partial(score_pairs.build, shaping=shaping),)
    return pipeline.TO_FEEDBACK_TABLE.get("dpo" if arm == "shuffled" else arm, ())


def measure(entry: Entry) -> None:
    """The table of an entry's edits of the held-out prompts."""
    settings = entry.run.config.evaluation
    scales = (settings.image_guidance_scale,)
    table = f"evaluation/{entry.arm}"
    evaluate_editor.measure(
        entry.run, entry.arm, table, scales, settings.num_prompts, settings.best_of, with_reward=entry.scored
    )


def collect_feedback(run: Run) -> None:
    """A later round's candidates, rankings and reward model."""
    for stage in pipeline.FEEDBACK:
        stage(run)


def start_from_raw_pairs(run: Run) -> None:
    """Raw pairs, and the editor that learned from them."""
    make_pairs.build(run)
    train_editor.build(run)


def choose_again(run: Run) -> None:
    """The rankings of an ablation's run, which are the first run's unless its settings decide others."""
    choose_candidates.build(run)
    collect_rankings.build(run)


def take_rankings(run: Run, *, first: Run, count: int) -> None:
    """The table `rankings`: so many of the shipped ones. Fewer are among more."""
    shipped, seed = first.path(import_rankings.TABLE), first.config.rankings.seed
    ids = [row["ranking_id"] for row in read_rows(shipped, RANKINGS, ["ranking_id"])]
    taken = set(sorted(ids, key=lambda name: seed_for("learning curve", seed, name))[:count])
    write_rows(
        run.path("rankings"),
        RANKINGS,
        read_rows(shipped, RANKINGS, where={"ranking_id": taken.__contains__}),
        fingerprint_of(shipped=table_digest(shipped), count=str(count), seed=str(seed)),
        on_mismatch=run.on_mismatch,
        rows_per_file=import_rankings.ROWS_PER_FILE,
    )


def rank_again(run: Run, *, first: Run) -> None:
    """The table `rankings`: what one more person says of the shipped pictures."""
    shipped = first.path(import_rankings.TABLE)
    write_rows(
        run.path("candidates"),
        CANDIDATES,
        _shipped_candidates(shipped),
        fingerprint_of(shipped=table_digest(shipped)),
        on_mismatch=run.on_mismatch,
        rows_per_file=import_rankings.ROWS_PER_FILE,
    )
    collect_rankings.build(run)


def _shipped_candidates(shipped: str) -> Iterator[dict[str, Any]]:
    """The edits of each prompt once, however many people ranked them."""
    seen: set[str] = set()
    for row in read_rows(shipped, RANKINGS, CANDIDATES.names):
        if row["prompt_id"] not in seen:
            seen.add(row["prompt_id"])
            yield row


# --- The document -----------------------------------------------------------------------------------------------------


def scores_of(entries: Mapping[int, Sequence[Entry]]) -> Scores:
    """What was measured of the entries of each seed, of those that are finished."""
    scores: dict[str, dict[int, Any]] = {}
    for seed, of_seed in entries.items():
        for entry in of_seed:
            for name, rows in measured_rows(entry).items():
                values = {metric: draws_by_prompt(rows, metric) for metric in METRICS}
                scores.setdefault(name, {})[seed] = values
    return scores


def measured_rows(entry: Entry) -> dict[str, Rows]:
    """The rows of an entry, and of the best of several of its edits, by their names in the document."""
    table, num_draws = entry.run.path(f"evaluation/{entry.arm}"), entry.run.config.evaluation.best_of
    if not evaluate_editor.is_measured(table, num_draws):
        return {}
    several = ["draws"] if num_draws > 1 else []
    rows = list(read_rows(table, EVALUATION, ["prompt_id", "editor", "followed", "preserved", *several]))
    names = {entry.arm: entry.name}
    if several and entry.tells_best:
        names[best_of_name(entry.arm, num_draws)] = best_of_name(entry.name, num_draws)
    return {name: [row for row in rows if row["editor"] == editor] for editor, name in names.items()}


def seeds_of(study: Study, part: Part) -> tuple[int, ...]:
    """The seeds that a part has."""
    return study.seeds if part in EVERY_SEED else study.seeds[:1]


def write(study: Study, preset: Config) -> str:
    """Write the document and its charts from what is finished; its text."""
    firsts = {seed: first_run(study, seed, preset) for seed in study.seeds}
    entries = {part: {seed: ENTRIES[part](study, firsts[seed]) for seed in seeds_of(study, part)} for part in PARTS}
    scores: dict[Part, Scores] = {part: scores_of(entries[part]) for part in PARTS}
    num_rankings = {entry.name: entry.num_rankings for entry in entries["curve"][study.seeds[0]]}
    study.out.parent.mkdir(parents=True, exist_ok=True)
    sections = [
        "# Study",
        study_document.findings(**scores),
        how_it_was_made(study, preset, firsts, scores),
        *(section(study, part, scores[part], num_rankings) for part in PARTS),
        f"Settings: `{json.dumps(asdict(study) | {'out': str(study.out)})}`",
    ]
    text = "\n\n".join(filter(None, sections)) + "\n"
    study.out.write_text(text)
    return text


def section(study: Study, part: Part, scores: Scores, num_rankings: Mapping[str, int]) -> str:
    """One part's table and chart; "" where its baseline and another editor are not measured yet."""
    baseline = BASELINES[part]
    if not study_document.against(scores, baseline):
        return ""
    picture = study.out.with_name(f"{study.out.stem}-{part}.svg")
    if part == "curve":
        picture.write_text(study_document.curve_chart(scores, num_rankings))
    else:
        picture.write_text(study_document.gap_chart(scores, baseline))
    blocks = [
        f"## {study_document.TITLES[part]}",
        study_document.WORDS[part],
        study_document.table(scores, baseline),
        study_document.further_table(scores, DIFFERENCES[part]),
        f"![]({picture.name})",
    ]
    return "\n\n".join(filter(None, blocks))


def how_it_was_made(study: Study, preset: Config, firsts: Mapping[int, Run], scores: Mapping[Part, Scores]) -> str:
    """How many prompts, which seeds, how long, and what the intervals mean."""
    measured = [seeds for of_part in scores.values() for seeds in of_part.values()]
    sizes = {len(values["right"]) for seeds in measured for values in seeds.values()}
    editor = configured(study, study.seeds[0], preset).editor
    of_one_seed = " Of one seed: how trainings differ is not in the intervals." if len(study.seeds) == 1 else ""
    rate = preset.candidate_scoring.ranked_rate
    by_reward = (
        f" `dpo` also learned from the reward model's own rankings of {rate:.0%} of the prompts." if rate else ""
    )
    minutes = sum(minutes_of(run) for run in firsts.values())
    return (
        f"Made by `python -m studies.study`: seeds {study_document.in_words([str(seed) for seed in study.seeds])}, "
        f"{' or '.join(map(str, sorted(sizes))) or 'no'} held-out prompts of each, "
        f"{study.best_of} {'edits' if study.best_of > 1 else 'edit'} of a prompt, {minutes:.0f} minutes of work on "
        f"{os.cpu_count()} cores. {selection_note(study.seeds)} That an arm is the best one is said of the same "
        "prompts that chose it. Numbers are shares of edits in percent and differences in points, paired by "
        "prompt, means over prompts and seeds, with 95 % bootstrap intervals over seeds and prompts; bold where the "
        "interval excludes 0. Wins, ties and losses are those of pairs of edits of the same seed; the best of several "
        f"edits is held against each edit of the other editor.{of_one_seed}\n\n"
        f"In the first part `sft` saw {editor.sft.total_images:,} images, arms on pairs and on the best edits "
        f"{editor.finetune.total_images:,} more, `dpo` and `shuffled` "
        f"{editor.dpo.training.total_images:,}, `nft` {editor.nft.training.total_images:,}.{by_reward}"
        f"{reward_models(list(firsts.values()))}"
    )


def selection_note(seeds: Sequence[int]) -> str:
    """In words, of which seeds something was seen before the study's settings were made."""
    seen = [str(seed) for seed in seeds if seed in SEEN_SEEDS]
    if not seen:
        return "No setting was chosen on these prompts."
    return (
        f"Arms were added up after a look at prompts of seed {study_document.in_words(seen)}; else no setting was "
        "chosen on these prompts."
    )


def reward_models(runs: Sequence[Run]) -> str:
    """In words, how the reward models of both rounds order held-out rankings, seed by seed; "" where none is there."""
    words = []
    for name, rounds in (("first", runs), ("second", [run.after() for run in runs])):
        cards = [read_reward_card(run.path("reward")) for run in rounds]
        found = [f"{card.held_out[ACCURACY]:.3f}" for card in cards if card and card.held_out]
        if found:
            words.append(f"{', '.join(found)} in the {name} round")
    return f" Held-out preferences that the reward model orders, seed by seed: {'; '.join(words)}." if words else ""


def minutes_of(run: Run) -> float:
    """The time that the tables and models of a seed took, of all parts, whenever they were made."""
    made = [name for name in storage.list_files(run.root) if name.endswith(("manifest.json", "made.json"))]
    return sum(json.loads(storage.read_text(storage.join(run.root, name)))["seconds"] for name in made) / 60


def build(study: Study, preset: Config) -> str:
    """Make the parts that are asked for, and write the document after each of them; its text."""
    text = ""
    began = time.monotonic()
    for part in study.parts:
        for seed in seeds_of(study, part):
            say(f"[{part}, seed {seed}, {time.monotonic() - began:.0f} s]")
            make(study, part, first_run(study, seed, preset))
        text = write(study, preset)
    return text


def main(study: Study) -> None:
    """The study on the shapes preset."""
    start_ray(workers_import=pipeline.WORKERS_IMPORT)
    tell_result(build(study, shapes()))
