"""On a GPU: every job, and trainings and edits with the numbers of the CPU."""

import json
from pathlib import Path

import pytest
import ray
import torch
from tiny_models import tiny_base, tiny_clip, tiny_stable_diffusion
from tiny_settings import ONE, generator, tiny_config

from hive_ray.cluster.starting import start_ray
from hive_ray.config import Resources
from hive_ray.editor.model import Editor
from hive_ray.editor.sampling import sample
from jobs import pipeline, train_editor
from jobs.run import Run

GPU = Resources(num_gpus=1, num_cpus=1, num_actors=1, batch_size=4)
LATENTS = ("fp32", "none")

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """All of a pipeline on one GPU."""
    folder = tmp_path_factory.mktemp("run")
    base, clip = tiny_stable_diffusion(folder / "base"), tiny_clip(folder / "clip")
    start_ray(num_cpus=2)
    run = Run(str(folder / "run"), tiny_config(str(base), str(clip), GPU, GPU))
    pipeline.build(run)
    yield run
    ray.shutdown()


@pytest.fixture(scope="module")
def on_the_cpu(run, tmp_path_factory):
    """`steps` of one worker on a CPU, by where its latents come from."""
    return {latents: steps(run, tmp_path_factory.mktemp("cpu"), ONE, latents) for latents in LATENTS}


def steps(run: Run, folder: Path, workers: Resources, latents: str, **changes) -> dict[str, list[float]]:
    """Losses and gradient norms of the run's first editor, trained once more on its pairs."""
    (folder / "pairs").symlink_to(run.path("pairs"))
    sft = run.config.editor.sft.model_copy(update={"workers": workers, "total_images": 32} | changes)
    editor = run.config.editor.model_copy(update={"sft": sft, "latents": latents, "resources": workers})
    train_editor.build(Run(str(folder), run.config.model_copy(update={"editor": editor})))
    lines = (folder / "metrics" / "editors" / "sft.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines if "train/loss" in line]
    return {name: [step[f"train/{name}"] for step in found] for name in ("loss", "gradient_norm")}


@pytest.mark.ray
def test_every_job_ends(run):
    summary = json.loads(Path(run.path("summary.json")).read_text())
    assert summary["baseline"] == "sft"
    assert Path(run.path("report.html")).is_file()


@pytest.mark.ray
def test_the_log_has_the_peak_of_memory(run):
    lines = Path(run.path("metrics/editors/sft.jsonl")).read_text().splitlines()
    assert json.loads(lines[-1])["train/peak_memory_gb"] > 0


@pytest.mark.ray
@pytest.mark.parametrize(
    ("precision", "zero_stage", "offload", "latents"),
    [
        ("fp32", 0, "none", "fp32"),
        ("fp32", 0, "none", "none"),
        ("bf16", 0, "none", "fp32"),
        ("bf16", 1, "none", "none"),
        ("fp16", 0, "none", "fp32"),
        ("fp16", 2, "none", "fp32"),
        ("bf16", 2, "optimizer", "fp32"),
        ("bf16", 3, "none", "fp32"),
        ("bf16", 3, "weights", "fp32"),
    ],
)
def test_losses_and_gradients_are_those_of_the_cpu(run, on_the_cpu, tmp_path, precision, zero_stage, offload, latents):
    found = steps(run, tmp_path, GPU, latents, precision=precision, zero_stage=zero_stage, offload=offload)
    close = 5e-3 if precision == "fp32" else 5e-2  # convolutions are in TF32
    for name, values in on_the_cpu[latents].items():
        assert len(values) == 8
        assert found[name] == pytest.approx(values, rel=close), name


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "xl"])
def test_edits_are_those_of_the_cpu(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    editor, sources = Editor.build(tiny_base(tmp_path, kind)), torch.rand(2, 3, 64, 64, generator=generator()) * 2 - 1
    told = {"guidance_scale": 3.0, "image_guidance_scale": 1.5, "num_inference_steps": 3, "seeds": [1, 2]}
    each = [sample(editor.to(device), sources, ["make it red", "add a hat"], **told) for device in ("cpu", "cuda")]
    torch.testing.assert_close(each[1], each[0], rtol=0, atol=1e-2)
