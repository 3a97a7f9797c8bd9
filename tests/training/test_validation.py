import copy
import math
from collections import Counter
from types import SimpleNamespace

import engines
import numpy as np
import pyarrow as pa
import pytest
import torch
from gloo import in_workers
from tiny_models import tiny_stable_diffusion
from torch import nn

from hive_ray import config
from hive_ray.artifacts import selection
from hive_ray.artifacts.building import write_rows
from hive_ray.config import Preview, Resources, Training, Watching
from hive_ray.editor.model import Editor
from hive_ray.editor.objective import EditorObjective
from hive_ray.images import decode, encode
from hive_ray.seeds import generator_for, seed_for
from hive_ray.training.engine import start_engine, take_step
from hive_ray.training.rows import RowStore
from hive_ray.training.validation import Validation, evaluation_mode, hold_out, validation_due
from hive_ray.training.weights import WeightAverage, consolidated_state

COLUMNS = {"point_id": pa.string(), "source": pa.string(), "x": pa.float32()}
FIELDS = [pa.field(name, kind, nullable=False) for name, kind in COLUMNS.items()]
POINTS = pa.schema(FIELDS, metadata={"table": "points", "id": "point_id"})
NUM_POINTS = 10
pytestmark = pytest.mark.filterwarnings("ignore:.torch.distributed:FutureWarning")  # DeepSpeed calls old names


def training(**changes) -> Training:
    settings = dict(
        total_images=24, batch_size=4, micro_batch_size=4, learning_rate=0.1, checkpoint_images=24, max_grad_norm=0.5,
        ema_decay=0.5, workers=Resources(num_gpus=0), watching=Watching(num_previews=3),
    )  # fmt: skip
    return Training(**settings | changes)


class Noisy:
    """A network that keeps statistics, drops out, and has noise from the generator and from torch's own stream."""

    def __init__(self):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(1, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))

    def prepare(self, rows, generator):
        x = torch.tensor([[row["x"]] for row in rows])
        return {"x": x, "noise": torch.randn(x.shape, generator=generator)}

    def loss(self, model, batch):
        x = batch["x"]
        noise = batch["noise"] + 0.1 * torch.randn(x.shape)
        return (model(x) - x - noise).square().mean(), {"train/x": x.mean().item()}

    def preview(self, rows):
        with torch.inference_mode():
            y = self.model(torch.tensor([[row["x"]] for row in rows]))
        return y.numpy().tobytes()


@pytest.fixture(scope="module")
def process_group(tmp_path_factory):
    """This process alone: the collectives and ZeRO's hooks are at work, though every part is the whole."""
    file = tmp_path_factory.mktemp("group") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_RANK", "0")
        torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
        yield
        torch.distributed.destroy_process_group()


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("HIVE_RAY_CACHE", str(tmp_path / "cache"))
    return RowStore(select(tmp_path), ["x"], write=True).write_cache("test").open()


def one_source(row) -> list[str]:
    return [row["source"]]


def select(folder, sources: str = "abcdefghij"):
    rows = [{"point_id": str(i), "source": one, "x": i / len(sources)} for i, one in enumerate(sources)]
    write_rows(str(folder / "points"), POINTS, rows, {})
    return selection.select(str(folder / "points"), POINTS)


def sources(selection) -> list[str]:
    return [row["source"] for row in selection.read(0, len(selection), ["source"]).to_pylist()]


def test_whole_sources_are_held_out_and_the_same_ones_of_any_table(tmp_path):
    twice = select(tmp_path / "one", "".join(letter * 2 for letter in "abcdefghijklmnopqrstuvwxyz"))
    rows, held_out = hold_out(twice, ["source"], one_source, 4)
    assert (len(rows), len(held_out)) == (48, 4)
    assert set(Counter(sources(held_out)).values()) == {2}
    assert not set(sources(rows)) & set(sources(held_out))
    others = select(tmp_path / "two", "".join(letter * 2 for letter in "zyxwvutsrqponmlkjihgfedcba"))
    assert set(sources(hold_out(others, ["source"], one_source, 4)[1])) == set(sources(held_out))


