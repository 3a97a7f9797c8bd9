import os

import pytest
import ray

from hive_ray.cluster import starting
from hive_ray.cluster.starting import GLIBC, JEMALLOC, allocator, start_ray


def test_workers_of_this_machine_have_rays_allocator_where_it_is_there_and_fits(monkeypatch):
    assert allocator(here=True) == JEMALLOC
    assert allocator(here=False) == GLIBC  # it lies elsewhere on other machines
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 65536}.get)
    assert allocator(here=True) == GLIBC
    monkeypatch.undo()
    monkeypatch.setattr(starting, "JEMALLOC_SO", "/nowhere/libjemalloc.so")
    assert allocator(here=True) == GLIBC


@pytest.mark.ray
def test_a_worker_sees_the_gpus_that_it_holds_and_no_others(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    start_ray(num_cpus=1, num_gpus=1)  # said to be there: nothing computes on it
    try:
        seen = ray.remote(lambda: os.environ.get("CUDA_VISIBLE_DEVICES"))
        assert ray.get([seen.options(num_gpus=count).remote() for count in (0, 1)]) == ["", "0"]
    finally:
        ray.shutdown()
