"""The training loop under plain torch.distributed, against the same under Ray Train."""

import json
import os
import subprocess
import sys
from pathlib import Path

import plain_training
import pytest
import ray
import torch
from safetensors.torch import load_file
from tiny_models import tiny_stable_diffusion

from bench.training import write_pairs
from hive_ray.cluster.fitting import fit
from hive_ray.editor.model import Editor

ROOT = Path(__file__).parents[2]
SAME = ("train/loss", "train/gradient_norm", "train/learning_rate")


def logged(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics" / "editor.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in SAME} for line in lines]


@pytest.mark.ray
def test_a_training_without_ray_has_the_losses_and_weights_of_the_same_under_ray_bit_for_bit(tmp_path, shared_cluster):
    editor = Editor.build(tiny_stable_diffusion(tmp_path / "base"))
    editor.save(tmp_path / "start", editor.card)
    write_pairs(str(tmp_path), count=16)

    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    script = str(ROOT / "tests" / "plain_training.py")
    subprocess.run([*command, script, str(tmp_path)], env=environment, check=True, timeout=300)

    ray.cloudpickle.register_pickle_by_value(plain_training)  # workers cannot import a test's module
    fit(
        plain_training.Objective, name="editor", run=str(tmp_path / "ray"),
        rows=lambda: plain_training.pairs(str(tmp_path)), columns=plain_training.COLUMNS,
        settings=plain_training.SETTINGS, fingerprint={}, folder=str(tmp_path),
    )  # fmt: skip

    assert len(logged(tmp_path / "plain")) == 3
    assert logged(tmp_path / "plain") == logged(tmp_path / "ray")
    weights = "unet/diffusion_pytorch_model.safetensors"
    plain, under_ray = (load_file(tmp_path / run / "editor" / weights) for run in ("plain", "ray"))
    assert plain.keys() == under_ray.keys()
    assert all(torch.equal(plain[name], under_ray[name]) for name in plain)
