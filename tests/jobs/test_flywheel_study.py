from dataclasses import replace

import pytest

from hive_ray.seeds import id_for
from jobs.flywheel_study import COMPARED, Flywheel, findings, runs_of, with_fewer


@pytest.fixture
def runs(tmp_path):
    return runs_of(Flywheel(run=str(tmp_path)), 0)


def test_every_run_stands_on_the_studys_own(runs, tmp_path):
    study = f"{tmp_path}/seed0"
    assert runs["round 1"].root == study
    for name, folder in (("few", "1-few"), ("trained on", "2-trained-on"), ("round 2", "2")):
        assert runs[name].path("pairs") == f"{study}/pairs"
        assert runs[name].path("editors/weighted") == f"{study}/rounds/{folder}/editors/weighted"


def test_what_is_trained_on_differs_from_round_two_by_its_rewards_alone(runs):
    first, on, second = (runs[name] for name in ("round 1", "trained on", "round 2"))
    assert on.path("editors/current") == second.path("editors/current") == first.path("editors/weighted")
    assert on.config == second.config
    assert on.path("scored_pairs_weighted") == first.path("scored_pairs_weighted")
    assert second.path("scored_pairs_weighted") == f"{second.root}/scored_pairs_weighted"


def test_fewer_rankings_start_where_round_one_did_and_are_its_first_ones(runs):
    few = with_fewer(runs["few"], 225, 0.1)
    assert few.config.candidates.num_prompts == 22
    assert few.config.candidates.seed == runs["round 1"].config.candidates.seed
    assert few.path("editors/current") == runs["round 1"].path("editors/sft")
    assert few.number == 1
    everything = replace(runs["few"], config=runs["few"].config.changed({"choosing": {"num_ranked": 0}}))
    assert with_fewer(everything, 225, 0.1).config.choosing.num_ranked == 0  # all of them
    chosen = with_fewer(replace(few, config=few.config.changed({"choosing": {"num_ranked": 75}})), 225, 0.1)
    assert (chosen.config.candidates.num_prompts, chosen.config.choosing.num_ranked) == (22, 8)
    assert with_fewer(runs["few"], 5, 0.1).config.candidates.num_prompts == 2


def test_findings_are_paired_by_prompt_over_all_seeds():
    """Round 2 is right on all ten prompts of each seed, every other editor on half of them."""
    names = dict.fromkeys(name for pair in COMPARED for name in pair)
    seeds = [
        [
            {
                "prompt_id": id_for(seed, place), "editor": name, "followed": 0.9, "clip_image": 0.5,
                "clip_direction": 0.5, "preserved": 0.8 if name == "round 2" or place % 2 else 0.2,
            }
            for name in names
            for place in range(10)
        ]
        for seed in (0, 1)
    ]  # fmt: skip
    lines = findings(seeds).splitlines()
    [two] = [line for line in lines if line.startswith("| round 2 |")]
    assert two.startswith("| round 2 | 1.000 [1.000, 1.000]")
    assert two.endswith("1.000, 1.000 |")
    [gained] = [line for line in lines if line.startswith("| round 2 minus trained on |")]
    assert gained.startswith("| round 2 minus trained on | +0.500 [+0.")
    assert gained.endswith("| 50.0%, 50.0%, 0.0% |")
    [same] = [line for line in lines if line.startswith("| few minus round 1 |")]
    assert "+0.000 [+0.000, +0.000]" in same
