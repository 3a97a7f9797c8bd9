"""Processes with a gloo group among them, as Ray Train's workers have, without Ray."""

import os
import socket
from collections.abc import Callable
from typing import Any

import torch.distributed

from tests.fork_server import server


def in_workers(world: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """What `function(rank, world, *args)`, a function of an importable module, returns in each of `world` processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with server.Pool(world) as pool:
        calls = [(rank, world, port, function, args) for rank in range(world)]
        return pool.starmap_async(_work, calls, chunksize=1).get(timeout=300)


def _work(rank: int, world: int, port: int, function: Callable[..., Any], args: tuple) -> Any:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "DS_ACCELERATOR": "cpu"}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    try:
        return function(rank, world, *args)
    finally:
        torch.distributed.destroy_process_group()
