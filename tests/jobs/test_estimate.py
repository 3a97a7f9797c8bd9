import json

import pytest
from llm_server import Chat

from hive_ray import storage
from hive_ray.config import Resources, Spending
from hive_ray.presets import shapes
from jobs import evaluate_editor, make_pairs, write_instructions
from jobs.command import read_command
from jobs.run import Run, run_command

pytestmark = pytest.mark.ray


def asking(folder, chat: Chat, count: int) -> Run:
    """A run of `count` captions, two of which are answered in half a second by each of two actors."""
    chat.delay = 0.5
    (folder / "captions.txt").write_text("\n".join(f"a cat {number}" for number in range(count)))
    settings = shapes().instructions.model_copy(
        update={
            "captions": str(folder / "captions.txt"),
            "num_captions": count,
            "writer": "openai",
            "spending": Spending(prompt_price=1000.0, completion_price=2000.0),
            "resources": Resources(num_gpus=0, num_actors=2, batch_size=2),
        }
    )
    return Run(str(folder / "run"), shapes().model_copy(update={"instructions": settings}))


def test_an_estimate_says_what_the_stage_then_takes_and_pays_for_no_answer_twice(chat, tmp_path, shared_cluster, capfd):
    run = asking(tmp_path, chat, 20)
    thought = write_instructions.estimate(run)
    assert (thought.rows, thought.rows_out) == (20, 20)
    assert thought.seconds == pytest.approx(20 * 0.5 / 2 / 2, rel=0.4)
    assert thought.counts == pytest.approx({"prompt_tokens": 2_000, "completion_tokens": 1_000, "dollars": 4.0})
    asked = sum(chat.asked.values())
    assert 0 < asked <= 20

    write_instructions.build(run)
    assert set(chat.asked.values()) == {1}
    said = capfd.readouterr().out
    assert "instructions, estimated: 20 rows become 20 in" in said
    assert "dollars +0 %" in said
    assert "against the estimate: time" in said


def test_pairs_are_estimated_in_pictures_through_the_unet_and_gpu_hours(chat, tmp_path, shared_cluster, capfd):
    preset = shapes()
    pairs = preset.pairs.model_copy(update={"num_inference_steps": 2, "resources": Resources(num_gpus=0, batch_size=8)})
    instructions = preset.instructions.model_copy(
        update={"num_captions": 12, "rank_rate": 0.0, "test_rate": 0.0, "seed": 0}
    )
    run = Run(str(tmp_path), preset.model_copy(update={"pairs": pairs, "instructions": instructions}))
    write_instructions.build(run)
    thought = make_pairs.estimate(run)
    assert thought.rows == 12
    assert thought.seconds > 0
    assert thought.gpu_hours == 0  # this one needs none
    drawn = 12 * pairs.samples_per_instruction
    assert f"pairs: {drawn} pairs drawn, {drawn * 2 * 4} pictures through the U-Net" in capfd.readouterr().out
    kept = json.loads(storage.read_text(run.path("estimates/pairs.json")))
    assert kept["rows_out"] == thought.rows_out


def test_a_stage_that_cannot_estimate_says_so_before_anything_starts(tmp_path):
    command = read_command(["shapes", "--run", str(tmp_path), "--estimate"])
    with pytest.raises(SystemExit, match="only write_instructions and make_pairs can estimate"):
        run_command(evaluate_editor.build, command, evaluate_editor)
