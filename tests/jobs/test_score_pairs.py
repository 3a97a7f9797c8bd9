"""What the scoring job does to rows, with no cluster; the cluster's side is in test_pipeline.py."""

import numpy as np
import pytest
from llm_server import REFUSING, USELESS, refusal
from local_server import free_port

from hive_ray.artifacts.building import write_rows
from hive_ray.artifacts.manifest import read_manifest
from hive_ray.artifacts.selection import read_rows
from hive_ray.config import Scoring, VisionJudge
from hive_ray.errors import Stopped
from hive_ray.images import encode
from hive_ray.language import endpoint
from hive_ray.language.openai_client import EndpointError
from hive_ray.presets import sd15
from hive_ray.reward.shaping import fit_shaping
from hive_ray.schemas import PAIRS, REWARDS, Counted, Dropped
from jobs.actors.scoring import PairScorer, PairShaper
from jobs.run import Run
from jobs.score_pairs import _digest, build, build_for_arm, rewards_name, stages

ROWS = [{"pair_id": name, "instruction": f"add {name}", "weight": 1.0} for name in ("a", "b", "c")]


def lengths(rows):
    """A judge of one's own."""
    return [len(row["pair_id"]) for row in rows]


def test_a_callable_scores_pairs_and_its_rewards_alone_are_kept():
    scorer = PairScorer(f"{__name__}:lengths", Scoring(), reward="", answers="")
    assert scorer(ROWS) == [{"pair_id": name, "reward": 1.0} for name in ("a", "b", "c")]


def test_what_a_judge_dropped_or_counted_is_handed_on():
    scorer = PairScorer(f"{__name__}:lengths", Scoring(), reward="", answers="")
    scorer.judge = lambda rows: [Dropped("score_out_of_range"), Counted({"dollars": 0.1})]
    assert scorer(ROWS[:1]) == [Dropped("score_out_of_range"), Counted({"dollars": 0.1})]


def test_a_pair_that_no_judge_could_score_is_dropped_and_the_others_shaped(tmp_path):
    write_rows(
        str(tmp_path / "rewards"), REWARDS, [{"pair_id": "a", "reward": 1.0}, {"pair_id": "c", "reward": 0.0}], {}
    )
    said = fit_shaping(["add a", "add c"], np.array([1.0, 0.0]), Scoring(shaping="weighted"))
    shaped = PairShaper(str(tmp_path / "rewards"), "weighted", said, "judge")(ROWS)
    assert [getattr(row, "reason", None) for row in shaped] == [None, "no_reward", None]
    assert shaped[0]["weight"] == pytest.approx(2 * np.e / (np.e + 1))
    assert shaped[0]["reward_model"] == "judge"


def test_each_judge_has_a_table_of_its_own():
    judges = [("model",), ("clip",), ("my.judges:strict",), ("model", "clip")]
    assert [rewards_name(one) for one in judges] == [
        "rewards", "rewards_clip", "rewards_my_judges_strict", "rewards_combined",
    ]  # fmt: skip


def test_an_arm_that_is_trained_on_no_scored_pairs_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"arm 'dpo' has no scored pairs; choose one of finetuned, weighted, cond"):
        build_for_arm(Run(str(tmp_path), sd15(), arm="dpo"))


def judged_by(folder, llm: str, num_pairs: int = 12, **vision) -> Run:
    """A run whose pairs a model of the stand-in scores."""
    picture = encode(np.zeros((4, 4, 3), dtype=np.uint8))
    texts = dict.fromkeys(("instruction_id", "source_caption", "edited_caption"), "")
    numbers = dict.fromkeys(("shared_attention", "clip_image", "clip_source_text", "clip_edited_text"), 0.0)
    made = {"clip_direction": 0.0, "weight": 1.0, "seed": 0, "origin": "generated", "split": "train"}
    pictures = {"source_image": picture, "edited_image": picture}
    rows = (
        {"pair_id": f"{number:02d}", "instruction": f"add {number}", **texts, **numbers, **made, **pictures}
        for number in range(num_pairs)
    )
    write_rows(str(folder / "pairs"), PAIRS, rows, {})
    scoring = Scoring(judges=("openai",), vision=VisionJudge(llm=llm, max_attempts=1, **vision))
    return Run(str(folder), sd15().model_copy(update={"scoring": scoring}))


