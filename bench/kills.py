"""Kills at random moments of the smallest pipeline: python -m bench.kills [--kills 200] [--s3] [--seed 0]

`python -m jobs.pipeline` on a tiny random Stable Diffusion is started again and again, and after a random time a victim
is killed: the driver, the whole tree of processes, a worker, the raylet or the GCS. The same command goes on. Whenever
a run has ended by itself, its tables, weights and pages are held against those of an undisturbed run, and the run
folder, the cache and (on S3) the open uploads are looked through for what was left behind; then the run begins anew.
"""

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import boto3
import psutil
from moto.server import ThreadedMotoServer

from hive_ray import storage
from hive_ray.config import Config, Recovery
from hive_ray.files.owners import is_unfinished
from jobs.run import write_settings

ROOT = Path(__file__).parents[1]
VICTIMS = ("driver", "driver", "tree", "worker", "worker", "worker", "raylet", "gcs_server", "agent")
"""All but a worker end the command, which has to be given again."""
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Ray's own processes beside the workers; a raylet ends with them."""
ENDED_BY = {"raylet", "gcs_server", "agent"}
"""Victims whose death the command has to see and end by itself, within END_S."""
END_S = 60.0
LONGEST_S = 900.0
WAITS_S = (10.0, 15.0, 20.0, 60.0)
"""Most seconds between a start, or a kill of a worker, and the next kill: mostly in the work of one stage, and now and
then long enough for a training."""
TIME_FIELDS = ("seconds", "rows_timed", "git_commit")
PAGES = (".html", ".png", ".svg", "config.yaml")
"""Named here are files that tell of times, beside those that the clock marks."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.kills", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--s3", action="store_true", help="keep the run on an S3 server of this machine")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kills-") as folder, s3_server(options.s3) as bucket:
        os.environ["HIVE_RAY_CACHE"] = f"{folder}/cache"
        bench(Path(folder), bucket or f"{folder}/runs", options)


def bench(folder: Path, runs: str, options: argparse.Namespace) -> None:
    sys.path.insert(0, str(ROOT / "tests"))
    from tiny_models import tiny_clip, tiny_stable_diffusion
    from tiny_settings import tiny_config

    tiny_stable_diffusion(folder / "base")
    tiny_clip(folder / "clip")
    write_settings(str(folder), with_endless_recovery(tiny_config(str(folder / "base"), str(folder / "clip"))))
    rng = random.Random(options.seed)
    killed: Counter[str] = Counter()
    wrong: list[str] = []
    began = time.monotonic()
    undisturbed = storage.join(runs, "undisturbed")
    if start_pipeline(folder, undisturbed).wait(LONGEST_S):
        sys.exit(f"the undisturbed run failed: {(folder / 'log').read_text()[-3000:]}")
    expected = snapshot(undisturbed)
    say(f"undisturbed: {len(expected)} files in {time.monotonic() - began:.0f} s")
    number = finished = 0
    run = storage.join(runs, "run-0")
    while killed.total() < options.kills:
        process = start_pipeline(folder, run)
        victim = ""
        while process.poll() is None and victim in ("", "worker") and killed.total() < options.kills:
            victim = kill_after_a_while(process, rng)
            killed[victim] += bool(victim)
            say(f"{killed.total()}: {victim or 'nobody'} of {run.rpartition('/')[2]}")
        try:
            status = process.wait(END_S if victim in ENDED_BY else LONGEST_S)
        except subprocess.TimeoutExpired:
            log = (folder / "log").read_text()
            wrong.append(f"{run}: not ended {END_S:g} s after the {victim} was killed: {log[-1500:]}")
            say(wrong[-1])
            kill(process, "tree", rng)
            status = process.wait()
        if status == 0:
            finished += 1
            wrong += [f"{run}: {what}" for what in differences(expected, run, folder)]
            storage.remove_tree(run)
            number += 1
            run = storage.join(runs, f"run-{number}")
        elif victim in ("", "worker"):
            wrong.append(f"{run}: status {status} after {victim}: {(folder / 'log').read_text()[-1500:]}")
            say(wrong[-1])
    last = start_pipeline(folder, run).wait(LONGEST_S)
    wrong += differences(expected, run, folder) if last == 0 else [f"{run}: the last start ended with {last}"]
    say(f"{killed.total()} kills ({dict(killed)}), {finished + 1} finished runs, {len(wrong)} differences")
    for what in wrong:
        say(what)
    sys.exit(bool(wrong))


def with_endless_recovery(config: Config) -> Config:
    """The settings, with trainings that go on after any number of their workers' deaths."""
    recovery = {"recovery": Recovery(max_failures=1000)}
    sft, finetune, reward = (
        training.model_copy(update=recovery)
        for training in (config.editor.sft, config.editor.finetune, config.reward.training)
    )
    return config.changed({"editor": {"sft": sft, "finetune": finetune}, "reward": {"training": reward}})


