"""The study: its settings, what its parts share, and all of it once with tiny models."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from annotation_site import picture
from pydantic import BaseModel

from hive_ray.artifacts.building import write_rows
from hive_ray.presets import shapes
from hive_ray.schemas import EVALUATION, RANKINGS
from jobs import score_pairs, train_editor
from jobs.evaluate_editor import DRAWS_IN_FIRST_ROW
from jobs.own_settings import PARTS, Study
from studies import study
from studies.study import (
    ABLATIONS,
    FEEDBACK_TABLES,
    SEEN_SEEDS,
    Entry,
    ablated_run,
    ablations,
    configured,
    curve_run,
    feedback,
    first_run,
    scores_of,
    seeds_of,
    selection_note,
    stages_of,
    tables_decided_by,
    train,
    trained_longer,
    weak_run,
    with_settings,
)


def seeds_in(settings: BaseModel, where: str = "") -> Iterator[tuple[str, int]]:
    """Every seed in the settings, by the section that it is in."""
    for name, value in settings:
        if name == "seed":
            yield where, value
        if isinstance(value, BaseModel):
            yield from seeds_in(value, f"{where}.{name}".lstrip("."))


@pytest.fixture
def first(tmp_path):
    preset = with_settings(shapes(), {"candidate_scoring.ranked_rate": 0.5})
    return first_run(Study(run=str(tmp_path)), 101, preset)


# --- Settings ---------------------------------------------------------------------------------------------------------


def test_every_part_has_the_seed_in_every_stage_of_the_domain_that_draws(first):
    of_a_language_model = {"writer", "scoring.vision"}
    runs = [
        first, weak_run(Study(), first), curve_run(first, "100"), ablated_run(first, "all", {"editor.dpo.beta": 1.0}),
    ]  # fmt: skip
    for run in runs:
        seeds = {where: seed for where, seed in seeds_in(run.config) if where not in of_a_language_model}
        assert "editor.dpo.training" in seeds
        assert set(seeds.values()) == {101}


def test_no_prompt_of_the_study_was_chosen_on():
    assert Study().seeds == (102, 103, 104)
    assert not {*Study().seeds} & {*SEEN_SEEDS}
    assert not {*Study().seeds} & {shapes().instructions.seed, 1009, 71001, 71002, 71003}


def test_a_seed_whose_prompts_were_seen_is_named():
    assert selection_note((102, 103)) == "No setting was chosen on these prompts."
    assert "prompts of seed 101;" in selection_note((101, 102))


def test_a_second_round_and_its_control_draw_anew_and_alike(first):
    second, on = feedback(Study(), first)[-1].run, trained_longer(first)
    assert second.config.editor.dpo.training.seed != 101
    assert on.config.editor == second.config.editor
    assert second.config.evaluation.seed == 101  # the same noise on the same prompts


def test_the_control_and_the_arms_on_pairs_see_as_many_rows_as_dpo(tmp_path):
    preset = with_settings(shapes(), {"editor.dpo.training.total_images": 9_600})
    first = first_run(Study(run=str(tmp_path)), 101, preset)
    editor = first.config.editor
    for arm in ("control", "weighted", "rejection", "dpo", "shuffled"):
        assert train_editor.ARMS[arm].training(editor).total_images == 9_600
    assert editor.sft == preset.editor.sft.model_copy(update={"seed": 101})
    weak_editor = weak_run(Study(weak_images=480), first).config.editor
    assert weak_editor.finetune.total_images == 480


def test_the_weak_start_is_the_only_one_whose_pairs_nothing_filters(first):
    run = weak_run(Study(), first)
    pairs, editor = run.config.pairs, run.config.editor
    limits = {name: value for name, value in pairs if name.startswith("least_") and name != "least_kept"}
    assert len(limits) == 6
    assert all(value == (-1 if "clip" in name else 0) for name, value in limits.items())
    assert pairs.keep_per_instruction == pairs.samples_per_instruction
    assert (editor.sft.total_images, editor.sft.learning_rate) == (6_400, 3e-4)
    assert editor.start == shapes().editor.start
    assert first.config.pairs.least_clip_image == shapes().pairs.least_clip_image


def test_more_prompts_to_rank_and_to_test_on_leave_as_many_to_train_on_as_the_quickstart_has():
    quick, long = shapes().instructions, configured(Study(num_prompts=600), 0, shapes()).instructions
    assert long.rank_rate * long.num_captions == pytest.approx(1_600)
    assert long.test_rate * long.num_captions == pytest.approx(660)
    trained = [one.num_captions * (1 - one.rank_rate - one.test_rate) for one in (quick, long)]
    assert trained[0] == pytest.approx(trained[1], abs=0.5)


def test_the_second_round_edits_more_prompts_than_the_first_which_edits_as_many_as_the_quickstart(first):
    second = feedback(Study(second_round_prompts=1_600, second_round_ranked=540), first)[-1].run
    assert first.config.candidates.num_prompts == pytest.approx(720, abs=1)
    assert first.config.choosing == shapes().choosing.model_copy(update={"seed": 101})
    assert second.config.candidates.num_prompts == 1_600
    assert second.config.choosing.num_ranked == 540


def test_a_setting_that_there_is_not_is_refused():
    assert with_settings(shapes(), {"editor.dpo.beta": 7.0}).editor.dpo.beta == 7
    with pytest.raises(AttributeError, match="betta"):
        with_settings(shapes(), {"editor.dpo.betta": 7.0})


# --- What runs share --------------------------------------------------------------------------------------------------


def test_the_weak_run_shares_instructions_and_a_reward_model_that_no_editor_is_part_of(first):
    run = weak_run(Study(), first)
    for name in ("captions", "instructions"):
        assert run.path(name) == first.path(name)
    for name in ("pairs", "latents", "editors/sft", "candidates", "rankings", "imported_rankings", "rewards"):
        assert run.path(name) == f"{first.root}/weak/{name}"
    assert run.path("reward") == f"{first.root}/reward"


def test_runs_of_the_curve_share_the_start_and_learn_from_no_rankings_of_its_edits(first):
    run = curve_run(first, "100")
    for name in ("pairs", "prompts", "editors/sft", "editors/current", "reward"):
        assert run.path(name) == first.path(name)
    assert run.path("imported_rankings") == f"{first.root}/curve/100/imported_rankings"
    assert run.dpo_ranking_tables() == [f"{first.root}/curve/100/rankings"]
    assert curve_run(first, "more", "imported_rankings").path("imported_rankings") == first.path("imported_rankings")


def test_an_ablation_shares_all_that_its_settings_do_not_decide(first):
    tables = ("editors/current", "candidates", "chosen", "rankings", "reward", "rankings_by_reward", "pairs")
    tables += ("ranking_latents",)
    for name, settings in ABLATIONS:
        run = ablated_run(first, name, settings)
        own = {table for table in tables if run.path(table) != first.path(table)}
        assert own == {
            "own prompts at random": {"chosen", "rankings", "ranking_latents"},
            "people's rankings alone": {"rankings_by_reward", "ranking_latents"},
            "the shipped rankings, too": {"ranking_latents"},
        }.get(name, set())
        assert run.path("editors/dpo").startswith(f"{first.root}/ablations/")


def test_every_ablation_changes_one_setting_whose_tables_are_known_and_one_that_changes_nothing_is_left_out(first):
    for _, settings in ABLATIONS:
        [name] = settings
        assert {*tables_decided_by(name)} <= {*FEEDBACK_TABLES}
    names = [entry.name for entry in ablations(Study(), first)]
    assert names == ["dpo", *(name for name, _ in ABLATIONS), "trained on, by the same rankings"]
    unranked = replace(first, config=with_settings(first.config, {"candidate_scoring.ranked_rate": 0.0}))
    assert "people's rankings alone" not in [entry.name for entry in ablations(Study(), unranked)]


def test_what_is_trained_on_differs_from_the_second_round_by_its_rankings_alone(first):
    second, on = first.after("dpo"), trained_longer(first)
    assert on.path("editors/current") == second.path("editors/current") == first.path("editors/dpo")
    write_rows(first.path("imported_rankings"), RANKINGS, [], {}, may_be_empty=True)
    theirs = [first.path(name) for name in ("rankings", "rankings_by_reward")]
    assert on.dpo_ranking_tables() == first.dpo_ranking_tables() == theirs
    assert second.dpo_ranking_tables()[0] == f"{first.root}/rounds/2/rankings"
    assert on.path("editors/dpo") == f"{first.root}/ablations/trained-on/editors/dpo"


def test_some_arms_are_of_the_first_seed_alone(tmp_path):
    study = Study(run=str(tmp_path), arms=("control",))
    names = [[entry.name for entry in feedback(study, first_run(study, seed, shapes()))] for seed in (102, 103)]
    assert names == [["sft", "control", "weighted", "shuffled", "nft"], ["sft", "control"]]


def test_the_second_round_goes_on_from_the_sum_of_two_arms_by_one_of_them(first):
    last = feedback(Study(), first)[-1]
    assert (last.name, last.arm) == ("second round", "dpo")
    assert last.run.path("editors/current") == first.path("editors/dpo+rejection")
    without = Study(arms=("control", "weighted"), first_seed_arms=())
    assert [entry.name for entry in feedback(without, first)] == ["sft", "control", "weighted"]


def test_the_first_part_is_of_every_seed_and_the_others_of_the_first():
    assert {part: seeds_of(Study(), part) for part in PARTS} == {
        "feedback": (102, 103, 104), "weak": (102,), "curve": (102,), "ablations": (102,),
    }  # fmt: skip


def test_each_arm_is_preceded_by_the_stages_that_make_its_table(first):
    arms = [arm for arm in (*Study().arms, *Study().first_seed_arms, *Study().weak_arms) if "+" not in arm]
    scored = {"weighted": "weighted", "conditional": "conditional", "level": "level", "conditional_sft": "conditional"}
    for arm, shaping in scored.items():
        [stage] = stages_of(first, arm)
        assert (stage.func, stage.keywords) == (score_pairs.build, {"shaping": shaping})
    names = {
        arm: [f"{stage.__module__}.{stage.__name__}" for stage in stages_of(first, arm)]
        for arm in arms
        if arm not in scored
    }
    assert names["control"] == []
    assert names["dpo"] == names["shuffled"] == ["jobs.score_candidates.rank"]
    assert names["nft"] == ["jobs.score_candidates.build"]
    assert names["rejection"] == ["jobs.sample_candidates.unguided", "jobs.score_candidates.best"]
    assert {*arms} <= {*train_editor.ARMS}


def test_a_sum_of_arms_is_preceded_by_the_stages_of_its_parts(first, monkeypatch):
    done = []
    monkeypatch.setattr(study, "stages_of", lambda run, arm: [lambda run: done.append(arm)])
    monkeypatch.setattr(train_editor, "build", lambda run, arm: done.append(arm))
    train(first, "dpo+rejection")
    assert done == ["dpo", "rejection", "dpo+rejection"]


# --- Scores -----------------------------------------------------------------------------------------------------------


def write_edits(run, mark):
    """A table of four edits of one prompt by dpo, of which the second and the third are right, and of the best."""
    wrong = dict.fromkeys(("clip_image", "clip_direction", "reward", "followed", "preserved"), 0.0)
    right = wrong | {"reward": 1.0, "followed": 1.0, "preserved": 1.0}
    draws = [one | {"seed": seed} for seed, one in enumerate((wrong, right, right, wrong))]
    both = {"prompt_id": "p", "instruction": "make it red", "guidance_scale": 7.5, "image_guidance_scale": 1.5}
    both |= {"source_image": picture(0), "edited_image": picture(1)}
    rows = [
        both | draws[0] | {"evaluation_id": "first", "editor": "dpo", "draws": draws},
        both | draws[1] | {"evaluation_id": "best", "editor": "dpo, best of 4", "draws": []},
    ]
    made_from = {"evaluation.best_of": 4, "evaluation.draws": mark}
    write_rows(run.path("evaluation/dpo"), EVALUATION, rows, made_from)


def test_all_edits_of_an_entry_are_its_scores_and_the_best_is_told_where_it_is_asked_for(first):
    write_edits(first, DRAWS_IN_FIRST_ROW)
    told = scores_of({101: [Entry("ours", first, "dpo", tells_best=True)]})
    right = {name: list(of_seeds[101]["right"]["p"]) for name, of_seeds in told.items()}
    assert right == {"ours": [0, 1, 1, 0], "ours, best of 4": [1]}
    assert list(scores_of({101: [Entry("ours", first, "dpo")]})) == ["ours"]


def test_a_table_whose_draws_lie_elsewhere_is_not_told_of(first):
    write_edits(first, "kept")
    assert scores_of({101: [Entry("ours", first, "dpo", tells_best=True)]}) == {}


def test_the_best_of_several_is_told_of_three_editors_in_the_first_part_alone(first):
    told = [entry for entry in feedback(Study(), first) if entry.tells_best]
    assert [entry.name for entry in told] == ["sft", "dpo", "dpo+rejection"]
    assert all(entry.scored for entry in told)
    others = ablations(Study(), first)
    assert not any(entry.tells_best for entry in others)
    assert [entry.name for entry in others if entry.scored] == ["dpo"]  # measured by the first part
