"""The weights at work: one editor on one device, and the line of requests that wait for it.

EditRequest -> EditQueue: those of a kind together -> denoise -> the edits of each
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from ray import serve

from hive_ray.cluster.this_machine import bind_replica_to_loopback
from hive_ray.config import Section
from hive_ray.diffusion.precision import sampling_dtype
from hive_ray.editor.model import Editor, append_suffix
from hive_ray.editor.sampling import SamplingStopped, sample
from hive_ray.images import decode, encode, size_of, to_pixels, to_tensor
from hive_ray.storage import fetch_folder

BATCH_ROWS = 8
"""Edits that are denoised together."""


class EditRequest(Section):
    """A checked request, as it goes to the model: a fitted picture and numbers."""

    image: bytes
    instruction: str
    guidance_scale: float
    image_guidance_scale: float
    num_inference_steps: int
    seeds: tuple[int, ...]
    """One an edit."""


@dataclass(eq=False)
class _Waiting:
    """A request in line; its answer is done once it is given, or once nobody waits for it any more."""

    request: EditRequest
    size: tuple[int, int]
    answer: asyncio.Future


Denoise = Callable[[list[EditRequest], Callable[[], bool]], list[list[bytes]]]


@dataclass
class EditQueue:
    """Requests in line for one model: the oldest goes next, with those of its size and step count behind it.

    One batch at a time, in a thread, so that the event loop goes on answering health checks.
    """

    denoise: Denoise
    """Requests of one size and step count, and whether to stop -> the edits of each."""
    max_rows: int = BATCH_ROWS
    line: list[_Waiting] = field(default_factory=list)
    worker: asyncio.Task | None = None

    async def edit(self, request: EditRequest) -> list[bytes]:
        """The edits of a request. Where the caller is cancelled, it leaves the line."""
        answer = asyncio.get_running_loop().create_future()
        waiting = _Waiting(request, size_of(request.image), answer)
        self.line.append(waiting)
        if self.worker is None or self.worker.done():
            self.worker = asyncio.create_task(self._work())
        return await answer  # cancelling the caller cancels the answer

    async def _work(self) -> None:
        while batch := self._next_batch():
            await self._answer(batch)

    async def _answer(self, batch: list[_Waiting]) -> None:
        requests = [one.request for one in batch]

        def nobody_waits() -> bool:
            return all(one.answer.done() for one in batch)

        try:
            edits = await asyncio.to_thread(self.denoise, requests, nobody_waits)
        except SamplingStopped:
            return  # every one of them was cancelled
        except Exception as error:
            for one in batch:
                if not one.answer.done():
                    one.answer.set_exception(error)
            return
        for one, own in zip(batch, edits, strict=True):
            if not one.answer.done():
                one.answer.set_result(own)

    def _next_batch(self) -> list[_Waiting]:
        """The oldest request and those like it, at most `max_rows` edits; none where nobody waits."""
        self.line = [one for one in self.line if not one.answer.done()]
        batch: list[_Waiting] = []
        for one in self.line:
            alike = not batch or _kind(one) == _kind(batch[0])
            rows = sum(len(other.request.seeds) for other in [*batch, one])
            if alike and (not batch or rows <= self.max_rows):
                batch.append(one)
        self.line = [one for one in self.line if one not in batch]
        return batch


def _kind(waiting: _Waiting) -> tuple:
    """What requests of one batch have in common."""
    return waiting.size, waiting.request.num_inference_steps


def denoise(editor: Editor, requests: list[EditRequest], should_stop: Callable[[], bool]) -> list[list[bytes]]:
    """Edits, as PNG, of requests of one size and step count; instructions get the suffix of the card."""
    rows = [(request, seed) for request in requests for seed in request.seeds]
    suffix = editor.card.instruction_suffix
    images = sample(
        editor,
        torch.stack([to_tensor(decode(request.image)) for request, _ in rows]),
        [append_suffix(editor.tokenizer, request.instruction, suffix) for request, _ in rows],
        guidance_scale=[request.guidance_scale for request, _ in rows],
        image_guidance_scale=[request.image_guidance_scale for request, _ in rows],
        num_inference_steps=requests[0].num_inference_steps,
        seeds=[seed for _, seed in rows],
        should_stop=should_stop,
    )
    edits = iter([encode(to_pixels(image)) for image in images])
    return [[next(edits) for _ in request.seeds] for request in requests]


@serve.deployment
class EditorModel:
    """Holds one editor on one device."""

    def __init__(self, folder: str, num_cpus: float) -> None:
        bind_replica_to_loopback()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cpu":
            torch.set_num_threads(max(1, int(num_cpus)))
        self.editor = Editor.load(fetch_folder(folder)).to(device, sampling_dtype(device))
        self.broken = ""
        self.queue = EditQueue(self._denoise)

    def _denoise(self, requests: list[EditRequest], should_stop: Callable[[], bool]) -> list[list[bytes]]:
        try:
            return denoise(self.editor, requests, should_stop)
        except RuntimeError as error:
            if "CUDA error" in str(error):  # the process cannot use its GPU any more
                self.broken = str(error)
            raise

    async def edit(self, request: EditRequest) -> list[bytes]:
        """One PNG a seed."""
        return await self.queue.edit(request)

    async def describe(self) -> dict[str, str]:
        """Where and how it runs."""
        unet = self.editor.unet
        return {"device": str(unet.device), "dtype": str(unet.dtype).removeprefix("torch.")}

    async def check_health(self) -> None:
        """Serve replaces the replica where this raises."""
        if self.broken:
            raise RuntimeError(f"the GPU failed: {self.broken}")
