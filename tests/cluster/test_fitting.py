import asyncio
import json
import math
import os
import signal
import sys
from pathlib import Path

import drivers
import numpy as np
import pytest
import ray
import torch
from diffusers.training_utils import EMAModel
from lines import (
    NUM_POINTS,
    POINTS,
    Line,
    interrupt_when_awaited,
    log,
    train,
    train_beside_another_cluster,
    train_slowly,
    training,
    weights,
    write_points,
)
from ray._private.state import state
from ray.train import WorkerGroupError
from ray.util import placement_group_table

from hive_ray.artifacts.building import write_rows
from hive_ray.artifacts.model_store import build_model, store_model
from hive_ray.artifacts.selection import Selection, select
from hive_ray.cluster.fitting import checkpoint_folder, export
from hive_ray.cluster.one_machine.tuning import DATA_HELPERS
from hive_ray.config import Recovery, Resources, Training
from hive_ray.errors import Stopped
from hive_ray.images import decode
from hive_ray.seeds import generator_for
from hive_ray.training.loop import learning_rate, seed_layers
from hive_ray.training.rows import RowStore, batch_places
from hive_ray.training.weights import WeightAverage, ema_decay


@pytest.fixture(scope="module")
def cluster(shared_cluster):
    ray.cloudpickle.register_pickle_by_value(sys.modules["lines"])  # workers cannot import a test file
    return shared_cluster


def by_hand(
    settings: Training, bad: frozenset = frozenset()
) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    """The same training in one plain process, without the bad rows, no Ray, no DeepSpeed: losses, gradient norms and
    averaged weights."""
    line, losses, norms = Line(), [], []
    optimizer = torch.optim.AdamW(line.model.parameters(), weight_decay=settings.weight_decay)
    average = {name: weight.detach().clone() for name, weight in line.model.named_parameters()}
    world, micro = settings.workers.num_actors, settings.micro_batch_size
    share = settings.batch_size // world
    for step, images in enumerate(range(0, settings.total_images, settings.batch_size)):
        places = batch_places(images, settings.batch_size, NUM_POINTS, settings.seed)
        sums, num_good = [], 0
        for rank in range(world):
            for start in range(0, share, micro):
                mine = places[rank * share + start : rank * share + start + micro]
                rows = [{"point_id": str(place), "x": float(np.float32(place / NUM_POINTS))} for place in mine]
                good = [row for row in rows if row["point_id"] not in bad]
                generator = generator_for("batch", settings.seed, rank, images + start)
                if good:
                    sums.append(len(good) * line.loss(line.model, line.prepare(good, generator))[0])
                num_good += len(good)
        total = torch.stack(sums).sum()
        optimizer.zero_grad()
        (total / settings.batch_size).backward()
        norm = torch.nn.utils.clip_grad_norm_(line.model.parameters(), settings.max_grad_norm or math.inf)
        norms.append(norm.item())
        optimizer.param_groups[0]["lr"] = learning_rate(settings, images + settings.batch_size)
        before = {name: weight.detach().clone() for name, weight in line.model.named_parameters()}
        optimizer.step()
        losses.append(total.item() / num_good)
        updates = share // micro if settings.ema_rule == "micro_batch" else 1
        for update in range(step * updates, (step + 1) * updates):
            decay = min(settings.ema_decay, (2 + update) / (11 + update))
            last = update == (step + 1) * updates - 1
            for name, weight in line.model.named_parameters():
                average[name] = decay * average[name] + (1 - decay) * (weight if last else before[name]).detach()
    return losses, norms, average


