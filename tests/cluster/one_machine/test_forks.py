"""Workers forked from a process that has done their imports: on a cluster of its own, in a driver of its own."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from hive_ray.cluster.one_machine import forks
from hive_ray.cluster.one_machine.forks import ForkServer
from hive_ray.cluster.starting import can_fork
from hive_ray.cluster.switch import SWITCH_VARIABLE

ROOT = Path(__file__).parents[3]
DRIVER = """
import json, os, signal, sys
import ray
from hive_ray.cluster.starting import start_ray

start_ray(num_cpus=2, workers_import=("torch", "hive_ray.images"))

@ray.remote(max_restarts=1, max_task_retries=1)
class Told:
    def __init__(self):
        self.found = "torch" in sys.modules
    def tell(self):
        import random
        import numpy as np
        import psutil
        import torch
        return {
            "found": self.found, "parent": psutil.Process().ppid(), "pid": os.getpid(), "folder": os.getcwd(),
            "drawn": [random.random(), np.random.random()], "threads": torch.get_num_threads(),
            "path": os.environ["PYTHONPATH"], "quiet": os.environ["TQDM_DISABLE"],
            "allocator": "libjemalloc" in open("/proc/self/maps").read(),
        }
    def die(self, here):
        if not os.path.exists(here):
            open(here, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return os.getpid()

told = [Told.remote(), Told.remote()]
first = ray.get([one.tell.remote() for one in told])
again = ray.get(told[0].die.remote(sys.argv[1]))
print(json.dumps({"told": first, "again": again, "after": ray.get(told[0].tell.remote())}))
sys.stdout.flush()
sys.stdin.read()
"""


@pytest.mark.ray
def test_actors_are_forks_of_one_process_with_their_own_state_and_end_with_the_driver(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "HIVE_RAY_WARM_WORKERS"}
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path / "died")],
        env=environment | {"PYTHONPATH": str(ROOT)}, cwd=ROOT,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    said = json.loads(next(line for line in driver.stdout if line.startswith('{"told"')))
    one, other, after = *said["told"], said["after"]
    forked = psutil.Process(one["parent"])
    for told in (one, other, after):
        assert told["found"]
        assert told["allocator"]
        assert (told["quiet"], told["path"].split(os.pathsep)[0]) == ("1", str(ROOT))
    assert one["parent"] == other["parent"] == after["parent"]
    assert forked.parent().pid == driver.pid
    assert len({one["pid"], other["pid"], after["pid"], forked.pid}) == 4
    assert said["again"] == after["pid"]  # what was killed came again, as a fork too
    assert not {*one["drawn"]} & {*other["drawn"]}
    forks_of_it = [forked, *(psutil.Process(told["pid"]) for told in (other, after))]
    driver.kill()
    driver.wait()
    assert not psutil.wait_procs(forks_of_it, timeout=30)[1]


@pytest.mark.parametrize(
    ("system", "has_gpu", "told", "can"),
    [
        ("linux", False, "1", True),
        ("linux", True, "1", False),
        ("darwin", False, "1", False),
        ("linux", False, "0", False),
        ("linux", False, "controller,allocator", False),
        ("linux", False, "forks", True),
    ],
)
def test_workers_are_forked_on_linux_without_a_gpu_unless_it_is_told_otherwise(monkeypatch, system, has_gpu, told, can):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr("torch.cuda.is_available", lambda: has_gpu)
    monkeypatch.setenv(SWITCH_VARIABLE, told)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert can_fork() == can


def test_without_the_process_the_script_is_run_by_a_new_interpreter(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import os, sys; print(sys.argv[1:], os.environ['TOLD'], 'numpy' in sys.modules)")
    command = [sys.executable, "-IS", str(forks.CLIENT_SCRIPT), str(tmp_path / "nobody"), str(script), "a", "b c"]
    said = subprocess.run(command, env=os.environ | {"TOLD": "yes"}, capture_output=True, text=True, check=True)
    assert said.stdout == "['a', 'b c'] yes False\n"


@pytest.fixture
def served():
    made = ForkServer(("json",), os.environ)
    yield made
    made.process.communicate()


def test_a_fork_has_the_folder_environment_arguments_and_streams_of_who_asked(served, tmp_path):
    (tmp_path / "beside.py").write_text("HERE = 'beside'")
    script = tmp_path / "script.py"
    script.write_text(
        "import beside, os, sys; print('also', file=sys.stderr); print(sys.argv[1:], os.getcwd(), os.environ['TOLD'],"
        " 'numpy' in sys.modules, beside.HERE, __name__, sys.stdin.read())"
    )
    said = subprocess.run(
        f"{served.command} {script} a 'b c'", shell=True, cwd=tmp_path, env=os.environ | {"TOLD": "yes"},
        capture_output=True, text=True, input="in", check=True,
    )  # fmt: skip
    assert said.stdout == f"['a', 'b c'] {tmp_path} yes True beside __main__ in\n"
    assert said.stderr == "also\n"


def test_who_asks_before_the_imports_are_done_waits_and_a_killed_one_is_no_harm(served, tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import time; print('began', flush=True); time.sleep(60)")
    slow = subprocess.Popen(f"exec {served.command} {script}", shell=True, stdout=subprocess.PIPE, text=True)
    assert slow.stdout.readline() == "began\n"
    slow.terminate()  # goes on to the fork
    assert slow.wait(10) == 0
    script.write_text("print('still here')")
    assert subprocess.check_output(f"{served.command} {script}", shell=True, text=True) == "still here\n"


def test_who_is_killed_after_asking_takes_the_process_from_nobody_else(served, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.connect(f"{served.folder}/socket")
        asked = {"command": [str(tmp_path / "never.py")], "environment": {}, "folder": str(tmp_path)}
        socket.send_fds(client, [json.dumps(asked).encode()], [0, 1, 2])
    script = tmp_path / "script.py"
    script.write_text("import sys; print('numpy' in sys.modules)")
    for _ in range(3):
        assert subprocess.check_output(f"{served.command} {script}", shell=True, text=True) == "True\n"
        time.sleep(0.2)


def test_the_process_ends_with_its_input_and_leaves_no_folder(tmp_path):
    made = ForkServer(("json",), os.environ)
    assert os.path.exists(f"{made.folder}/socket")
    made.process.communicate(timeout=30)
    assert made.process.returncode == 0
    assert not os.path.exists(made.folder)


def test_what_imports_ray_is_refused_and_workers_start_as_ever(tmp_path, capfd):
    made = ForkServer(("ray",), os.environ)
    assert made.process.wait(60) == 1
    assert "imports Ray, which only the forks may import" in capfd.readouterr().err
    script = tmp_path / "script.py"
    script.write_text("print('cold')")
    started = time.monotonic()
    assert subprocess.check_output(f"{made.command} {script}", shell=True, text=True) == "cold\n"
    assert time.monotonic() - started < 30
