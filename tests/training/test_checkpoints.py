import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import engines
import numpy as np
import psutil
import pytest
import torch
from gloo import in_workers

from hive_ray.config import Resources
from hive_ray.errors import Stopped
from hive_ray.training import checkpoints, engine
from hive_ray.training.checkpoints import Checkpoints, TrainingState
from hive_ray.training.engine import autocast, check_memory, estimate_memory
from hive_ray.training.weights import WeightAverage


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HIVE_RAY_CACHE", str(tmp_path / "cache"))


def by_hand(until: int) -> engines.Result:
    """The same training in one plain process."""
    model, losses = engines.network(), []
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    average = {name: weight.detach().clone() for name, weight in trained.items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=0.01)
    for step, images in enumerate(range(0, until, engines.BATCH), start=1):
        x, y = engines.rows(images)
        loss = (model(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        decay = min(0.5, (1 + step) / (10 + step))
        for name, weight in trained.items():
            average[name] = decay * average[name] + (1 - decay) * weight.detach()
    state = model.state_dict() | average
    return losses, {name: value.tolist() for name, value in state.items()}


def assert_same(found: engines.Result, wanted: engines.Result, rel: float) -> None:
    assert found[0] == pytest.approx(wanted[0], rel=rel)
    for name, value in wanted[1].items():
        np.testing.assert_allclose(found[1][name], value, rtol=rel, atol=rel)


SETTINGS = [
    *({"zero_stage": stage} for stage in (0, 1, 2, 3)),
    {"zero_stage": 2, "offload": "optimizer"},
    {"zero_stage": 3, "offload": "weights"},
    {"precision": "bf16"},
    {"precision": "fp16"},
    *({"precision": "bf16", "zero_stage": stage} for stage in (0, 3)),
]
STAGES = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def trained():
    """What two workers make of each of SETTINGS, as rank 0 and rank 1 see it."""
    return list(zip(*in_workers(2, engines.train_each, 64, [("", changes) for changes in SETTINGS]), strict=True))


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """The folder of checkpoints, the losses and the weights at each of STAGES, with 2, 1 and 2 workers in turn."""
    root = tmp_path_factory.mktemp("resumed")
    losses, calls = [[] for _ in STAGES], [(str(root / str(stage)), {"zero_stage": stage}) for stage in STAGES]
    calls += [(str(root / f"fp16-{stage}"), {"zero_stage": stage, "precision": "fp16"}) for stage in (0, 2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HIVE_RAY_CACHE", str(root / "cache"))
        for world, until in ((2, 24), (1, 40), (2, 64)):
            found = in_workers(world, engines.train_each, until, calls)[0]
            for stage in STAGES:
                losses[stage] += found[stage][0]
                told = json.loads((root / str(stage) / str(until) / "rank-0.json").read_text())
                assert (told["world"], told["images"]) == (world, until)
    return [(root / str(stage), losses[stage], found[stage][1]) for stage in STAGES]


@pytest.mark.parametrize("place", range(6), ids=lambda place: str(SETTINGS[place]))
def test_two_workers_at_every_zero_stage_train_as_one_plain_loop(trained, place):
    first, second = trained[place]
    assert second == (first[0], {})
    assert_same(first, by_hand(64), rel=1e-5)


@pytest.mark.parametrize("place", [6, 7], ids=lambda place: str(SETTINGS[place]))
def test_lower_precisions_stay_near(trained, place):
    losses = trained[place][0][0]
    assert losses == pytest.approx(by_hand(64)[0], rel=0.03)
    assert losses != pytest.approx(by_hand(64)[0], rel=1e-6)  # it was autocast


def test_zero_sends_gradients_and_weights_in_fp32_whatever_the_precision(trained):
    without, *parted = (trained[place][0] for place in (8, 6, 9))
    for found in parted:
        assert_same(found, without, rel=1e-5)


def test_a_loss_scale_that_is_too_large_falls_until_something_is_learned_at_every_stage():
    for norms in in_workers(2, engines.steps_from_too_large_a_scale, STAGES)[0]:
        lost = sum(not math.isfinite(norm) for norm in norms)
        assert 5 < lost < 40
        assert all(math.isfinite(norm) for norm in norms[lost:])
        assert norms[-1] < 0.9 * norms[lost]


def test_what_an_objective_computes_by_itself_has_the_precision_of_the_training():
    layer, x = torch.nn.Linear(2, 2), torch.ones(1, 2)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        with autocast(engines.settings(2, precision=precision)):
            assert layer(x).dtype == dtype


def test_gradients_are_clipped_to_the_same_length_at_every_stage_and_precision():
    calls = [
        {"zero_stage": stage, "precision": precision, "max_grad_norm": 0.01}
        for precision in ("fp32", "fp16")  # last: DeepSpeed goes on scaling in a process that has begun to
        for stage in STAGES
    ]
    assert in_workers(2, engines.clipped_norms, calls)[0] == pytest.approx([0.01] * len(calls), rel=1e-2)


@pytest.mark.parametrize("stage", STAGES)
def test_two_workers_then_one_then_two_go_on_as_if_nothing_had_changed(resumed, stage):
    assert_same(resumed[stage][1:], by_hand(64), rel=1e-5)


@pytest.mark.parametrize("stage", [0, 2])
def test_fp16s_loss_scale_goes_on_growing_where_it_was(resumed, stage):
    folder = resumed[0][0].parent / f"fp16-{stage}"
    assert Checkpoints(str(folder)).newest().scaler["_growth_tracker"] == 64 / engines.BATCH  # steps since it last grew


class Evil:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("stage", [0, 2, 3])
@pytest.mark.parametrize("world", [2, 1])
def test_a_checkpoint_that_holds_code_is_refused_and_the_code_not_run(resumed, tmp_path, stage, world):
    folder, mark = tmp_path / "checkpoints", tmp_path / "ran"
    shutil.copytree(resumed[stage][0] / "64", folder / "64")
    for rank in range(2):
        names = [f"mp_rank_0{rank}_model_states.pt", f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"]
        files = [file for name in names if (file := folder / "64" / "state" / name).exists()]
        told = json.loads((folder / "64" / f"rank-{rank}.json").read_text())
        for file in files:
            with torch.serialization.safe_globals(checkpoints.SAFE_CLASSES):
                content = torch.load(file, weights_only=True)
            torch.save(content | {"more": Evil(mark)}, file)
            if f"state/{file.name}" in told["files"]:
                told["files"][f"state/{file.name}"] = file.stat().st_size
        (folder / "64" / f"rank-{rank}.json").write_text(json.dumps(told))
    assert Checkpoints(str(folder)).newest().images == 64
    with pytest.raises(ValueError, match=r"holds more than weights, and is not opened.* global: GLOBAL getattr"):
        in_workers(world, engines.train, str(folder), 72, {"zero_stage": stage})
    assert not mark.exists()


@pytest.mark.parametrize("stage", STAGES)
def test_the_weights_of_a_checkpoint_are_read_without_an_engine(resumed, stage):
    folder, _, averaged = resumed[stage]
    opened = Checkpoints(str(folder)).open(64, world=2)
    shapes = {name: weight.shape for name, weight in engines.network().named_parameters() if weight.requires_grad}
    for name, weight in opened.weights(shapes).items():
        assert weight.tolist() == averaged[name]
    if stage < 3:
        kept = torch.load(opened.engine_folder / "state" / "mp_rank_00_model_states.pt", weights_only=True)["module"]
        assert kept.keys() == shapes.keys()  # frozen weights are the start's
    last = replace(opened, training_state=TrainingState(64, {}, 2, updates=0, zero_stage=stage)).weights(shapes)
    assert {name: weight.shape for name, weight in last.items()} == shapes
    assert last["2.bias"].tolist() != averaged["2.bias"]


def test_who_has_no_work_waits_for_who_has():
    assert all(1 <= seconds < 10 for seconds in in_workers(2, engines.seconds_together, 1.0))


def write(folder: Path, images: int, world: int = 2, best: float | None = None) -> None:
    """A whole checkpoint of nothing but lists and one file a rank."""
    for rank in range(world):
        state = folder / str(images) / "state"
        state.mkdir(parents=True, exist_ok=True)
        (state / f"{rank}.pt").write_bytes(b"12345")
        last = {} if best is None else {"validation/loss": best}
        told = {"images": images, "last": last, "world": world, "files": {f"state/{rank}.pt": 5}}
        (folder / str(images) / f"rank-{rank}.json").write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "state" / "1.pt").write_bytes(b"123"), r"state/1.pt has 3 bytes of 5"),
        (lambda folder: (folder / "state" / "0.pt").unlink(), r"state/0.pt missing"),
        (lambda folder: (folder / "rank-1.json").unlink(), r"rank-1.json missing"),
        (lambda folder: (folder / "rank-0.json").unlink(), r"not finished"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, capsys, damage, said):
    for images in (8, 16):
        write(tmp_path, images)
    assert Checkpoints(str(tmp_path)).newest().images == 16
    damage(tmp_path / "16")
    assert Checkpoints(str(tmp_path)).newest().images == 8
    assert said in capsys.readouterr().out
    Checkpoints(str(tmp_path)).remove_after(8)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.isdigit()) == ["8"]
    assert Checkpoints(str(tmp_path / "none")).newest() is None


def test_the_last_and_the_best_are_kept(tmp_path):
    for images, loss in ((8, 0.3), (16, 0.1), (24, 0.2), (32, 0.4), (40, 0.5)):
        write(tmp_path, images, best=loss)
    write(tmp_path, 48, world=2)
    (tmp_path / "48" / "rank-1.json").unlink()  # still on its way
    Checkpoints(str(tmp_path), keep_last=2, keep_best=1, best="validation/loss")._prune()
    assert sorted(int(path.name) for path in tmp_path.iterdir() if path.name != "cache") == [16, 32, 40, 48]


def test_a_checkpoint_that_cannot_be_stored_is_an_error_and_not_a_loss(tmp_path, monkeypatch):
    engine = type("Engine", (), {"save_checkpoint": lambda *_, **__: None})()
    kept = Checkpoints(str(tmp_path / "kept"))

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoints.storage, "write_text", full)
    kept.save(engine, None, TrainingState(8, {}, 1))
    with pytest.raises(OSError, match="No space left"):
        kept.wait()


def test_the_average_of_channels_last_weights_comes_back(tmp_path):
    engine = type("Engine", (), {"save_checkpoint": lambda *_, **__: None})()
    layer = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    average, fresh = (
        WeightAverage(layer, 0.5),
        WeightAverage(torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last), 0.5),
    )
    kept = Checkpoints(str(tmp_path / "kept"))
    kept.save(engine, average, TrainingState(8, {}, 1, updates=3))
    kept.wait()
    opened = kept.open(8, world=1)
    fresh.load(opened.average_partitions(0, 1), opened.training_state.updates, 0)
    assert fresh.updates == 3
    for name, weight in average.weights.items():
        assert torch.equal(fresh.weights[name], weight)