def held_out_loss(settings: Training, weights: dict[str, torch.Tensor]) -> float:
    """The loss of the points above 0.5 by these weights: one process, a batch of `micro_batch_size` after another."""
    line, total = Line(), 0.0
    line.model.load_state_dict(weights)
    points = [{"point_id": str(place), "x": float(np.float32(place / NUM_POINTS))} for place in range(11, NUM_POINTS)]
    for start in range(0, len(points), settings.micro_batch_size):
        rows = points[start : start + settings.micro_batch_size]
        generator = generator_for("validation", settings.seed, start // settings.micro_batch_size)
        total += line.loss(line.model, line.prepare(rows, generator))[0].item() * len(rows)
    return total / len(points)


def test_every_epoch_holds_each_row_once_in_an_order_of_its_own():
    stream = np.concatenate([batch_places(images, 8, 20, seed=3) for images in range(0, 40, 8)])
    first, second = stream[:20].tolist(), stream[20:].tolist()
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second != list(range(20))
    assert batch_places(16, 8, 20, seed=3).tolist() == stream[16:24].tolist()
    assert batch_places(0, 8, 20, seed=4).tolist() != first[:8]


def test_the_learning_rate_warms_up_and_falls_along_half_a_cosine():
    settings = training(total_images=116, warmup_images=16)
    rates = [learning_rate(settings, images) for images in (8, 16, 66, 116, 120)]
    assert rates == pytest.approx([0.05, 0.1, 0.05, 0.0, 0.0])
    assert learning_rate(settings.model_copy(update={"schedule": "constant"}), 116) == 0.1


def test_the_average_starts_fast_and_slows_to_its_decay():
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.0)
    average = WeightAverage(model, decay=0.25)
    model.weight.data.fill_(1.0)
    average.update()  # decay 2 / 11
    assert average.weights["weight"].item() == pytest.approx(9 / 11)
    average.update()  # min(0.25, 3 / 12)
    assert average.weights["weight"].item() == pytest.approx(1 - 2 / 11 * 0.25)
    average.copy_to_model()
    assert model.weight.item() == pytest.approx(1 - 2 / 11 * 0.25)


def test_the_decay_counts_as_each_rule_says():
    instruct_pix2pix = [ema_decay(updates, 0.5, "micro_batch") for updates in (1, 2, 3, 8, 9)]
    assert instruct_pix2pix == pytest.approx([2 / 11, 3 / 12, 4 / 13, 0.5, 0.5])
    assert [ema_decay(updates, 0.5, "step") for updates in (1, 2, 3, 8, 9)] == instruct_pix2pix
    assert ema_decay(1, 0.5, "diffusers") == 0
    assert [ema_decay(updates, 0.5, "diffusers") for updates in (2, 3, 4, 9, 10)] == instruct_pix2pix


def test_the_rule_of_diffusers_gives_the_average_that_diffusers_does():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 3)
    theirs, ours = EMAModel(model.parameters(), decay=0.4), WeightAverage(model, 0.4, "diffusers")
    for _ in range(12):
        for weight in model.parameters():
            weight.data.add_(torch.randn_like(weight))
        theirs.step(model.parameters())
        ours.update()
        for shadow, weight in zip(theirs.shadow_params, ours.weights.values(), strict=True):
            torch.testing.assert_close(weight, shadow)
    assert theirs.cur_decay_value == 0.4  # the bound has been met


def test_rows_are_read_by_place_without_their_neighbours(tmp_path, monkeypatch):
    monkeypatch.setenv("HIVE_RAY_CACHE", str(tmp_path / "cache"))
    rows = [{"point_id": str(index), "x": float(index)} for index in range(100)]
    write_rows(str(tmp_path / "points"), POINTS, rows, {})
    selection = select(str(tmp_path / "points"), POINTS, where={"x": lambda x: x % 2 == 1})
    store = RowStore(selection, ["x"], write=True).write_cache("test").open()
    assert store.num_rows == 50
    assert store.read(np.array([49, 0, 33])) == [{"x": 99.0}, {"x": 1.0}, {"x": 67.0}]
    store.close()
    assert not list((tmp_path / "cache" / "rows").iterdir())


def test_rows_that_cannot_be_brought_here_leave_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("HIVE_RAY_CACHE", str(tmp_path / "cache"))
    write_points(tmp_path)

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(Selection, "read", full)
    with pytest.raises(OSError, match="No space left"):
        RowStore(select(str(tmp_path / "points"), POINTS), ["x"], write=True).write_cache("test")
    assert not list((tmp_path / "cache" / "rows").iterdir())


def test_a_model_folder_is_kept_or_refused_as_a_table_is(tmp_path, capsys):
    def make(seed: int):
        return lambda: store_model(path, lambda to: (to / "card.json").write_text("{}"), {"s": seed}, {"m": 1.0}, 0.0)

    path = str(tmp_path / "model")
    assert build_model("editors/sft", path, {"s": 0}, make(0)) == {"m": 1.0}
    assert build_model("editors/sft", path, {"s": 0}, lambda: pytest.fail("made again")) == {"m": 1.0}
    assert "editors/sft: kept" in capsys.readouterr().out
    with pytest.raises(FileExistsError, match=r"s was 0, is 1.*--rebuild"):
        build_model("editors/sft", path, {"s": 1}, make(1))
    build_model("editors/sft", path, {"s": 1}, make(1), on_mismatch=r"rebuild")
    assert json.loads((tmp_path / "model" / "made.json").read_text())["fingerprint"] == {"s": 1}


