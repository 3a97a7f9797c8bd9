"""Micro batches for a device, the next one prepared while it computes."""

from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from typing import Any, Generic, TypeVar

import torch

from hive_ray.training.objectives import Batch

Item = TypeVar("Item")
_END: Any = object()


class Prefetcher(Generic[Item]):
    """The items of an iterator, each made while the one before is at work.

    An error of the iterator is raised to who asks for what it did not make.
    """

    def __init__(self, items: Iterator[Item], executor: Executor | None) -> None:
        """`executor` makes them, one at a time; without it each is made when it is asked for."""
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
        """Wait until nothing is being made. What is made stays for who asks next."""
        if self.pending:
            wait([self.pending])

    def close(self) -> None:
        """Make no more. What is being made is not waited for."""
        if self.executor:
            self.executor.shutdown(wait=False, cancel_futures=True)

    def _make(self) -> Item:
        return next(self.items, _END)  # a future cannot raise StopIteration


def prefetch_executor(device: torch.device) -> Executor | None:
    """A thread that prepares batches for a GPU; None for a CPU, of whose cores it would but take some from the step."""
    if device.type == "cpu":
        return None
    # A thread begins with the first GPU as its own, which may be another worker's.
    return ThreadPoolExecutor(1, "ahead", torch.cuda.set_device, (torch.cuda.current_device(),))


def pin_memory(device: torch.device, batch: Batch) -> Batch:
    """A batch from which a GPU copies by itself, so that the host need not wait for it."""
    return batch if device.type == "cpu" else {name: tensor.pin_memory() for name, tensor in batch.items()}


def to_device(device: torch.device, batch: Batch) -> Batch:
    """A batch on a device; pinned, it may be on its way there."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
