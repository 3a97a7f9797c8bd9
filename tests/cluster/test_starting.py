import os
from types import SimpleNamespace

import pytest
import ray

from hive_ray.cluster import starting
from hive_ray.cluster.one_machine import tuning
from hive_ray.cluster.one_machine.tuning import JEMALLOC_ENVIRONMENT
from hive_ray.cluster.starting import GLIBC_ENVIRONMENT, allocator_environment, start_ray
from hive_ray.cluster.switch import SPECIAL_PATHS, SWITCH_VARIABLE, takes_special_path


def test_workers_of_this_machine_have_rays_allocator_where_it_is_there_and_fits(monkeypatch):
    monkeypatch.delenv(SWITCH_VARIABLE, raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert allocator_environment() == JEMALLOC_ENVIRONMENT
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
    assert allocator_environment() == GLIBC_ENVIRONMENT  # it lies elsewhere on other machines
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 65536}.get)
    assert allocator_environment() == GLIBC_ENVIRONMENT
    monkeypatch.undo()
    monkeypatch.setattr(tuning, "JEMALLOC_SO", "/nowhere/libjemalloc.so")
    assert allocator_environment() == GLIBC_ENVIRONMENT


@pytest.mark.parametrize(
    ("switch", "joined", "special"),
    [
        (None, False, {*SPECIAL_PATHS}),
        ("1", False, {*SPECIAL_PATHS}),
        ("0", False, set()),
        ("forks, allocator", False, {"loopback", "forks", "allocator"}),
        ("loopback", False, {"loopback"}),
        (None, True, {"loopback"}),
        ("0", True, set()),
    ],
)
def test_the_switch_says_which_paths_are_special_and_a_cluster_that_is_joined_has_the_public_one(
    monkeypatch, switch, joined, special
):
    for name, value in ((SWITCH_VARIABLE, switch), ("RAY_ADDRESS", "192.0.2.1:6379" if joined else None)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert {path for path in SPECIAL_PATHS if takes_special_path(path)} == special


def test_a_switch_that_names_no_path_is_refused_with_those_that_there_are(monkeypatch):
    monkeypatch.setenv(SWITCH_VARIABLE, "forks,controler")
    with pytest.raises(ValueError, match=r"controler is none of loopback, forks, .*; or set it to 0 or 1"):
        takes_special_path("forks")


@pytest.mark.ray
def test_a_worker_sees_the_gpus_that_it_holds_and_no_others(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    start_ray(num_cpus=1, num_gpus=1)  # said to be there: nothing computes on it
    try:
        seen = ray.remote(lambda: os.environ.get("CUDA_VISIBLE_DEVICES"))
        assert ray.get([seen.options(num_gpus=count).remote() for count in (0, 1)]) == ["", "0"]
    finally:
        ray.shutdown()


def test_placement_groups_of_other_drivers_are_left_alone(monkeypatch):
    own, other = ray.JobID.from_int(1), ray.JobID.from_int(2)
    ids = [ray.PlacementGroupID.of(job) for job in (own, own, own, other)]
    states = ["CREATED", "REMOVED", "PENDING", "CREATED"]
    table = {group.hex(): {"state": state} for group, state in zip(ids, states, strict=True)}
    removed = []
    monkeypatch.setattr(starting, "placement_group_table", lambda: table)
    monkeypatch.setattr(starting, "remove_placement_group", lambda group: removed.append(group.id))
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_job_id=own.hex))
    assert starting.placement_groups() == {ids[0].hex(), ids[2].hex()}
    starting.remove_placement_groups(keep={ids[0].hex()})
    assert removed == [ids[2]]
