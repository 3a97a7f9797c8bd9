"""A cluster that is started here is this machine's and this user's alone."""

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import grpc
import lines
import psutil
import pytest
import ray
from lines import train, training, write_points
from sockets import is_loopback, listening, reachable, watched

from hive_ray.cluster import addresses, this_machine
from hive_ray.cluster.addresses import LOOPBACK_VARIABLE, SHORT_FOLDER
from hive_ray.cluster.one_machine.loopback import on_loopback
from hive_ray.cluster.starting import start_ray
from hive_ray.cluster.this_machine import choose_ray_folder, first_line, patient_start
from hive_ray.errors import Stopped
from tests.cluster import test_faults as faults

FRIEND = """
import ray
from hive_ray.cluster.starting import start_ray
start_ray()
print("joined", ray.get(ray.remote(lambda: 1).remote()))
"""
STRANGER = """
import sys
import ray
ray.init(address=sys.argv[1], logging_level="ERROR")
print("joined", ray.get(ray.remote(lambda: 1).remote()))
"""


@pytest.mark.parametrize("folder", ["/" + 40 * "x", "/tmp/é", "/tmp/" + 200 * "y"])
def test_a_folder_that_holds_no_sockets_is_replaced_with_a_word(monkeypatch, capsys, folder):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", folder)
    choose_ray_folder()
    assert os.environ["RAY_TMPDIR"] == SHORT_FOLDER
    assert f"TMPDIR={folder} " in capsys.readouterr().out
    monkeypatch.setenv("RAY_TMPDIR", folder)
    with pytest.raises(ValueError, match=f"RAY_TMPDIR={folder} .*set it to a folder such as /tmp"):
        choose_ray_folder()
    monkeypatch.setattr(addresses.tempfile, "gettempdir", lambda: folder)
    assert addresses.socket_folder() == SHORT_FOLDER


@pytest.mark.parametrize("folder", ["/tmp", "/scratch/of/somebody"])
def test_any_other_folder_stays(monkeypatch, capsys, folder):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", folder)
    choose_ray_folder()
    assert "RAY_TMPDIR" not in os.environ
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(addresses.tempfile, "gettempdir", lambda: folder)
    assert addresses.socket_folder() == folder


def test_what_ray_raises_at_its_start_is_a_sentence_and_a_slow_start_is_told(monkeypatch, capsys):
    monkeypatch.setattr(this_machine, "SLOW_START_S", 0.05)
    switch, told = LOOPBACK_VARIABLE[0], threading.Event()

    def start() -> None:
        with patient_start(), on_loopback():
            assert os.environ[switch] == "0"
            told.wait(0.5)
            raise Exception("The current node timed out.\nmore")

    with pytest.raises(Stopped, match=r"Ray did not start on this machine: Exception: The current node timed out\. If"):
        start()
    assert "has been starting for 0.05 s" in capsys.readouterr().out
    assert switch not in os.environ


def test_errors_have_their_kind_and_first_line():
    assert first_line(ValueError(" one.\ntwo")) == "ValueError: one"
    assert first_line(KeyError()) == "KeyError"


def test_a_loopback_address_is_known():
    assert [is_loopback(each) for each in ("127.0.0.1", "::1", "::ffff:127.0.0.1")] == [True] * 3
    assert [is_loopback(each) for each in ("::", "0.0.0.0", "192.0.2.1", "::ffff:192.0.2.1")] == [False] * 4


def asked(address: str, token: str) -> str:
    """What the cluster's head answers a call that has this token, or none."""
    said = (("authorization", f"Bearer {token}"),) if token else ()
    with grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetAllNodeInfo")(b"", metadata=said, timeout=60)
        except grpc.RpcError as error:
            return error.code().name
    return "OK"


@pytest.mark.ray
def test_every_port_of_a_map_stage_and_of_a_training_is_on_the_loopback_address(tmp_path, monkeypatch):
    monkeypatch.setenv("HIVE_RAY_CACHE", str(tmp_path / "cache"))
    for module in (lines, faults):
        ray.cloudpickle.register_pickle_by_value(module)  # workers cannot import a test file
    start_ray(num_cpus=3)
    address = ray.get_runtime_context().gcs_address
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    stranger = subprocess.Popen(
        [sys.executable, "-c", STRANGER, address],
        env=clean | {"RAY_AUTH_MODE": "disabled", LOOPBACK_VARIABLE[0]: LOOPBACK_VARIABLE[1]},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        with watched() as seen:
            faults.build(str(tmp_path), seconds=0.02)
            write_points(tmp_path)
            train(tmp_path, "line", training())
            token = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).read_text()
            assert [asked(address, given) for given in ("", 64 * "0", token)] == ["UNAUTHENTICATED"] * 2 + ["OK"]
            joined = subprocess.run(
                [sys.executable, "-c", FRIEND],
                env=os.environ | {"RAY_ADDRESS": address}, capture_output=True, text=True, timeout=200,
            )  # fmt: skip
            assert joined.stdout == "joined 1\n", joined.stderr
            refused = stranger.communicate(timeout=200)
            assert "joined" not in refused[0]
            assert "Authentication token is missing or incorrect" in refused[1]
    finally:
        stranger.kill()
        ray.shutdown()
    assert {"gcs_server", "raylet"} <= set(seen)
    assert any("MapWorker" in name for name in seen)
    assert any("RayTrainWorker" in name for name in seen)
    assert reachable(seen) == {}


def test_a_port_that_others_reach_would_be_seen():
    with socket.socket() as door:
        door.bind(("0.0.0.0", 0))
        door.listen()
        assert reachable(listening(os.getpid())) == {psutil.Process().name(): {"0.0.0.0"}}
