"""Prepares the next micro batch while the device computes the current one."""

from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from typing import Any, Generic, TypeVar

import torch

from hive_ray.training.objectives import Batch

Item = TypeVar("Item")
_END: Any = object()


class Prefetcher(Generic[Item]):
    """Iterates over `items` and computes each item while the caller uses the previous one.

    An exception in `items` is raised by the `next()` that asks for the failed item.
    """

    def __init__(self, items: Iterator[Item], executor: Executor | None) -> None:
        """`executor` computes the items, one at a time. If it is None, each item is computed when it is requested."""
        self.items, self.executor = items, executor
        self.pending: Future[Item] | None = None

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        if self.executor is None:
            return next(self.items)
        item = (self.pending or self.executor.submit(self._make)).result()
        if item is _END:
            raise StopIteration
        self.pending = self.executor.submit(self._make)
        return item

    def wait_until_idle(self) -> None:
        """Wait until no item is being computed. The computed item is kept for the next `next()`."""
        if self.pending:
            wait([self.pending])

    def close(self) -> None:
        """Stop computing items, without waiting for the current one."""
        if self.executor:
            self.executor.shutdown(wait=False, cancel_futures=True)

    def _make(self) -> Item:
        return next(self.items, _END)  # a future cannot raise StopIteration


def prefetch_executor(device: torch.device) -> Executor | None:
    """A thread that prepares batches for a GPU. None for a CPU, where it would compete with the step for cores."""
    if device.type == "cpu":
        return None
    # A new thread uses GPU 0, which may belong to another worker.
    return ThreadPoolExecutor(1, "ahead", torch.cuda.set_device, (torch.cuda.current_device(),))


def pin_memory(device: torch.device, batch: Batch) -> Batch:
    """The batch in pinned memory, from which a GPU copies asynchronously; unchanged for a CPU."""
    return batch if device.type == "cpu" else {name: tensor.pin_memory() for name, tensor in batch.items()}


def to_device(device: torch.device, batch: Batch) -> Batch:
    """The batch on the device. The copy of a pinned batch may still be in progress."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
