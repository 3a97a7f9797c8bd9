"""The loader of reward models, with no cluster; the cluster's side is in test_reward_head.py."""

import json
import shutil

import numpy as np
import pytest
import torch
from tiny_models import tiny_clip, tiny_stable_diffusion, tiny_tokenizer

from hive_ray.artifacts.model_store import model_digest
from hive_ray.config import DenoisingError
from hive_ray.editor.denoising_errors import errors_of_edits, feature_names
from hive_ray.editor.model import Editor
from hive_ray.files.model_folders import ModelFolderError
from hive_ray.images import encode
from hive_ray.reward.head import LinearHead
from hive_ray.reward.model import RewardModel
from hive_ray.similarity import Similarity
from jobs.actors.judging import (
    BLIP_FEATURE,
    CLIP_FEATURE,
    PACKAGE,
    Head,
    clip_of,
    load_reward,
    portable,
    relative_to,
    seen_from,
)

SETTINGS = DenoisingError(levels=(100, 700), draws=1)
WORDS = ["make it red", "add a hat"]


@pytest.fixture(scope="module")
def pictures():
    drawn = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    return [encode(picture) for picture in drawn]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A run's editor, and a BLIP model."""
    folder = tmp_path_factory.mktemp("run")
    editor = Editor.build(tiny_stable_diffusion(folder / "base"))
    editor.save(folder / "editors" / "sft", editor.card)
    RewardModel.from_scratch(tiny_tokenizer(), resolution=16, max_tokens=12).save(folder / "blip", {})
    return folder


def head_of(names):
    count = len(names)
    numbers = torch.arange(1, count + 1, dtype=torch.float64)
    return LinearHead(tuple(names), numbers / 10, numbers, -numbers / 7)


@pytest.fixture
def made(original, tmp_path):
    """A run folder with a reward model of errors, one that knows BLIP's reward besides, and one of BLIP alone."""
    run = tmp_path / "run"
    shutil.copytree(original / "editors", run / "editors")
    digest = model_digest(str(run / "editors" / "sft"))
    names = feature_names(SETTINGS)
    for name, features, editor in (
        ("reward", names, "../editors/sft"),
        ("rounds/2/reward", (*names, BLIP_FEATURE), "../../../editors/sft"),
    ):
        (run / name).mkdir(parents=True)
        Head(head_of(features), SETTINGS, editor, digest).save(run / name)
        (run / name / "card.json").write_text("{}")
    shutil.copytree(original / "blip", run / "rounds/2/reward/blip")
    shutil.copytree(original / "blip", run / "of_blip")
    return run


def test_a_model_of_errors_scores_by_its_head(made, pictures):
    given = (pictures[:2], pictures[2:], WORDS)
    errors = errors_of_edits(Editor.load(made / "editors/sft"), *given, SETTINGS)
    names = feature_names(SETTINGS)
    by_hand = [
        sum(-(place / 7) * (error - place / 10) / place for place, error in enumerate(row, 1))
        for row in errors.tolist()
    ]
    assert load_reward(made / "reward").score(*given) == pytest.approx(by_hand, rel=1e-5)
    blip = RewardModel.load(made / "of_blip").score(*given)
    more = len(names) + 1
    with_blip = [reward - (said - more / 10) / 7 for reward, said in zip(by_hand, blip, strict=True)]
    assert load_reward(made / "rounds/2/reward").score(*given) == pytest.approx(with_blip, rel=1e-5)