def test_dropout_layers_are_seeded_as_torch_seeds_them():
    torch.manual_seed(2**62 + 5)
    wanted = torch.rand(3)
    seed_layers(2**62 + 5, torch.device("cpu"))
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.ray
@pytest.mark.parametrize(
    ("stage", "rule", "norm", "ahead"),
    [(0, "micro_batch", 0.0, False), (2, "step", 1.0, False), (2, "step", 1.0, True), (3, "step", 1.0, False)],
)
def test_two_workers_train_as_one_plain_loop_does_while_held_out_rows_are_looked_at(
    tmp_path, cluster, stage, rule, norm, ahead
):
    write_points(tmp_path)
    settings = training(zero_stage=stage, ema_rule=rule, max_grad_norm=norm)
    points = str(tmp_path / "points")
    metrics = train(
        tmp_path, settings=settings, held_out=lambda: select(points, POINTS, where={"x": lambda x: x > 0.5}),
        ahead=ahead,
    )  # fmt: skip
    losses, norms, average = by_hand(settings)

    start, *steps = log(tmp_path)
    assert [line["train/loss"] for line in steps] == pytest.approx(losses, rel=1e-5)
    assert [line["train/gradient_norm"] for line in steps] == pytest.approx(norms, rel=1e-5)
    assert [line["images"] for line in (start, *steps) if "validation/loss" in line] == [0, 16, 24, 40, 48]
    assert start["validation/loss"] == pytest.approx(held_out_loss(settings, Line().model.state_dict()), rel=1e-5)
    assert metrics["validation/loss"] == pytest.approx(held_out_loss(settings, average), rel=1e-5)
    assert metrics["train/loss"] == steps[-1]["train/loss"]
    assert metrics["train/ema_decay"] == (0.5 if rule == "micro_batch" else 0.4375)  # (1 + 6) / (10 + 6)
    pictures = sorted((tmp_path / "run" / "metrics" / "line").iterdir())
    assert [picture.name for picture in pictures] == [f"{images:09d}.png" for images in (0, 16, 24, 40, 48)]
    y = [(average["weight"] * place / NUM_POINTS + average["bias"]).item() for place in (11, 13, 16, 19)]
    np.testing.assert_allclose(decode(pictures[-1].read_bytes())[0, :, 0], 60 * np.array(y), atol=1)
    for name, weight in weights(tmp_path).items():
        torch.testing.assert_close(weight, average[name], rtol=1e-5, atol=1e-6)
    assert not list((tmp_path / "run" / "checkpoints").iterdir())  # a whole model needs none


@pytest.mark.ray
def test_a_killed_worker_and_a_killed_driver_leave_no_trace_in_losses_and_weights(tmp_path, cluster, capsys):
    write_points(tmp_path)
    train(tmp_path, "undisturbed")
    train(tmp_path, "worker", flag=str(tmp_path / "flag"), dies_at=9)
    assert (tmp_path / "flag").exists()
    train(tmp_path, "ahead", flag=str(tmp_path / "other"), dies_at=9, ahead=True)
    assert (tmp_path / "other").exists()

    checkpoints = tmp_path / "run" / "checkpoints"
    driver = drivers.start(train_slowly, tmp_path, "driver", cluster=cluster)
    drivers.kill_when(lambda: list(checkpoints.glob("driver-*/*/rank-0.json")), driver, after_s=1)
    assert not (tmp_path / "run" / "driver").exists()
    train(tmp_path, "driver")

    for name in ("worker", "ahead", "driver"):
        assert log(tmp_path, name) == log(tmp_path, "undisturbed")
        for key, weight in weights(tmp_path, name).items():
            assert torch.equal(weight, weights(tmp_path, "undisturbed")[key])


