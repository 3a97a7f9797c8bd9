"""The annotation app under load: fifty people on ten thousand tasks.

python -m bench.annotation            on SQLite, and on PostgreSQL where $HIVE_RAY_BENCH_POSTGRESQL names a server
python -m bench.annotation 50 10000 10    people, tasks, seconds

Each simulated person does what the page does: the next task, its pictures, the answer. Once they take `THINKING_S` for
a task, as quick people do, and once no time at all, which is as much as the server can do. Each in turns with a single
person, whose times are the machine's own. The server is one process.
"""

import asyncio
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import numpy as np

from hive_ray.annotation.database import Database
from hive_ray.annotation.people import invite
from hive_ray.artifacts.building import write_rows
from hive_ray.images import encode
from hive_ray.schemas import CANDIDATES, Row

PORT = 8765
SIDE, NUM_EDITS = 64, 4
THINKING_S = 4.0


def main(people: int = 50, tasks: int = 10_000, seconds: float = 10.0) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_rows(f"{folder}/candidates", CANDIDATES, _candidates(tasks), {"tasks": tasks}, rows_per_file=320)
        urls = {"SQLite": f"sqlite:///{folder}/annotation.sqlite"}
        if "HIVE_RAY_BENCH_POSTGRESQL" in os.environ:
            urls["PostgreSQL"] = os.environ["HIVE_RAY_BENCH_POSTGRESQL"]
        for name, url in urls.items():
            with _server(folder, url) as address:
                clients = _signed_in(url, address, people)
                for count, thinking in ((1, 0.0), (people, THINKING_S), (1, 0.0), (people, 0.0)):
                    taken = asyncio.run(_work(address, clients[:count], seconds, thinking))
                    _say(f"{name}, {count} people who take {thinking:g} s", taken)


SCALES = {"guidance_scale": 7.5, "image_guidance_scale": 1.5}


def _candidates(count: int) -> Iterator[Row]:
    rng = np.random.default_rng(0)
    picture = encode(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
    for number in range(count):
        edits = [
            {"edit_id": f"{number}-{place}", "image": picture, "seed": 0, **SCALES}
            for place in range(NUM_EDITS)
        ]  # fmt: skip
        yield {
            "prompt_id": f"{number}", "instruction": "make it red", "source_caption": "", "edited_caption": "",
            "source_image": picture, "split": "rank", "edits": edits, "editor": "bench",
        }  # fmt: skip


@contextmanager
def _server(run: str, url: str) -> Iterator[str]:
    flags = ["--run", run, "--database", url, "--port", str(PORT), "--people-per-task", "3"]
    process = subprocess.Popen([sys.executable, "-m", "serve.annotate", *flags], stdout=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{PORT}"
    try:
        while True:
            try:
                httpx.get(f"{address}/health")
                break
            except httpx.TransportError:
                time.sleep(0.2)
                assert process.poll() is None, "the server did not start"
        yield address
    finally:
        process.terminate()
        process.wait()


def _signed_in(url: str, address: str, people: int) -> list[dict[str, str]]:
    """Headers of people who are signed in."""
    database, found = Database(url), []
    for number in range(people):
        reply = httpx.post(f"{address}/sign-in", json={"token": invite(database, f"Person {number}")})
        cookie = f"hive_ray_session={reply.cookies['hive_ray_session']}"
        found.append({"Cookie": cookie, "X-Forgery-Token": reply.json()["forgery_token"]})
    database.close()
    return found


async def _work(address: str, people: list[dict[str, str]], seconds: float, thinking: float) -> dict[str, list[float]]:
    """Seconds of each request, by what was asked, of people who work side by side."""
    taken: dict[str, list[float]] = {"next": [], "answer": [], "picture": []}
    end = time.perf_counter() + seconds

    async def person(headers: dict[str, str]) -> None:
        await asyncio.sleep(thinking * random.random())
        async with httpx.AsyncClient(base_url=address, headers=headers, timeout=60) as client:

            async def timed(what: str, request) -> httpx.Response:
                began = time.perf_counter()
                reply = await request
                taken[what].append(time.perf_counter() - began)
                assert reply.status_code == 200, reply.text
                return reply

            while time.perf_counter() < end:
                task = (await timed("next", client.post("/api/next", json={}))).json()["task"]
                pictures = [client.get(f"/{one}") for one in (task["source"], *task["edits"])]
                await asyncio.gather(*(timed("picture", one) for one in pictures))
                await asyncio.sleep(thinking * (0.5 + random.random()))
                said = {
                    "assignment": task["assignment"], "key": f"bench {task['assignment']} {time.time_ns()}",
                    "answer": {"ranks": [1, 2, 3, 4]}, "seconds": 1, "corrects": None,
                }  # fmt: skip
                await timed("answer", client.post("/api/answers", json=said))

    began = time.perf_counter()
    await asyncio.gather(*(person(headers) for headers in people))
    taken["wall"] = [time.perf_counter() - began]
    return taken


def _say(name: str, taken: dict[str, list[float]]) -> None:
    wall = taken.pop("wall")[0]
    requests = sum(map(len, taken.values()))
    parts = [
        f"{what} {1000 * statistics.median(values):.0f} ms, 99 % below {1000 * np.quantile(values, 0.99):.0f} ms"
        for what, values in taken.items()
    ]
    tasks = len(taken["answer"])
    speed = f"{requests / wall:.0f} requests/s, {tasks / wall:.1f} tasks/s"
    print(f"{name}: {speed}; {'; '.join(parts)}", flush=True)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
