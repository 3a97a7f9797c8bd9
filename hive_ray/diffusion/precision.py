"""The numbers that a model calculates in where it only samples."""

import torch

from hive_ray.config import Precision

PRECISION_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def sampling_dtype(device: str | torch.device, precision: Precision = "auto") -> torch.dtype:
    """ "auto" is fp16 on a GPU; on a CPU bf16 where that has a matrix unit for it (Intel's AMX), and else fp32."""
    if precision != "auto":
        return PRECISION_DTYPES[precision]
    if torch.device(device).type != "cpu":
        return torch.float16
    return torch.bfloat16 if torch.cpu.get_capabilities().get("amx_bf16") else torch.float32