@pytest.mark.ray
def test_checkpoints_of_a_model_that_is_whole_go_with_the_next_run(tmp_path, cluster, capsys):
    """A driver that is killed once its workers have stored the model leaves them."""
    write_points(tmp_path)
    train(tmp_path, "whole")
    made = json.loads((tmp_path / "run" / "whole" / "made.json").read_text())
    left = Path(checkpoint_folder(str(tmp_path / "run"), "whole", made["fingerprint"]))
    (left / "ray" / "0a1b").mkdir(parents=True)
    (left / "rank-0.json").touch()
    train(tmp_path, "whole")
    assert "whole: kept" in capsys.readouterr().out
    assert not left.exists()


@pytest.mark.ray
def test_a_loss_that_is_not_a_number_stops_the_run_with_advice(tmp_path, cluster):
    write_points(tmp_path)
    with pytest.raises(Stopped, match=r"line: the loss is nan after 8 images; lower the learning rate"):
        train(tmp_path, breaks="loss")


@pytest.mark.ray
@pytest.mark.parametrize("stage", [0, 2])
def test_gradients_that_are_no_numbers_for_long_stop_the_run_with_advice(tmp_path, cluster, stage):
    write_points(tmp_path)
    with pytest.raises(Stopped, match=r"line: the gradient's norm is (nan|inf) in 50 steps in a row, up to 400 images"):
        train(tmp_path, settings=training(total_images=480, zero_stage=stage), breaks="gradient")


@pytest.mark.ray
def test_a_gpu_that_is_full_stops_the_run_with_advice(tmp_path, cluster):
    write_points(tmp_path)
    with pytest.raises(Stopped, match=r"line: .* lower micro_batch_size \(it is 2; .*Tried to allocate 2\.00 GiB"):
        train(tmp_path, settings=training(recovery=Recovery(max_failures=0)), breaks="memory")


@pytest.mark.ray
def test_bad_rows_are_left_out_and_too_many_stop_all_workers_with_their_ids(tmp_path, cluster):
    write_points(tmp_path)
    loose = training(zero_stage=3, recovery=Recovery(most_bad_rows=0.1))
    # Both of a micro batch after the first checkpoint; in later epochs they are in batches with good ones.
    bad = frozenset(str(place) for place in batch_places(16, 2, NUM_POINTS, loose.seed))
    train(tmp_path, "loose", settings=loose, bad=bad)
    losses, _, average = by_hand(loose, bad)
    assert [line["train/loss"] for line in log(tmp_path, "loose")] == pytest.approx(losses, rel=1e-5)
    for name, weight in weights(tmp_path, "loose").items():
        torch.testing.assert_close(weight, average[name], rtol=1e-5, atol=1e-6)
    drawn = [str(place) in bad for images in range(0, 48, 8) for place in batch_places(images, 8, NUM_POINTS, 0)]
    assert log(tmp_path, "loose")[-1]["train/skipped_rows"] == sum(drawn) > 2

    train(tmp_path, "ahead", settings=loose, bad=bad, ahead=True)
    assert log(tmp_path, "ahead") == log(tmp_path, "loose")

    strict = loose.model_copy(update={"recovery": Recovery(most_bad_rows=0.05)})
    with pytest.raises(Stopped, match=r"strict: 2 of 20 rows are bad, more than .*bad_rows \(0\.05\)") as stopped:
        train(tmp_path, "strict", settings=strict, bad=bad)
    assert all(f"{row}: it is cracked" in str(stopped.value) for row in bad)
    train(tmp_path, "strict", settings=loose, bad=bad)  # goes on from the checkpoint at 16 images
    assert log(tmp_path, "strict") == log(tmp_path, "loose")
    for name, weight in weights(tmp_path, "strict").items():
        assert torch.equal(weight, weights(tmp_path, "loose")[name])


@pytest.mark.ray
def test_another_cluster_on_this_machine_is_not_asked_whether_the_training_lives(tmp_path, cluster):
    write_points(tmp_path)
    train_beside_another_cluster(tmp_path)
    assert log(tmp_path)[-1]["images"] == 48


class Idles:
    """For Ray Data, which makes its helpers for it."""

    def __call__(self, batch):
        return batch


def helpers() -> set[str]:
    named = {actor["name"]: actor["namespace"] for actor in ray.util.list_named_actors(all_namespaces=True)}
    return {name for name, namespace in DATA_HELPERS.items() if named.get(name) == namespace}


