import os

import pytest
import ray

from hive_ray.distributed.cluster import start_ray


@pytest.mark.ray
def test_a_worker_sees_the_gpus_that_it_holds_and_no_others(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    start_ray(num_cpus=1, num_gpus=1)  # said to be there: nothing computes on it
    try:
        seen = ray.remote(lambda: os.environ.get("CUDA_VISIBLE_DEVICES"))
        assert ray.get([seen.options(num_gpus=count).remote() for count in (0, 1)]) == ["", "0"]
    finally:
        ray.shutdown()