def test_rows_that_are_linked_by_others_stay_together(tmp_path):
    turns = ["a b", "b c", "c d"]  # the edited image of a turn is the source of the next
    chain = select(
        tmp_path, [*turns, *(f"{letter}{letter}" for letter in "efghijklmnopqrstuvwxyzefghijklmnopqrstuvwxyz")]
    )
    for num_rows in (1, 2, 3, 4):
        held_out = sources(hold_out(chain, ["source"], lambda row: row["source"].split(), num_rows)[1])
        assert len(set(held_out) & set(turns)) in (0, 3)
    everything = sources(hold_out(chain, ["source"], lambda row: ["one", row["source"]], 4)[1])
    assert everything == []


def test_a_small_table_gives_a_tenth_at_most(tmp_path):
    rows, held_out = hold_out(select(tmp_path), ["source"], one_source, 64)
    assert (len(rows), len(held_out)) == (9, 1)
    assert len(hold_out(rows, ["source"], one_source, 64)[1]) == 0
    assert len(hold_out(rows, ["source"], lambda row: pytest.fail("read"), 0)[0]) == 9


def test_the_rows_are_looked_at_at_each_quarter_or_as_often_as_is_said():
    settings = training(total_images=100, batch_size=10, micro_batch_size=10)
    steps = [(start, start + 10) for start in range(0, 100, 10)]
    assert [end for start, end in steps if validation_due(settings, start, end)] == [30, 50, 80, 100]
    often = settings.model_copy(update={"watching": Watching(validation_images=40)})
    assert [end for start, end in steps if validation_due(often, start, end)] == [40, 80, 100]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_looking_changes_no_bit_of_a_training_in_any_stage(process_group, store, stage):
    settings = training(zero_stage=stage)

    def trained(looks: bool):
        noisy = Noisy()
        engine, norms, seen = start_engine(noisy.model, settings), [], []
        average = WeightAverage(engine.module, settings.ema_decay)
        validation = Validation(store, "points", settings, rank=0, world=1)
        torch.manual_seed(1)
        for step in range(4):
            if looks:
                with evaluation_mode(engine, average):
                    seen.append(validation.measure(noisy, engine)["validation/loss"])
                    assert len(validation.preview(noisy, engine)) == 3 * 4  # three rows in fp32
            loss, _ = noisy.loss(engine, noisy.prepare(store.read(np.arange(4)), generator_for("step", step)))
            engine.backward(loss)
            norms.append(take_step(engine, settings.max_grad_norm))
            average.update()
        state = [*(value for value in engine.module.state_dict().values()), *average.weights.values()]
        parts = [weight.ds_tensor.clone() for weight in noisy.model.parameters() if hasattr(weight, "ds_tensor")]
        assert all(module.training for module in noisy.model.modules())
        return [*state, *parts], norms, seen

    plain, norms, _ = trained(looks=False)
    looked, other_norms, seen = trained(looks=True)
    assert all(torch.equal(one, other) for one, other in zip(plain, looked, strict=True))
    assert norms == other_norms
    assert len(set(seen)) == 4


@pytest.mark.parametrize("precision", ["fp32", "fp16"])  # fp16's is freed of its loss scale
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_gradient_norm_is_that_of_the_whole_step_before_clipping(process_group, stage, precision):
    settings = training(zero_stage=stage, batch_size=8, micro_batch_size=4, precision=precision)
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    size = 100 if precision == "fp32" else 0.01  # fp16's first loss scale is 65536
    alone, x = copy.deepcopy(model), torch.randn(8, 3)
    (size * alone(x).square().mean()).backward()
    wanted = nn.utils.get_total_norm([weight.grad for weight in alone.parameters()]).item()
    assert wanted > settings.max_grad_norm or precision == "fp16"

    engine = start_engine(model, settings)
    for half in x.chunk(2):  # two micro batches
        engine.backward(size * engine(half).float().square().mean())
        norm = take_step(engine, settings.max_grad_norm)
    assert norm == pytest.approx(wanted, rel=1e-5 if precision == "fp32" else 1e-2)


