import sys

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hive_ray import storage
from hive_ray.training.trackers import TrackedTraining, redact_secrets, require_tracker, start_tracker


def tracked(run: str, resumed_at: int = 0) -> TrackedTraining:
    return TrackedTraining(run, "editors/sft", "tests", {"learning_rate": 0.1}, resumed_at)


def track(name: str, run: str, begin: int, end: int, *, offset: float = 0.0, resumed_at: int = 0):
    """Points at 8, 16, ... of begin..end, and a picture at the end."""
    tracker = start_tracker(name, tracked(run, resumed_at))
    for images in range(begin + 8, end + 1, 8):
        tracker.log_scalars(images, {"train/loss": images + offset})
    tracker.log_picture(end, "validation/edits", np.full((4, 6, 3), 200, np.uint8))
    return tracker


def read(folder: str) -> EventAccumulator:
    return EventAccumulator(str(storage.fetch_folder(folder)), size_guidance={"scalars": 0, "images": 0}).Reload()


def points(events: EventAccumulator) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in events.Scalars("train/loss")]


def test_tensorboard_reads_each_point_once_after_a_resume_and_pictures_too(root):
    track("tensorboard", root, 0, 40).close()
    folder = storage.join(root, "tensorboard", "editors/sft")
    assert points(read(folder)) == [(images, images) for images in (8, 16, 24, 32, 40)]
    # The checkpoint was at 16: what came after it is trained again.
    track("tensorboard", root, 16, 32, offset=0.5, resumed_at=16).close()
    events = read(folder)
    assert points(events) == [(8, 8), (16, 16), (24, 24.5), (32, 32.5)]
    assert [(image.step, image.width, image.height) for image in events.Images("validation/edits")] == [(32, 6, 4)]


def test_a_training_that_begins_again_leaves_nothing_of_the_old_curves(tmp_path):
    track("tensorboard", str(tmp_path), 0, 40).close()
    track("tensorboard", str(tmp_path), 0, 16, offset=0.5).close()
    assert points(read(str(tmp_path / "tensorboard/editors/sft"))) == [(8, 8.5), (16, 16.5)]


def test_a_flush_brings_the_points_to_s3_while_the_training_goes_on(s3_root):
    tracker = track("tensorboard", s3_root, 0, 16)
    assert not storage.exists(storage.join(s3_root, "tensorboard"))
    tracker.flush(durable=False)
    assert not storage.exists(storage.join(s3_root, "tensorboard"))
    tracker.flush(durable=True)
    assert points(read(storage.join(s3_root, "tensorboard", "editors/sft"))) == [(8, 8), (16, 16)]
    tracker.close()


def test_none_tracks_nothing(tmp_path):
    assert start_tracker("none", tracked(str(tmp_path))) is None


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_that_is_not_installed_is_refused_with_its_command(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=f"pip install {name}"):
        require_tracker(name, "runs/one")


@pytest.mark.filterwarnings("default")
def test_mlflow_goes_on_with_its_run_and_sends_no_point_twice(tmp_path, monkeypatch):
    client_of = pytest.importorskip("mlflow").MlflowClient
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    track("mlflow", str(tmp_path), 0, 40).flush(durable=True)  # and killed
    track("mlflow", str(tmp_path), 16, 56, offset=0.5, resumed_at=16).close()
    client = client_of(f"sqlite:///{tmp_path}/mlflow.db")
    [run] = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    history = client.get_metric_history(run.info.run_id, "train/loss")
    seen = [(one.step, one.value) for one in history]
    assert seen == [(8, 8), (16, 16), (24, 24), (32, 32), (40, 40), (48, 48.5), (56, 56.5)]
    assert run.data.params["learning_rate"] == "0.1"
    assert [one.path for one in client.list_artifacts(run.info.run_id, "validation/edits")] == [
        "validation/edits/000000040.png", "validation/edits/000000056.png",
    ]  # fmt: skip


def test_wandb_logs_at_images_and_keeps_its_id_over_a_resume(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    require_tracker("wandb", str(tmp_path))
    first = track("wandb", str(tmp_path), 0, 40)
    assert first.run.step == 40
    assert first.run.summary["train/loss"] == 32  # the step at 40 is still open
    first.close()
    second = track("wandb", str(tmp_path), 16, 24, resumed_at=16)
    assert second.run.id == first.run.id
    second.close()
    files = [path.read_bytes() for path in (tmp_path / "wandb").rglob("*") if path.is_file()]
    assert files
    assert not any(b"k" * 40 in content for content in files)


def test_wandb_without_a_key_is_refused_before_anything_starts(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="wandb login"):
        require_tracker("wandb", str(tmp_path))


def test_words_lose_their_secrets(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("MY_TOKEN", "yes")  # too short to be one
    words = redact_secrets("POST https://me:pass@host/api 0123456789abcdef failed: yes")
    assert words == "POST https://***@host/api *** failed: yes"
