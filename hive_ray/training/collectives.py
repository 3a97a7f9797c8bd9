"""Values that all ranks share, and work that they wait for together."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait

import torch
import torch.distributed
from torch import Tensor

from hive_ray.artifacts.model_store import Metrics

POLL_S = 5.0
"""Seconds between collectives while a rank still works."""


def sum_over_ranks(own: Mapping[str, float | Tensor], device: torch.device) -> Metrics:
    """Sums of measures over all ranks. All ranks pass the same names, with numbers or tensors of one number each."""
    names = sorted(own)
    sums = torch.stack([torch.as_tensor(own[name], dtype=torch.float64, device=device) for name in names])
    if torch.distributed.get_world_size() > 1:  # even for one rank, a collective costs a trip through other threads
        torch.distributed.all_reduce(sums)
    return dict(zip(names, sums.tolist(), strict=True))


def max_over_ranks(own: float, device: torch.device) -> float:
    """The greatest of the ranks' numbers."""
    greatest = torch.tensor([own], dtype=torch.float64, device=device)
    torch.distributed.all_reduce(greatest, op=torch.distributed.ReduceOp.MAX)
    return greatest.item()


def run_until_all_finish(work: Callable[[], object], device: torch.device) -> None:
    """Run each rank's `work` and return when all ranks have finished.

    The ranks meet in a collective every POLL_S, so none times out however long another rank works. An exception of
    `work` is raised on its own rank.
    """
    pool = ThreadPoolExecutor(1)
    job = pool.submit(work)
    busy = True
    try:
        while busy:
            wait([job], timeout=POLL_S)
            done = job.done()
            if done:
                job.result()
            busy = max_over_ranks(float(not done), device) > 0
    finally:
        pool.shutdown(wait=False)  # if another rank has failed, this rank does not wait for its own work