def test_the_memory_of_a_worker_by_zero_stage():
    def total(**changes) -> tuple[float, float]:
        found = estimate_memory(1000, 100, engines.settings(2, **changes))
        return sum(found["device"].values()), sum(found["host"].values())

    # weights + gradients + two moments (and, parted, their fp32 copy) + average + buffers, 4 bytes each
    assert total(zero_stage=0) == (4 * (1100 + 1000 + 2000 + 1000 + 1000), 0)
    assert total(zero_stage=1) == (4 * (1100 + 1000 + 1500 + 1000 + 1000), 0)
    assert total(zero_stage=2) == (4 * (1100 + 500 + 1500 + 1000 + 1000), 0)
    assert total(zero_stage=3) == (4 * (550 + 500 + 1500 + 500 + 2100), 0)
    assert total(zero_stage=2, offload="optimizer") == (4 * (1100 + 500 + 1000 + 1000), 4 * 1500)
    assert total(zero_stage=3, offload="weights") == (4 * (500 + 2100), 4 * (1500 + 550 + 500))
    assert total(zero_stage=0, ema_decay=0.0) == (4 * (1100 + 1000 + 2000 + 1000), 0)
    assert (
        estimate_memory(1000, 100, engines.settings(2), other_frozen=50)["device"]["frozen outside the model"] == 4 * 50
    )
    large = estimate_memory(10**9, 0, engines.settings(2, zero_stage=2))["device"]
    assert large["buffers"] == 4 * 2 * 50_000_000


