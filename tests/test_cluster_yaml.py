import copy
import json
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[1]


@pytest.fixture
def cluster():
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_the_file_is_valid_against_rays_own_schema(cluster):
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)


def test_rays_autoscaler_accepts_it_with_its_defaults_filled_in(cluster):
    validate_config(prepare_config(copy.deepcopy(cluster)))


def test_the_head_is_on_demand_and_does_no_work(cluster):
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]
    assert (head["min_workers"], head["max_workers"]) == (0, 0)


def test_gpu_nodes_are_spot_and_come_and_go_between_none_and_a_most(cluster):
    gpu = cluster["available_node_types"]["gpu"]
    assert gpu["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert gpu["resources"]["GPU"] >= 1
    assert gpu["min_workers"] == 0 < gpu["max_workers"] <= cluster["max_workers"]
    assert cluster["idle_timeout_minutes"] > 0


def test_cpu_nodes_have_no_gpu_and_come_and_go(cluster):
    cpu = cluster["available_node_types"]["cpu"]
    assert "GPU" not in cpu["resources"]
    assert cpu["min_workers"] == 0 < cpu["max_workers"] <= cluster["max_workers"]


def test_every_node_gets_this_checkout_the_pinned_packages_and_the_same_ray(cluster):
    assert cluster["file_mounts"] == {"/home/ray/hive_ray": "."}
    assert cluster["setup_commands"] == ["pip install -c /home/ray/hive_ray/constraints.txt /home/ray/hive_ray"]
    for image in (cluster["docker"]["head_image"], cluster["docker"]["worker_image"]):
        assert image.startswith(f"rayproject/ray:{ray.__version__}-py311-")


def test_authentication_between_nodes_is_said_and_not_left_to_a_default(cluster):
    assert "--env RAY_AUTH_MODE=disabled" in cluster["docker"]["run_options"]


def test_no_account_is_named(cluster):
    text = (ROOT / "cluster.yaml").read_text()
    assert not any(word in text for word in ("arn:aws", "subnet-", "sg-", "ami-", "KeyName"))
