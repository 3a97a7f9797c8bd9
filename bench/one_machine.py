"""What each special path of one machine gains (hive_ray/cluster/switch.py).

python -m bench.one_machine stage [PATH ...]       a short map stage: the first with the start of Ray, and the second
python -m bench.one_machine training [PATH ...]    a training of a few steps, after a map stage as in the pipeline
python -m bench.one_machine quickstart [PATH ...]  the whole of `make quickstart`: minutes, several times

PATH is forks, controller or allocator, or `all` for HIVE_RAY_ONE_MACHINE=0; without any, each of these.
(`loopback` keeps others out, and gains no time.) A ratio is seconds without the path over seconds with all paths: above
1 it is a gain. Both sides run in turns, each in a process and on a cluster of its own, another one first in each round.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.pairs import timed
from bench.ratios import say
from bench.starts import short_stage, write_instructions
from bench.training import one_training, write_pairs
from hive_ray.cluster.starting import start_ray
from hive_ray.cluster.switch import SPECIAL_PATHS, SWITCH_VARIABLE
from hive_ray.config import Resources
from hive_ray.presets import shapes
from jobs import encode_latents, train_editor
from jobs.pipeline import WORKERS_IMPORT
from jobs.run import Run

ROUNDS = {"stage": 4, "training": 4, "quickstart": 2}
CORES = 2
IMAGES = 640
"""Images that the training sees, 20 steps."""
TIMED = [path for path in SPECIAL_PATHS if path != "loopback"]
Seconds = dict[str, float]


def main() -> None:
    work, *paths = sys.argv[1:]
    for path in paths or [*TIMED, "all"]:
        without = "0" if path == "all" else ",".join(other for other in TIMED if other != path)
        rounds = [in_turns(work, without, number) for number in range(ROUNDS[work])]
        for what in rounds[0][0]:
            say(f"{what}: without {path} over with it", [slow[what] / quick[what] for slow, quick in rounds])


def in_turns(work: str, without: str, number: int) -> tuple[Seconds, Seconds]:
    """Seconds without a path and with all."""
    order = (without, "1") if number % 2 else ("1", without)
    took = {switch: alone(work, switch) for switch in order}
    return took[without], took["1"]


def alone(work: str, switch: str) -> Seconds:
    """The work in a process of its own, by the paths that the switch names: what took how long."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {
        SWITCH_VARIABLE: switch
    }
    with tempfile.TemporaryDirectory() as folder:
        if work == "quickstart":
            command = [sys.executable, "-m", "jobs.pipeline", "shapes", "--run", f"{folder}/run"]
            return {"quickstart": timed(lambda: subprocess.run(command, env=environment, check=True))}
        out = Path(folder, "seconds.json")
        code = f"from bench import one_machine; one_machine.measure({work!r}, {folder!r}, {str(out)!r})"
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)
        return json.loads(out.read_text())


def measure(work: str, folder: str, out: str) -> None:
    """In the process of its own: do the work, and write what took how long."""
    Path(out).write_text(json.dumps({"stage": stages, "training": training}[work](folder)))


def stages(folder: str) -> Seconds:
    """The short stage of bench/starts.py, twice."""

    def first() -> None:
        start_ray(num_cpus=CORES, workers_import=WORKERS_IMPORT)
        short_stage(folder, "first")

    write_instructions(folder)
    return {"start and first stage": timed(first), "second stage": timed(lambda: short_stage(folder, "second"))}


def training(folder: str) -> Seconds:
    """The shapes preset's supervised training on both cores, its latents encoded by a map stage before."""
    workers = Resources(num_actors=CORES, num_cpus=1, num_gpus=0)
    run = Run(folder, one_training(shapes(), workers, latents="fp32", total_images=IMAGES))
    write_pairs(folder, count=128)
    start_ray(num_cpus=CORES, workers_import=WORKERS_IMPORT)
    encode_latents.build(run)
    return {"training": timed(lambda: train_editor.build(run))}


if __name__ == "__main__":
    main()
