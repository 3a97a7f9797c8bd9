"""Workers use the services that the driver uses, and as whom it does."""

import json
import os

import pytest

from hive_ray.cluster.environment import apply_service_variables, public_variables, service_variables
from hive_ray.cluster.mapping import map_table


@pytest.fixture
def bare(monkeypatch):
    """An environment with nothing that would be carried, and what belongs to a machine."""
    for name in service_variables():
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", "/here")
    return monkeypatch


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OPENAI_API_KEY", "sk-1"),
        ("OPENAI_BASE_URL", "http://10.0.0.7:8000/v1"),
        ("AWS_ENDPOINT_URL_S3", "http://minio:9000"),
        ("AWS_PROFILE", "mine"),
        ("AWS_CONFIG_FILE", "/home/me/config"),
        ("AWS_CA_BUNDLE", "/etc/ca.pem"),
        ("HF_TOKEN", "hf_1"),
        ("HF_HOME", "/models"),
        ("HUGGING_FACE_HUB_TOKEN", "hf_2"),
        ("HTTPS_PROXY", "http://proxy:3128"),
        ("https_proxy", "http://proxy:3128"),
        ("no_proxy", "localhost"),
        ("SSL_CERT_FILE", "/etc/ca.pem"),
        ("REQUESTS_CA_BUNDLE", "/etc/ca.pem"),
        ("WANDB_API_KEY", "w"),
        ("MLFLOW_TRACKING_URI", "http://mlflow:5000"),
        ("HIVE_RAY_CACHE", "/cache"),
    ],
)
def test_what_a_stage_needs_is_carried(bare, name, value):
    bare.setenv(name, value)
    assert service_variables() == {name: value}


@pytest.mark.parametrize(
    "name",
    [
        "HOME",
        "LD_LIBRARY_PATH",
        "CUDA_VISIBLE_DEVICES",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_ROLE_ARN",
        "WANDB_SERVICE",
        "RAY_ADDRESS",
        "HIVE_RAY_WARM_WORKERS",
    ],
)
def test_what_belongs_to_a_machine_is_not(bare, name):
    bare.setenv(name, "here")
    assert service_variables() == {}


def test_secrets_go_with_the_plan_alone():
    shown = {"OPENAI_BASE_URL": "http://10.0.0.7/v1", "AWS_REGION": "us-east-1", "HF_HOME": "/models"}
    hidden = {
        "OPENAI_API_KEY": "sk-1",
        "AWS_ACCESS_KEY_ID": "AKIA",
        "AWS_SESSION_TOKEN": "t",
        "HF_TOKEN": "hf",
        "MLFLOW_TRACKING_PASSWORD": "p",
        "OPENAI_CUSTOM_HEADERS": "Authorization: x",
        "https_proxy": "http://me:secret@proxy:3128",
        "MLFLOW_TRACKING_URI": "https://me@host",
        "HIVE_RAY_CACHE": "/cache/$USER",  # Ray would replace it by each machine's user
    }
    assert public_variables(shown | hidden) == shown


def test_a_worker_has_the_drivers_services_and_no_endpoint_of_its_own(bare):
    for name in ("OPENAI_BASE_URL", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "HF_ENDPOINT", "OPENAI_API_KEY"):
        bare.setenv(name, "the machine's")
    apply_service_variables({"AWS_ENDPOINT_URL": "the driver's", "HF_TOKEN": "the driver's"})
    assert service_variables() == {
        "AWS_ENDPOINT_URL": "the driver's",
        "HF_TOKEN": "the driver's",
        "OPENAI_API_KEY": "the machine's",  # such as a key that all of a cluster use
    }
    assert os.environ["PATH"] == "/here"
    bare.delenv("HF_TOKEN")  # as the fixture does not know it


def test_a_plan_takes_the_environment_along_and_does_not_show_it(bare, tmp_path):
    from tests.cluster import test_faults as faults

    bare.setenv("OPENAI_API_KEY", "sk-secret")
    rows = [{"number_id": "n0", "text": "x"}]
    faults.write_rows(str(tmp_path / "in"), faults.SCHEMA, rows, {})
    resources = faults.Resources(num_gpus=0)
    plan = map_table(
        str(tmp_path / "in"), faults.SCHEMA, faults.Slow, produces=faults.SCHEMA, resources=resources, seconds=0, size=2
    )
    assert plan.environment["OPENAI_API_KEY"] == "sk-secret"
    assert "sk-secret" not in repr(plan)
    assert "sk-secret" not in json.dumps(public_variables(plan.environment))