@pytest.mark.ray
def test_no_idle_actor_stands_beside_a_training_and_ray_data_goes_on_after_it(tmp_path, cluster):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    one = ray.data.ActorPoolStrategy(size=1)
    assert len(ray.data.range(4).map_batches(Idles, compute=one).take_all()) == 4
    assert helpers() == set(DATA_HELPERS)

    write_points(tmp_path)
    before = set(state.actor_table(None))
    train(tmp_path)
    made = [actor for key, actor in state.actor_table(None).items() if key not in before]
    ended = {actor["ActorClassName"]: actor["EndTime"] for actor in made}
    assert set(ended) == {"RayTrainWorker", "SynchronizationActor"}
    assert ended["SynchronizationActor"] < ended["RayTrainWorker"]
    assert helpers() == set()

    assert len(ray.data.range(4).map_batches(Idles, compute=one).take_all()) == 4


@pytest.mark.ray
def test_an_interrupted_training_leaves_no_worker_and_the_same_call_goes_on(tmp_path, cluster):
    write_points(tmp_path)
    go = tmp_path / "go"
    interrupt_when_awaited(go)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, awaits=str(go))
    go.touch()
    lives = {actor["ActorClassName"] for actor in state.actor_table(None).values() if actor["State"] != "DEAD"}
    assert "RayTrainWorker" not in lives
    train(tmp_path, awaits=str(go))
    assert log(tmp_path)[-1]["images"] == 48


@pytest.mark.ray
def test_a_training_within_an_event_loop_is_controlled_by_an_actor(tmp_path, cluster):
    write_points(tmp_path)
    before = set(state.actor_table(None))

    async def cell() -> None:
        train(tmp_path)

    asyncio.run(cell())
    made = {actor["ActorClassName"] for key, actor in state.actor_table(None).items() if key not in before}
    assert "TrainController" in made
    assert log(tmp_path)[-1]["images"] == 48


class DiesOnArrival:
    """Kills the first process that it is sent to."""

    def __init__(self, flag: str) -> None:
        self.flag = flag

    def __reduce__(self):
        return arrive, (self.flag,)


def arrive(flag: str) -> str:
    if not Path(flag).exists():
        Path(flag).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return ""


@pytest.mark.ray
def test_a_worker_that_dies_as_it_is_handed_its_work_is_started_again(tmp_path, cluster, capfd):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    write_points(tmp_path)
    whole = Resources(num_actors=2, num_gpus=0, num_cpus=2)  # all of the cluster: nothing may be left of the first try
    train(tmp_path, settings=training(workers=whole), breaks=DiesOnArrival(str(tmp_path / "flag")))
    assert "line: a worker died as it started; all start again" in capfd.readouterr().out
    assert log(tmp_path)[-1]["images"] == 48

    once = training(workers=whole, recovery=Recovery(max_failures=0))
    with pytest.raises(Stopped, match=r"never: its 2 workers .* could not be started \(recovery.max_failures = 0\): "):
        train(tmp_path, "never", once, breaks=DiesOnArrival(str(tmp_path / "flags")))
    assert {group["state"] for group in placement_group_table().values()} == {"REMOVED"}


@pytest.mark.ray
def test_a_training_that_died_gives_its_weights_on_demand_and_goes_on(tmp_path, cluster, capfd):
    write_points(tmp_path)
    settings = training(total_images=32, schedule="constant", recovery=Recovery(max_failures=0))
    train(tmp_path, "shorter", settings.model_copy(update={"total_images": 16}))
    stored = str(tmp_path / "run" / "checkpoints" / "died-*" / "16" / "rank-*.json")
    with pytest.raises(WorkerGroupError):
        train(tmp_path, "died", settings, flag=str(tmp_path / "flag"), dies_at=5, stored=stored)  # in its third step
    told = dict(name="died", run=str(tmp_path / "run"), settings=settings, fingerprint={"input.points": "p"})
    exported = export(Line, folder=lambda images: str(tmp_path / "run" / f"died-{images}"), **told)
    assert Path(exported).name == "died-16"
    assert (Path(exported) / "card.json").exists()
    for name, weight in weights(tmp_path, "died-16").items():
        assert torch.equal(weight, weights(tmp_path, "shorter")[name])

    train(tmp_path, "died", settings)
    assert "died: resumed at 16 images" in capfd.readouterr().out
    assert [line["images"] for line in log(tmp_path, "died")] == [8, 16, 24, 32]
    with pytest.raises(ValueError, match=r"died has no checkpoint .* it is finished: .*run/died"):
        export(Line, folder=str, **told)