@pytest.mark.parametrize(
    ("folder", "limit", "used", "files"),
    [
        ("", "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ],
)
def test_no_more_memory_is_free_than_the_container_may_take(folder, limit, used, files, tmp_path, monkeypatch):
    group = tmp_path / folder
    group.mkdir(exist_ok=True)
    (group / limit).write_text("8000000\n")
    (group / used).write_text("5000000\n")
    (group / "memory.stat").write_text(f"anon 4000000\n{files} 1000000\n")
    assert engine.free_container_bytes(tmp_path) == 4_000_000
    assert engine.free_container_bytes(tmp_path / "none") == math.inf
    monkeypatch.setattr(engine, "free_container_bytes", lambda: 4_000_000)
    assert engine.free_bytes(False) == 4_000_000


def test_a_container_without_a_limit_leaves_the_machine_s_memory(tmp_path):
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("5000000\n")
    (tmp_path / "memory.stat").write_text("inactive_file 1000000\n")
    assert engine.free_container_bytes(tmp_path) == math.inf
    assert 0 < engine.free_bytes(False) <= psutil.virtual_memory().total


def test_what_cannot_fit_is_refused_before_it_crashes():
    model, told = engines.network(), engines.settings(2)
    check_memory("editors/sft", model, told, 2, max_over_ranks=float, free=lambda device: 10_000)
    with pytest.raises(Stopped, match=r"editors/sft: 59 trained weights need .* raise zero_stage \(now 2\)"):
        check_memory("editors/sft", model, told, 2, max_over_ranks=float, free=lambda device: 1000)
    on_gpu = told.model_copy(update={"workers": Resources(num_actors=2, num_gpus=1)})
    check_memory("editors/sft", model, on_gpu, 2, max_over_ranks=float, free=lambda device: 10_000)
    with pytest.raises(Stopped, match=r"in the memory of the GPU, .* frozen outside the model 0\.00 GB"):
        check_memory(
            "editors/sft",
            model,
            on_gpu,
            2,
            max_over_ranks=float,
            free=lambda device: 10_000,
            frozen_modules=[torch.nn.Linear(50, 60)],
        )
    with pytest.raises(Stopped):  # another rank's machine is smaller
        check_memory("editors/sft", model, told, 2, max_over_ranks=lambda lacking: 5.0, free=lambda device: 10**9)