def start_pipeline(folder: Path, run: str) -> subprocess.Popen:
    """The command, in a session of its own; what it says goes to <folder>/log."""
    command = [sys.executable, "-m", "jobs.pipeline", "--config", str(folder / "config.yaml"), "--run", run]
    with (folder / "log").open("w") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)


def kill_after_a_while(process: subprocess.Popen, rng: random.Random) -> str:
    """Wait for a random time, and kill somebody; who it was, or "" where the command ended first."""
    victim, longest = rng.choice(VICTIMS), rng.choice(WAITS_S)
    until = time.monotonic() + rng.uniform(0, longest)
    while process.poll() is None:
        time.sleep(0.05)
        if time.monotonic() > until and kill(process, victim, rng):
            return victim
    return ""


def kill(process: subprocess.Popen, victim: str, rng: random.Random) -> bool:
    """SIGKILL for a victim; whether there was one. What a killed driver leaves running has two seconds to end."""
    try:
        tree = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return False
    if victim in ("driver", "tree"):
        process.kill()
        if victim == "driver":
            psutil.wait_procs(tree, timeout=2)
        for one in tree:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(tree, timeout=10)
        return True
    found = [one for one in tree if kind_of(one) == victim]
    if not found:
        return False
    rng.choice(found).kill()
    return True


def kind_of(process: psutil.Process) -> str:
    """Which of VICTIMS a process of a driver's tree is; "" if it is none."""
    with suppress(psutil.NoSuchProcess):
        name = " ".join(process.cmdline()[:1])
        if name.startswith(AGENTS):
            return "agent"
        if name.startswith("ray::"):
            return "worker"
        return next((part for part in ("raylet", "gcs_server") if name.endswith(f"/{part}")), "")
    return ""


def snapshot(run: str) -> dict[str, str]:
    """Name -> digest of the files that a run leaves, but for pages and times."""
    files = {}
    for name in storage.list_files(run):
        if name.endswith(PAGES) or name.startswith(("tensorboard/", "estimates/")):
            files[name.split("/events.")[0] if "/events." in name else name] = ""
            continue
        data = storage.read_bytes(storage.join(run, name))
        if name.endswith((".json", ".jsonl")):
            data = "\n".join(map(without_times, data.decode().splitlines() if name.endswith("l") else [data.decode()]))
            data = data.replace(run, "<run>").encode()
        files[name] = hashlib.blake2b(data, digest_size=8).hexdigest()
    return files


def without_times(text: str) -> str:
    values = json.loads(text)
    if isinstance(values, dict):
        values = {
            name: value for name, value in values.items() if name not in (*TIME_FIELDS, "train/images_per_second")
        }
    return json.dumps(values, sort_keys=True)


def differences(expected: dict[str, str], run: str, folder: Path) -> Iterator[str]:
    """What is not as in the undisturbed run, and what was left behind."""
    left = snapshot(run)
    for name in sorted(expected.keys() | left.keys()):
        if expected.get(name) != left.get(name):
            yield f"{name} was {expected.get(name)}, is {left.get(name)}"
    yield from (f"left behind: {name}" for name in left if is_unfinished(name.rpartition("/")[2]))
    cache = folder / "cache"
    yield from (
        f"left in the cache: {path.relative_to(cache)}"
        for path in cache.rglob("*")
        if path.is_file() and "folders" not in path.parts
    )
    if run.startswith(storage.S3):
        bucket, _, prefix = run.removeprefix(storage.S3).partition("/")
        uploads = boto3.client("s3").list_multipart_uploads(Bucket=bucket, Prefix=prefix).get("Uploads", [])
        yield from (f"open upload: {one['Key']}" for one in uploads)


@contextmanager
def s3_server(is_needed: bool) -> Iterator[str]:
    """An address on an S3 server of this process, or ""."""
    if not is_needed:
        yield ""
        return
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    boto3.client("s3").create_bucket(Bucket="kills")
    yield f"{storage.S3}kills/runs"
    server.stop()


def say(words: str) -> None:
    print(words, flush=True)


if __name__ == "__main__":
    main()
