"""The study: what its seeds change."""

from collections.abc import Iterator

import pytest
from pydantic import BaseModel

from hive_ray.presets import shapes
from jobs.study import ARMS, Study, configured


def seeds_of(settings: BaseModel, where: str = "") -> Iterator[tuple[str, int]]:
    """Every seed in the settings, by the section that it is in."""
    for name, value in settings:
        if name == "seed":
            yield where, value
        if isinstance(value, BaseModel):
            yield from seeds_of(value, f"{where}.{name}".lstrip("."))


def test_another_seed_is_another_seed_in_every_stage_of_the_domain_that_draws():
    of_a_language_model = {"writer", "scoring.vision"}
    seeds = {where: seed for where, seed in seeds_of(configured(Study(), 3)) if where not in of_a_language_model}
    assert "editor.dpo.training" in seeds
    assert set(seeds.values()) == {3}


def test_all_arms_are_compared():
    assert configured(Study(), 0).evaluation.editors == ARMS == ("sft", "control", "conditional", "weighted", "dpo")


def test_more_held_out_prompts_leave_the_other_splits_as_large_as_the_quickstarts():
    quick, long = shapes().instructions, configured(Study(num_prompts=600), 0).instructions
    assert (
        long.rank_rate * long.num_captions == pytest.approx(quick.rank_rate * quick.num_captions) == pytest.approx(720)
    )
    assert long.test_rate * long.num_captions == pytest.approx(660)
    trained = [one.num_captions * (1 - one.rank_rate - one.test_rate) for one in (quick, long)]
    assert trained[0] == pytest.approx(trained[1]) == pytest.approx(450)


def test_from_the_base_the_first_training_alone_is_longer_and_faster():
    config = configured(Study(start="base", sft_images=64_000, sft_learning_rate=3e-4), 0)
    assert config.editor.start.endswith("base")
    assert (config.editor.sft.total_images, config.editor.sft.learning_rate) == (64_000, 3e-4)
    assert config.editor.finetune == configured(Study(), 0).editor.finetune
