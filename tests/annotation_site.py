"""The annotation app on a socket of its own, over a small run folder."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import numpy as np
import uvicorn
from fastapi import FastAPI

from hive_ray.annotation.database import Database
from hive_ray.annotation.people import invite
from hive_ray.artifacts.building import write_rows
from hive_ray.artifacts.manifest import count_rows, table_digest
from hive_ray.config import Annotation
from hive_ray.images import encode
from hive_ray.schemas import CANDIDATES, CHOSEN, EVALUATION, Dropped, Row
from serve.annotate import HTTP, prepare, web


def picture(number: int, side: int = 16) -> bytes:
    """A picture that no other number has."""
    return encode(np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8))


def make_candidates(run: str, count: int, num_edits: int = 4, side: int = 16, broken: int | None = None) -> list[Row]:
    """A finished `candidates` table; of the prompt number `broken`, an edit is no picture."""
    rows = []
    for number in range(count):
        edits = [
            {
                "edit_id": f"p{number}e{place}", "image": picture(100 * number + place + 1, side), "seed": place,
                "guidance_scale": 7.5, "image_guidance_scale": 1.5,
            }
            for place in range(num_edits)
        ]  # fmt: skip
        if number == broken:
            edits[1]["image"] = edits[1]["image"][:60]
        rows.append(
            {
                "prompt_id": f"p{number}", "instruction": f"make it number {number}", "source_caption": "a thing",
                "edited_caption": "another", "source_image": picture(100 * number, side), "split": "rank",
                "edits": edits, "editor": "secret-editor",
            }
        )  # fmt: skip
    write_rows(f"{run}/candidates", CANDIDATES, rows, {"count": count})
    return rows


def make_chosen(run: str, *numbers: int, probability: float = 1.0) -> None:
    """A finished table `chosen` of these prompts of the run's candidates, in this order."""
    rows = [
        {
            "prompt_id": f"p{number}", "place": place, "spread": 1.0, "disagreement": 0.0, "chosen_by": "random",
            "probability": probability,
        }
        for place, number in enumerate(numbers)
    ]  # fmt: skip
    left = count_rows(f"{run}/candidates") - len(rows)
    made_from = {"input.candidates": table_digest(f"{run}/candidates"), "numbers": numbers}
    write_rows(f"{run}/chosen", CHOSEN, [*rows, *[Dropped("not_chosen")] * left], made_from)


def make_evaluation(run: str, editor: str, count: int) -> None:
    """A finished `evaluation` table of one editor."""
    shift = 1 if editor == "sft" else 2
    rows = [
        {
            "evaluation_id": f"{editor}{number}", "prompt_id": f"p{number}", "instruction": f"make it number {number}",
            "editor": editor, "seed": 0, "guidance_scale": 7.5, "image_guidance_scale": 1.5,
            "source_image": picture(100 * number), "edited_image": picture(100 * number + shift),
            **dict.fromkeys(("clip_image", "clip_direction", "reward", "followed", "preserved"), 0.0), "draws": [],
        }
        for number in range(count)
    ]  # fmt: skip
    write_rows(f"{run}/evaluation/{editor}", EVALUATION, rows, {"editor": editor})


@dataclass
class Site:
    """A running app."""

    address: str
    database: Database

    def link(self, name: str, role: str = "annotator") -> str:
        """A new personal link."""
        return f"{self.address}/{'admin' if role == 'administrator' else ''}#{invite(self.database, name, role)}"

    def signed_in(self, name: str, role: str = "annotator") -> httpx.Client:
        """A client that is signed in and sends the forgery token."""
        client = httpx.Client(base_url=self.address, timeout=60)
        reply = client.post("/sign-in", json={"token": invite(self.database, name, role)})
        assert reply.status_code == 200, reply.text
        client.headers["X-Forgery-Token"] = reply.json()["forgery_token"]
        return client


def app(run: str, url: str, **settings) -> FastAPI:
    """The app of a run; nothing of known answer and no repeats unless they are asked for."""
    chosen = Annotation(**{"gold": "", "gold_rate": 0.0, "repeat_rate": 0.0, "database": url} | settings)
    database, gallery = prepare(run, chosen)
    return web(database, gallery, chosen)


@contextmanager
def served(site: FastAPI) -> Iterator[Site]:
    """The app on a free port for as long as the block lasts."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(site, **HTTP))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield Site(f"http://127.0.0.1:{listening.getsockname()[1]}", site.state.database)
        finally:
            server.should_exit = True
            thread.join()
            site.state.database.close()
