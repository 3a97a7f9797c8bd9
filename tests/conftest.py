"""What several tests stand on."""

import boto3
import pytest
from faulty_s3 import FaultyS3
from llm_server import Chat
from moto.server import ThreadedMotoServer


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
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_address)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    bucket = f"bucket-{abs(hash(tmp_path)) % 10**8}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/root"


@pytest.fixture
def faulty_s3(s3_root, moto_address, monkeypatch):
    """The door through which `s3_root` is reached; it fails when it is told to."""
    with FaultyS3(moto_address) as door:
        monkeypatch.setenv("AWS_ENDPOINT_URL", door.address)
        yield door


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path):
    """The same specification holds on a local folder and on S3."""
    return str(tmp_path / "root") if request.param == "local" else request.getfixturevalue("s3_root")


@pytest.fixture
def chat(monkeypatch):
    """A language model at the address that the openai client will ask."""
    with Chat() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.address)
        monkeypatch.setenv("OPENAI_API_KEY", "test")
        yield server