def test_clip_and_blip_are_the_features_after_the_errors(made, pictures, tmp_path):
    clip, given, names = str(tiny_clip(tmp_path / "clip")), (pictures[:2], pictures[2:], WORDS), feature_names(SETTINGS)
    folder = made / "rounds/2/reward"
    known = Head.load(str(folder))
    head = head_of((*names, CLIP_FEATURE, BLIP_FEATURE))
    Head(head, SETTINGS, known.editor, known.editor_digest, clip, model_digest(clip)).save(folder)
    kept = Similarity(clip).to_source(*given[:2])
    blip = torch.tensor(RewardModel.load(made / "of_blip").score(*given))
    errors = errors_of_edits(Editor.load(made / "editors/sft"), *given, SETTINGS)
    by_hand = head(torch.cat([errors, kept[:, None], blip[:, None]], dim=1)).tolist()
    assert load_reward(folder).score(*given) == pytest.approx(by_hand, rel=1e-5)
    assert load_reward(folder).score([], [], []) == []

    tiny_clip(tmp_path / "other", seed=1)
    shutil.rmtree(clip)
    with pytest.raises(ModelFolderError, match=r"needs the CLIP .*/clip, which is not there\. Put that CLIP back"):
        load_reward(folder)
    (tmp_path / "other").rename(clip)
    with pytest.raises(ModelFolderError, match=r"needs the CLIP .*/clip, which is another one now"):
        load_reward(folder)


def test_a_clip_that_the_package_ships_is_found_wherever_the_package_lies(tmp_path, monkeypatch):
    shipped = str(PACKAGE / "shapes/weights/clip")
    assert portable(shipped) == "hive_ray:shapes/weights/clip"
    assert portable("openai/clip-vit-large-patch14") == "openai/clip-vit-large-patch14"
    monkeypatch.chdir(tmp_path)
    tiny_clip(tmp_path / "clip")
    assert portable("clip") == str(tmp_path / "clip")
    head = Head(head_of([CLIP_FEATURE]), SETTINGS, "", "", portable(shipped), model_digest(shipped))
    assert clip_of("reward", head) == shipped


def test_a_score_depends_neither_on_the_batch_nor_on_the_order(made, pictures):
    model = load_reward(str(made / "rounds/2/reward"))
    together = model.score(pictures[:2], pictures[2:], WORDS)
    turned = model.score(pictures[:2][::-1], pictures[2:][::-1], WORDS[::-1])
    alone = model.score(pictures[:1], pictures[2:3], WORDS[:1])
    assert turned[::-1] == pytest.approx(together, abs=1e-4)
    assert alone == pytest.approx(together[:1], abs=1e-4)


def test_a_model_of_blip_alone_is_loaded_as_ever(made, pictures):
    model = load_reward(made / "of_blip")
    assert type(model) is RewardModel
    assert not model.training


def test_a_run_folder_that_moved_still_scores(made, pictures, tmp_path):
    given = (pictures[:2], pictures[2:], WORDS)
    before = [load_reward(made / name).score(*given) for name in ("reward", "rounds/2/reward")]
    moved = tmp_path / "elsewhere"
    made.rename(moved)
    assert [load_reward(moved / name).score(*given) for name in ("reward", "rounds/2/reward")] == before


def test_a_model_whose_editor_is_gone_is_refused_with_what_to_do(made):
    shutil.rmtree(made / "editors")
    gone = rf"{made}/editors/sft, which is no finished editor\. Put the editor back, move the whole run folder"
    with pytest.raises(ModelFolderError, match=gone):
        load_reward(made / "reward")


def test_a_model_whose_editor_is_another_one_is_refused(made):
    card = made / "editors/sft/card.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"resolution": 32}))
    with pytest.raises(ModelFolderError, match=r"is another one now \(\w{16}, not \w{16}\)\. .*train the reward model"):
        load_reward(made / "reward")


@pytest.mark.parametrize("name", ["reward", "of_blip"])
def test_an_unfinished_folder_is_refused(made, name):
    (made / name / "card.json").unlink()
    with pytest.raises(ModelFolderError, match="no finished reward model"):
        load_reward(made / name)


@pytest.mark.parametrize("root", ["/data/run", "s3://bucket/run"])
def test_an_editor_in_the_run_folder_is_found_from_the_model_wherever_both_lie(root):
    for name, seen in (("reward", "../editors/sft"), ("rounds/2/reward_curve/0.5", "../../../../editors/sft")):
        folder, editor = f"{root}/{name}", f"{root}/editors/sft"
        assert relative_to(folder, editor, root) == seen
        assert seen_from(folder, seen) == editor
    for editor in ("/other/editors/sft", "s3://other/sft"):
        assert relative_to(f"{root}/reward", editor, root) == editor
        assert seen_from(f"{root}/reward", editor) == editor
