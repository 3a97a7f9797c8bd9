"""Training workers of this machine find each other through a file that no other user can read.

PyTorch's server for that listens on all addresses without authentication.
"""

import os
import uuid
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
import torch
import torch.distributed
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend

from hive_ray.cluster.auth_token import private_folder
from hive_ray.cluster.this_machine import loopback_interface

INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""Variables that name the interface through which workers communicate."""


@dataclass
class FileRendezvous(TorchConfig):
    """A process group of workers on this machine, which find each other through a file in `private_folder`."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _FileBackend


class _FileBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        store = private_folder() / f"workers-{uuid.uuid4().hex}"
        worker_group.execute(_set_torch_distributed_env_vars)
        world = len(worker_group)
        ray.get([
            worker_group.execute_single_async(rank, _join_group, str(store), rank, world, backend_config)
            for rank in range(world)
        ])  # fmt: skip


def _join_group(store: str, rank: int, world: int, config: TorchConfig) -> None:
    """Join the process group."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # DeepSpeed requires them
    for name in INTERFACE_VARIABLES:
        os.environ.setdefault(name, loopback_interface())
    torch.distributed.init_process_group(
        config.backend,
        init_method=f"file://{store}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=config.timeout_s),
    )