@pytest.mark.parametrize("llm", sorted(USELESS.keys() - {"numbers"}))
def test_a_judge_whose_answers_are_useless_stops_the_stage_on_the_driver_and_one_is_shown(
    chat, tmp_path, monkeypatch, llm
):
    monkeypatch.setattr(endpoint, "RETRY_WAITS_S", ())
    run, reason = judged_by(tmp_path, llm), USELESS[llm][0]
    with pytest.raises(Stopped, match=rf"none of the first answers is usable \(8 {reason}\).*\n  {reason}: .+"):
        build(run)
    assert read_manifest(run.path("rewards_openai")) is None
    assert sum(chat.asked.values()) <= 2 * 8


@pytest.mark.parametrize("status", [400, 404, 413, 422, 429])
def test_a_judge_that_refuses_all_stops_the_stage_in_its_own_words(chat, tmp_path, monkeypatch, status):
    monkeypatch.setattr(endpoint, "MAX_RETRIES", 0)
    chat.refused["blind"] = (status, refusal("this model takes no pictures"))
    with pytest.raises(Stopped, match=rf"{status} - this model takes no pictures"):
        build(judged_by(tmp_path, "blind"))


@pytest.mark.parametrize("llm", REFUSING)
def test_a_judge_that_refuses_a_temperature_or_a_seed_is_asked_without(chat, tmp_path, capsys, llm):
    with pytest.raises(Stopped, match="answer_is_not_of_the_form"):  # it writes edits, and no scores
        build(judged_by(tmp_path, llm))
    assert "leave it out from here on" in capsys.readouterr().out


def test_a_judge_that_is_not_there_stops_the_stage_before_it_begins(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "test")
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{free_port()}/v1")
    with pytest.raises(EndpointError, match="nothing listens at http://127"):
        build(judged_by(tmp_path, "m"))
    assert not (tmp_path / "rewards_openai").exists()


def test_settings_that_came_later_leave_the_judges_digest_as_it_was(tmp_path):
    def digest(**vision) -> str:
        return _digest(Run("", sd15().model_copy(update={"scoring": Scoring(vision=VisionJudge(**vision))})), "openai")

    assert digest() == digest(send_seed=False) == "8c5f2384514a485b"
    assert digest(temperature=None) != digest()


def test_pairs_that_one_of_several_judges_could_not_score_are_counted_and_none_at_all_stop_the_stage(tmp_path):
    def combined(name: str, *scored: str) -> Run:
        scoring = Scoring(judges=("clip_image", "clip_direction"))
        run = Run(str(tmp_path / name), sd15().model_copy(update={"scoring": scoring}))
        for judge, ids in zip(scoring.judges, scored, strict=True):
            rows = [{"pair_id": pair_id, "reward": float(ord(pair_id))} for pair_id in ids]
            write_rows(run.path(rewards_name((judge,))), REWARDS, rows, {})
        return run

    run = combined("some", "abcd", "bcde")
    manifest = stages(run)[-2].make(run)
    assert (manifest.rows_in, manifest.rows_out, manifest.dropped) == (5, 3, {"no_reward": 2})
    rows = list(read_rows(run.path("rewards_combined"), REWARDS))
    assert [row["pair_id"] for row in rows] == ["b", "c", "d"]
    run = combined("none", "ab", "cd")
    with pytest.raises(Stopped, match="0 rows from 4; dropped: 4 no_reward"):
        stages(run)[-2].make(run)
