import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hive_ray import storage
from hive_ray.artifacts import progress
from hive_ray.config import Resources, Training, Watching
from hive_ray.images import encode
from hive_ray.training import watching
from hive_ray.training.watching import TrainingMonitor


def training(**changes) -> Training:
    settings = dict(
        total_images=400, batch_size=1, micro_batch_size=1, learning_rate=0.1, checkpoint_images=10,
        workers=Resources(num_gpus=0),
    )  # fmt: skip
    return Training(**settings | changes)


def watch(run, *, resumed_at: int = 0, rank: int = 0, tracker: str = "tensorboard") -> TrainingMonitor:
    settings = training(watching=Watching(tracker=tracker))
    return TrainingMonitor(str(run), "editors/sft", settings, rank=rank, resumed_at=resumed_at)


def steps(eyes: TrainingMonitor, begin: int, end: int) -> None:
    for images in range(begin + 1, end + 1):
        eyes.log_step(images, {"train/loss": 1 / images, "train/gradient_norm": 9.0 if images == 30 else 0.5})


def logged(run) -> list[int]:
    return [json.loads(line)["images"] for line in storage.read_text(f"{run}/metrics/editors/sft.jsonl").splitlines()]


def test_log_curves_and_warnings_go_on_after_a_resume_as_if_nothing_had_happened(root, capsys):
    eyes = watch(root)
    eyes.log_step(0, {"validation/loss": 2.0})
    steps(eyes, 0, 35)
    eyes.flush()
    steps(eyes, 35, 38)  # and killed
    first = capsys.readouterr().out
    assert first.count("warning: the gradient's norm is 9 at 30 images") == 1

    eyes = watch(root, resumed_at=35)
    steps(eyes, 35, 40)
    eyes.close()
    assert logged(root) == list(range(41))
    events = EventAccumulator(
        str(storage.fetch_folder(f"{root}/tensorboard/editors/sft")), size_guidance={"scalars": 0}
    )
    assert [point.step for point in events.Reload().Scalars("train/loss")] == list(range(1, 41))
    assert [point.step for point in events.Scalars("validation/loss")] == [0]
    assert "images_per_second" in "".join(events.Tags()["scalars"])
    assert "warning" not in capsys.readouterr().out
    assert len(eyes.warnings.given) == 1


def test_a_damaged_log_loses_its_bad_lines_and_names_them(tmp_path, capsys):
    eyes = watch(tmp_path, tracker="none")
    steps(eyes, 0, 10)
    eyes.close()
    path = tmp_path / "metrics/editors/sft.jsonl"
    lines = path.read_bytes().splitlines()
    lines[2:5] = [b'{"images": 3, "train/lo', b"\0" * 200, b'{"images": "5"}']
    path.write_bytes(b"\n".join(lines))
    capsys.readouterr()
    eyes = watch(tmp_path, resumed_at=10, tracker="none")
    steps(eyes, 10, 12)
    eyes.close()
    assert logged(tmp_path) == [1, 2, 6, 7, 8, 9, 10, 11, 12]
    assert f"{path}: 3 of 10 lines cannot be used:\n  {path}, line 3: not JSON" in capsys.readouterr().out


def test_a_log_that_is_no_text_begins_anew_and_ends_no_training(tmp_path, capsys):
    path = tmp_path / "metrics/editors/sft.jsonl"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\0" * 4096)  # as some file systems leave it when the power fails
    eyes = watch(tmp_path, resumed_at=10, tracker="none")
    assert "the log is damaged and starts again after 0 lines" in capsys.readouterr().out
    steps(eyes, 10, 12)
    eyes.close()
    assert logged(tmp_path) == [11, 12]


def test_a_log_that_takes_long_to_write_is_written_less_often(tmp_path, monkeypatch):
    write, written = storage.write_text, []

    def slowly(path: str, text: str) -> None:
        time.sleep(0.1)
        written.append(path)
        write(path, text)

    monkeypatch.setattr(storage, "write_text", slowly)
    eyes = watch(tmp_path, tracker="none")
    eyes.progress.every_seconds = 0.0  # a line is due at each step
    steps(eyes, 0, 20)
    assert len(written) == 1
    eyes.log_step(21, {"train/loss": 0.1}, flush_now=True)
    assert logged(tmp_path) == list(range(1, 22))
    steps(eyes, 21, 30)
    eyes.close()
    assert logged(tmp_path) == list(range(1, 31))


def test_the_end_says_where_everything_is(tmp_path, capsys):
    eyes = watch(tmp_path)
    steps(eyes, 0, 35)
    eyes.log_picture(35, encode(np.zeros((4, 4, 3), np.uint8)))
    eyes.log_picture(35, None)
    eyes.close()
    capsys.readouterr()
    eyes.report()
    said = capsys.readouterr().out
    assert f"each step's measures are in {tmp_path}/metrics/editors/sft.jsonl" in said
    assert f"edits of held-out rows are in {tmp_path}/metrics/editors/sft/" in said
    assert f"curves: tensorboard --logdir {tmp_path}/tensorboard" in said
    assert "there was a warning: the gradient's norm is 9" in said
    assert [path.name for path in (tmp_path / "metrics/editors/sft").iterdir()] == ["000000035.png"]


def test_a_training_that_begins_again_clears_the_old_pictures(tmp_path):
    eyes = watch(tmp_path)
    eyes.log_picture(35, encode(np.zeros((4, 4, 3), np.uint8)))
    eyes.close()
    watch(tmp_path, resumed_at=0, rank=1)  # another rank clears nothing, nor writes
    assert (tmp_path / "metrics/editors/sft/000000035.png").exists()
    watch(tmp_path).close()
    assert not (tmp_path / "metrics/editors/sft").exists()


@pytest.mark.parametrize("fails_at", ["start", "scalars"])
def test_a_tracker_that_fails_ends_no_training_and_tells_no_secret(tmp_path, monkeypatch, capsys, fails_at):
    monkeypatch.setenv("SERVICE_API_KEY", "0123456789abcdef")

    def fail(*_, **__):
        raise ConnectionError("https://me:word@host refused 0123456789abcdef")

    broken = SimpleNamespace(log_scalars=fail, flush=fail, close=fail, location="nowhere")
    monkeypatch.setattr(watching, "start_tracker", fail if fails_at == "start" else lambda *_: broken)
    eyes = watch(tmp_path)
    steps(eyes, 0, 5)
    eyes.close()
    said = capsys.readouterr().out
    assert said.count("the tracker failed and is no longer used") == 1
    assert "ConnectionError: https://***@host refused ***" in said
    assert logged(tmp_path) == [1, 2, 3, 4, 5]


def test_rate_and_time_left_count_from_the_resume(monkeypatch, capsys):
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    resumed = progress.Progress("editors/sft", 1000, "images", done=400)
    now = 110.0
    assert resumed.advance(100, ", loss 0.1000")
    assert capsys.readouterr().out == "editors/sft: 500/1000 images, 10.0 images/s, 50s left, loss 0.1000\n"