@pytest.mark.parametrize("size", [math.inf, math.nan])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_gradient_that_is_not_finite_changes_no_weight(process_group, stage, size):
    settings = training(zero_stage=stage, batch_size=4, micro_batch_size=4)
    engine, x = start_engine(nn.Linear(3, 2), settings), torch.randn(4, 3)
    states, norms = [], []
    for factor in (1, size, 1):
        engine.backward(factor * engine(x).square().mean())
        norms.append(take_step(engine, settings.max_grad_norm))
        states.append(consolidated_state(engine.module))
    assert [math.isfinite(norm) for norm in norms] == [True, False, True]
    first, second, third = (torch.cat([weight.flatten() for weight in state.values()]) for state in states)
    assert torch.equal(first, second)
    assert third.isfinite().all()
    assert not torch.equal(second, third)


def test_the_held_out_loss_is_the_averaged_weights_at_fixed_noise_in_eval_mode(process_group, store):
    settings = training(micro_batch_size=4, zero_stage=2)
    noisy = Noisy()
    engine = start_engine(noisy.model, settings)
    average = WeightAverage(engine.module, settings.ema_decay)
    for weight in engine.module.parameters():
        weight.data.add_(1.0)  # away from the average
    validation = Validation(store, "points", settings, rank=0, world=1)
    with evaluation_mode(engine, average):
        measures = validation.measure(noisy, engine)

    alone = Noisy()
    alone.model.eval()
    losses = []
    for number in range(3):  # batches of 4, 4 and 2 rows
        rows = store.read(np.arange(4 * number, min(4 * number + 4, NUM_POINTS)))
        torch.manual_seed(seed_for("layers", "validation", settings.seed, number))
        loss, _ = alone.loss(alone.model, alone.prepare(rows, generator_for("validation", settings.seed, number)))
        losses.append((loss.item(), len(rows)))
    assert measures["validation/loss"] == pytest.approx(sum(loss * count for loss, count in losses) / NUM_POINTS)
    assert measures["validation/x"] == pytest.approx(0.45)


def test_an_editor_whose_weights_are_parts_is_previewed_without_a_trace(process_group, tmp_path):
    base = tiny_stable_diffusion(tmp_path / "base")
    picture = encode(np.full((64, 64, 3), 120, np.uint8))
    row = {
        "pair_id": "p",
        "instruction": "make it red",
        "weight": 1.0,
        "source_image": picture,
        "edited_image": picture,
    }
    store = SimpleNamespace(num_rows=2, key="pair_id", read=lambda places: [row] * len(places))
    settings = training(batch_size=2, micro_batch_size=2, zero_stage=3)
    preview = Preview(num_inference_steps=2)

    def trained(looks: bool):
        options = config.Editor(
            start="", resolution=64, train_text_encoder=True, preview=preview, sft=settings, finetune=settings
        )
        objective = EditorObjective(Editor.build(base), options)
        engine, pictures = start_engine(objective.model, settings), []
        average = WeightAverage(engine.module, settings.ema_decay)
        for step in range(3):
            if looks:
                with evaluation_mode(engine, average):
                    validation = Validation(store, "points", settings, rank=0, world=1)
                    validation.measure(objective, engine)
                    pictures.append(validation.preview(objective, engine))
            loss, _ = objective.loss(engine, objective.prepare([row, row], generator_for("step", step)))
            engine.backward(loss)
            take_step(engine, settings.max_grad_norm)
            average.update()
        return [weight.ds_tensor for weight in objective.model.parameters()], pictures

    plain, _ = trained(looks=False)
    looked, pictures = trained(looks=True)
    assert all(torch.equal(one, other) for one, other in zip(plain, looked, strict=True))
    assert len(set(pictures)) == 3


def test_two_workers_that_hold_parts_of_an_editor_draw_one_preview(tmp_path):
    base = tiny_stable_diffusion(tmp_path / "base")
    (whole, none), (parted, neither) = zip(*in_workers(2, engines.previews, str(base), [0, 3]), strict=True)
    assert none is neither is None
    assert np.abs(decode(whole).astype(int) - decode(parted)).max() <= 1
    assert decode(whole).std() > 1
