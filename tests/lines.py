"""A line that is fitted to points through Ray Train: what tests of the training loop train."""

import glob
import json
import math
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import ray
import torch
from local_server import free_port
from ray.cluster_utils import Cluster
from safetensors.torch import load_file, save_file

from hive_ray.artifacts.building import write_rows
from hive_ray.artifacts.selection import select
from hive_ray.cluster.fitting import fit
from hive_ray.config import Recovery, Resources, Training
from hive_ray.errors import BadRows
from hive_ray.images import encode
from hive_ray.schemas import Rows
from hive_ray.training import loop

FIELDS = [pa.field("point_id", pa.string(), nullable=False), pa.field("x", pa.float32(), nullable=False)]
POINTS = pa.schema(FIELDS, metadata={"table": "points", "id": "point_id"})
NUM_POINTS = 20


def training(**changes) -> Training:
    settings = dict(
        total_images=48, batch_size=8, micro_batch_size=2, learning_rate=0.1, schedule="cosine", warmup_images=16,
        ema_decay=0.5, checkpoint_images=16, workers=Resources(num_actors=2, num_gpus=0, num_cpus=1), weight_decay=0.0,
    )  # fmt: skip
    return Training(**settings | changes)


class Line:
    """y = 3 x + 1 with a little noise from the generator; can be told to die, to wait, to find bad rows, to prepare
    ahead as beside a GPU or to break, so that its loss or its gradient is no number, or its GPU is full."""

    def __init__(
        self, flag: str = "", dies_at: int = 0, seconds: float = 0.0, breaks: str = "",
        bad: frozenset = frozenset(), awaits: str = "", stored: str = "", ahead: bool = False,
    ):  # fmt: skip
        torch.manual_seed(0)
        self.ahead, self.preparing = ahead, False
        if ahead:  # it is made in the worker, before there is a helper or none
            loop.prefetch_executor = lambda device: ThreadPoolExecutor(1)
        self.model = torch.nn.Linear(1, 1)
        self.flag, self.dies_at, self.seconds, self.breaks, self.calls = flag, dies_at, seconds, breaks, 0
        self.bad, self.awaits, self.stored = bad, awaits, stored

    def prepare(self, rows: Rows, generator):
        self.preparing = True
        time.sleep(0.02 * self.ahead)
        self.preparing = False
        broken = {index: "it is cracked" for index, row in enumerate(rows) if row["point_id"] in self.bad}
        if broken:
            raise BadRows(broken)
        x = torch.tensor([[row["x"]] for row in rows])
        return {"x": x, "noise": torch.randn(x.shape, generator=generator)}

    def loss(self, model, batch):
        self.calls += 1
        time.sleep(self.seconds)
        if self.awaits and self.calls == 4:  # until somebody writes this file
            Path(f"{self.awaits}.wanted").write_text(ray.get_runtime_context().get_node_id())
            while not os.path.exists(self.awaits):
                time.sleep(0.1)
        if self.dies_at and self.calls == self.dies_at and not os.path.exists(self.flag):
            while self.stored and len(glob.glob(self.stored)) < 2:  # by both workers, while training goes on
                time.sleep(0.05)
            Path(self.flag).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        x = batch["x"]
        y = 3 * x + 1 + 0.1 * batch["noise"]
        loss = (model(x) - y).square().mean()
        if self.breaks == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if self.breaks == "loss":
            loss = loss * math.nan
        elif self.breaks == "gradient":
            loss = loss + (0 * loss).sqrt()  # 0, of no finite slope
        return loss, {"train/x": x.mean().item()}

    def preview(self, rows: Rows) -> bytes:
        assert not self.preparing
        y = self.model(torch.tensor([[row["x"]] for row in rows]))
        return encode((60 * y).byte().expand(-1, 3).reshape(1, -1, 3).numpy())

    def save(self, folder, state):
        save_file(state, folder / "model.safetensors")
        (folder / "card.json").write_text("{}")


def train(folder: Path, name: str = "line", settings: Training | None = None, **kwargs):
    return fit(
        Line, name=name, run=str(folder / "run"), rows=lambda: select(str(folder / "points"), POINTS),
        columns=["point_id", "x"], settings=settings or training(), fingerprint={"input.points": "p"}, **kwargs,
    )  # fmt: skip


def train_slowly(folder: Path, name: str):
    return train(folder, name, seconds=1.0)


def train_beside_another_cluster(folder: Path) -> None:
    """The other is the latest on this machine, Ray's default, and has a dashboard that knows of no training."""
    head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": free_port()}
    another = Cluster(initialize_head=True, head_node_args=head)
    try:
        train(folder, settings=training(recovery=Recovery(max_failures=0)), seconds=0.3)
    finally:
        another.shutdown()


def interrupt_when_awaited(file: Path) -> None:
    """Have Ctrl-C reach this process once a training `awaits` this file."""
    wanted = Path(f"{file}.wanted")

    def interrupt() -> None:
        while not wanted.exists():
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()


def write_points(folder: Path) -> None:
    rows = [{"point_id": str(index), "x": index / NUM_POINTS} for index in range(NUM_POINTS)]
    write_rows(str(folder / "points"), POINTS, rows, {})


def log(folder: Path, name: str = "line") -> list[dict]:
    lines = (folder / "run" / "metrics" / f"{name}.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "train/images_per_second"} for line in lines]


def weights(folder: Path, name: str = "line") -> dict[str, torch.Tensor]:
    return load_file(folder / "run" / name / "model.safetensors")
