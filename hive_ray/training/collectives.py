"""What all ranks know after each has told its own, and what they wait for together."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait

import torch
import torch.distributed
from torch import Tensor

from hive_ray.artifacts.model_store import Metrics

POLL_S = 5.0


def sum_over_ranks(own: Mapping[str, float | Tensor], device: torch.device) -> Metrics:
    """The sums of measures over all ranks, which tell the same names; numbers, or tensors of one number each."""
    names = sorted(own)
    sums = torch.stack([torch.as_tensor(own[name], dtype=torch.float64, device=device) for name in names])
    if torch.distributed.get_world_size() > 1:  # alone, it is a round through other threads in each step
        torch.distributed.all_reduce(sums)
    return dict(zip(names, sums.tolist(), strict=True))


def max_over_ranks(own: float, device: torch.device) -> float:
    """The greatest of a number over all ranks."""
    found = torch.tensor([own], dtype=torch.float64, device=device)
    torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX)
    return found.item()


def run_until_all_finish(work: Callable[[], object], device: torch.device) -> None:
    """Each rank's `work`, until all are done. Meanwhile they ask each other every POLL_S: no collective waits for so
    long that it would be given up, however long the work of one rank takes."""
    pool = ThreadPoolExecutor(1)
    job, busy = pool.submit(work), True
    try:
        while busy:
            wait([job], timeout=POLL_S)
            done = job.done()
            if done:
                job.result()
            busy = max_over_ranks(float(not done), device) > 0
    finally:
        pool.shutdown(wait=False)  # where another rank is gone, nobody waits for this one's work
