"""Nodes and files that fail while a model is trained: its losses and weights end up as the undisturbed ones."""

import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lines
import pytest
import ray
import torch
from lines import log, train, train_beside_another_cluster, training, weights, write_points
from ray.cluster_utils import Cluster

from hive_ray.cluster.starting import start_ray
from hive_ray.config import Recovery, Resources
from hive_ray.errors import Stopped

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A cluster whose head trains nothing, and two nodes that hold a worker each."""
    ray.cloudpickle.register_pickle_by_value(lines)  # workers cannot import a test file
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HIVE_RAY_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        patch.setenv("RAY_ADDRESS", cluster.address)
        start_ray()
        yield cluster
        ray.shutdown()
        cluster.shutdown()


def when(condition, act) -> threading.Thread:
    """Do something in the background once a condition holds."""

    def wait() -> None:
        deadline = time.monotonic() + 120
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.1)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_a_checkpoint_is_written_before_an_announced_preemption(tmp_path, cluster, capfd):
    settings = training(total_images=200, checkpoint_images=200)  # none but the one that the announcement asks for
    write_points(tmp_path)
    train(tmp_path, "undisturbed", settings)

    flag, doomed = tmp_path / "drained", tmp_path / "drained.wanted"  # a node that has a worker

    def announce() -> None:
        drain = [
            str(Path(sys.executable).with_name("ray")), "drain-node", "--address", cluster.address,
            "--node-id", doomed.read_text(), "--reason", "DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message", "spot", "--deadline-remaining-seconds", "6",
        ]  # fmt: skip
        subprocess.run(drain, check=True, capture_output=True)
        flag.touch()

    announced = when(lambda: doomed.exists() and doomed.read_text(), announce)
    cluster.add_node(num_cpus=1)
    train(tmp_path, "disturbed", settings, seconds=0.3, awaits=str(flag))
    announced.join()

    said = capfd.readouterr().out
    stored = re.search(
        r"disturbed: a node is being taken away; checkpoint at (\d+) images, -?\d+ s before its end", said
    )
    resumed = re.search(r"disturbed: resumed at (\d+) images, (\d+) logged steps are repeated", said)
    assert resumed[1] == stored[1]
    assert log(tmp_path, "disturbed") == log(tmp_path, "undisturbed")
    for key, weight in weights(tmp_path, "disturbed").items():
        assert torch.equal(weight, weights(tmp_path, "undisturbed")[key])


def test_a_cluster_that_was_joined_is_the_one_that_workers_ask(tmp_path, cluster):
    write_points(tmp_path)
    train_beside_another_cluster(tmp_path)
    assert log(tmp_path)[-1]["images"] == 48


def test_a_node_that_joins_late_is_waited_for_in_words_and_one_that_never_does_not_for_ever(
    tmp_path, cluster, monkeypatch, capfd
):
    monkeypatch.setenv("HIVE_RAY_AUTOSCALES", "1")  # so that it waits at all
    write_points(tmp_path)
    wide = Resources(num_actors=2, num_gpus=0, num_cpus=4)
    settings = training(workers=wide, recovery=Recovery(wait_minutes=0.15))
    with pytest.raises(Stopped, match=r"2 workers with 4 CPU and 0 GPU each did not all start within .* = 0.15: the "):
        train(tmp_path, "waits", settings)
    assert "waits: waiting for 2 workers with 4 CPU and 0 GPU each; the cluster has" in capfd.readouterr().out

    late = when(lambda: "waits: waiting" in capfd.readouterr().out, lambda: None)
    with ThreadPoolExecutor(1) as pool:  # Ray adds nodes from the main thread alone
        trained = pool.submit(
            train, tmp_path, "waits", settings.model_copy(update={"recovery": Recovery(wait_minutes=2)})
        )
        late.join()
        cluster.add_node(num_cpus=8)
        trained.result(180)
    assert log(tmp_path, "waits")[-1]["images"] == settings.total_images
