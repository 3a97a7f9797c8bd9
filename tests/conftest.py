"""What several tests stand on."""

import functools
import inspect
import itertools
import os
import shutil
import tempfile
from contextlib import nullcontext
from pathlib import Path

import boto3
import postgresql
import pytest
import ray
import torch
from faulty_s3 import FaultyS3
from llm_server import Chat
from moto.server import ThreadedMotoServer
from warm_workers import warm_workers

from hive_ray.annotation.database import Database
from hive_ray.cluster.starting import start_ray

COLD = "HIVE_RAY_COLD_WORKERS"
"""Set to 1, Ray's workers start in tests as they do for users, which takes half as long again, or more."""
_numbers = itertools.count()
_sharing = pytest.StashKey[set[Path]]()
"""The files whose tests use `shared_cluster`."""


def pytest_collection_modifyitems(config, items):
    """Files that start Ray come first: none of the long ones may be left when the others are done. Those that share a
    cluster follow each other. What needs a GPU is skipped without one."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))
    sharing = config.stash[_sharing] = {item.path for item in items if "shared_cluster" in item.fixturenames}
    with_ray = {item.path for item in items if item.get_closest_marker("ray")}
    items.sort(key=lambda item: (item.path not in with_ray, item.path not in sharing))


@pytest.fixture(scope="session", autouse=True)
def sources_are_read_once():
    """To show help, tyro parses the source of each settings class again for every command line that it reads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspect, "getsource", functools.cache(inspect.getsource))
        yield


@pytest.fixture(scope="session", autouse=True)
def warm(request):
    """Clusters that tests start have their workers forked, with everything imported."""
    wanted = os.environ.get(COLD) != "1" and any(item.get_closest_marker("ray") for item in request.session.items)
    with warm_workers() if wanted else nullcontext():
        yield


@pytest.fixture(scope="module", autouse=True)
def no_cluster_of_another_file(request):
    """End the shared cluster before a file that does not use it."""
    if request.path not in request.config.stash[_sharing]:
        ray.shutdown()


@pytest.fixture(scope="module")
def shared_cluster(tmp_path_factory):
    """The address of a cluster of this process with 4 CPUs, kept for the next file that wants one: stages tell their
    workers what they need of the environment. A driver that joins it cannot train on S3: Ray Train's controller has the
    keys of its node alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HIVE_RAY_CACHE", str(tmp_path_factory.mktemp("cache")))
        start_ray(num_cpus=4)
        yield ray.get_runtime_context().gcs_address


@pytest.fixture(scope="session")
def moto_address():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_root(moto_address, tmp_path, monkeypatch):
    """An address in a bucket of its own on a real (moto) S3 server."""
    monkeypatch.setenv("HIVE_RAY_CACHE", str(tmp_path / "cache"))
    return bucket_for(tmp_path, moto_address, monkeypatch)


@pytest.fixture(scope="module")
def faulty_s3(moto_address, tmp_path_factory):
    """A door to the S3 server that fails when it is told to; `root` is an address behind it. A cluster that is started
    after it has the way there in its environment."""
    folder = tmp_path_factory.mktemp("s3")
    with FaultyS3(moto_address) as door, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HIVE_RAY_CACHE", str(folder / "cache"))
        door.root = bucket_for(folder, moto_address, patch)
        patch.setenv("AWS_ENDPOINT_URL", door.address)
        yield door


def bucket_for(folder, address: str, patch: pytest.MonkeyPatch) -> str:
    """An address in a new bucket; the environment says how to reach it."""
    patch.setenv("AWS_ENDPOINT_URL", address)
    patch.setenv("AWS_ACCESS_KEY_ID", "test")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    bucket = f"bucket-{abs(hash(folder)) % 10**8}"
    boto3.Session().client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/root"


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path):
    """The same specification holds on a local folder and on S3."""
    return str(tmp_path / "root") if request.param == "local" else request.getfixturevalue("s3_root")


@pytest.fixture
def chat(monkeypatch):
    """A language model at the address that the openai client will ask."""
    with Chat().found(monkeypatch) as server:
        yield server


@pytest.fixture(scope="session")
def postgres():
    """A PostgreSQL server in a folder that another user may reach and whose name fits a socket's address."""
    folder = Path(tempfile.mkdtemp(prefix="hive"))
    try:
        with postgresql.running(folder) as server:
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """The address of an empty database; the same specification holds on both engines."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'annotation.sqlite'}"
    return request.getfixturevalue("postgres").make(f"test{next(_numbers)}")


@pytest.fixture
def database(url):
    """A database with the tables of this version."""
    database = Database(url)
    database.migrate()
    yield database
    database.close()
